"""The audit of coded releases: sharings that are right pass every look, and each kind of broken one is caught."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privdfs import coding
from privdfs._manifest import read_client_manifest
from privdfs.coding import Residues, draw
from privdfs_bench.audit.coded import CodedJob, CodedVictim, cliff_jobs, coded_job, coded_view
from privdfs_bench.audit.coded_measure import broken_promises, measure_coded
from privdfs_bench.audit.coded_report import write_coded_for, write_coded_page
from privdfs_bench.audit.effort import EFFORTS
from privdfs_bench.audit.jobs import job
from privdfs_bench.audit.run import run
from privdfs_bench.audit.wire import LEAST_P, check_wire
from privdfs_bench.coded import open_coded
from privdfs_bench.pages.coded_privacy import NOTHING_YET, coded_tables
from privdfs_bench.releases import nhwc
from privdfs_export.leakage import record_leakage
from privdfs_training.attacks.classify import guess_class
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.data import DataSet, load_data
from tests.coded_release import build_coded_release
from tests.trained import QUIET

Shape = tuple[int, int, int]
SMALL = replace(
    EFFORTS["quick"],
    pairs=400,
    targets=200,
    undefended=400,
    dense=DecoderBudget(epochs=12, batch=50, width=8),
    strong=DecoderBudget(epochs=2, batch=50, width=4, blocks=1),
    forms=("dense+answers",),
)


def quiet(_done: float, _loss: float) -> None:
    """No progress."""


def none_at_all(shape: Shape, moduli: Sequence[int]) -> Residues:
    batch, colluding, values = shape
    return np.zeros((batch, colluding, len(moduli), values), np.int8)


def the_same_for_all(shape: Shape, moduli: Sequence[int]) -> Residues:
    """One draw, long ago, for every image and call."""
    batch, colluding, values = shape
    generator = np.random.default_rng(5)
    once = [generator.integers(-(prime // 2), prime // 2 + 1, (colluding, values)) for prime in moduli]
    return np.repeat(np.stack(once, axis=1)[np.newaxis].astype(np.int8), batch, axis=0)


def by_remainder(shape: Shape, moduli: Sequence[int]) -> Residues:
    """Bytes modulo the prime: the residues below 256 - p twice as often."""
    drawn = [np.random.default_rng().integers(0, 256, shape) % prime - prime // 2 for prime in moduli]
    return np.stack(drawn, axis=2).astype(np.int8)


def the_same_for_neighbours(shape: Shape, moduli: Sequence[int]) -> Residues:
    """Every other value takes its neighbour's randomness: each by itself is uniform."""
    drawn = draw(shape, moduli)
    drawn[..., 1::2] = drawn[..., 0::2][..., : drawn[..., 1::2].shape[-1]]
    return drawn


