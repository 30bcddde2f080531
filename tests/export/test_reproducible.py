"""The same inputs give the same release, byte for byte: so its digest says what it is, whoever exported it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from privdfs_export.oci import write_layout
from privdfs_training import provenance
from privdfs_training.errors import TrainingError
from tests.coded_release import build_coded_release


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def _a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@pytest.mark.slow
def test_an_export_is_repeated(tmp_path: Path, trained_release: Path, data_folder: Path) -> None:
    """Two processes with other hashes of strings and other file permissions, in two folders, at two times."""
    made = []
    for name, seed, umask in (("a", "1", 0o022), ("b", "2", 0o077)):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(trained_release.parent / "run" / "system.safetensors", folder)
        line = [sys.executable, "-m", "privdfs_export.cli", "system.safetensors", "--out", "release"]
        line += ["--data", str(data_folder)]
        set_so = {"SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        subprocess.run(line, cwd=folder, env=os.environ | set_so, umask=umask, check=True, capture_output=True)
        made.append(folder / "release")
    assert contents(made[0]) == contents(made[1])
    digests = [write_layout(one / "server-0", one.parent / "layout") for one in made]
    assert digests[0] == digests[1]


@pytest.mark.usefixtures("_a_date")
def test_a_coded_release_is_repeated(tmp_path: Path) -> None:
    made = [build_coded_release(tmp_path / name) for name in ("a", "b")]
    assert contents(made[0]) == contents(made[1])


@pytest.mark.usefixtures("_a_date")
def test_the_date_can_be_set() -> None:
    assert provenance.today() == "2023-11-14"


def test_a_date_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    with pytest.raises(TrainingError, match="unset it"):
        provenance.today()
