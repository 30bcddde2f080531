"""Coded releases when something changes in the middle of a call: between two rounds, two attempts, or two parts."""

import asyncio
import itertools
import logging
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from privdfs import (
    AnswerError,
    AsyncClient,
    Bundle,
    CanaryError,
    Client,
    ContradictingAnswersError,
    Error,
    NotEnoughAnswersError,
    Queries,
    RandomnessError,
    Retries,
    Server,
    ServerMismatchError,
    ServerTimeoutError,
    _coded,
    coding,
)
from privdfs._coded import Coded
from privdfs._coded_format import CodedManifest
from privdfs._config import WireName
from privdfs._kinds import Answered, Outcome, Sent
from privdfs.testing import FakeServer, Fault
from tests.coded_release import build_coded_release, noise
from tests.sdk.drivers import HANG_S, AsyncDriver, Driver
from tests.wire_proxy import Proxies

ROUNDS = 3
MOST = 5
PHOTOS = noise(3, seed=12)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_coded_release(tmp_path_factory.mktemp("coded") / "release", servers=MOST)


@pytest.fixture(scope="module")
def bundle(release: Path) -> Bundle:
    return Bundle.open(release / "client", allow_unsigned=True)


@pytest.fixture(scope="module")
def exact(release: Path) -> np.ndarray:
    """The probabilities of the photos, without a network."""
    with Client.local(release) as client:
        return np.stack([result.probabilities for result in client.predict_batch(PHOTOS)])


@pytest.fixture
def servers(release: Path, wire: WireName) -> Iterator[list[FakeServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer.for_release(release, index, wire=wire)) for index in range(MOST)]


@pytest.fixture
def doors(servers: list[FakeServer]) -> Iterator[Proxies]:
    """One before each server."""
    with Proxies([server.endpoint for server in servers]) as proxies:
        for index, door in enumerate(proxies.doors):
            door.owner = index
        yield proxies


def between_rounds(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None], after: int = 1) -> None:
    """Let something happen once a round is answered, before the next one is sent."""
    take = Coded.take

    def taken(self: Coded, sent: Sent, outcomes: Sequence[Outcome]) -> Sent | Answered:
        if sent.round + 1 == after:
            happens()
        return take(self, sent, outcomes)

    monkeypatch.setattr(Coded, "take", taken)


def wrong(residues: np.ndarray) -> np.ndarray:
    return residues[:, :, ::-1].copy()


# --------------------------------------------------------------------------------------------------- between two rounds


@pytest.mark.parametrize("after", [1, 2])
def test_a_server_that_dies_between_rounds_is_silent_from_then_on(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], exact: np.ndarray,
    monkeypatch: pytest.MonkeyPatch, after: int,
) -> None:  # fmt: skip
    between_rounds(monkeypatch, servers[1].close, after)
    client = connect(bundle, [server.endpoint for server in servers[:4]], colluding=1)
    result = client.predict(PHOTOS[0])
    np.testing.assert_array_equal(result.probabilities, exact[0])
    assert result.answered == (True, False, True, True)
    assert [server.rounds for server in servers[:4]] == [[1, 2, 3], list(range(1, after + 1)), [1, 2, 3], [1, 2, 3]]


def test_where_it_cannot_be_spared_the_error_names_it_and_the_round(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    between_rounds(monkeypatch, servers[1].close)
    with pytest.raises(NotEnoughAnswersError, match="in round 2") as caught:
        connect(bundle, [server.endpoint for server in servers[:3]]).predict(PHOTOS[0])
    assert set(caught.value.causes) == {1}
    assert servers[0].rounds in ([1], [1, 2]), "nothing of round 3"


@pytest.mark.parametrize("after", [1, 2])
def test_a_server_that_comes_into_anothers_place_between_rounds_gets_no_share_of_it(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], doors: Proxies, exact: np.ndarray,
    monkeypatch: pytest.MonkeyPatch, after: int,
) -> None:  # fmt: skip
    def swap() -> None:
        doors.doors[1].lead_to(servers[2].endpoint, 2)
        doors.drop(1)

    between_rounds(monkeypatch, swap, after)
    client = connect(bundle, [door.endpoint for door in doors.doors[:4]], colluding=1)
    result = client.predict(PHOTOS[0])
    np.testing.assert_array_equal(result.probabilities, exact[0])
    assert result.answered == (True, False, True, True)
    assert servers[2].rounds == [1, 2, 3], "its own shares, once each"
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.with_options(min_answers=4).predict(PHOTOS[0])
    assert isinstance(caught.value.causes[1], ServerMismatchError)
    assert len(servers[1].received) == after


