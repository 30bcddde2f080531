"""What bench/privacy.py is given by mistake: a line that says what to do, and nothing lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import privacy
from tests.sdk.tiny_release import build_release


def told(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run it; it must fail cleanly."""
    assert privacy.main([str(word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("privacy: ")
    assert "Traceback" not in error
    return error


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Of another image size and other classes than any data set, and its manifest names none."""
    return build_release(tmp_path / "tiny")


def change(release: Path, edit: Callable[[Any], Any]) -> None:
    path = release / "client" / "manifest.json"
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


def test_no_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "manifest.json" in told(capsys, tmp_path / "empty")


def test_a_manifest_of_another_version(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(release, lambda fields: fields.update(format_version=3))
    assert "format version '3'" in told(capsys, release)


def test_a_release_that_names_no_data_set(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "names no known data set" in told(capsys, release)


def test_a_data_set_of_another_size(release: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"data": {"name": "fashion-mnist", "flip": True}}
    change(release, lambda fields: fields["made_by"].update(config=config))
    assert "other classes or image sizes than fashion-mnist" in told(capsys, release, "--data", data_folder)


def test_a_result_file_that_is_none_is_refused_before_anything_is_attacked(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "privacy.json"
    out.write_text("{")
    assert "repair it or remove it" in told(capsys, release, "--out", out)
    assert out.read_text() == "{"


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_opened(
    release: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(privacy, "Victim", lambda *_: pytest.fail("a release was opened"))
    assert "torch sees 0 CUDA devices" in told(capsys, release, "--device", "cuda")
    assert "none of: cpu, cuda, cuda:N" in told(capsys, release, "--device", "gpu")


def test_one_who_stops_it_is_told_how_to_go_on(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(privacy, "Victim", stopped)
    assert privacy.main([str(release), "--out", str(tmp_path / "privacy.json")]) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "privacy.json").exists()
