import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privdfs import BundleError, BundleFormatError, BundleIntegrityError, BundleVersionError
from privdfs._files import read_manifest_bytes, read_verified, refuse_unlisted, sha256_file, verify_files
from privdfs._manifest import decode_client_manifest, decode_server_manifest, encode_manifest, read_client_manifest
from privdfs.coding import MAX_SERVERS, PRIMES
from tests.sdk.coded_folders import TWO_ROUNDS, a_round, coded_manifest


@pytest.fixture
def client_json(release: Path) -> bytes:
    return (release / "client" / "manifest.json").read_bytes()


@pytest.fixture
def server_json(release: Path) -> bytes:
    return (release / "server-1" / "manifest.json").read_bytes()


def edited(data: bytes, edit: Callable[[dict[str, Any]], Any]) -> bytes:
    fields = json.loads(data)
    edit(fields)
    return json.dumps(fields).encode()


def test_both_manifests_come_back_byte_for_byte(client_json: bytes, server_json: bytes) -> None:
    assert encode_manifest(decode_client_manifest(client_json)) == client_json
    assert encode_manifest(decode_server_manifest(server_json)) == server_json
    assert client_json.endswith(b"}\n")
    assert b'\n  "release": "tiny-1"' in client_json


@pytest.mark.parametrize("version", [0, 3, "1", True, None, 1.0, [1]])
def test_another_format_version_is_refused_before_anything_else(client_json: bytes, version: Any) -> None:
    def edit(fields: dict[str, Any]) -> None:
        fields["format_version"] = version
        fields["from_the_future"] = 1

    with pytest.raises(BundleVersionError, match="format version") as caught:
        decode_client_manifest(edited(client_json, edit))
    assert caught.value.supported == 2


def test_a_manifest_without_a_version_is_refused_as_such(client_json: bytes) -> None:
    with pytest.raises(BundleVersionError):
        decode_client_manifest(edited(client_json, lambda fields: fields.pop("format_version")))


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.update(extra=1),
        lambda m: m.pop("release"),
        lambda m: m.update(release="a/b"),
        lambda m: m.update(classes=["one"]),
        lambda m: m.update(classes=["a", "a", "b"]),
        lambda m: m.update(classes="ab"),
        lambda m: m.update(servers=[]),
        lambda m: m.update(max_batch=0),
        lambda m: m.update(max_batch="4"),
        lambda m: m["image"].update(channels=4),
        lambda m: m["image"].update(hieght=4),
        lambda m: m["servers"][0].update(levels=4),
        lambda m: m["servers"][0].update(scale=0),
        lambda m: m["servers"][0].update(share_length=0),
        lambda m: m["files"].pop("fusion.onnx"),
        lambda m: m["files"].update({"encoder.onnx": "123"}),
        lambda m: m["accuracy"].update(fused=1.5),
        lambda m: m["accuracy"].update(branches=[0.5]),
        lambda m: m["accuracy"]["subsets"][0].update(answered=[3]),
        lambda m: m["accuracy"]["subsets"][0].update(answered=[0, 0]),
        lambda m: m["accuracy"]["malicious"][0].update(liars=2),
        lambda m: m["accuracy"]["malicious"][0].pop("flipped"),
        lambda m: m["leakage"][0].update(coalition=[0, 7]),
        lambda m: m["leakage"][0].update(psnr=None),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(client_json: bytes, edit: Callable[[Any], Any]) -> None:
    with pytest.raises(BundleFormatError):
        decode_client_manifest(edited(client_json, edit))


@pytest.mark.parametrize("prime", [3, 5, 13])
def test_primes_that_leave_a_share_unprotected_are_refused(prime: int) -> None:
    """The server whose place is the prime would get the values themselves, modulo the prime."""
    assert prime <= MAX_SERVERS
    data = encode_manifest(coded_manifest())
    assert read_client_manifest(data) == coded_manifest()
    with pytest.raises(BundleFormatError, match="moduli"):
        read_client_manifest(edited(data, lambda m: m["rounds"][0]["moduli"].append(prime)))


def test_more_primes_than_the_arithmetic_of_clients_is_exact_for_are_refused() -> None:
    data = encode_manifest(coded_manifest(rounds=(a_round(moduli=PRIMES), *TWO_ROUNDS[1:])))
    assert read_client_manifest(data)
    one_more = edited(data, lambda m: m["rounds"][0]["moduli"].append(211))
    with pytest.raises(BundleFormatError, match="moduli"):
        read_client_manifest(one_more)


@pytest.mark.parametrize(
    "edit",
    [
        lambda rounds: rounds[0].update(levels=14),
        lambda rounds: rounds[0].update(moduli=[241, 241, 239]),
        lambda rounds: rounds[0].update(moduli=[240, 239, 233]),
        lambda rounds: rounds[0].update(bound=2**40),
        lambda rounds: rounds[0].update(values=21),
        lambda rounds: rounds[0].update(added=1),
        lambda rounds: rounds[0].update(outputs=9),
        lambda rounds: rounds[1].update(values=7),
        lambda rounds: rounds[1].update(added=3),
        lambda rounds: rounds[1].update(outputs=5),
    ],
)
def test_rounds_that_contradict_each_other_are_refused(edit: Callable[[Any], Any]) -> None:
    with pytest.raises(BundleFormatError, match="round"):
        read_client_manifest(edited(encode_manifest(coded_manifest()), lambda m: edit(m["rounds"])))


