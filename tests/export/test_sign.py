"""`privdfs-export sign`: keys of OpenSSL's forms, and what the SDK accepts afterwards."""

import re
import signal
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
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
    assert "privdfs-export keygen" in capsys.readouterr().err
    assert not list(release.glob("*/manifest.sig"))


def test_advice_about_a_key_of_another_kind_cannot_harm_it(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever does in the folder of the key what the message says, with the name of the key, keeps the key."""
    other = generate_rsa_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert signs(release, other) == 2
    said = capsys.readouterr().err
    assert not re.search(r"openssl|-out|>|\brm\b", said)
    (command,) = re.findall(r"`privdfs-export (\w+)`", said)
    monkeypatch.chdir(tmp_path)
    assert main([command, "key.pem"]) == 2
    assert "key.pem exists already, and a key is never overwritten" in capsys.readouterr().err
    assert (tmp_path / "key.pem").read_bytes() == other
    assert not (tmp_path / "key.pub.pem").exists()


def test_keygen_makes_a_pair_that_signs_and_is_trusted(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "release-key.pem"
    assert main(["keygen", str(key)]) == 0
    said = capsys.readouterr().out
    public = tmp_path / "release-key.pub.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    assert str(public) in said
    assert f"next: privdfs-export sign RELEASE --key {key}" in said
    assert b"PRIVATE" not in public.read_bytes()
    assert main(["sign", str(release), "--key", str(key)]) == 0
    (name,) = set(re.findall(r"signed with key (\w+)", capsys.readouterr().out))
    assert f"private key {name}" in said
    assert len(verify(release, trust=public)) == 4


def test_keygen_with_a_password(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, word = tmp_path / "locked", tmp_path / "word"
    word.write_text("\n")
    assert main(["keygen", str(key), "--password-file", str(word)]) == 2
    assert not key.exists()
    word.write_text("open sesame\n")
    assert main(["keygen", str(key), "--password-file", str(word)]) == 0
    assert main(["sign", str(release), "--key", str(key)]) == 2
    assert main(["sign", str(release), "--key", str(key), "--password-file", str(word)]) == 0
    assert len(verify(release, trust=tmp_path / "locked.pub.pem")) == 4
    assert "sesame" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["key.pem", "key.pub.pem"])
def test_keygen_overwrites_neither_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (tmp_path / name).write_text("of somebody")
    assert main(["keygen", str(tmp_path / "key.pem")]) == 2
    assert f"{name} exists already" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "of somebody")]


def test_keygen_in_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen", str(tmp_path / "no" / "key.pem")]) == 2
    assert "No such file or directory. Check the folder" in capsys.readouterr().err


def test_an_interrupted_command_ends_with_130_and_leaves_no_partial_file(
    release: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Path, "chmod", interrupt)
    assert signs(release, PLAIN) == 130
    assert capsys.readouterr().err == "privdfs-export sign: stopped before it was done\n"
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list(release.glob("*/.manifest-*"))


def test_a_release_that_was_changed_is_not_signed(release: Path) -> None:
    path = release / "server-2" / "branch" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    assert signs(release, PLAIN) == 2
    assert not list(release.glob("*/manifest.sig"))