def test_a_connection_made_between_rounds_passes_the_check_of_all_models_first(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], doors: Proxies,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    between_rounds(monkeypatch, lambda: doors.drop(1))
    result = connect(bundle, [door.endpoint for door in doors.doors[:3]]).predict(PHOTOS[0])
    assert result.answered == (True, True, True)
    assert [server.checks for server in servers[:3]] == [ROUNDS, 2 * ROUNDS, ROUNDS]
    assert servers[1].rounds == [1, 2, 3]


def test_a_server_that_changes_between_rounds_gets_no_share_of_the_next(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], doors: Proxies,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Started again with another network in the last round alone, which the round at hand does not use."""

    def another_last_round(response: object) -> None:
        config = response.config  # pyright: ignore[reportAttributeAccessIssue]
        if config.name == f"branch-{ROUNDS}":
            config.output[0].dims[1] += 1

    def restart() -> None:
        servers[1].check_fault = Fault(response=another_last_round)
        doors.drop(1)

    between_rounds(monkeypatch, restart)
    with pytest.raises(NotEnoughAnswersError, match="its tensors differ"):
        connect(bundle, [door.endpoint for door in doors.doors[:3]]).predict(PHOTOS[0])
    assert servers[1].rounds == [1]


# ---------------------------------------------------------------------------------------------------- silence and lies


def test_any_servers_that_can_be_spared_may_be_silent_each_in_another_round(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], exact: np.ndarray
) -> None:
    endpoints = [server.endpoint for server in servers]
    for one, other in itertools.permutations(range(MOST), 2):
        servers[one].fault = Fault(status="UNAVAILABLE", round=1)
        servers[other].fault = Fault(status="UNAVAILABLE", round=2)
        result = connect(bundle, endpoints, colluding=1, retries=Retries(attempts=1)).predict(PHOTOS[0])
        np.testing.assert_array_equal(result.probabilities, exact[0])
        assert {server for server in range(MOST) if not result.answered[server]} == {one, other}
        servers[one].fault = servers[other].fault = None


def test_another_server_may_lie_in_another_round_while_enough_were_never_caught(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], exact: np.ndarray
) -> None:
    for number, liar in enumerate((3, 0), 1):
        servers[liar].fault = Fault(logits=wrong, round=number)
    client = connect(bundle, [server.endpoint for server in servers], colluding=1)
    result = client.predict(PHOTOS[0])
    np.testing.assert_array_equal(result.probabilities, exact[0])
    assert result.suspects == result.corrected == (0, 3)
    assert all(server.rounds == [1, 2, 3] for server in servers), "who was caught is asked on"
    servers[2].fault = Fault(logits=wrong, round=3)  # two are left that were never caught, and three decode
    with pytest.raises(ContradictingAnswersError):
        client.predict(PHOTOS[0])


@pytest.mark.parametrize(("number", "of"), [(2, 1), (3, 1), (1, 3)])
def test_an_answer_of_another_round_is_not_one_of_this(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], exact: np.ndarray, number: int, of: int
) -> None:
    assert isinstance(bundle.manifest, CodedManifest)
    about = bundle.manifest.rounds[of - 1]
    replayed = coding.draw((1, 1, about.outputs), about.moduli)[:, 0]
    servers[1].fault = Fault(logits=lambda _: replayed, round=number)
    endpoints = [server.endpoint for server in servers[:4]]
    result = connect(bundle, endpoints, colluding=1).predict(PHOTOS[0])
    np.testing.assert_array_equal(result.probabilities, exact[0])
    assert result.answered == (True, False, True, True)
    with pytest.raises(NotEnoughAnswersError) as caught:
        connect(bundle, endpoints, colluding=1, min_answers=4).predict(PHOTOS[0])
    assert isinstance(caught.value.causes[1], AnswerError)


# ----------------------------------------------------------------------------------------- between attempts and parts


def test_a_hedge_sends_the_same_share_to_a_replica_of_the_same_server(
    connect: Callable[..., Driver], bundle: Bundle, release: Path, servers: list[FakeServer], exact: np.ndarray,
    wire: WireName,
) -> None:  # fmt: skip
    with FakeServer.for_release(release, 1, wire=wire) as replica:
        own = (servers[1], replica)
        listed = [servers[0].endpoint, Server([each.endpoint for each in own]), servers[2].endpoint]
        hedged, retries = 0, Retries(attempts=2, hedge_after=0.02, hedge_budget=1.0)
        for slow in (*own, *own):  # which replica is tried first is a matter of turns
            client = connect(bundle, listed, retries=retries, timeout=HANG_S)
            client.warmup()
            for each in own:
                each.fault = Fault(delay=HANG_S, round=2) if each is slow else None
            for each in (servers[0], *own, servers[2]):
                each.received.clear()
                each.rounds.clear()
            result = client.predict(PHOTOS[0])
            np.testing.assert_array_equal(result.probabilities, exact[0])
            sent = [pair for each in own for pair in zip(each.rounds, each.received, strict=False)]
            for number in range(1, ROUNDS + 1):
                shares = [share for round_, share in sent if round_ == number]
                assert all(np.array_equal(share, shares[0]) for share in shares)
                hedged += number == 2 and len(shares) > 1
            for up, those in zip(result.bytes_up, ([servers[0]], own, [servers[2]]), strict=True):
                # A busy machine hedges the others as well, and what is sent last may not have come.
                came = [pair for each in those for pair in zip(each.rounds, each.received, strict=False)]
                once = sum({round_: share[0].nbytes for round_, share in came}.values())
                assert 0 < once <= sum(share[0].nbytes for _, share in came) <= up <= 2 * once
        assert hedged


def test_a_call_that_gets_no_turn_in_a_later_round_does_not_say_that_nothing_was_sent(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(bundle, [server.endpoint for server in servers[:3]], timeout=1)
    client.warmup()
    transport: Any = client.client._transport
    others = asyncio.Semaphore(0) if isinstance(client, AsyncDriver) else SimpleQueue()  # as other calls leave it
    between_rounds(monkeypatch, lambda: setattr(transport, "_turns", others))
    with pytest.raises(NotEnoughAnswersError, match=r"in round 2 .* other calls") as caught:
        client.predict(PHOTOS[0])
    assert {type(cause) for cause in caught.value.causes.values()} == {ServerTimeoutError}
    assert all(server.rounds == [1] for server in servers[:3])


@pytest.mark.parametrize("first", [True, False])
def test_a_server_that_hangs_does_not_use_up_the_time_of_the_image_beside_a_canary(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], exact: np.ndarray,
    monkeypatch: pytest.MonkeyPatch, *, first: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("privdfs._canaries.secrets.randbelow", lambda below: int(first) % below)
    endpoints = [server.endpoint for server in servers[:4]]
    client = connect(bundle, endpoints, colluding=1, queries=Queries(canary_rate=1))
    client.warmup()
    servers[2].fault = Fault(delay=HANG_S)
    result = client.predict(PHOTOS[0], timeout=3)
    np.testing.assert_array_equal(result.probabilities, exact[0])
    assert servers[0].rounds == [1, 2, 3] * 2


def test_a_server_that_hangs_does_not_use_up_the_time_of_later_parts(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer]
) -> None:
    count = bundle.manifest.max_batch + 1
    client = connect(bundle, [server.endpoint for server in servers[:4]], colluding=1)
    client.warmup()
    servers[2].fault = Fault(delay=HANG_S)
    results = client.predict_batch(noise(count), timeout=3)
    assert len(results) == count
    assert {result.answered for result in results} == {(True, True, False, True)}
    assert servers[0].rounds == [1, 2, 3] * 2


# ------------------------------------------------------------------------------------------------------- what is kept


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What the device shared in every round of every call, as the call itself holds it."""
    found = list[np.ndarray]()
    begin, take = Coded.begin, Coded.take

    def note(sent: Sent | Answered) -> None:
        if isinstance(sent, Sent):
            found.append(sent.state.values[-1])
            assert found[-1].any(), "there is something to wipe"

    def begun(self: Coded, pixels: np.ndarray) -> Sent:
        sent = begin(self, pixels)
        note(sent)
        return sent

    def taken(self: Coded, sent: Sent, outcomes: Sequence[Outcome]) -> Sent | Answered:
        after = take(self, sent, outcomes)
        note(after)
        return after

    monkeypatch.setattr(Coded, "begin", begun)
    monkeypatch.setattr(Coded, "take", taken)
    return found


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The shares and the gathered answers of every round of every call, as the call itself holds them."""
    found = list[np.ndarray]()
    share, check = _coded._sent, coding.find_liars

    def shared(shares: np.ndarray, *others: Any) -> Sent:
        sent = share(shares, *others)
        assert all(values.any() for values in sent.shares), "there is something to wipe"
        found.extend((shares, *sent.shares))
        return sent

    def checked(answers: np.ndarray, *others: Any) -> Any:
        found.append(answers)
        return check(answers, *others)

    monkeypatch.setattr("privdfs._coded._sent", shared)
    monkeypatch.setattr("privdfs._coded.coding.find_liars", checked)
    return found


def failing_draw(monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """The system's generator fails at one draw of a call."""
    draws, draw = itertools.count(1), coding.draw

    def drawn(*arguments: object) -> object:
        if next(draws) == when:
            raise OSError(5, "no entropy")
        return draw(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("privdfs._coded.coding.draw", drawn)


def is_wiped(kept: list[np.ndarray]) -> bool:
    return not any(values.any() for values in kept)


def test_what_is_kept_between_rounds_is_wiped_after_a_call(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], kept: list[np.ndarray]
) -> None:
    client = connect(bundle, [server.endpoint for server in servers[:3]])
    client.predict(PHOTOS[0])
    client.predict_batch(PHOTOS)
    assert (len(kept), is_wiped(kept)) == (2 * ROUNDS, True)


