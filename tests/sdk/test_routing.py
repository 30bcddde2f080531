"""Which replica is next, and when one is left alone. No network."""

import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privdfs import ConfigError, Retries, Server
from privdfs._config import check_servers, shared_address
from privdfs._constants import BREAKER_FAILURES, BREAKER_FIRST_S, HEDGE_BURST
from privdfs._routing import Breaker, Replicas


@dataclass(eq=False)
class Line:
    server: int
    endpoint: str
    checked: bool = False


def replicas(count: int) -> Replicas[Line]:
    return Replicas([Line(4, f"replica {i}") for i in range(count)])


def test_load_goes_to_the_replica_with_the_fewest_attempts_in_turn() -> None:
    those = replicas(3)
    taken = [those.take((), ()) for _ in range(6)]
    assert sorted(line.endpoint for line in taken if line) == sorted([f"replica {i}" for i in range(3)] * 2)
    assert taken[0] is not None
    those.give_back(taken[0], failed=False)
    assert those.take((), ()) is taken[0], "it has one attempt less than the others"


def test_a_replica_that_was_tried_comes_last_and_one_to_avoid_never() -> None:
    those = replicas(2)
    for _ in range(4):
        line = those.take((), {"replica 0"})
        assert line is not None
        assert line.endpoint == "replica 1"
    line = those.take({"replica 1"}, {"replica 0"})
    assert line is not None
    assert line.endpoint == "replica 0"
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


def test_a_renewed_connection_replaces_the_old_which_is_closed_after_its_last_attempt() -> None:
    first, second = Line(0, "a"), Line(0, "a")
    good, closed = [first], []
    those = Replicas([first], renew=lambda _: good[-1], retire=closed.append)
    assert those.take((), ()) is first
    good.append(second)
    assert those.take((), ()) is second
    assert not closed
    assert set(those.open_lines) == {first, second}
    those.give_back(first, failed=None)
    assert closed == [first]
    those.give_back(second, failed=None)
    assert closed == [first]
    assert those.open_lines == [second]


@given(st.lists(st.tuples(st.sampled_from(["take", "ok", "failed", "cut"]), st.integers(0, 5)), max_size=60))
def test_attempts_are_counted_whatever_happens(steps: list[tuple[str, int]]) -> None:
    those, running = replicas(3), []
    for step, which in steps:
        if step == "take":
            line = those.take((), ())
            running += [line] if line else []
        elif running:
            those.give_back(running.pop(which % len(running)), failed={"ok": False, "failed": True, "cut": None}[step])
    assert sum(replica.running for replica in those._replicas) == len(running)
    assert set(those._users) == set(running)


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
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(2) or [])
    started = time.monotonic()
    assert shared_address([["a.example"], ["b.example"]]) is None
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": 0}, {"attempts": 11}, {"attempts": 1.5}, {"hedge_after": 0}, {"hedge_after": "1"},
     {"hedge_budget": -0.1}, {"hedge_budget": 1.1}, {"hedge_budget": True}, {"hedge_budget": float("nan")}],
)  # fmt: skip
def test_policies_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Retries(**wrong)
