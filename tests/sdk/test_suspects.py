"""Servers that keep disagreeing with the others."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from privdfs import Bundle
from privdfs._format import ClientManifest
from privdfs._manifest import encode_manifest
from privdfs._suspects import Suspects
from privdfs.testing import FakeServer, Fault
from tests.sdk.drivers import Driver

CLASSES = 4


def manifest_of(release: Path, branches: tuple[float, ...], fused: float) -> ClientManifest:
    manifest = Bundle.open(release / "client", allow_unsigned=True).masked
    accuracy = msgspec.structs.replace(manifest.accuracy, branches=branches, fused=fused)
    return msgspec.structs.replace(manifest, accuracy=accuracy)


def answers(truth: np.ndarray, errors: list[float], seed: int = 0) -> np.ndarray:
    """Logits [batch, N, classes]: each server names the true class, but for the given rate of random others."""
    rng = np.random.default_rng(seed)
    wrong = rng.random((len(truth), len(errors))) < np.array(errors)
    votes = np.where(wrong, (truth[:, None] + rng.integers(1, CLASSES, wrong.shape)) % CLASSES, truth[:, None])
    return np.eye(CLASSES, dtype=np.float32)[votes]


def truth_of(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, CLASSES, count)


@pytest.mark.parametrize("errors", [[0.08] * 3, [0.12] * 5, [0.3] * 5, [0.5] * 3], ids=str)
def test_honest_servers_are_not_suspected_not_even_on_strange_images(release: Path, errors: list[float]) -> None:
    servers = range(len(errors))
    for seed in range(20):
        suspects = Suspects(manifest_of(release, (0.92,) * len(errors), 0.93))
        for row in answers(truth_of(400), errors, seed):
            assert suspects.note(row[None], servers, ()) == ()


@pytest.mark.parametrize(
    ("errors", "liars"),
    [
        ([0.08, 1.0, 0.08], (1,)),
        ([0.08, 0.75, 0.1], (1,)),
        ([1.0, 0.1, 0.1, 0.9, 0.1], (0, 3)),
        ([0.1, 0.1, 0.6], (2,)),
    ],
)
def test_a_lying_minority_is_found(release: Path, errors: list[float], liars: tuple[int, ...]) -> None:
    suspects = Suspects(manifest_of(release, (0.92,) * len(errors), 0.93))
    found = [suspects.note(row[None], range(len(errors)), ()) for row in answers(truth_of(300), errors)]
    assert found[10] == (), "a few answers prove nothing"
    assert found[-1] == liars


def test_two_liars_in_concert_are_found_among_five(release: Path) -> None:
    logits = answers(truth_of(100), [0.1] * 5)
    logits[:, 3:] = np.roll(logits[:, :1], 1, axis=2)
    assert Suspects(manifest_of(release, (0.92,) * 5, 0.93)).note(logits, range(5), ()) == (3, 4)


def test_a_server_that_stops_lying_is_cleared(release: Path, caplog: pytest.LogCaptureFixture) -> None:
    suspects = Suspects(manifest_of(release, (0.92,) * 3, 0.93))
    assert suspects.note(answers(truth_of(100), [0, 0, 1.0]), range(3), ()) == (2,)
    assert suspects.note(answers(truth_of(400), [0, 0, 0]), range(3), ()) == ()
    assert caplog.text.count("server 2 keeps disagreeing") == 1


def test_two_answers_accuse_nobody_and_garbled_ones_do(release: Path) -> None:
    suspects = Suspects(manifest_of(release, (0.92,) * 3, 0.93))
    assert Suspects(manifest_of(release, (0.92,) * 2, 0.93)).note(answers(truth_of(99), [0, 1]), (0, 1), ()) == ()
    for _ in range(100):
        assert suspects.note(answers(truth_of(1), [0, 1.0, 0]), (0, 1), ()) == ()
    suspects = Suspects(manifest_of(release, (0.92,) * 3, 0.93))
    assert suspects.note(answers(truth_of(50), [0, 0, 0]), (0, 1), (2,)) == (2,)


def test_results_name_suspects_and_the_accuracy_of_who_answered(
    connect: Callable[..., Driver],
    release_copy: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
) -> None:
    (release_copy / "client" / "manifest.json").write_bytes(
        encode_manifest(manifest_of(release_copy, (0.9, 0.9, 0.9), 0.5))
    )

    def always(choice: int) -> Fault:
        return Fault(logits=lambda logits: np.tile(np.eye(CLASSES, dtype=np.float32)[choice], (len(logits), 1)))

    client = connect(release_copy / "client", endpoints, min_answers=1, timeout=30)
    fakes[0].fault, fakes[1].fault, fakes[2].fault = always(1), always(2), always(1)
    first = client.predict(images[0])
    assert (first.suspects, first.expected_accuracy) == ((), 0.5)
    last = client.predict_batch(np.concatenate([images] * 4))[-1]
    assert last.suspects == (1,)
    assert client.with_options(timeout=20).predict(images[0]).suspects == (1,)
    fakes[1].fault = fakes[2].fault = Fault(status="INVALID_ARGUMENT")
    assert client.predict(images[0]).expected_accuracy == 0.25
    fakes[0].fault, fakes[1].fault = fakes[1].fault, None
    assert client.predict(images[0]).expected_accuracy is None, "the manifest has no figure for server 1 alone"
