"""Canaries: when they go, what they are compared with, and how often they catch a liar where no answer is to spare."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privdfs import CanaryError, ConfigError, Queries
from privdfs._canaries import Canaries
from privdfs.coding import PRIMES, centred, decode, draw, share
from privdfs.testing import FakeServer
from tests.sdk.drivers import Driver

GENERATOR = np.random.default_rng(0)
MODULI = PRIMES[:2]
CLASSES = 4

Lie = Callable[[np.ndarray], np.ndarray]


def some_images(count: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, (count, 1, CLASSES, 1), dtype=np.uint8)


def to_values(images: np.ndarray) -> np.ndarray:
    """The head of this file's release: fifteen levels."""
    return (images.reshape(len(images), -1) // 18).astype(np.int64) - 7


def probabilities_of(results: np.ndarray) -> np.ndarray:
    scores = np.exp((results - results.max(axis=1, keepdims=True)) / 40.0)
    return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


def classify(images: np.ndarray, lie: Lie | None = None) -> np.ndarray:
    """Three servers, one may collude, degree 2: no answer to spare. Server 1 may lie about its answers."""
    values = to_values(images)
    shares = share(values, MODULI, draw((len(values), 1, values.shape[1]), MODULI), 3).astype(np.int64)
    answers = np.stack(
        [centred(shares[:, :, i] ** 2 + 3 * shares[:, :, i], prime) for i, prime in enumerate(MODULI)], axis=2
    ).astype(np.int8)
    if lie is not None:
        answers[:, 1] = lie(answers[:, 1])
    return probabilities_of(decode(answers, (1, 2, 3), MODULI))


def one_residue(answers: np.ndarray) -> np.ndarray:
    """The smallest lie: another residue of one result, in one prime."""
    wrong = answers.astype(np.int64)
    place = int(GENERATOR.integers(CLASSES))
    wrong[:, 0, place] = centred(wrong[:, 0, place] + int(GENERATOR.integers(1, MODULI[0])), MODULI[0])
    return wrong.astype(np.int8)


def all_residues(answers: np.ndarray) -> np.ndarray:
    """What a server with other weights answers: everything is different."""
    columns = [GENERATOR.integers(-(p // 2), p // 2 + 1, (len(answers), 1, CLASSES)) for p in MODULI]
    return np.concatenate(columns, axis=1).astype(np.int8)


@pytest.fixture(scope="module")
def known() -> Canaries:
    images = some_images(12)
    values = to_values(images).astype(np.int8)
    return Canaries.among(images, probabilities_of(to_values(images) ** 2 + 3 * to_values(images)), values, values)


def test_honest_servers_raise_no_alarm(known: Canaries) -> None:
    for count in (1, 3, 64):
        canary = known.draw(count)
        canary.check(classify(canary.pixels), (0, 1, 2))


def test_a_lie_about_a_canary_is_an_error_that_names_who_took_part(known: Canaries) -> None:
    canary = known.draw(4)
    with pytest.raises(CanaryError, match=r"at least one of the servers 0, 1, 2 lies or is faulty") as caught:
        canary.check(classify(canary.pixels, all_residues), (0, 1, 2))
    assert caught.value.answered == (0, 1, 2)


@pytest.mark.parametrize("change", [2e-5, -2e-5, math.nan, math.inf])
def test_one_probability_of_one_image_is_enough(known: Canaries, change: float) -> None:
    canary = known.draw(3)
    found = canary.expected.copy()
    canary.check(found + np.float32(1e-6), (0, 1, 2))
    found[2, 1] += np.float32(change)
    with pytest.raises(CanaryError):
        canary.check(found, (0, 1, 2))


def test_images_that_round_otherwise_here_are_no_canaries() -> None:
    images, values = some_images(5), np.arange(20, dtype=np.int8).reshape(5, 4)
    probabilities = np.eye(5, 4, dtype=np.float32)
    found = values.copy()
    found[[1, 3], 2] += 1
    kept = Canaries.among(images, probabilities, values, found)
    assert np.array_equal(kept.images, images[[0, 2, 4]])
    assert np.array_equal(kept.probabilities, probabilities[[0, 2, 4]])
    with pytest.raises(ConfigError, match="no golden example comes out on this device"):
        Canaries.among(images, probabilities, values, values + np.int8(1))


def test_a_canary_has_the_form_of_its_part_and_goes_before_or_after_it(known: Canaries) -> None:
    drawn = [known.draw(3) for _ in range(400)]
    assert {canary.pixels.shape for canary in drawn} == {(3, *known.images.shape[1:])}
    assert abs(sum(canary.first for canary in drawn) - 200) < 6 * 10  # six deviations of a fair coin
    for canary in drawn[:20]:
        for image, expected in zip(canary.pixels, canary.expected, strict=True):
            (index,) = np.flatnonzero((known.images == image).all(axis=(1, 2, 3)))
            assert np.array_equal(known.probabilities[index], expected)
    chosen = {canary.pixels.tobytes() for canary in drawn}
    assert len(chosen) > 300, "an image's turn cannot be foretold"


def test_nothing_of_an_image_is_in_a_repr(known: Canaries) -> None:
    assert repr(known) == "Canaries()"
    assert repr(known.draw(1)) == "Canary()"


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.5, 1.0, 1, 0])
def test_canaries_are_due_at_the_rate_that_was_set(rate: float) -> None:
    queries, count = Queries(canary_rate=rate), 4000
    due = sum(queries.canary_due() for _ in range(count))
    assert abs(due - rate * count) <= 6 * math.sqrt(count * rate * (1 - rate))
    assert queries.canary_rate == rate
    assert f"canary_rate={rate:g}" in repr(queries)


def test_without_a_rate_there_are_none(tmp_path: Path) -> None:
    assert not any(queries.canary_due() for queries in (Queries(), Queries.load(tmp_path / "new")) for _ in range(1000))


def test_a_rate_outlives_a_restart_only_by_being_given_again(tmp_path: Path) -> None:
    Queries(spent={None: 3}, canary_rate=0.5).save(tmp_path / "counts")
    assert Queries.load(tmp_path / "counts").canary_rate == 0
    again = Queries.load(tmp_path / "counts", canary_rate=0.25)
    assert (again.canary_rate, again.spent) == (0.25, {None: 3})
    assert Queries.load(tmp_path / "new", canary_rate=0.25).canary_rate == 0.25


@pytest.mark.parametrize("rate", [-0.01, 1.01, math.nan, math.inf, True, "0.1", None])
def test_rates_that_are_none(rate: Any) -> None:
    with pytest.raises(ConfigError, match="is not a number from 0 to 1"):
        Queries(canary_rate=rate)


def caught(known: Canaries, rate: float, lie: Lie, calls: int, *, first_alone: bool = False) -> float:
    """In which part of the calls a server is caught that lies all the time, or in the first of two exchanges alone."""
    queries, found = Queries(canary_rate=rate), 0
    for _ in range(calls):
        if queries.canary_due():
            canary = known.draw(1)
            lies = canary.first or not first_alone
            try:
                canary.check(classify(canary.pixels, lie if lies else None), (0, 1, 2))
            except CanaryError:
                found += 1
    return found / calls


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5])
@pytest.mark.parametrize(("first_alone", "part"), [(False, 1.0), (True, 0.5)])
def test_a_liar_is_caught_as_often_as_canaries_go(
    known: Canaries, rate: float, *, first_alone: bool, part: float
) -> None:
    calls = 3000
    expected = rate * part
    measured = caught(known, rate, all_residues, calls, first_alone=first_alone)
    assert abs(measured - expected) <= 6 * math.sqrt(expected / calls) + 0.01 * expected
    assert measured > 0


def test_a_lie_about_one_residue_is_seen(known: Canaries) -> None:
    """In the primes' product one residue moves a result by far more than any result is large."""
    for _ in range(300):
        canary = known.draw(1)
        with pytest.raises(CanaryError):
            canary.check(classify(canary.pixels, one_residue), (0, 1, 2))


def test_masked_shares_know_no_canaries(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str]
) -> None:
    with pytest.raises(ConfigError, match="a server would know the share of a golden example"):
        connect(release / "client", endpoints, queries=Queries(canary_rate=0.1))
    assert [(fake.checks, len(fake.received)) for fake in fakes] == [(0, 0)] * 3
