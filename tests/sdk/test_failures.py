"""Both clients when servers fail: replicas, retries, hedges, breakers, quorum. Real gRPC on loopback."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privdfs import (
    AnswerError,
    ConfigError,
    Error,
    NotEnoughAnswersError,
    Retries,
    Server,
    ServerBusyError,
    ServerMismatchError,
    ServerUnavailableError,
    _exchange,
    _routing,
)
from privdfs._config import WireName
from privdfs._constants import BREAKER_FAILURES
from privdfs.testing import FakeServer, Fault
from tests.sdk.drivers import HANG_S, Driver

ALL = (True, True, True)


@pytest.fixture
def twins(release: Path, wire: WireName) -> Iterator[list[list[FakeServer]]]:
    """Two replicas of every server."""
    with ExitStack() as stack:
        yield [[stack.enter_context(FakeServer.for_release(release, i, wire=wire)) for _ in range(2)] for i in range(3)]


def servers_of(twins: list[list[FakeServer]]) -> list[Server]:
    return [Server([fake.endpoint for fake in pair]) for pair in twins]


def faults_in_turn(fake: FakeServer, *faults: Fault | None) -> None:
    """What goes wrong with the next requests, one after the other; the last stays."""
    left, real = list(faults), fake._model_infer

    def infer(request: Any, context: Any) -> Any:
        fake.fault = left.pop(0) if len(left) > 1 else left[0]
        return real(request, context)

    fake._model_infer = infer


# --------------------------------------------------------------------------------------------------------- retries


def test_a_passing_error_is_tried_again_at_the_same_server(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=20)
    expected = client.predict(images[0])
    counts = [len(fake.received) for fake in fakes]
    faults_in_turn(fakes[1], Fault(status="UNAVAILABLE"), Fault(status="INTERNAL"), None)
    again = client.predict(images[0])
    assert again.answered == ALL
    np.testing.assert_array_equal(again.probabilities, expected.probabilities)
    assert [len(fake.received) - count for fake, count in zip(fakes, counts, strict=True)] == [1, 3, 1]
    assert len({share.tobytes() for share in fakes[1].received}) == 1, "the same share, to the same server"


def test_attempts_are_counted_and_can_be_forbidden(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    fakes[0].fault = Fault(status="UNAVAILABLE")
    client = connect(release / "client", endpoints, retries=Retries(attempts=2))
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.predict(images[0])
    assert isinstance(caught.value.causes[0], ServerUnavailableError)
    assert len(fakes[0].received) == 2
    with pytest.raises(NotEnoughAnswersError):
        client.with_options(retries=Retries(attempts=1)).predict(images[0])
    assert len(fakes[0].received) == 3


@pytest.mark.parametrize("fault", [Fault(status="INVALID_ARGUMENT"), Fault(logits=lambda logits: logits[:, :1])])
def test_what_another_attempt_cannot_fix_is_tried_at_another_replica_only(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    twins: list[list[FakeServer]],
    endpoints: list[str],
    images: np.ndarray,
    fault: Fault,
) -> None:
    fakes[0].fault = fault
    with pytest.raises(NotEnoughAnswersError):
        connect(release / "client", endpoints).predict(images[0])
    assert len(fakes[0].received) == 1
    twins[0][0].fault = fault
    client = connect(release / "client", servers_of(twins))
    assert all(client.predict(image).answered == ALL for image in images[:2])


def test_load_is_spread_over_the_replicas_of_a_server(
    connect: Callable[..., Driver], release: Path, twins: list[list[FakeServer]], images: np.ndarray
) -> None:
    client = connect(release / "client", servers_of(twins))
    for image in images:
        client.predict(image)
    assert [[len(fake.received) for fake in pair] for pair in twins] == [[5, 5]] * 3


def test_no_replica_ever_sees_another_servers_share(
    connect: Callable[..., Driver], release: Path, twins: list[list[FakeServer]], images: np.ndarray
) -> None:
    policy = Retries(attempts=4, hedge_after=0.02, hedge_budget=1)
    client = connect(release / "client", servers_of(twins), min_answers=1, timeout=5, retries=policy)
    faults = [None, Fault(status="UNAVAILABLE"), Fault(delay=0.1), Fault(logits=lambda logits: logits * np.nan)]
    expected: list[set[bytes]] = [set(), set(), set()]
    rng = np.random.default_rng(3)
    for image in images:
        for fake in (fake for pair in twins for fake in pair):
            fake.fault = faults[rng.integers(len(faults))]
        for server, share in enumerate(client.encode(image)):
            expected[server].add(share.tobytes())
        try:
            client.predict(image)
        except Error:
            continue
    for server, pair in enumerate(twins):
        received = {share.tobytes() for fake in pair for share in fake.received}
        assert received <= expected[server]
        assert received


def test_a_replica_that_keeps_failing_is_left_alone(
    connect: Callable[..., Driver],
    release: Path,
    twins: list[list[FakeServer]],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_routing, "BREAKER_FIRST_S", 600.0)  # longer than these calls take on the slowest machine
    client = connect(release / "client", servers_of(twins))
    twins[0][0].fault = Fault(status="UNAVAILABLE")
    for _ in range(4 * BREAKER_FAILURES):
        assert client.predict(images[0]).answered == ALL
    assert len(twins[0][0].received) == BREAKER_FAILURES


def test_a_server_without_a_replica_to_try_fails_at_once_and_comes_back(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, retries=Retries(attempts=1), min_answers=2)
    fakes[0].fault = Fault(status="UNAVAILABLE")
    for _ in range(BREAKER_FAILURES + 3):
        assert client.predict(images[0]).answered == (False, True, True)
    assert len(fakes[0].received) == BREAKER_FAILURES
    with pytest.raises(NotEnoughAnswersError, match="is not tried for up to"):
        client.with_options(min_answers=3).predict(images[0])
    fakes[0].fault = None
    until = time.monotonic() + HANG_S
    while client.predict(images[0]).answered != ALL:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_replica_that_is_back_answers_when_the_other_dies_however_long_it_was_to_be_left_alone(
    connect: Callable[..., Driver],
    release: Path,
    twins: list[list[FakeServer]],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_routing, "BREAKER_FIRST_S", 600.0)
    monkeypatch.setattr(_routing, "BREAKER_LAST_S", 0.0)
    client = connect(release / "client", servers_of(twins), timeout=20)
    twins[1][1].fault = Fault(status="UNAVAILABLE")
    for _ in range(4 * BREAKER_FAILURES):
        assert client.predict(images[0]).answered == ALL
    twins[1][1].fault = None
    twins[1][0].close()
    assert all(client.predict(image).answered == ALL for image in images)


# ------------------------------------------------------------------------------------------------------ full queues


def test_a_busy_server_is_an_error_at_once_and_is_asked_again_by_the_next_call(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=20)
    assert client.predict(images[0]).answered == ALL
    checks = fakes[1].checks
    fakes[1].fault = Fault(status="RESOURCE_EXHAUSTED")
    for _ in range(2 * BREAKER_FAILURES):
        with pytest.raises(NotEnoughAnswersError, match="full queue") as caught:
            client.predict(images[0])
        assert type(caught.value.causes[1]) is ServerBusyError
    assert len(fakes[1].received) == 1 + 2 * BREAKER_FAILURES, "once a call, and no pause"
    fakes[1].fault = None
    assert client.predict(images[0]).answered == ALL
    assert fakes[1].checks == checks, "it said nothing that makes it another server"


def test_an_error_of_a_busy_server_does_not_wait_for_the_others(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_exchange, "FAIL_GRACE_S", HANG_S)
    client = connect(release / "client", endpoints, timeout=HANG_S)
    client.warmup()
    fakes[0].fault, fakes[1].fault = Fault(status="RESOURCE_EXHAUSTED"), Fault(delay=3)
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.predict(images[0])
    assert {server: type(cause) for server, cause in caught.value.causes.items()} == {0: ServerBusyError}
    assert 1 not in caught.value.answered


def test_another_replica_answers_for_a_busy_one(
    connect: Callable[..., Driver], release: Path, twins: list[list[FakeServer]], images: np.ndarray
) -> None:
    client = connect(release / "client", servers_of(twins))
    twins[2][0].fault = Fault(status="RESOURCE_EXHAUSTED")
    assert all(client.predict(image).answered == ALL for image in images)


# ------------------------------------------------------------------------------------------------- rolling releases


def test_replicas_of_another_release_cost_no_attempt(
    connect: Callable[..., Driver],
    release: Path,
    other_release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    wire: WireName,
) -> None:
    with ExitStack() as stack:
        new = [stack.enter_context(FakeServer.for_release(other_release, 0, wire=wire)) for _ in range(4)]
        first = Server([*(fake.endpoint for fake in new), endpoints[0]])
        client = connect(release / "client", [first, *endpoints[1:]], retries=Retries(attempts=1))
        assert all(client.predict(image).answered == ALL for image in images)
        assert not any(fake.received for fake in new)


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_share_that_was_sent_counts_also_where_the_model_is_gone_meanwhile(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    wire: WireName,
    attempts: int,
) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(FakeServer.for_release(release, 0, wire=wire)) for _ in range(3)]
        replicas = [fakes[0], *others]
        for fake in replicas:
            fake.fault = Fault(status="NOT_FOUND")  # the check was passed before it was unloaded
        first = Server([fake.endpoint for fake in replicas])
        client = connect(release / "client", [first, *endpoints[1:]], retries=Retries(attempts=attempts))
        with pytest.raises(NotEnoughAnswersError) as caught:
            client.predict(images[0])
        assert isinstance(caught.value.causes[0], ServerMismatchError)
        assert sum(len(fake.received) for fake in replicas) == attempts


def test_an_old_device_is_told_to_install_the_new_bundle_whatever_became_of_the_old_replicas(
    connect: Callable[..., Driver],
    release: Path,
    other_release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    wire: WireName,
) -> None:
    fakes[0].close()
    with FakeServer.for_release(other_release, 0, wire=wire) as new:
        servers = [Server([endpoints[0], new.endpoint]), *endpoints[1:]]
        client = connect(release / "client", servers, timeout=20)
        for _ in range(2 * BREAKER_FAILURES):  # also while both are paused
            with pytest.raises(NotEnoughAnswersError, match="install the new bundle") as caught:
                client.predict(images[0])
            assert isinstance(caught.value.causes[0], ServerMismatchError)
        assert not new.received
    assert not any(fake.received for fake in fakes)


# ---------------------------------------------------------------------------------------------------------- hedges


def test_a_slow_replica_is_hedged_by_the_other(
    connect: Callable[..., Driver], release: Path, twins: list[list[FakeServer]], images: np.ndarray
) -> None:
    client = connect(release / "client", servers_of(twins), timeout=HANG_S, retries=Retries(hedge_after=0.05))
    expected = [client.predict(images[0]).probabilities.tobytes() for _ in range(2)]
    twins[1][0].fault = Fault(delay=HANG_S)
    for _ in range(2):  # one of the two goes to the slow one first
        result = client.predict(images[0])
        assert result.answered == ALL
        assert result.probabilities.tobytes() == expected[0]
    assert len(twins[1][1].received) >= 3, "once of the first two calls, and each time after"


def test_a_single_endpoint_is_hedged_by_itself(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=HANG_S, retries=Retries(hedge_after=0.05))
    client.predict(images[0])
    faults_in_turn(fakes[2], Fault(delay=HANG_S), None)
    assert client.predict(images[0]).answered == ALL


def test_the_budget_bounds_hedges(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    policy = Retries(hedge_after=0.001, hedge_budget=0)
    client = connect(release / "client", endpoints, timeout=HANG_S, retries=policy)
    fakes[0].fault = Fault(delay=0.02)
    for image in np.concatenate([images, images]):
        client.predict(image)
    assert 20 < len(fakes[0].received) <= 25, "a burst of five, and nothing is earned"


# ---------------------------------------------------------------------------------------------------------- quorum


def test_a_quorum_does_not_wait_for_the_rest(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=HANG_S, min_answers=2, wait="quorum")
    client.predict(images[0])
    fakes[1].fault = Fault(delay=HANG_S)
    result = client.predict(images[0])
    assert result.answered == (True, False, True)
    assert result.timings.total_ms < 1000 * HANG_S / 4
    with pytest.raises(NotEnoughAnswersError):
        client.with_options(wait="all", min_answers=3, timeout=0.3).predict(images[0])


def test_a_quorum_does_not_wait_for_a_check_either(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    fakes[0].check_fault = Fault(delay=HANG_S)
    client = connect(release / "client", endpoints, timeout=HANG_S, min_answers=2, wait="quorum")
    assert client.predict(images[0]).answered == (False, True, True)
    assert not fakes[0].received


def test_a_call_that_cannot_succeed_ends_before_its_deadline_with_every_cause(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=HANG_S)
    client.predict(images[0])
    fakes[0].fault = Fault(logits=lambda logits: logits[:, :1])
    fakes[1].fault = Fault(delay=HANG_S)
    started = time.monotonic()
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.predict(images[0])
    assert time.monotonic() - started < HANG_S / 4
    assert isinstance(caught.value.causes[0], AnswerError)
    assert caught.value.answered == (2,)


# ------------------------------------------------------------------------------------- options, health, warming up


def test_options_hold_for_the_copy_and_connections_are_shared(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints)
    client.predict(images[0])
    copy = client.with_options(min_answers=1, timeout=10)
    fakes[2].fault = Fault(status="INVALID_ARGUMENT")
    assert copy.predict(images[0]).answered == (True, True, False)
    with pytest.raises(NotEnoughAnswersError):
        client.predict(images[0])
    assert [fake.checks for fake in fakes[:2]] == [1, 1]
    copy.close()
    with pytest.raises(ConfigError, match="closed"):
        copy.predict(images[0])
    fakes[2].fault = None
    assert client.predict(images[0]).answered == ALL
    other = client.with_options(timeout=1)
    client.close()
    with pytest.raises(ConfigError, match="closed"):
        other.predict(images[0])


@pytest.mark.parametrize("wrong", [{"wait": "some"}, {"min_answers": 4}, {"timeout": 0}, {"retries": 3}])
def test_options_that_make_no_sense(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        connect(release / "client", endpoints, **wrong)
    with pytest.raises(ConfigError):
        connect(release / "client", endpoints).with_options(**wrong)


def test_health_names_every_replica(
    connect: Callable[..., Driver],
    release: Path,
    other_release: Path,
    twins: list[list[FakeServer]],
    wire: WireName,
) -> None:
    stranger = FakeServer.for_release(other_release, 1, wire=wire)
    with stranger, socket.create_server(("127.0.0.1", 0)) as silent:
        pairs = [[fake.endpoint for fake in pair] for pair in twins]
        endpoint = f"{pairs[0][0].rpartition(':')[0]}:{silent.getsockname()[1]}"
        pairs[1][1], pairs[2][0] = stranger.endpoint, endpoint
        found = connect(release / "client", [Server(pair) for pair in pairs]).health(timeout=1)
    assert [(row.server, row.endpoint) for row in found] == [(i, end) for i, pair in enumerate(pairs) for end in pair]
    assert [row.ok for row in found] == [True, True, True, False, False, True]
    assert [type(row.error).__name__ for row in found if row.error] == ["ServerMismatchError", "ServerTimeoutError"]
    assert not any(fake.received for pair in twins for fake in pair)


def test_warming_up_checks_everybody_before_the_first_image(
    connect: Callable[..., Driver], connect_local: Callable[..., Driver], release: Path, twins: list[list[FakeServer]]
) -> None:
    client = connect(release / "client", servers_of(twins))
    assert [row.ok for row in client.warmup()] == [True] * 6
    assert [fake.checks for pair in twins for fake in pair] == [1] * 6
    client.predict(np.zeros((12, 10, 3), np.uint8))
    assert [fake.checks for pair in twins for fake in pair] == [1] * 6
    assert [row.ok for row in connect_local(release).warmup()] == [True] * 3
