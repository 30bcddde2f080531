"""The page of an audit: flags first, every figure, nothing loaded from elsewhere, no image that may not be shown."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from privdfs_bench.audit.jobs import Job
from privdfs_bench.audit.pictures import Strip, query_rows, worst_rows
from privdfs_bench.audit.report import strips, write_for, write_report
from privdfs_bench.audit.run import Done
from privdfs_training.attacks.view import Relation

MADE_BY = {"command": "privacy.py <release>", "commit": "feed", "date": "2026-02-02"}


def row(attack: str, members: list[int], psnr: float, **changes: Any) -> dict[str, Any]:
    scores = {"psnr": psnr, "psnr_worst": psnr + 3, "ssim": 0.4, "interval": [psnr - 0.1, psnr + 0.1], "floor": 13.0}
    scores |= {"ms_ssim": None, "lpips": None}
    about = {"images": 200, "pairs": 1000, "feature_similarity": 0.5, "label_accuracy": 0.9}
    return {"size": len(members), "members": members, "attack": attack, **scores, **about, **changes}


@pytest.fixture
def entry() -> dict[str, Any]:
    return {
        "made_by": MADE_BY,
        "release": "small-1",
        "effort": "quick",
        "data": "fashion-mnist, attackers of the other half",
        "floor": {"mean_image": 10.5, "class_mean": 13.0},
        "undefended": {"decoder": 27.125},
        "coalitions": [
            row("linear", [0], 12.75),
            row("linear", [1], 13.25, lpips=0.2345),
            row("dense", [1], 14.375),
            row("dense", [0, 1], 15.625),
        ],
        "queries": [row("dense", [1], 11.5, pairs=64), row("dense", [1], 12.5, pairs=256)],
        "shifted": [row("dense", [1], 9.875, images=90)],
        "flags": [{"check": "few images", "message": "dense: 20 images <b>"}],
        "sources": {"dense": "inverse network", "linear": "ridge"},
    }


def drawn(label: str, channels: int = 1) -> Strip:
    images = np.random.default_rng(0).integers(0, 256, (12, channels, 8, 8), dtype=np.uint8)
    return Strip(label, images)


def test_the_page_has_flags_first_and_every_figure(entry: dict[str, Any], tmp_path: Path) -> None:
    page = write_report(
        tmp_path / "new", "small", entry, [drawn("original"), drawn("dense")], tmp_path / "frontier.json"
    )
    html = page.read_text()
    for figure in ("12.75", "13.25", "14.38", "15.62", "+1.38", "9.88", "10.50", "27.12", "<td>n/a</td>", "0.234"):
        assert figure in html
    assert html.index("few images") < html.index("14.38")
    assert "20 images &lt;b&gt;" in html
    assert "privacy.py &lt;release&gt;" in html
    assert html.count("data:image/png;base64,") == 3
    assert not any(word in html for word in ("http:", "https:", "<script", "url(", "<link"))
    assert "Accuracy and leakage" not in html  # no frontier was measured
    for name in ("collusion", "queries", "reconstructions"):
        path = page.parent / f"{name}.png"
        assert path.stat().st_size < 500_000
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10


def test_attacks_on_keys_stand_behind_the_others(entry: dict[str, Any], tmp_path: Path) -> None:
    keyed = entry | {"keys": [row("dense, 4 keys", [0], 17.875)]}
    html = write_report(tmp_path, "small", keyed, [], tmp_path / "frontier.json").read_text()
    assert html.index("dense, 4 keys") > html.index("servers 0, 1")
    assert "+4.88" in html


def test_without_flags_it_does_not_say_that_all_is_well(entry: dict[str, Any], tmp_path: Path) -> None:
    html = write_report(tmp_path, "small", entry | {"flags": []}, [], tmp_path / "frontier.json").read_text()
    assert "does not prove" in html


def test_pixels_are_drawn_as_they_are(entry: dict[str, Any], tmp_path: Path) -> None:
    images = np.zeros((2, 3, 8, 8), np.uint8)
    images[1, 0] = 200
    write_report(tmp_path, "small", entry, [Strip("x", images)], tmp_path / "frontier.json")
    with Image.open(tmp_path / "reconstructions.png") as picture:
        colours = {colour for count, colour in picture.convert("RGB").getcolors(1 << 20) or [] if count > 1000}
    assert {(0, 0, 0), (200, 0, 0), (255, 255, 255)} <= colours


def test_the_worst_coalition_of_each_attack_and_size(entry: dict[str, Any]) -> None:
    assert [(one["attack"], one["members"]) for one in worst_rows(entry)] == [
        ("linear", [1]),
        ("dense", [1]),
        ("dense", [0, 1]),
    ]


def test_queries_end_with_the_attacker_who_has_all_pairs(entry: dict[str, Any]) -> None:
    assert [one["pairs"] for one in query_rows(entry)] == [64, 256, 1000]
    assert query_rows(entry | {"queries": []}) == []


def test_the_frontier_of_the_same_data_set(entry: dict[str, Any], tmp_path: Path) -> None:
    run = {"data": "fashion-mnist", "servers": 3, "bits_per_share": 12.7, "baseline": 0.93, "accuracy": 0.9275}
    runs = [
        run | {"name": "fashion-k8", "worst": {"1": {"psnr": 14.5}}},
        run | {"name": "cifar-k8", "data": "cifar10", "worst": {}},
    ]
    found = {"runs": runs, "floors": {"fashion-mnist": {"class_mean": 13.0}}}
    (tmp_path / "frontier.json").write_text(json.dumps(found))
    Image.new("RGB", (4, 4)).save(tmp_path / "frontier.png")
    html = write_report(tmp_path / "small", "small", entry, [], tmp_path / "frontier.json").read_text()
    assert 'alt="frontier"' in html
    assert "fashion-k8" in html
    assert "+1.50" in html
    assert "cifar-k8" not in html


class Victim:
    """As far as the pictures need one."""

    def __init__(self, name: str) -> None:
        images = torch.arange(20 * 64, dtype=torch.int64).remainder(256).to(torch.uint8).view(20, 1, 8, 8)
        self.data = SimpleNamespace(name=name, test_images=images)
        self.bundle = SimpleNamespace(release="small-1")
        self.floor_images = {"class_mean": torch.full((20, 1, 8, 8), 0.5)}
        self.floor_psnr = {"class_mean": torch.full((20,), 13.0)}


def found(entry: dict[str, Any]) -> dict[str, list[Done]]:
    def one(row: dict[str, Any], shade: int) -> Done:
        job = Job(row["attack"], tuple(row["members"]), 1000, 200, Relation.SAME_DISTRIBUTION, None)
        return Done(job, row, torch.full((12, 1, 8, 8), shade, dtype=torch.uint8))

    undefended = row("decoder", [], 27.125)
    return {
        "coalitions": [one(row, shade) for shade, row in enumerate(entry["coalitions"])],
        "undefended": [one(undefended, 99)],
    }


def test_strips_are_originals_floors_and_attacks(entry: dict[str, Any]) -> None:
    victim: Any = Victim("fashion-mnist")
    rows = strips(victim, found(entry))
    assert [one.label for one in rows] == [
        "original",
        "class mean, 13.0 dB",
        "server 1: linear, 13.2 dB",
        "server 1: dense, 14.4 dB",
        "servers 0, 1: dense, 15.6 dB",
        "undefended split: decoder, 27.1 dB",
    ]
    assert [len(one.images) for one in rows] == [12] * 6
    assert [int(one.images[0, 0, 0, 0]) for one in rows[1:]] == [128, 1, 2, 3, 99]


@pytest.mark.parametrize(
    ("data", "options", "images_in"),
    [
        ("fashion-mnist", [], {"privacy/small"}),
        ("cifar10", [], set()),
        ("cifar10", ["--show-images"], {"runs/small-1"}),
    ],
)
def test_images_that_may_not_be_passed_on_are_drawn_on_request_among_the_runs_alone(
    entry: dict[str, Any], tmp_path: Path, data: str, options: list[str], images_in: set[str]
) -> None:
    victim: Any = Victim(data)
    private = tmp_path / "runs" if "--show-images" in options else None
    page = write_for(victim, "small", entry, found(entry), tmp_path / "privacy.json", private)
    assert page.parent == tmp_path / (images_in or {"privacy/small"}).pop()
    drawn = {path.parent for path in tmp_path.rglob("reconstructions.png")}
    assert drawn == ({page.parent} if data == "fashion-mnist" or options else set())
    shared = (tmp_path / "privacy" / "small" / "report.html").read_text()
    assert ("may not be passed on" in shared) is (data == "cifar10")
