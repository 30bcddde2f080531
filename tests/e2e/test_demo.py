"""`make demo` as a person runs it, on real tritonservers and tiny trained releases."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.report import share_cells
from privdfs import Client
from tests.e2e.processes import descendants, proxies, wait_until_gone

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo.py"
IMAGES = ROOT / "examples" / "images"
LABELS: dict[str, str] = json.loads((IMAGES / "labels.json").read_text())


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(DEMO), *map(str, arguments)]


def run(line: list[str], columns: int = 120, **environment: str) -> "subprocess.CompletedProcess[str]":
    settings = {**os.environ, "COLUMNS": str(columns), **environment}
    return subprocess.run(line, capture_output=True, text=True, timeout=90, check=False, env=settings)


def line_of(output: str, stem: str) -> list[str]:
    (found,) = [line for line in output.splitlines() if line.startswith(f"{stem} ")]
    return re.split(r"\s{2,}", found.strip())


def pictures(page: str) -> list[Image.Image]:
    encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


@pytest.mark.parametrize("servers", [3, 5])
def test_demo(servers: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    release: Path = request.getfixturevalue("trained_release" if servers == 3 else "trained_release_of_five")
    done = run(command(release, "--out", tmp_path / "report"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""

    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    right = 0
    with Client.local(release) as client:
        for name, label in LABELS.items():
            expected = client.predict(IMAGES / name)
            right += expected.label == label
            stem, true, predicted, confidence, answered, *times, sent = line_of(done.stdout, Path(name).stem)
            assert (stem, true, predicted, answered) == (Path(name).stem, label, expected.label, "all")
            assert confidence == f"{expected.probability:.1%}"
            assert sent == f"{servers}x12"
            decode, encode, slowest, fusion, total = map(float, times)
            assert decode + encode + slowest + fusion <= total + 0.3  # each is rounded to 0.1
            for share in client.encode(IMAGES / name):
                assert f'title="{" ".join(map(str, share.tolist()))}"' in page
    assert f"{right} of 20 right" in done.stdout
    assert f"{servers * 12} bytes up for each image" in done.stdout
    assert str(tmp_path / "report" / "report.html") in done.stdout
    check_report(tmp_path / "report", servers)


def check_report(folder: Path, servers: int) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)|https?:|@import|url\(", page), "the page needs another file"
    assert "proves nothing about privacy" in page
    assert "12 int8 values of 5 levels (12 bytes on the wire, at most 27.9 bits" in page
    found = pictures(page)
    assert len(found) == len(LABELS) * (1 + servers)
    for name, picture in zip(LABELS, found[:: 1 + servers], strict=True):
        with Image.open(IMAGES / name) as shipped:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(shipped))
    with Image.open(folder / "report.png") as drawn:
        assert drawn.width > 1000
        assert len(drawn.convert("RGB").getcolors(1 << 20) or []) > 200


def test_the_table_fits_a_narrow_terminal(trained_release: Path, tmp_path: Path) -> None:
    done = run(command(trained_release, trained_release, "--out", tmp_path), columns=80)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.split(" ")[0] in {Path(name).stem for name in LABELS}]
    assert len(rows) == 40
    assert all(len(row.rstrip()) <= 80 and "…" not in row and row.rstrip().endswith("3x12") for row in rows)
    name = Client.local(trained_release).bundle.release.rpartition("-")[0]
    compared = [line.split() for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
    assert [(row[1], row[6:]) for row in compared] == [("masked", ["36", "120", "1", "little;", "the", "class"])] * 2
    assert "\n\n\n" not in done.stdout


@pytest.mark.usefixtures("_hangup_counts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_demo_and_servers(trained_release: Path, tmp_path: Path, number: signal.Signals) -> None:
    # So many that the demo cannot have ended by itself before the signal comes, however slow this process is.
    line = command(*[trained_release] * 50, "--out", tmp_path / "report")
    settings = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        assert demo.stdout.readline().startswith("Release tiny-3-")
        below = descendants(demo.pid)
        assert below
        demo.send_signal(number)
        assert demo.wait(30) == 130
        assert demo.stderr.read() == "demo: stopped; the servers have ended\n"
    assert wait_until_gone(below, 2) == set()
    assert list(tmp_path.iterdir()) == []


def test_no_proxy_stands_between_the_demo_and_its_servers(trained_release: Path, tmp_path: Path) -> None:
    done = run(command(trained_release, "--out", tmp_path / "report"), 120, **proxies(), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_missing_release_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    done = run(command(tmp_path / "nowhere", "--out", tmp_path / "report"))
    assert done.returncode == 2
    assert done.stderr.startswith("demo: there is no manifest.json in ")
    assert not (tmp_path / "report").exists()


def test_a_tritonserver_that_does_not_start_is_an_error(trained_release: Path, tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\necho out of order; exit 3\n")
    program.chmod(0o755)
    done = run(command(trained_release, "--out", tmp_path / "report"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert "out of order" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report").exists()


def test_a_report_that_cannot_be_written_is_an_error(trained_release: Path, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file where the folder should be")
    done = run(command(trained_release, "--out", tmp_path / "report"))
    assert done.returncode == 2
    assert "report" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_environment_it_names_the_command_that_makes_it() -> None:
    done = run([sys.executable, "-I", "-S", str(DEMO)])
    assert done.returncode == 2
    assert "make demo" in done.stderr


@pytest.mark.parametrize(
    ("length", "shape"), [(1, (1, 1)), (12, (1, 12)), (16, (1, 16)), (17, (2, 16)), (300, (12, 25))]
)
def test_every_value_of_a_share_is_one_cell(length: int, shape: tuple[int, int]) -> None:
    share = np.random.default_rng(length).integers(-2, 3, length).astype(np.int8)
    cells = share_cells(share, 5)
    assert cells.shape == (*shape, 4)
    drawn = cells.reshape(-1, 4)
    assert (drawn[:length, 3] == 255).all()
    assert (drawn[length:, 3] == 0).all()
    colours = {tuple(colour) for colour in drawn[:length]}
    assert len(colours) == len(set(share.tolist()))
    for value in set(share.tolist()):
        assert len({tuple(colour) for colour in drawn[:length][share == value]}) == 1
