"""The audit of coded releases: sharings that are right pass every look, and each kind of broken one is caught."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privdfs import coding
from privdfs.coding import Residues, draw
from privdfs_bench.audit.coded import CodedJob, CodedVictim, coded_job, coded_view
from privdfs_bench.audit.effort import EFFORTS
from privdfs_bench.audit.jobs import job
from privdfs_bench.audit.run import run
from privdfs_bench.audit.wire import LEAST_P, check_wire
from privdfs_bench.coded import CodedNetworks
from privdfs_bench.releases import nhwc
from privdfs_training.attacks.classify import guess_class
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.data import DataSet, load_data
from tests.bench.drawn_networks import drawn_networks

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
def data(data_folder: Path) -> DataSet:
    whole = load_data("fashion-mnist", data_folder)
    assert isinstance(whole, DataSet)
    return whole


@pytest.fixture
def victim_of(data: DataSet, trained_release: Path) -> Callable[[CodedNetworks], CodedVictim]:
    """A victim with given graphs; its baseline is that of a masked release of the same data."""
    return lambda networks: CodedVictim(networks, trained_release, data, SMALL)


def images_of(data: DataSet) -> Any:
    return nhwc(data.test_images[:32])


# ------------------------------------------------------------------------------------------------------------- the wire


@pytest.mark.parametrize(("servers", "colluding"), [(3, 1), (5, 2)])
def test_real_sharings_look_like_noise(data: DataSet, servers: int, colluding: int) -> None:
    checks = check_wire(drawn_networks("rounds"), images_of(data), servers, colluding, 400_000)
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
    data: DataSet,
    broken: Callable[[Shape, Sequence[int]], Residues],
    caught_by: set[str],
) -> None:
    monkeypatch.setattr(coding, "draw", broken)
    checks = check_wire(drawn_networks(), images_of(data), 3, 1, 1_000_000)
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
    victim_of: Callable[[CodedNetworks], CodedVictim], tmp_path: Path, attack: str
) -> None:
    victim = victim_of(drawn_networks("rounds"))
    for members, servers, colluding in (((1,), 3, 1), ((0, 3), 5, 2)):
        one = coalition_job(victim, attack, members, servers, colluding)
        assert above_mean_image(victim, one, tmp_path) < 0.1


def test_as_many_as_may_collude_do_not_know_the_class(victim_of: Callable[[CodedNetworks], CodedVictim]) -> None:
    victim = victim_of(drawn_networks())
    guessed = class_guessed(victim, coalition_job(victim, "dense", (0, 2), 5, 2))
    assert guessed < 0.25  # ten classes, 200 images: seven deviations


@pytest.mark.parametrize(
    ("broken", "servers", "members"),
    [("none_at_all", 3, (1,)), ("the_same_for_all", 3, (1,)), ("for_one", 5, (0, 3))],
)
def test_attackers_see_what_broken_sharings_show(
    monkeypatch: pytest.MonkeyPatch,
    victim_of: Callable[[CodedNetworks], CodedVictim],
    tmp_path: Path,
    broken: str,
    servers: int,
    members: tuple[int, ...],
) -> None:
    monkeypatch.setattr(coding, "draw", globals()[broken])
    victim = victim_of(drawn_networks())
    one = coalition_job(victim, "dense", members, servers, len(members))
    assert above_mean_image(victim, one, tmp_path) > 0.5
    assert class_guessed(victim, one) > 0.3