def test_a_manifest_from_before_liars_were_measured_is_read(client_json: bytes) -> None:
    older = decode_client_manifest(edited(client_json, lambda m: m["accuracy"].pop("malicious")))
    assert older.accuracy.malicious == ()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        decode_client_manifest(data)


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_no_change_of_one_byte_gives_anything_but_a_manifest_or_a_typed_error(position: int, byte: int) -> None:
    data = bytearray(SERVER_EXAMPLE)
    data[position % len(data)] = byte
    try:
        manifest = decode_server_manifest(bytes(data))
    except BundleError:
        return
    assert decode_server_manifest(encode_manifest(manifest)) == manifest


SERVER_EXAMPLE = json.dumps(
    {
        "format_version": 1,
        "release": "r",
        "server": 0,
        "share_length": 3,
        "scale": 0.5,
        "classes": 2,
        "engine": "python",
        "files": {"branch/1/model.onnx": "0" * 64},
        "made_by": {"command": "c", "commit": "c", "date": "d", "seed": 0, "config": {}, "versions": {}},
    }
).encode()


def test_what_could_not_be_read_back_is_not_written(client_json: bytes) -> None:
    manifest = decode_client_manifest(client_json)
    broken = msgspec.structs.replace(manifest, accuracy=msgspec.structs.replace(manifest.accuracy, fused=float("nan")))
    with pytest.raises(BundleFormatError):
        encode_manifest(broken)


@pytest.fixture
def listed(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"alpha")
    (folder / "sub" / "b.bin").write_bytes(b"beta")
    (folder / "manifest.json").write_bytes(b"{}")
    return folder, {name: sha256_file(folder / name) for name in ("a.bin", "sub/b.bin")}


def test_an_untouched_folder_passes(listed: tuple[Path, dict[str, str]]) -> None:
    folder, files = listed
    verify_files(folder, files)
    refuse_unlisted(folder, files)
    assert read_verified(folder, files) == {"a.bin": b"alpha", "sub/b.bin": b"beta"}


@pytest.mark.parametrize("check", [verify_files, read_verified])
def test_one_changed_byte_is_found(listed: tuple[Path, dict[str, str]], check: Callable[..., Any]) -> None:
    folder, files = listed
    (folder / "sub" / "b.bin").write_bytes(b"betA")
    with pytest.raises(BundleIntegrityError) as caught:
        check(folder, files)
    error = caught.value
    assert error.file == "sub/b.bin"
    assert error.expected == files["sub/b.bin"]
    assert error.actual == sha256_file(folder / "sub" / "b.bin")
    assert str(error.expected) in str(error)
    assert str(error.actual) in str(error)


@pytest.mark.parametrize("check", [verify_files, read_verified, refuse_unlisted])
def test_what_may_not_be_read_is_named(
    listed: tuple[Path, dict[str, str]], check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so that the system's refusal is made here."""
    folder, files = listed

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    for name in ("open", "read_bytes", "iterdir"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(BundleIntegrityError, match=r"cannot be read .Permission denied.: check its permissions"):
        check(folder, files)


def test_a_manifest_in_a_folder_that_may_not_be_entered(
    listed: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    folder, _ = listed
    (folder / "manifest.json").unlink()
    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(BundleIntegrityError, match=r"manifest\.json' cannot be read"):
        read_manifest_bytes(folder)


def test_a_file_is_no_folder(listed: tuple[Path, dict[str, str]]) -> None:
    folder, _ = listed
    with pytest.raises(BundleIntegrityError, match=r"a\.bin' is a file: give the folder"):
        read_manifest_bytes(folder / "a.bin")


@pytest.mark.parametrize("check", [verify_files, read_verified])
def test_a_missing_file_is_found(listed: tuple[Path, dict[str, str]], check: Callable[..., Any]) -> None:
    folder, files = listed
    (folder / "a.bin").unlink()
    with pytest.raises(BundleIntegrityError, match=r"a\.bin is missing"):
        check(folder, files)


@pytest.mark.parametrize("check", [verify_files, read_verified])
@pytest.mark.parametrize(
    "name", ["../a.bin", "/etc/hostname", "sub/../a.bin", "./a.bin", "", "a\\b", "C:a", "manifest.json"]
)
def test_paths_that_leave_the_folder_are_refused(
    listed: tuple[Path, dict[str, str]], check: Callable[..., Any], name: str
) -> None:
    folder, files = listed
    with pytest.raises(BundleIntegrityError, match="not a plain path"):
        check(folder, files | {name: "0" * 64})


@pytest.mark.parametrize("check", [verify_files, read_verified])
def test_symbolic_links_are_refused_even_to_the_right_bytes(
    listed: tuple[Path, dict[str, str]], check: Callable[..., Any], tmp_path: Path
) -> None:
    folder, files = listed
    (tmp_path / "elsewhere").write_bytes(b"alpha")
    (folder / "a.bin").unlink()
    (folder / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleIntegrityError, match="symbolic link"):
        check(folder, files)


def test_a_linked_folder_is_refused(listed: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, files = listed
    (folder / "sub").rename(tmp_path / "moved")
    (folder / "sub").symlink_to(tmp_path / "moved")
    with pytest.raises(BundleIntegrityError, match="symbolic link"):
        verify_files(folder, files)


@pytest.mark.parametrize("name", ["2/model.onnx", "sub/extra", ".hidden"])
def test_added_files_are_found(listed: tuple[Path, dict[str, str]], name: str) -> None:
    folder, files = listed
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    verify_files(folder, files)
    with pytest.raises(BundleIntegrityError, match="not listed"):
        refuse_unlisted(folder, files)


def test_an_empty_folder_is_found(listed: tuple[Path, dict[str, str]]) -> None:
    """Triton does not start on one: a disk's lost+found, or a version without a model."""
    folder, files = listed
    (folder / "sub" / "2").mkdir()
    with pytest.raises(BundleIntegrityError, match="sub/2 is not listed"):
        refuse_unlisted(folder, files)
