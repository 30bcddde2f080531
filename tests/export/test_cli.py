"""What the commands say when they are called in ways that cannot work: one line, exit code 2, nothing written."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from privdfs_export.cli import main
from privdfs_export.serve.cli import main as serve_main


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--device", "-1", "from 0 to 1023"),
        ("--device", "1024", "from 0 to 1023"),
        ("--workspace", "0", "from 1 to 1048576"),
        ("--workspace", "-5", "from 1 to 1048576"),
        ("--workspace", str(2**64), "from 1 to 1048576"),
        ("--workspace", "1.5", "from 1 to 1048576"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], option: str, value: str, told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", option, value, "nowhere"])
    assert ended.value.code == 2
    assert f"argument {option}: expected a whole number {told}" in capsys.readouterr().err


def test_plans_are_built_by_their_own_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["system.safetensors", "--out", "release", "--engine", "tensorrt"])
    assert ended.value.code == 2
    assert "argument --engine: invalid choice: 'tensorrt'" in capsys.readouterr().err


def test_a_misspelt_command_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["verfy", "release"]) == 2
    assert capsys.readouterr().err == "privdfs-export: there is no command 'verfy'. Did you mean 'verify'?\n"
    (tmp_path / "verfy").mkdir()
    assert main(["verfy", "--out", "release"]) == 2  # a path that is there is taken for what it is
    assert "verfy is a folder. Pass the safetensors file" in capsys.readouterr().err


def test_a_place_that_is_taken_or_cannot_be_written_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the checkpoint and the data are read, which may take minutes."""
    (tmp_path / "file").write_text("")
    for out, told in (("file", "exists already"), ("file/release", "cannot write in")):
        assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / out)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert told in said


@pytest.mark.parametrize("command", ["verify", "plan", "leakage", "sign"])
@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_what_is_no_release_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, place: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    key = [] if command != "sign" else ["--key", str(tmp_path / "key.pem")]
    if key:
        assert main(["keygen", key[1]]) == 0
    assert main([command, str(tmp_path / place), *key]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"privdfs-export {command}: ")
    assert str(tmp_path / place) in said


@pytest.mark.parametrize(
    ("command", "line"),
    [(main, ["oci", "release/server-0", "--out", "image"]), (serve_main, ["release"])],
    ids=["privdfs-export", "privdfs-serve"],
)
def test_what_may_not_be_read_is_named(
    command: Callable[[list[str]], int],
    line: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Root may read everything, so that the system's refusal is made here."""

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_dir", refuse)
    monkeypatch.setattr(Path, "lstat", refuse)
    assert command(line) == 2
    said = capsys.readouterr().err
    assert "Permission denied): check its permissions and the disk" in said
    assert len(said.splitlines()) == 1
