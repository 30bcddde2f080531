"""Which replica is next, and when one is left alone. No network."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privdfs import ConfigError, Retries, Server
from privdfs._config import check_servers, shared_address
from privdfs._constants import BREAKER_FAILURES, BREAKER_FIRST_S, BREAKER_LAST_S, HEDGE_BURST, IDLE_CONNECTION_S
from privdfs._routing import Breaker, Replicas


@dataclass(eq=False)
class Connection:
    server: int
    endpoint: str
    reusable: bool = True
    idle_s: float = 0.0
    closed: bool = False
    interrupted: bool = False

    def close(self) -> None:
        self.closed, self.reusable = True, False

    def interrupt(self) -> None:
        self.interrupted, self.reusable = True, False


def replicas(count: int, usable: Callable[[Connection], bool] = lambda _: True) -> Replicas[Connection]:
    return Replicas(4, [f"replica {i}" for i in range(count)], lambda endpoint: Connection(4, endpoint), usable)


def test_load_goes_to_the_replica_with_the_fewest_attempts_in_turn() -> None:
    those = replicas(3)
    taken = [those.take((), ()) for _ in range(6)]
    assert sorted(each.endpoint for each in taken if each) == sorted([f"replica {i}" for i in range(3)] * 2)
    assert len({id(each) for each in taken}) == 6, "a connection for each attempt"
    assert taken[0] is not None
    those.give_back(taken[0], failed=False)
    assert those.take((), ()) is taken[0], "it has one attempt less than the others, and an idle connection"


def test_a_replica_that_was_tried_comes_last_and_one_to_avoid_never() -> None:
    those = replicas(2)
    for _ in range(4):
        connection = those.take((), {"replica 0"})
        assert connection is not None
        assert connection.endpoint == "replica 1"
    connection = those.take({"replica 1"}, {"replica 0"})
    assert connection is not None
    assert connection.endpoint == "replica 0"
    assert those.take({"replica 0", "replica 1"}, ()) is None
    assert not those.others({"replica 0", "replica 1"})


def test_a_breaker_opens_lets_one_attempt_in_after_a_pause_and_closes() -> None:
    breaker, now = Breaker(), 100.0
    for _ in range(BREAKER_FAILURES):
        assert breaker.admits(now)
        breaker.note(now, failed=True)
    assert not breaker.admits(now + 0.9 * BREAKER_FIRST_S)
    later = now + 1.1 * BREAKER_FIRST_S
    assert breaker.admits(later)
    breaker.enter(later)
    assert not breaker.admits(later), "one attempt is under way"
    breaker.note(later, failed=True)
    assert not breaker.admits(later + 1.5 * BREAKER_FIRST_S), "the pause has doubled"
    assert breaker.admits(later + 2.1 * BREAKER_FIRST_S)
    breaker.note(later, failed=False)
    assert breaker.admits(later)
    breaker.note(later, failed=True)
    assert breaker.admits(later), "one failure after a success is only one"


def test_hedges_are_paid_for() -> None:
    those = replicas(1)
    assert [those.pay_for_hedge() for _ in range(HEDGE_BURST + 1)] == [True] * HEDGE_BURST + [False]
    for _ in range(4):
        those.save_for_hedges(0.25)
    assert [those.pay_for_hedge(), those.pay_for_hedge()] == [True, False]


def test_an_idle_connection_is_looked_at_before_it_is_used_again() -> None:
    good: set[Connection] = set()
    those = replicas(1, lambda connection: connection in good)
    first, second = those.take((), ()), those.take((), ())
    assert first is not None
    assert second is not None
    good.add(first)
    for connection in (first, second):
        those.give_back(connection, failed=None)
    assert those.take((), ()) is first
    assert second.closed, "the one that was not good"
    assert those.take((), ()) not in {first, second, None}


def test_a_connection_that_broke_is_not_kept() -> None:
    those = replicas(1)
    first = those.take((), ())
    assert first is not None
    first.reusable = False
    those.give_back(first, failed=True)
    assert first.closed
    assert those.take((), ()) is not first


def test_connections_that_nobody_used_for_long_are_closed() -> None:
    those = replicas(1)
    old, new = those.take((), ()), those.take((), ())
    assert old is not None
    assert new is not None
    those.give_back(old, failed=False)
    old.idle_s = IDLE_CONNECTION_S + 1
    those.give_back(new, failed=False)
    assert (old.closed, new.closed) == (True, False)


def test_closing_ends_idle_and_running_connections() -> None:
    those = replicas(1)
    idle, running = those.take((), ()), those.take((), ())
    assert idle is not None
    assert running is not None
    those.give_back(idle, failed=False)
    assert those.connected
    those.close()
    assert idle.closed
    assert running.interrupted
    those.give_back(running, failed=None)
    assert running.closed
    assert not those.connected
    late = those.take((), ())  # of a call that began before
    assert late is not None
    assert late.interrupted


def test_the_last_replica_is_tried_more_often_than_its_breaker_says() -> None:
    breaker, now = Breaker(), 100.0
    for _ in range(BREAKER_FAILURES + 8):
        breaker.note(now, failed=True)
    assert not breaker.admits(now + 0.9 * BREAKER_LAST_S, last=True)
    assert breaker.admits(now + 1.1 * BREAKER_LAST_S, last=True)
    assert not breaker.admits(now + 1.1 * BREAKER_LAST_S)
    breaker.enter(now + 1.1 * BREAKER_LAST_S)
    assert not breaker.admits(now + 1.2 * BREAKER_LAST_S, last=True), "one attempt is under way"


@given(st.lists(st.tuples(st.sampled_from(["take", "ok", "failed", "cut"]), st.integers(0, 5)), max_size=60))
def test_attempts_are_counted_whatever_happens(steps: list[tuple[str, int]]) -> None:
    those, running = replicas(3), []
    for step, which in steps:
        if step == "take":
            connection = those.take((), ())
            running += [connection] if connection else []
        elif running:
            those.give_back(running.pop(which % len(running)), failed={"ok": False, "failed": True, "cut": None}[step])
    assert set().union(*(replica.running for replica in those._replicas.values())) == set(running)


# ---------------------------------------------------------------------------------------------- hosts are kept apart


@pytest.mark.parametrize(
    ("hosts", "found"),
    [
        ([["10.0.0.1"], ["10.0.0.2"]], None),
        ([["10.0.0.1", "10.0.0.1"], ["10.0.0.2"]], None),
        ([["10.0.0.1"], ["10.0.0.3", "10.0.0.1"]], (0, 1, "10.0.0.1")),
        ([["10.0.0.1"], ["::ffff:10.0.0.1"]], (0, 1, "10.0.0.1")),
        ([["127.0.0.1"], ["127.0.0.1"], ["localhost"], ["::1"]], None),
        ([["a.example"], ["A.example".lower() + "."]], (0, 1, "a.example")),
    ],
)
def test_two_servers_at_one_address(hosts: list[list[str]], found: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [])
    assert shared_address(hosts) == found


def test_two_names_of_one_address(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    answers = {"a.example": "10.0.0.7", "b.example": "10.0.0.8", "c.example": "10.0.0.7"}
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *_, **__: [(2, 1, 6, "", (answers[host], 0))])
    servers = [Server(f"{name}:1", insecure=True) for name in answers]
    with pytest.raises(ConfigError, match=r"servers 0 and 2 are both at 10\.0\.0\.7"):
        check_servers(servers, 3)
    assert check_servers(servers, 3, allow_shared_hosts=True) == tuple(servers)
    assert "not private" in caplog.text
    assert check_servers(servers[:2], 2) == tuple(servers[:2])


def test_a_silent_name_server_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privdfs._config.RESOLVE_LIMIT_S", 0.05)
    answers = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: answers.wait(60) and [])
    started = time.monotonic()
    assert shared_address([["a.example"], ["b.example"]]) is None
    assert time.monotonic() - started < 30
    answers.set()


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"attempts": 11}, {"attempts": 1.5}, {"hedge_after": 0}, {"hedge_after": "1"},
     {"hedge_budget": -0.1}, {"hedge_budget": 1.1}, {"hedge_budget": True}, {"hedge_budget": float("nan")}],
)  # fmt: skip
def test_policies_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Retries(**wrong)
