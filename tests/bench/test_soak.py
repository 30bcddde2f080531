"""The soak: what it takes for right and wrong, and its comparison of clients before one late server."""

import dataclasses
import threading
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from privdfs import Bundle, Client
from privdfs.testing import FakeServer
from privdfs_bench.speed import soak
from tests.sdk.tiny_release import HEIGHT, WIDTH, build_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_release(tmp_path_factory.mktemp("soak") / "tiny")


def test_a_wrong_answer_and_one_that_names_others_are_found(release: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    truth = soak.Truth(release, Bundle.open(release / "client", allow_unsigned=True), images)
    with Client.local(release) as client:
        result = client.predict(images[1])
    assert truth.agrees(1, result)
    assert not truth.agrees(0, result)
    assert not truth.agrees(1, dataclasses.replace(result, answered=(True, False, True)))
    assert not truth.agrees(1, dataclasses.replace(result, probabilities=result.probabilities[::-1]))


def test_every_call_is_counted_for_what_it_was(release: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer.for_release(release, i)) for i in range(3)]
        endpoints = [fake.endpoint for fake in fakes]
        client = stack.enter_context(Client(bundle, endpoints, timeout=10, min_answers=2))
        caller = soak.Caller(client, soak.Truth(release, bundle, images), images)
        misled = soak.Caller(client, soak.Truth(release, bundle, images[::-1]), images)
        kinds = [caller.call(2)[0], misled.call(0)[0]]
        fakes[1].close()
        kinds += [caller.call(1)[0], misled.call(1)[0]]
        assert caller.answered == 2
        fakes[2].close()
        kinds.append(caller.call(0)[0])
        assert caller.answered < 2
    assert kinds == ["right", "wrong", "right, some servers missing", "wrong, some servers missing", "typed error"]


class Standin:
    """A server that only remembers whether it runs."""

    def __init__(self) -> None:
        self.runs = True

    def start(self) -> None:
        assert not self.runs
        self.runs = True

    def kill(self) -> None:
        assert self.runs
        self.runs = False


def test_servers_are_killed_and_started_but_enough_always_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "EVERY_S", 0)
    servers, kinds, running = [Standin() for _ in range(5)], Counter[str](), list[int]()

    def answer() -> int:
        running.append(sum(server.runs for server in servers))
        if len(running) == 200:
            over.set()
        return running[-1]

    over = threading.Event()
    soak.unrest(cast("list[soak.Restartable]", servers), answer, over, kinds)
    assert set(running) == {3, 4, 5}
    assert kinds["killed"] + kinds["started again"] == 200
    assert kinds["killed"] - kinds["started again"] == sum(not server.runs for server in servers)


def test_a_late_server_is_compared(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "LATE_SHARE", 1.0)
    monkeypatch.setattr(soak, "LATE_S", 0.3)
    monkeypatch.setattr(soak, "PROBES", 5)
    found = soak.straggler(release, 3)
    assert list(found["systems"]) == ["healthy", "unprotected", "quorum", "hedged"]
    assert found["systems"]["unprotected"]["p50_ms"] >= 300


def test_latencies_are_divided_by_the_healthy_clients(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of the test's own: each call takes its client's time, whatever this machine does."""
    now, times = 0.0, {"healthy": 0.004, "unprotected": 0.5, "quorum": 0.006, "hedged": 0.01}

    def call(seconds: float) -> None:
        nonlocal now
        now += seconds

    systems = {name: partial(call, seconds) for name, seconds in times.items()}
    monkeypatch.setattr(soak, "_clients_before_a_late_server", lambda *_: (0.005, systems))
    monkeypatch.setattr(soak, "time", SimpleNamespace(perf_counter=lambda: now))
    found = soak.straggler(release, 4)
    assert found["systems"]["unprotected"] == {"p50_ms": 500, "p90_ms": 500, "p99_ms": 500}
    assert found["p99_to_healthy"] == {"healthy": 1, "unprotected": 125, "quorum": 1.5, "hedged": 2.5}


def test_protected_clients_answer_before_a_server_that_never_does(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "LATE_SHARE", 1.0)
    monkeypatch.setattr(soak, "LATE_S", 7.0)  # beyond the deadline of a call
    monkeypatch.setattr(soak, "PROBES", 5)
    with ExitStack() as stack:
        bundle = Bundle.open(release / "client", allow_unsigned=True)
        _, systems = soak._clients_before_a_late_server(stack, release, bundle)
        assert systems["healthy"]().answered == (True, True, True)
        assert systems["quorum"]().answered == (False, True, True)
        assert systems["hedged"]().answered == (True, True, True)  # the first server's answer came from its replica


def test_figures_of_this_process(tmp_path: Path) -> None:
    before, over = soak.process_figures(), threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(40)]
    with ExitStack() as stack:
        for index in range(200):
            stack.enter_context((tmp_path / str(index)).open("w"))
        for thread in threads:
            thread.start()
        stack.callback(over.set)
        held = np.ones(64 << 20, np.uint8)
        after = soak.process_figures()
    for thread in threads:
        thread.join()
    assert held.all()
    # What earlier tests left may end meanwhile.
    assert after["fds"] - before["fds"] == pytest.approx(200, abs=20)
    assert after["threads"] - before["threads"] == pytest.approx(40, abs=20)
    assert 50 < after["rss_mb"] - before["rss_mb"] < 100
