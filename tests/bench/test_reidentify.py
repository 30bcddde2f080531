"""Whether shares tell people apart: synthetic faces through a tiny trained release."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.reidentify import main
from privdfs_bench.audit.people import ATTACKERS, halves, load_faces
from privdfs_bench.pages import privacy


def write_faces(folder: Path, people: int, photographs: int) -> Path:
    """Everybody has a pattern of their own; photographs of it differ a little."""
    random = np.random.default_rng(0)
    for one in range(people):
        pattern = np.kron(random.integers(0, 2, (7, 6)), np.ones((16, 16))) * 200
        (folder / f"s{one}").mkdir(parents=True)
        for number in range(photographs):
            pixels = np.clip(pattern + random.normal(20, 10, pattern.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"s{one}" / f"{number}.pgm")
    return folder


def test_every_coalition_is_asked_who_it_is(
    trained_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privdfs_bench.audit.people.COPIES", 5)
    out = tmp_path / "reidentify.json"
    faces = write_faces(tmp_path / "faces", people=6, photographs=4)
    assert main([str(trained_release), "--faces", str(faces), "--out", str(out)]) == 0
    (entry,) = json.loads(out.read_text())["releases"].values()
    assert (entry["people"], entry["gallery"], entry["probes"]) == (6, 12, 12)
    assert entry["photographs"]["rank 1"]["rate"] == 1.0
    assert list(entry["coalitions"]) == ["1", "2", "3"]
    whole = entry["coalitions"]["3"]
    assert set(whole) == set(ATTACKERS)
    assert max(row["rank 1"]["rate"] for row in whole.values()) > 2 / 6
    assert all(row["rank 5"]["rate"] >= row["rank 1"]["rate"] for row in whole.values())
    assert "the photographs" in capsys.readouterr().out
    lines = privacy.people_table(json.loads(out.read_text())).splitlines()
    assert lines[2].startswith("| release | 1 of 3 | 16.7% |")


def test_the_gallery_and_what_is_sent_share_no_photograph(tmp_path: Path) -> None:
    images, people = load_faces(write_faces(tmp_path, people=3, photographs=5), (3, 32, 32))
    assert images.shape == (15, 3, 32, 32)
    known, sent = halves(people)
    assert people[known].tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted([*known.tolist(), *sent.tolist()]) == list(range(15))


@pytest.mark.parametrize(
    ("people", "photographs", "said"), [(0, 0, "no two folders"), (1, 3, "no two folders"), (2, 1, "fewer than two")]
)
def test_too_few_photographs_are_an_error_that_says_so(
    trained_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], people: int, photographs: int, said: str
) -> None:
    faces = write_faces(tmp_path / "faces", people, photographs)
    assert main([str(trained_release), "--faces", str(faces), "--out", str(tmp_path / "out.json")]) == 2
    assert said in capsys.readouterr().err


def test_a_damaged_photograph_is_named(
    tmp_path: Path, trained_release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = write_faces(tmp_path / "faces", 2, 2)
    (faces / "s1" / "0.pgm").write_bytes(b"P5 of nothing")
    assert main([str(trained_release), "--faces", str(faces), "--out", str(tmp_path / "out.json")]) == 2
    assert "0.pgm is not an image" in capsys.readouterr().err
