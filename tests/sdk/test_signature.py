"""Signed bundles: who signed, and whether every byte is still theirs."""

import random
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privdfs import Bundle, BundleIntegrityError, BundleSignatureError, Client, ConfigError
from privdfs._cli import main
from privdfs._signature import check_signature
from privdfs._verify import verify
from tests.sdk.signing import KEY, OTHER, TRUST, pem, sign
from tests.thorough import count


@pytest.fixture
def signed(release_copy: Path) -> Path:
    for folder in release_copy.iterdir():
        sign(folder)
    return release_copy


def test_a_signed_bundle_opens_with_its_signers_key_in_any_form(signed: Path, tmp_path: Path) -> None:
    path = tmp_path / "key.pub.pem"
    path.write_bytes(pem(KEY))
    both = tmp_path / "keys.pub.pem"
    both.write_bytes(pem(OTHER) + pem(KEY))
    for trust in (TRUST, pem(KEY), path, str(path), [OTHER.public_key().public_bytes_raw(), path], both):
        assert Bundle.open(signed / "client", trust=trust).release == "tiny-1"
    with Client(signed / "client", [f"127.0.0.1:{i + 1}" for i in range(3)], trust=path) as client:
        assert client.bundle.release == "tiny-1"


def test_without_a_key_or_the_flag_nothing_opens(signed: Path, release: Path) -> None:
    for folder in (signed / "client", release / "client"):
        with pytest.raises(BundleSignatureError, match="allow_unsigned"):
            Bundle.open(folder)
        with pytest.raises(BundleSignatureError, match="allow_unsigned"):
            Client(folder, [f"127.0.0.1:{i + 1}" for i in range(3)])
        Bundle.open(folder, allow_unsigned=True)
        with pytest.raises(ConfigError, match="contradict"):
            Bundle.open(folder, trust=TRUST, allow_unsigned=True)
    with pytest.raises(ConfigError, match="open already"):
        Client(Bundle.open(signed / "client", trust=TRUST), ["127.0.0.1:1"] * 3, trust=TRUST)


def test_an_unsigned_bundle_or_another_signer_is_refused(signed: Path, release: Path) -> None:
    with pytest.raises(BundleSignatureError, match="is not signed"):
        Bundle.open(release / "client", trust=TRUST)
    with pytest.raises(BundleSignatureError, match="not trusted here") as caught:
        Bundle.open(signed / "client", trust=OTHER.public_key().public_bytes_raw())
    assert caught.value.key is not None
    line = (signed / "client" / "manifest.sig").read_bytes()
    sign(signed / "client", OTHER)
    forged = (signed / "client" / "manifest.sig").read_bytes()
    (signed / "client" / "manifest.sig").write_bytes(line[:25] + forged[25:])  # one's name, the other's signature
    with pytest.raises(BundleSignatureError, match="it was changed"):
        Bundle.open(signed / "client", trust=TRUST)
    (signed / "client" / "manifest.sig").unlink()
    (signed / "client" / "manifest.sig").symlink_to(signed / "server-0" / "manifest.sig")
    with pytest.raises(BundleSignatureError, match="is not signed"):
        Bundle.open(signed / "client", trust=TRUST)


def test_a_signature_of_another_manifest_does_not_fit(signed: Path, other_release: Path) -> None:
    shutil.copy(signed / "server-0" / "manifest.sig", signed / "client" / "manifest.sig")
    with pytest.raises(BundleSignatureError):
        Bundle.open(signed / "client", trust=TRUST)
    sign(signed / "client")
    shutil.copy(other_release / "client" / "manifest.json", signed / "client" / "manifest.json")
    with pytest.raises(BundleSignatureError):
        Bundle.open(signed / "client", trust=TRUST)


def test_every_changed_byte_of_manifest_and_signature_is_refused(signed: Path) -> None:
    chance = random.Random(0)  # noqa: S311 - not for secrets

    def changed(good: bytes) -> list[bytes]:
        ones = [
            good[:position] + bytes([old ^ chance.randrange(1, 256)]) + good[position + 1 :]
            for position, old in enumerate(good)
        ]
        return [*ones, good[:-1], good + b"\n", b"", b"\xef\xbb\xbf" + good]

    client = signed / "client"
    manifest = (client / "manifest.json").read_bytes()
    for data in changed(manifest):
        with pytest.raises(BundleSignatureError):
            check_signature(client, data, TRUST)
    for data in changed((client / "manifest.sig").read_bytes()):
        (client / "manifest.sig").write_bytes(data)
        with pytest.raises(BundleSignatureError):
            check_signature(client, manifest, TRUST)


def test_random_changes_of_all_files_are_refused(signed: Path) -> None:
    chance = random.Random(1)  # noqa: S311
    files = {path: path.read_bytes() for path in sorted((signed / "client").iterdir())}
    for _ in range(count(300, 10_000)):
        path = chance.choice(list(files))
        data = bytearray(files[path])
        start = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[start] ^= chance.randrange(1, 256)
        elif kind == 1:
            del data[start : start + chance.randrange(1, 50)]
        elif kind == 2:
            data[start:start] = chance.randbytes(chance.randrange(1, 50))
        else:
            data = data[:start]
        path.write_bytes(data)
        with pytest.raises((BundleSignatureError, BundleIntegrityError)):
            Bundle.open(signed / "client", trust=TRUST)
        path.write_bytes(files[path])


#: A key, and what may not be taken for another one.
BESIDE = [
    pem(KEY) + pem(X25519PrivateKey.generate()),
    pem(KEY) + b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + pem(KEY),
]


@pytest.mark.parametrize(
    "trust", [[], b"x", b"", b"-----BEGIN PUBLIC KEY-----\n", "none.pem", pem(X25519PrivateKey.generate()), *BESIDE]
)
def test_what_is_no_key(signed: Path, trust: object) -> None:
    with pytest.raises(ConfigError):
        Bundle.open(signed / "client", trust=trust)  # pyright: ignore[reportArgumentType]


def test_a_whole_release_is_verified_with_its_signatures(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key.pub.pem"
    path.write_bytes(pem(KEY))
    assert len(verify(signed, trust=TRUST)) == 4
    assert main(["verify", str(signed), "--trust", str(path)]) == 0
    assert capsys.readouterr().out.count("signed by a trusted key") == 4
    for command in ("describe", "selftest"):
        assert main([command, str(signed / "client"), "--trust", str(path)]) == 0
    assert main(["describe", str(signed / "client")]) == 0
    assert "signature    not checked (" in capsys.readouterr().out
    (signed / "server-1" / "manifest.sig").unlink()
    assert main(["verify", str(signed), "--trust", str(path)]) == 2
    assert "server-1 is not signed" in capsys.readouterr().err
    assert main(["verify", str(signed)]) == 0
    image = str(Path(__file__).parents[2] / "examples" / "images" / "bag-1.png")
    servers = [word for i in range(3) for word in ("--server", f"127.0.0.1:{i + 1}")]
    assert main(["predict", str(signed / "client"), image, *servers]) == 2
    assert "--allow-unsigned" in capsys.readouterr().err
