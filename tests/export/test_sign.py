"""`privdfs-export sign`: keys of OpenSSL's forms, and what the SDK accepts afterwards."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from privdfs._verify import verify
from privdfs_export.cli import main
from tests.sdk.tiny_release import build_release

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
PLAIN = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
LOCKED = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build_release(tmp_path / "release")


def signs(release: Path, key: bytes, *options: str) -> int:
    path = release.parent / "key.pem"
    path.write_bytes(key)
    return main(["sign", str(release), "--key", str(path), *options])


def test_a_signed_release_is_accepted_by_its_public_key(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert signs(release, PLAIN) == 0
    assert capsys.readouterr().out.count("signed with key") == 4
    assert [found.name for found in verify(release, trust=PUBLIC)] == ["client", "server-0", "server-1", "server-2"]
    before = (release / "client" / "manifest.sig").read_bytes()
    assert signs(release, PLAIN) == 0
    assert (release / "client" / "manifest.sig").read_bytes() == before
    assert {path.name for path in (release / "server-0").iterdir()} == {"branch", "manifest.json", "manifest.sig"}


def test_one_folder_alone(release: Path) -> None:
    assert signs(release / "server-1", PLAIN) == 0
    assert len(verify(release / "server-1", trust=PUBLIC)) == 1
    assert not (release / "client" / "manifest.sig").exists()


def test_a_key_with_a_password(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = tmp_path / "word"
    word.write_text("open sesame\n")
    assert signs(release, LOCKED, "--password-file", str(word)) == 0
    assert len(verify(release, trust=PUBLIC)) == 4
    word.write_text("close sesame\n")
    assert signs(release, LOCKED, "--password-file", str(word)) == 2
    assert signs(release, LOCKED) == 2
    assert signs(release, PLAIN, "--password-file", str(word)) == 2
    assert signs(release, LOCKED, "--password-file", "open sesame") == 2, "the password in the place of its file"
    assert signs(release, LOCKED, "--password-file", "open\0sesame") == 2
    assert "sesame" not in capsys.readouterr().err


def test_what_cannot_sign(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for key in (b"", PUBLIC, other, PLAIN[:60]):
        assert signs(release, key) == 2
    assert main(["sign", str(release), "--key", str(release / "none.pem")]) == 2
    assert "openssl" in capsys.readouterr().err
    assert not list(release.glob("*/manifest.sig"))


def test_a_release_that_was_changed_is_not_signed(release: Path) -> None:
    path = release / "server-2" / "branch" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert signs(release, PLAIN) == 2
    assert not list(release.glob("*/manifest.sig"))