def for_one(shape: Shape, moduli: Sequence[int]) -> Residues:
    """Randomness of a polynomial of degree 1: more servers than one decode it, however many may collude."""
    drawn = draw(shape, moduli)
    drawn[:, 1:] = 0
    return drawn


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Coded releases of drawn weights: one round, and three."""
    parent = tmp_path_factory.mktemp("coded")
    return {kind: build_coded_release(parent / kind, kind) for kind in ("pooled", "rounds")}


@pytest.fixture(scope="module")
def data(data_folder: Path) -> DataSet:
    whole = load_data("fashion-mnist", data_folder)
    assert isinstance(whole, DataSet)
    return whole


def victim_of(folder: Path, data: DataSet) -> CodedVictim:
    return CodedVictim(open_coded(folder), folder, data, SMALL)


def images_of(data: DataSet) -> Any:
    return nhwc(data.test_images[:32])


# ------------------------------------------------------------------------------------------------------------- the wire


@pytest.mark.parametrize(("servers", "colluding"), [(3, 1), (5, 2)])
def test_real_sharings_look_like_noise(folders: dict[str, Path], data: DataSet, servers: int, colluding: int) -> None:
    checks = check_wire(open_coded(folders["rounds"]), images_of(data), servers, colluding, 400_000)
    assert [one.check for one in checks] == ["uniform", "two sharings of one image", "two values", "two calls"]
    assert all(one.p > 1e-6 for one in checks), checks  # chance alone fails this once in 250,000 times
    assert all(one.compared > 0 for one in checks)


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (none_at_all, {"uniform", "two sharings of one image", "two values", "two calls"}),
        (the_same_for_all, {"uniform", "two sharings of one image", "two values", "two calls"}),
        (by_remainder, {"uniform"}),
        (the_same_for_neighbours, {"two values"}),
    ],
)
def test_broken_randomness_is_seen_on_the_wire(
    monkeypatch: pytest.MonkeyPatch,
    folders: dict[str, Path],
    data: DataSet,
    broken: Callable[[Shape, Sequence[int]], Residues],
    caught_by: set[str],
) -> None:
    monkeypatch.setattr(coding, "draw", broken)
    checks = check_wire(open_coded(folders["pooled"]), images_of(data), 3, 1, 1_000_000)
    assert {one.check for one in checks if one.p <= LEAST_P} >= caught_by


# ------------------------------------------------------------------------------------------------------------ attackers


def coalition_job(victim: CodedVictim, attack: str, members: tuple[int, ...], servers: int, colluding: int) -> CodedJob:
    return coded_job(job(victim, attack, members), servers, colluding)


def above_mean_image(victim: CodedVictim, one: CodedJob, folder: Path) -> float:
    row = run(victim, one, folder, quiet).row
    return row["psnr"] - row["blind_floor"]


def class_guessed(victim: CodedVictim, one: CodedJob) -> float:
    guess = guess_class(
        coded_view(victim, one), 10, DecoderBudget(epochs=40, batch=50, width=8), seed=0, progress=quiet
    )
    return float((guess == victim.data.test_labels[: victim.targets]).float().mean())


@pytest.mark.parametrize("attack", ["linear", "dense", "dense+answers"])
def test_as_many_as_may_collude_learn_nothing(
    folders: dict[str, Path], data: DataSet, tmp_path: Path, attack: str
) -> None:
    victim = victim_of(folders["rounds"], data)
    for members, servers, colluding in (((1,), 3, 1), ((0, 3), 5, 2)):
        one = coalition_job(victim, attack, members, servers, colluding)
        assert above_mean_image(victim, one, tmp_path) < 0.1


def test_as_many_as_may_collude_do_not_know_the_class(folders: dict[str, Path], data: DataSet) -> None:
    victim = victim_of(folders["pooled"], data)
    guessed = class_guessed(victim, coalition_job(victim, "dense", (0, 2), 5, 2))
    assert guessed < 0.25  # ten classes, 200 images: seven deviations


@pytest.mark.parametrize(
    ("broken", "servers", "members"),
    [("none_at_all", 3, (1,)), ("the_same_for_all", 3, (1,)), ("for_one", 5, (0, 3))],
)
def test_attackers_see_what_broken_sharings_show(
    monkeypatch: pytest.MonkeyPatch,
    folders: dict[str, Path],
    data: DataSet,
    tmp_path: Path,
    broken: str,
    servers: int,
    members: tuple[int, ...],
) -> None:
    monkeypatch.setattr(coding, "draw", globals()[broken])
    victim = victim_of(folders["pooled"], data)
    one = coalition_job(victim, "dense", members, servers, len(members))
    assert above_mean_image(victim, one, tmp_path) > 0.5
    assert class_guessed(victim, one) > 0.3


def test_more_servers_decode_the_feature_and_attackers_use_it(
    folders: dict[str, Path], data: DataSet, tmp_path: Path
) -> None:
    victim = victim_of(folders["rounds"], data)
    wanted = {one.attack: one for one in cliff_jobs(victim)}
    assert set(wanted) == {"linear", "dense", "decoder", "optimisation"}
    for attack in ("linear", "optimisation"):
        assert above_mean_image(victim, wanted[attack], tmp_path) > 0.3
    view = coded_view(victim, wanted["decoder"])
    feature = victim.plain[0].values[0][: len(view.shares)]
    assert view.shares.ndim == 4  # a grid, as the head gives it
    np.testing.assert_array_equal(view.shares.flatten(1).numpy(), feature)


# ---------------------------------------------------------------------------------------------------- entries and pages


@pytest.fixture(scope="module")
def entry(data: DataSet, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of an audit with very little effort; and its page, pictures included, in `page`."""
    victim = victim_of(folders["pooled"], data)
    folder = tmp_path_factory.mktemp("audit")
    found, done = measure_coded(victim, folder / "runs", QUIET, wire_bytes=300_000)
    found["effort"] = "quick, changed"
    page = write_coded_for(victim, "drawn", found, done, folder / "privacy.json", None)
    return found | {"page": page}