def test_and_when_shares_were_only_made(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], kept: list[np.ndarray]
) -> None:
    connect(bundle, [server.endpoint for server in servers[:3]]).encode(PHOTOS[0])
    assert (len(kept), is_wiped(kept)) == (1, True)


@pytest.mark.parametrize("photos", [PHOTOS[:1], PHOTOS])
def test_shares_and_gathered_answers_are_wiped_and_what_encode_gives_is_not(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], used: list[np.ndarray],
    photos: np.ndarray,
) -> None:  # fmt: skip
    client = connect(bundle, [server.endpoint for server in servers[:3]])
    client.predict_batch(photos)
    assert (len(used), is_wiped(used)) == (ROUNDS * (1 + 3 + 1), True)
    assert all(share.any() for server in servers[:3] for share in server.received)
    used.clear()
    assert all(share.any() for share in client.encode(PHOTOS[0]))
    assert (len(used), is_wiped(used)) == (1 + 3, True)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(status="UNAVAILABLE", round=2), NotEnoughAnswersError),
        (Fault(logits=wrong, round=2), ContradictingAnswersError),
        (Fault(delay=HANG_S, round=2), NotEnoughAnswersError),
    ],
)
def test_and_so_are_they_after_an_error(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], used: list[np.ndarray], fault: Fault,
    error: type[Error],
) -> None:  # fmt: skip
    servers[1].fault = fault
    client = connect(bundle, [server.endpoint for server in servers[:4]], colluding=1, min_answers=4, timeout=2)
    with pytest.raises(error):
        client.predict(PHOTOS[0])
    assert used
    assert is_wiped(used)


