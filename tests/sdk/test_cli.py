import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privdfs import __version__
from privdfs._cli import main
from privdfs.testing import FakeServer, Fault


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(1)
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def options(endpoints: list[str]) -> list[str]:
    return ["--allow-unsigned", *(word for endpoint in endpoints for word in ("--server", endpoint))]


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail cleanly; its line on standard error."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("privdfs: ")
    return captured.err


def test_predict_prints_a_line_per_image(
    release: Path, endpoints: list[str], pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(release / "client"), *options(endpoints), *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, path in zip(lines, pictures, strict=True):
        assert line.startswith(path)
        assert re.search(r"\d+\.\d+%  3/3 servers +\d+\.\d ms  18 bytes up$", line)


def test_the_file_that_is_not_an_image_is_named(
    release: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    assert str(text) in failed(capsys, "predict", "--local", str(release), pictures[0], str(text))


def test_predict_in_json_is_the_same_in_local_mode(
    release: Path, endpoints: list[str], pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(release / "client"), *pictures, *options(endpoints), "--json"]) == 0
    remote = json.loads(capsys.readouterr().out)
    assert main(["predict", "--local", str(release), *pictures, "--json"]) == 0
    local = json.loads(capsys.readouterr().out)
    assert remote["release"] == local["release"] == "tiny-1"
    for one, other, path in zip(remote["results"], local["results"], pictures, strict=True):
        assert one["image"] == path
        assert one["answered"] == [True, True, True]
        assert one["bytes_up"] == [5, 6, 7]
        assert one["timings"]["total_ms"] > 0
        assert one.pop("timings") != other.pop("timings")
        assert one == other


def test_predict_with_a_server_missing(
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fakes[0].fault = Fault(status="UNAVAILABLE")
    line = failed(capsys, "predict", str(release / "client"), *options(endpoints), *pictures)
    assert "server 0: " in line
    assert main(["predict", str(release / "client"), *options(endpoints), "--min-answers", "2", pictures[0]]) == 0
    assert "2/3 servers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "CLIENT", "none.png", "SERVERS"], "no image file"),
        (["predict", "CLIENT", "SERVERS"], "no image was given"),
        (["predict", "CLIENT", "PICTURE", "--allow-unsigned"], "the release has 3 servers, 0 were given"),
        (["predict", "CLIENT", "PICTURE", "--server", "127.0.0.1:1,127.0.0.1:1"], "twice"),
        (["predict", "CLIENT", "PICTURE", "--server", "a.example:1"], "TLS"),
        (["predict", "CLIENT", "PICTURE", "SERVERS", "--timeout", "0"], "timeout"),
        (["predict", "CLIENT", "PICTURE", "--server", "a.example:1", "--cert", "c.pem"], "mutual TLS needs both"),
        (["predict", "--local", "RELEASE", "PICTURE", "SERVERS"], "drop one"),
        (["predict", "CLIENT", "PICTURE"], "allow_unsigned"),
        (["predict", "none", "PICTURE", "SERVERS"], "manifest.json"),
        (["describe", "RELEASE"], "client folder"),
        (["selftest", "none"], "manifest.json"),
        (["verify", "none"], "manifest.json"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    release: Path,
    endpoints: list[str],
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    words: list[str] = []
    for argument in arguments:
        known = {"CLIENT": [str(release / "client")], "RELEASE": [str(release)], "PICTURE": pictures[:1]}
        words += options(endpoints) if argument == "SERVERS" else known.get(argument, [argument])
    assert message in failed(capsys, *words)


def test_describe(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", str(release / "client")]) == 0
    assert "release      tiny-1" in capsys.readouterr().out
    assert main(["describe", str(release / "client"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["release"] == "tiny-1"


def test_selftest(release: Path, release_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", str(release / "client")]) == 0
    assert "ok: 6 golden examples" in capsys.readouterr().out
    assert main(["selftest", str(release / "client"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["selftest"]["images"] == 6
    (release_copy / "client" / "fusion.onnx").write_bytes(b"")
    assert "fusion.onnx" in failed(capsys, "selftest", str(release_copy / "client"))


@pytest.mark.parametrize("folder", [".", "client", "server-1"])
def test_verify_passes_on_what_was_exported(release: Path, capsys: pytest.CaptureFixture[str], folder: str) -> None:
    assert main(["verify", str(release / folder)]) == 0
    names = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()]
    expected = ["client", "server-0", "server-1", "server-2"] if folder == "." else [folder]
    assert names == [f"ok: {name}" for name in expected]
    assert main(["verify", str(release / folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["release"] == "tiny-1"


def test_verify_checks_the_baseline_of_a_release(
    release_copy: Path, other_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(release_copy / "server-0", release_copy / "baseline")
    assert main(["verify", str(release_copy)]) == 0
    assert "ok: baseline" in capsys.readouterr().out
    shutil.rmtree(release_copy / "baseline")
    shutil.copytree(other_release / "server-0", release_copy / "baseline")
    assert "baseline is of release tiny-2" in failed(capsys, "verify", str(release_copy))


def test_verify_finds_what_does_not_belong(
    release_copy: Path, other_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = release_copy / "server-1" / "branch" / "2" / "model.onnx"
    extra.parent.mkdir()
    extra.write_bytes(b"")
    assert "branch/2/model.onnx is not listed" in failed(capsys, "verify", str(release_copy))
    shutil.rmtree(extra.parent)
    model = release_copy / "server-1" / "branch" / "1" / "model.onnx"
    good = model.read_bytes()
    model.write_bytes(good + b"\0")
    assert "branch/1/model.onnx is not the file" in failed(capsys, "verify", str(release_copy))
    model.write_bytes(good)
    shutil.copytree(other_release / "server-0", release_copy / "server-3")
    assert "server-3 is no server" in failed(capsys, "verify", str(release_copy))
    shutil.rmtree(release_copy / "server-3")
    shutil.rmtree(release_copy / "server-1")
    assert "server-1" in failed(capsys, "verify", str(release_copy))
    shutil.copytree(other_release / "server-1", release_copy / "server-1")
    assert "server-1 is of release tiny-2" in failed(capsys, "verify", str(release_copy))


def test_the_command_as_a_process() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "privdfs._cli", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == f"privdfs {__version__}\n"
    ran = subprocess.run([sys.executable, "-m", "privdfs._cli", "fly"], capture_output=True, check=False, timeout=60)
    assert ran.returncode == 2