def test_an_entry_says_what_was_attacked_and_by_whom(entry: dict[str, Any]) -> None:
    assert (entry["sharing"], entry["rounds"], entry["degree"]) == ("coded", 1, [2])
    assert {"encoder", "branch-1", "baseline"} == set(entry["graphs"])
    assert [(one["servers"], one["colluding"]) for one in entry["proven"]] == [(3, 1), (5, 2)]
    linear = [tuple(one["members"]) for one in entry["coalitions"] if one["attack"] == "linear"]
    assert len(linear) == len(set(linear)) == 3 + 10  # every coalition of one of three and of two of five
    assert {one["attack"] for one in entry["coalitions"]} == {"linear", "dense", "decoder", "dense+answers"}
    assert {size: one["members"] for size, one in entry["worst"].items()} == {"2": [0, 1], "3": [0, 1, 2]}
    for one in entry["proven"]:
        assert one["above_mean_image"] < 0.1
        assert broken_promises(one) == [] or {flag.check for flag in broken_promises(one)} == {
            "wire"
        }  # chance: 1 in 100
    assert entry["cliff_class"]["accuracy"] > 0.5  # the same classifier, where there is something to learn


def test_its_page_and_table_keep_proven_and_measured_apart(entry: dict[str, Any], tmp_path: Path) -> None:
    html = entry["page"].read_text()
    assert html.index("proven to learn nothing") < html.index("What travels") < html.index("Every attack")
    assert html.count("data:image/png;base64,") == 1
    without = {key: value for key, value in entry.items() if key != "page"}
    again = write_coded_page(entry["page"].parent, "drawn", without)
    assert again.read_text() == html
    text = coded_tables({"drawn": without, "masked": {"worst": {}}})
    assert "| drawn | 1 of 3 |" in text
    assert "| drawn | 2 of 5 |" in text
    assert "| drawn | T + 1 |" in text
    assert "masked" not in text
    assert coded_tables({}) == NOTHING_YET
    flags = [{"check": "few images", "message": "", "attack": "linear"}, {"check": "wire", "message": ""}]
    assert "flags: few images (linear), wire." in coded_tables({"drawn": without | {"flags": flags}})


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"above_mean_image": 0.11}, "not at the floor"),
        ({"class": {"accuracy": 0.115, "chance": 0.1, "images": 10_000}}, "class"),
        ({"wire": [{"check": "uniform", "p": 1e-3}]}, "wire"),
    ],
)
def test_what_cannot_be_chance_is_flagged(change: dict[str, Any], check: str) -> None:
    fine = {
        "servers": 3,
        "colluding": 1,
        "above_mean_image": 0.1,
        "strongest": {"attack": "dense"},
        "class": {"accuracy": 0.11, "chance": 0.1, "images": 10_000},
        "wire": [{"check": "uniform", "p": 0.002}],
    }
    assert broken_promises(fine) == []
    assert [flag.check for flag in broken_promises(fine | change)] == [check]


def test_the_cliff_goes_into_the_manifest(entry: dict[str, Any], folders: dict[str, Path], tmp_path: Path) -> None:
    release, results = tmp_path / "drawn", tmp_path / "privacy.json"
    shutil.copytree(folders["pooled"], release)
    # Its own attacks are too weak for a manifest, which is another test's.
    without = {key: value for key, value in entry.items() if key != "page"} | {"flags": []}
    results.write_text(json.dumps({"releases": {"drawn": without}}, allow_nan=False))
    rows = record_leakage(release, results)
    assert [row.coalition for row in rows] == [(0, 1), (0, 1, 2)]
    assert {row.psnr for row in rows} == {entry["worst"]["2"]["psnr"]}
    assert read_client_manifest((release / "client" / "manifest.json").read_bytes()).leakage == rows
