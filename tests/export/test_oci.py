"""`privdfs-export oci` and `sbom`: a folder of a release as an image by digest, and what it is made of."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from privdfs._verify import verify
from privdfs_export.cli import main
from privdfs_export.oci import PLATFORMS, write_layout
from privdfs_export.sealed import read_sealed
from tests.sdk.tiny_release import build_release


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build_release(tmp_path / "release")


def blob(layout: Path, descriptor: dict[str, Any]) -> bytes:
    """What a descriptor names, compared with it."""
    data = (layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()
    assert (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)) == (descriptor["digest"], descriptor["size"])
    return data


def entries(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image and the list of contents, as the layout names them."""
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    image, sbom = json.loads((layout / "index.json").read_bytes())["manifests"]
    return image, sbom


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("part", ["server-0", "client"])
def test_the_image_holds_the_folder_and_nothing_else(release: Path, tmp_path: Path, part: str) -> None:
    digest = write_layout(release / part, tmp_path / "layout")
    image, _ = entries(tmp_path / "layout")
    assert image["digest"] == digest
    index = json.loads(blob(tmp_path / "layout", image))
    assert [one["platform"]["architecture"] for one in index["manifests"]] == list(PLATFORMS)
    for one in index["manifests"]:
        manifest = json.loads(blob(tmp_path / "layout", one))
        (layer,) = manifest["layers"]
        config = json.loads(blob(tmp_path / "layout", manifest["config"]))
        assert config["architecture"] == one["platform"]["architecture"]
        assert config["rootfs"]["diff_ids"] == [layer["digest"]]
        unpacked = tmp_path / config["architecture"] / part
        with tarfile.open(fileobj=io.BytesIO(blob(tmp_path / "layout", layer))) as archive:
            assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in archive} == {(0, 0, 0, "")}
            archive.extractall(unpacked, filter="data")
        assert contents(unpacked) == contents(release / part)
        assert [found.name for found in verify(unpacked)] == [part]


def test_every_blob_is_named_and_every_name_has_its_blob(release: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    write_layout(release / "server-1", layout)
    found: set[str] = set()
    waiting = list(entries(layout))
    while waiting:
        descriptor = waiting.pop()
        found.add(descriptor["digest"].removeprefix("sha256:"))
        data = blob(layout, descriptor)
        if descriptor["mediaType"].endswith(("index.v1+json", "manifest.v1+json")):
            fields = json.loads(data)
            waiting += [*fields.get("manifests", []), *fields.get("layers", [])]
            waiting += [fields[key] for key in ("config", "subject") if key in fields]
    assert found == {path.name for path in (layout / "blobs" / "sha256").iterdir()}


def test_the_same_folder_gives_the_same_bytes_whoever_writes_it_and_when(release: Path, tmp_path: Path) -> None:
    first = write_layout(release / "server-0", tmp_path / "first")
    shutil.copytree(release / "server-0", tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o700)
        os.utime(path, (1, 1))
    # Another process: other hashes of strings, another umask.
    line = [
        sys.executable,
        "-m",
        "privdfs_export.cli",
        "oci",
        str(tmp_path / "copy"),
        "--out",
        str(tmp_path / "second"),
    ]
    told = subprocess.run(line, check=True, capture_output=True, text=True, umask=0o077).stdout
    assert told.strip() == first
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert write_layout(release / "server-1", tmp_path / "other") != first


def test_a_changed_file_is_refused_and_leaves_nothing(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = next((release / "server-0").rglob("model.onnx"))
    graph.write_bytes(graph.read_bytes() + b"\0")
    assert main(["oci", str(release / "server-0"), "--out", str(tmp_path / "layout")]) == 2
    assert "model.onnx" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_whole_release_is_refused(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["oci", str(release), "--out", str(tmp_path / "layout")]) == 2
    assert "each party gets its own folder alone" in capsys.readouterr().err


def test_a_layout_is_never_overwritten(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "layout").mkdir()
    assert main(["oci", str(release / "server-0"), "--out", str(tmp_path / "layout")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert not list((tmp_path / "layout").iterdir())


def test_the_list_of_contents_refers_to_the_image(release: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    write_layout(release / "server-0", layout)
    image, entry = entries(layout)
    manifest = json.loads(blob(layout, entry))
    assert manifest["subject"]["digest"] == image["digest"]
    assert manifest["artifactType"] == "application/vnd.cyclonedx+json"
    document = blob(layout, manifest["layers"][0])
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.decode()) is None
    files = {one["name"]: one["hashes"][0]["content"] for one in json.loads(document)["components"]}
    held = contents(release / "server-0")
    assert files == {name: hashlib.sha256(data).hexdigest() for name, data in held.items()}


def test_a_folder_is_listed_by_the_command(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sbom", str(release / "client")]) == 0
    printed = capsys.readouterr().out
    assert main(["sbom", str(release / "client"), "--out", str(tmp_path / "sbom.json")]) == 0
    assert (tmp_path / "sbom.json").read_text() == printed
    root = json.loads(printed)["metadata"]["component"]
    assert (root["name"], root["version"]) == ("client", read_sealed(release / "client").release)


def test_what_is_no_wheel_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "not.whl").write_bytes(b"no zip")
    assert main(["sbom", str(tmp_path / "not.whl")]) == 2
    assert "cannot be read as a wheel" in capsys.readouterr().err
