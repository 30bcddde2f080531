"""The built wheel, alone in a clean environment: what an edge device gets."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from privdfs_export.sbom import wheel_sbom

ROOT = Path(__file__).parents[2]
MAX_BYTES = (
    200_000  # the client has wires of its own, gRPC and HTTP, in the place of tritonclient and grpcio (megabytes)
)
MAX_DEPENDENCIES = 6  # HTTP needs none of its own, and what gRPC needs is an extra
HEAVY = ["torch", "onnx", "onnxscript", "rich", "matplotlib", "privdfs_training", "privdfs_export"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(line, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel and what it depends on, without any extra."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    found = folder / "bin" / "python"
    install = [str(found), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return found


def run(python: Path, code: str) -> str:
    line = [str(python), "-I", "-W", "error", "-c", code]
    return subprocess.run(line, check=True, capture_output=True, text=True, cwd="/").stdout


def test_it_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_BYTES


def test_it_holds_the_sdk_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"privdfs"}
    assert "privdfs/py.typed" in names
    assert {Path(name).name for name in names if ".dist-info/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert [name for name in names if name.endswith("entry_points.txt")]
    assert not [name for name in names if ".data/" in name]


def test_it_needs_few_libraries_and_no_heavy_one(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert 0 < len(needed) <= MAX_DEPENDENCIES
    assert not [line for line in needed if line.startswith(tuple(HEAVY)) and not line.startswith("onnxruntime")]


@pytest.mark.slow
def test_the_same_files_give_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Built again from a copy with other dates and permissions, by a process with another umask, at another time."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "sdk", copy / "sdk", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "NOTICE", "CHANGELOG.md", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    for path in copy.rglob("*"):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o700 if path.is_dir() else 0o600)
    epoch = {"SOURCE_DATE_EPOCH": "1700000000"}

    def built(folder: Path, out: str, umask: int, environment: dict[str, str]) -> bytes:
        line = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(tmp_path / out),
            str(folder),
        ]
        subprocess.run(line, check=True, capture_output=True, umask=umask, env=os.environ | environment)
        (found,) = (tmp_path / out).iterdir()
        return found.read_bytes()

    assert built(copy, "plain", 0o077, {}) == wheel.read_bytes()
    dated = built(ROOT, "dated", 0o022, epoch)
    assert dated != wheel.read_bytes()
    assert built(copy, "again", 0o077, epoch) == dated


@pytest.mark.slow
def test_what_it_is_made_of_is_listed(wheel: Path, python: Path, tmp_path: Path) -> None:
    document = wheel_sbom(wheel)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document.decode()) is None
    found = json.loads(document)
    assert found["metadata"]["component"]["hashes"][0]["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    listed = {one["name"]: one["version"] for one in found["components"]}
    installed = json.loads(
        run(
            python,
            "import importlib.metadata as m, json;"
            "print(json.dumps({d.metadata['Name'].lower().replace('_', '-'): d.version for d in m.distributions()}))",
        )
    )
    for name in ("pip", "setuptools", "privdfs"):
        installed.pop(name, None)
    assert listed == installed, "what the wheel brings with it into a clean environment, in the same versions"
    needs = {one["ref"]: one.get("dependsOn", []) for one in found["dependencies"]}
    assert {"numpy", "onnxruntime"} <= set(needs["privdfs"])
    assert wheel_sbom(Path(shutil.copy(wheel, tmp_path))) == document


@pytest.mark.slow
def test_it_imports_alone(python: Path) -> None:
    code = """
import importlib.util, json, sys, privdfs
print(json.dumps({"loaded": sorted(sys.modules), "torch": importlib.util.find_spec("torch") is not None}))
"""
    found = json.loads(run(python, code))
    assert not found["torch"]
    assert not set(found["loaded"]) & {*HEAVY, "tritonclient", "grpc", "h2", "google.protobuf"}


@pytest.mark.slow
def test_the_public_names_are_all_there(python: Path) -> None:
    run(python, "import privdfs; [getattr(privdfs, name) for name in privdfs.__all__]")


@pytest.mark.slow
def test_its_command_starts(python: Path) -> None:
    line = [str(python.with_name("privdfs")), "--help"]
    assert "privdfs" in subprocess.run(line, check=True, capture_output=True, text=True, cwd="/").stdout


@pytest.mark.parametrize("command", ["privdfs", "privdfs-train", "privdfs-export", "privdfs-serve"])
def test_a_checkout_has_all_commands(command: str) -> None:
    line = [str(Path(sys.executable).with_name(command)), "--help"]
    assert command in subprocess.run(line, check=True, capture_output=True, text=True).stdout