def test_nothing_of_a_part_is_held_when_it_is_over(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of a large batch take far more memory than its images."""
    held = list[int]()
    begin = Coded.begin

    def begun(self: Coded, pixels: np.ndarray) -> Sent:
        sent = begin(self, pixels)
        made.append(weakref.ref(sent.shares[0]))
        held.append(sum(one() is not None for one in made))
        return sent

    made = list["weakref.ref[np.ndarray]"]()
    monkeypatch.setattr(Coded, "begin", begun)
    count = 3 * bundle.manifest.max_batch
    connect(bundle, [server.endpoint for server in servers[:3]]).predict_batch(noise(count))
    assert held == [1, 1, 1]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_and_after_a_call_that_too_few_servers_answered(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], kept: list[np.ndarray], number: int
) -> None:
    servers[1].fault = Fault(status="UNAVAILABLE", round=number)
    client = connect(bundle, [server.endpoint for server in servers[:3]], retries=Retries(attempts=1))
    with pytest.raises(NotEnoughAnswersError):
        client.predict(PHOTOS[0])
    assert (len(kept), is_wiped(kept)) == (number, True)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_and_after_contradicting_answers(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], kept: list[np.ndarray], number: int
) -> None:
    servers[1].fault = Fault(logits=wrong, round=number)
    with pytest.raises(ContradictingAnswersError):
        connect(bundle, [server.endpoint for server in servers[:4]], colluding=1).predict(PHOTOS[0])
    assert (len(kept), is_wiped(kept)) == (number, True)


def test_and_when_there_is_no_randomness_for_a_later_round(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], kept: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    client = connect(bundle, [server.endpoint for server in servers[:3]])
    failing_draw(monkeypatch, 3)
    with pytest.raises(RandomnessError):
        client.predict(PHOTOS[0])
    assert (len(kept), is_wiped(kept)) == (2, True)


def test_and_when_there_is_none_for_the_canary_of_an_image(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], kept: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    client = connect(bundle, [server.endpoint for server in servers[:3]], queries=Queries(canary_rate=1))
    failing_draw(monkeypatch, 2)
    with pytest.raises(RandomnessError):
        client.predict(PHOTOS[0])
    assert (len(kept), is_wiped(kept)) == (1, True)
    assert not any(server.received for server in servers)


def test_and_when_a_canary_ends_the_call(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], kept: list[np.ndarray]
) -> None:
    """The image beside it may not have been sent, but it was encoded."""
    servers[1].fault = Fault(logits=wrong)
    for _ in range(4):  # the canary goes first or last
        client = connect(bundle, [server.endpoint for server in servers[:3]], queries=Queries(canary_rate=1))
        with pytest.raises(CanaryError):
            client.predict(PHOTOS[0])
    assert is_wiped(kept)


async def test_and_when_the_task_that_waits_is_cancelled(
    bundle: Bundle, servers: list[FakeServer], kept: list[np.ndarray]
) -> None:
    for server in servers:
        server.fault = Fault(delay=HANG_S, round=2)
    async with AsyncClient(bundle, [server.endpoint for server in servers[:3]], timeout=HANG_S) as client:
        call = asyncio.create_task(client.predict(PHOTOS[0]))
        while not all(server.rounds == [1, 2] for server in servers[:3]):  # noqa: ASYNC110 - the fakes are threads
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert (len(kept), is_wiped(kept)) == (2, True)


def test_what_a_thread_encodes_for_a_call_that_was_given_up_is_wiped_at_once(
    bundle: Bundle, servers: list[FakeServer], kept: list[np.ndarray]
) -> None:
    with Client(bundle, [server.endpoint for server in servers[:3]]) as client:
        with client._call(None) as call:
            decoded = call.decode_one(PHOTOS[0])
        call.encode(decoded)
    assert (len(kept), is_wiped(kept)) == (1, True)


# ------------------------------------------------------------------------------------------------- what errors may say


@pytest.mark.parametrize(
    ("count", "fault", "expected"),
    [
        (3, Fault(status="UNAVAILABLE", round=2), NotEnoughAnswersError),
        (3, Fault(logits=lambda residues: np.full_like(residues, 127), round=2), NotEnoughAnswersError),
        (4, Fault(logits=wrong, round=2), ContradictingAnswersError),
    ],
    ids=["silent", "out of range", "contradicting"],
)
def test_errors_and_logs_hold_no_values(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer], caplog: pytest.LogCaptureFixture,
    count: int, fault: Fault, expected: type[Error],
) -> None:  # fmt: skip
    servers[1].fault = fault
    endpoints = [server.endpoint for server in servers[:count]]
    client = connect(bundle, endpoints, colluding=1, retries=Retries(attempts=1))
    with caplog.at_level(logging.DEBUG), pytest.raises(expected) as caught:
        client.predict(PHOTOS[0])
    error = caught.value
    causes = getattr(error, "causes", {}).values()
    told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.args) + caplog.text
    told += "".join(repr(cause) + "".join(traceback.format_exception(cause)) for cause in causes)
    assert "array(" not in told
    for share in servers[0].received:
        residues = share.ravel()[:8]
        for separator in (", ", " ", ","):
            assert separator.join(map(str, residues.tolist())) not in told
        assert repr(residues.tobytes())[2:-1] not in told


def test_the_whole_call_ends_by_its_deadline_however_slow_each_round_is(
    connect: Callable[..., Driver], bundle: Bundle, servers: list[FakeServer]
) -> None:
    """Each round alone would fit."""
    client = connect(bundle, [server.endpoint for server in servers[:3]])
    client.warmup()
    for server in servers[:3]:
        server.fault = Fault(delay=1.5)
    started = time.monotonic()
    with pytest.raises(NotEnoughAnswersError):
        client.predict(PHOTOS[0], timeout=2)
    assert time.monotonic() - started < HANG_S / 2
    assert servers[0].rounds == [1, 2]
