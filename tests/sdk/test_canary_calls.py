"""Canaries in real calls of a coded release with three rounds and no answer to spare, over both clients."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from privdfs import Bundle, CanaryError, Queries
from privdfs._canaries import Canaries, Canary
from privdfs.testing import FakeServer, Fault
from tests.coded_release import build_coded_release
from tests.sdk.drivers import Driver

ROUNDS = 3


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_coded_release(tmp_path_factory.mktemp("drawn") / "release")


@pytest.fixture
def servers(drawn: Path) -> Iterator[list[FakeServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer.for_release(drawn, index)) for index in range(3)]


@pytest.fixture
def photos() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)


def ordered(monkeypatch: pytest.MonkeyPatch, *, first: bool) -> None:
    """Let every canary go before its part, or every one after it."""
    draw = Canaries.draw

    def drawn_so(self: Canaries, count: int) -> Canary:
        canary = draw(self, count)
        return Canary(canary.pixels, canary.expected, first)

    monkeypatch.setattr(Canaries, "draw", drawn_so)


def other(residues: np.ndarray) -> np.ndarray:
    """Results in the wrong order. One wrong result between rounds may change nothing, where the device clips it."""
    return residues[:, :, ::-1].copy()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_honest_servers_see_two_exchanges_of_one_form(
    connect: Callable[..., Driver], drawn: Path, servers: list[FakeServer], photos: np.ndarray,
    monkeypatch: pytest.MonkeyPatch, *, first: bool, count: int,
) -> None:  # fmt: skip
    ordered(monkeypatch, first=first)
    endpoints = [server.endpoint for server in servers]
    plain = connect(drawn / "client", endpoints).predict_batch(photos[:count])
    for server in servers:
        server.received.clear()
        server.rounds.clear()
    queries = Queries(budget=count, canary_rate=1)
    results = connect(drawn / "client", endpoints, queries=queries).predict_batch(photos[:count])
    assert [result.label for result in results] == [result.label for result in plain]
    assert queries.spent == {None: count}
    for server in servers:
        assert server.rounds == [1, 2, 3] * 2
        shapes = [share.shape for share in server.received]
        assert shapes[:ROUNDS] == shapes[ROUNDS:]
        assert {shape[0] for shape in shapes} == {count}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
def test_a_liar_in_any_round_is_caught_where_no_answer_is_to_spare(
    connect: Callable[..., Driver], drawn: Path, servers: list[FakeServer], photos: np.ndarray,
    monkeypatch: pytest.MonkeyPatch, *, first: bool, number: int,
) -> None:  # fmt: skip
    ordered(monkeypatch, first=first)
    servers[1].fault = Fault(logits=other, round=number)
    endpoints = [server.endpoint for server in servers]
    assert connect(drawn / "client", endpoints).predict(photos[0]).corrected == (), "it passes unseen"
    client = connect(drawn / "client", endpoints, queries=Queries(canary_rate=1))
    with pytest.raises(CanaryError) as caught:
        client.predict(photos[0])
    assert caught.value.answered == (0, 1, 2)
    sent = len(servers[0].received)
    with pytest.raises(CanaryError):
        client.predict(photos[0])
    assert len(servers[0].received) > sent, "what came with an alarm is not in the record"


@pytest.mark.parametrize("first", [True, False])
def test_a_liar_to_a_canary_alone_is_named_where_its_lie_is_corrected(
    connect: Callable[..., Driver], tmp_path: Path, photos: np.ndarray, monkeypatch: pytest.MonkeyPatch, *, first: bool
) -> None:
    ordered(monkeypatch, first=first)
    release, answers = build_coded_release(tmp_path / "release", servers=5), itertools.count()

    def to_canaries(residues: np.ndarray) -> np.ndarray:
        return other(residues) if (next(answers) < ROUNDS) == first else residues

    with ExitStack() as stack:
        servers = [stack.enter_context(FakeServer.for_release(release, index)) for index in range(5)]
        servers[1].fault = Fault(logits=to_canaries)
        endpoints = [server.endpoint for server in servers]
        result = connect(release / "client", endpoints, colluding=1, queries=Queries(canary_rate=1)).predict(photos[0])
        assert (result.suspects, result.corrected) == ((1,), ())
        assert next(answers) == 2 * ROUNDS


def test_who_lies_to_a_canary_is_a_suspect_of_the_whole_call(
    connect: Callable[..., Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered(monkeypatch, first=False)
    release, answers = build_coded_release(tmp_path / "release", servers=5), itertools.count()
    images = np.random.default_rng(6).integers(
        0, 256, (Bundle.open(release / "client", allow_unsigned=True).manifest.max_batch + 1, 28, 28, 1), dtype=np.uint8
    )

    def to_last_canary(residues: np.ndarray) -> np.ndarray:
        return other(residues) if next(answers) >= 3 * ROUNDS else residues

    with ExitStack() as stack:
        servers = [stack.enter_context(FakeServer.for_release(release, index)) for index in range(5)]
        servers[1].fault = Fault(logits=to_last_canary)
        endpoints = [server.endpoint for server in servers]
        client = connect(release / "client", endpoints, colluding=1, queries=Queries(canary_rate=1))
        results = client.predict_batch(images)
    assert {result.suspects for result in results} == {(1,)}
    assert next(answers) == 4 * ROUNDS


@pytest.mark.parametrize("first", [True, False])
def test_telemetry_counts_the_programs_images_and_of_canaries_the_alarm_alone(
    connect: Callable[..., Driver], drawn: Path, servers: list[FakeServer], photos: np.ndarray,
    monkeypatch: pytest.MonkeyPatch, *, first: bool,
) -> None:  # fmt: skip
    ordered(monkeypatch, first=first)
    noted = list[tuple[int, str]]()

    class Noting:
        def note(self, _release: str, images: int, _outcomes: object, _seconds: float, error: object) -> None:
            noted.append((images, type(error).__name__))

    endpoints = [server.endpoint for server in servers]
    client = connect(drawn / "client", endpoints, queries=Queries(canary_rate=1), telemetry=Noting())
    client.predict_batch(photos)
    assert noted == [(3, "NoneType")]
    noted.clear()
    servers[1].fault = Fault(logits=other)
    with pytest.raises(CanaryError):
        client.predict(np.flip(photos[0]))
    assert noted == ([] if first else [(1, "NoneType")]) + [(0, "CanaryError")]


def test_repeats_send_no_canary(
    connect: Callable[..., Driver], drawn: Path, servers: list[FakeServer], photos: np.ndarray
) -> None:
    client = connect(drawn / "client", [server.endpoint for server in servers], queries=Queries(canary_rate=1))
    client.predict(photos[0])
    seen = [len(server.received) for server in servers]
    assert client.predict(photos[0]).repeated
    assert [len(server.received) for server in servers] == seen == [2 * ROUNDS] * 3


def test_the_golden_examples_are_the_canaries(drawn: Path) -> None:
    bundle = Bundle.open(drawn / "client", allow_unsigned=True)
    assert len(bundle.canaries().images) == bundle.selftest().images == 6
