"""The example app, as a process: a store, a key, servers, pictures that come and some that are none."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privdfs import BundleStore
from privdfs.testing import FakeServer, Fault
from tests.sdk.signing import KEY, TRUST, pem, sign

SCRIPT = Path(__file__).parents[2] / "examples" / "watch_folder.py"


def put(folder: Path, name: str, seed: int) -> None:
    """A picture that was written a while ago."""
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    taken = time.time() - 60 + seed
    os.utime(folder / name, (taken, taken))


def watch(*arguments: object) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_pictures_are_classified_once_and_tried_again_when_servers_fail(
    release_copy: Path, fakes: list[FakeServer], tmp_path: Path
) -> None:
    sign(release_copy / "client")
    BundleStore(tmp_path / "store", trust=TRUST).install(release_copy / "client")
    (tmp_path / "key.pem").write_bytes(pem(KEY))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    put(pictures, "a.png", 1)
    (pictures / "b.jpg").write_bytes(b"no picture")
    os.utime(pictures / "b.jpg", (1, 1))
    (pictures / "notes.txt").write_text("not looked at")
    servers = [word for fake in fakes for word in ("--server", fake.endpoint)]
    line = [pictures, "--store", tmp_path / "store", "--trust", tmp_path / "key.pem", *servers, "--once"]
    first = watch(*line)
    assert first.returncode == 0, first.stderr
    bad, good = rows(pictures)
    assert (bad["picture"], good["picture"]) == ("b.jpg", "a.png")
    assert "error" in bad
    assert good["answered"] == [True, True, True]
    put(pictures, "c.png", 2)
    fakes[1].fault = Fault(status="INVALID_ARGUMENT")
    assert watch(*line).returncode == 1
    assert len(rows(pictures)) == 2
    fakes[1].fault = None
    assert watch(*line).returncode == 0
    assert [row["picture"] for row in rows(pictures)] == ["b.jpg", "a.png", "c.png"]
    assert [len(fake.received) for fake in fakes] == [3, 3, 3]


@pytest.mark.parametrize("arguments", [[], ["--store", "none", "--trust", "none.pem"]])
def test_mistakes_are_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    done = watch(tmp_path, *arguments)
    assert done.returncode == 2
    assert "watch_folder: " in done.stderr
    assert "Traceback" not in done.stderr
