"""The soak: what it takes for right and wrong, whom it kills, and its comparison of clients before one late server."""

import dataclasses
import json
import threading
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from privdfs import Bundle, Client
from privdfs.testing import FakeServer
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import RELEASES
from privdfs_bench.speed import parties, soak, soak_table, straggler, trouble
from privdfs_export.repository import read_repository
from tests.bench.soak_row import soak_row
from tests.coded_release import build_coded_release, noise
from tests.sdk.tiny_release import HEIGHT, WIDTH, build_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_release(tmp_path_factory.mktemp("soak") / "tiny")


def tally(calls: int) -> soak.Tally:
    return soak.Tally(np.full(calls, -1.0, np.float32))


def test_a_wrong_answer_and_one_that_names_others_are_found(release: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    truth = soak.MaskedTruth(release, Bundle.open(release / "client", allow_unsigned=True), images)
    with Client.local(release) as client:
        result = client.predict(images[1])
    assert truth.agrees(1, result)
    assert not truth.agrees(0, result)
    assert not truth.agrees(1, dataclasses.replace(result, answered=(True, False, True)))
    assert not truth.agrees(1, dataclasses.replace(result, probabilities=result.probabilities[::-1]))


def test_coded_answers_have_one_truth_and_a_liar_is_named(tmp_path: Path) -> None:
    folder, images = build_coded_release(tmp_path / "release", servers=7), noise(2, seed=3)
    truth = soak.CodedTruth(folder, images, 1)
    bundle = Bundle.open(folder / "client", allow_unsigned=True)
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer.for_release(folder, i)) for i in range(7)]
        endpoints = [fake.endpoint for fake in fakes]
        client = stack.enter_context(Client(bundle, endpoints, timeout=30, colluding=1, min_answers=7))
        caller, found = soak.Caller(client, truth, images, liar=2), tally(4)
        caller.call(0, found)
        assert (found.answered, found.wrong, found.named_after, found.named_wrongly) == (1, 0, None, 0)
        honest = fakes[2]._answer
        fakes[2]._answer = lambda *given: np.roll(honest(*given), 1, axis=-1)
        caller.call(1, found)
        assert (found.wrong, found.named_after, found.named_wrongly) == (0, 2, 0)
        soak.Caller(client, truth, images, liar=5).call(2, found)
        assert found.named_wrongly == 1
        misled = soak.Caller(client, soak.CodedTruth(folder, images[::-1], 1), images)
        misled.call(3, found)
        assert found.wrong == 1


def test_every_call_is_counted_for_what_it_was(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    with ExitStack() as stack:
        fakes = [stack.enter_context(FakeServer.for_release(release, i)) for i in range(3)]
        endpoints = [fake.endpoint for fake in fakes]
        client = stack.enter_context(Client(bundle, endpoints, timeout=10, min_answers=2))
        caller, found = soak.Caller(client, soak.MaskedTruth(release, bundle, images), images), tally(5)
        caller.call(2, found)
        misled = soak.Caller(client, soak.MaskedTruth(release, bundle, images[::-1]), images)
        misled.call(0, found)
        fakes[1].close()
        caller.call(1, found)
        fakes[2].close()
        monkeypatch.setattr(soak, "TIMEOUT_S", -1.0)  # whatever takes time is late
        monkeypatch.setattr(soak, "PAUSE_S", 0)
        caller.call(3, found)
    summary = found.summary()
    assert [summary[name] for name in ("calls", "answered", "wrong", "with_servers_missing", "late")] == [4, 3, 1, 1, 1]
    assert summary["errors"] == {"NotEnoughAnswersError: ServerUnavailableError": 1}
    assert summary["answered_share"] == 0.75


class Standin:
    """A replica that only remembers whether it runs."""

    def __init__(self) -> None:
        self.runs = self.ready = True

    def start(self) -> bool:
        assert not self.runs
        self.runs = self.ready = True
        return False

    def kill(self) -> None:
        assert self.runs
        self.runs = self.ready = False


def test_processes_are_killed_and_started_but_never_the_last_of_a_party(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "EVERY_S", 0)
    replicas, kinds, left = [[Standin(), Standin()] for _ in range(3)], Counter[str](), 300

    class Over:
        def wait(self, _: float) -> bool:
            nonlocal left
            left -= 1
            assert all(any(each.runs for each in party) for party in replicas)
            return left < 0

    everybody = [each for party in replicas for each in party]
    standin: Any = SimpleNamespace(replicas=replicas, all=everybody)
    soak.unrest(standin, cast("threading.Event", Over()), kinds)
    assert kinds["killed"] + kinds["started again"] == 300
    assert kinds["killed"] - kinds["started again"] == sum(not each.runs for each in everybody)


@pytest.mark.parametrize("name", ["fashion-resnet20", "fashion-coded-r1"])
def test_releases_in_which_a_party_lies_or_is_slow_are_whole(name: str, tmp_path: Path) -> None:
    lying = parties.lying(RELEASES / name, tmp_path / "lying", 1)
    slow = parties.slow(RELEASES / name, tmp_path / "slow", 1, 0.5, tmp_path / "flag", queue=4)
    for folder, told in ((lying, "np.roll(array, 1"), (slow, "time.sleep(0.5 if")):
        for server in range(3):
            files = read_repository(folder / f"server-{server}").files  # its digests are checked
            scripts = [data.decode() for path, data in files.items() if path.endswith("model.py")]
            assert [told in script for script in scripts] == [server == 1]
            compile(scripts[0], "model.py", "exec")
    (config,) = (slow / "server-0").glob("*/config.pbtxt")
    assert "max_queue_size" not in config.read_text(encoding="utf-8")
    (config,) = (slow / "server-1").glob("*/config.pbtxt")
    assert "max_queue_size: 4" in config.read_text(encoding="utf-8")
    with pytest.raises(BenchError, match="adapt"):
        parties._replaced("text", "other", "")


def test_growth_is_counted_after_the_warm_up() -> None:
    rows = [{"rss_mb": 150.0 if i < 20 else 100.0 + i / 50, "threads": 5, "fds": 10 + i % 3} for i in range(100)]
    assert soak.growth(rows) == {"rss_mb": 1.28, "threads": 0, "fds": 0}


def test_recovery_is_the_first_second_that_is_as_before() -> None:
    calls = [(100.5, 0.5, True), (101.2, 0.01, True), (101.4, 0.01, False), (102.3, 0.019, True), (104.0, 0.01, True)]
    assert trouble.recovered_s(100.0, calls, 10.0) == 2.0
    assert trouble.recovered_s(100.0, calls, 5.0) is None


def test_the_bars() -> None:
    runs = {
        "good": soak_row(liar=4, named_after=100, named_wrongly=0),
        "bad": soak_row(
            answered_share=0.9998, wrong=1, late=2, growth_after_warm_up={"rss_mb": 5.0, "threads": 1, "fds": 7}
        ),
        "unnamed": soak_row(liar=4, named_after=None, named_wrongly=3),
        "straggler": {"systems": {}},
    }
    good, bad, unnamed = soak_table.bars(runs)
    assert good == "good: meets its bars"
    for told in ("1 wrong", "2 late", "99.9800%", "threads grew by 1", "fds grew by 7", "memory grew by 5.0"):
        assert told in bad
    assert "named after None" in unnamed
    assert "honest server was named 3 times" in unnamed
    steady, phased = soak_table.tables(
        runs | {"phased": {"phases": {"after": soak_row(per_second=9.0)}, "recovered_s": 1.0}}
    )
    assert (steady.row_count, phased.row_count) == (3, 1)


def phased(*, wait: str = "all", recovered_s: float | None = 1.0, **during: Any) -> dict[str, Any]:
    """A run with phases, in which the trouble is as given."""
    phases = {"before": soak_row(), "during": soak_row(**during), "after": soak_row()}
    run = {"calls": 3, "wrong": 0, "late": 0, "wait": wait, "recovered_s": recovered_s, "phases": phases}
    return json.loads(json.dumps(run))


def test_the_bars_of_a_trouble() -> None:
    busy = {"NotEnoughAnswersError: ServerBusyError": 9}
    late = phased()
    late["phases"]["after"]["answered_share"] = 0.99
    runs = {
        "waits for all": phased(
            answered_share=0.0, p99_ms=2000.0, errors={"NotEnoughAnswersError: ServerTimeoutError": 9}
        ),
        "no quorum": phased(wait="quorum", answered_share=0.0, p99_ms=2000.0),
        "slow errors": phased(errors=busy, error_p99_ms=51.0),
        "quick errors": phased(errors=busy, error_p99_ms=50.0),
        "never well": phased(recovered_s=None),
        "well too late": phased(recovered_s=6.0),
        "not all after": late,
    }
    said = dict(line.split(": ", 1) for line in soak_table.bars(runs))
    assert [name for name, what in said.items() if what == "meets its bars"] == ["waits for all", "quick errors"]
    assert said["no quorum"].startswith("answered 0.0000% during, the bar is 99.99%; p99 of the quorum was 2000.0 ms")
    assert said["slow errors"] == "p99 of errors was 51.0 ms, the bar is 50 ms"
    assert said["never well"] == "normal again after None s, the bar is 5 s"
    assert said["not all after"] == "answered 99.0000% after, the bar is 99.99%"


def test_a_late_server_is_compared(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straggler, "LATE_SHARE", 1.0)
    monkeypatch.setattr(straggler, "LATE_S", 0.3)
    monkeypatch.setattr(straggler, "PROBES", 5)
    found = straggler.straggler(release, 3)
    assert list(found["systems"]) == ["healthy", "unprotected", "quorum", "hedged"]
    assert found["systems"]["unprotected"]["p50_ms"] >= 300


def test_latencies_are_divided_by_the_healthy_clients(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of the test's own: each call takes its client's time, whatever this machine does."""
    now, times = 0.0, {"healthy": 0.004, "unprotected": 0.5, "quorum": 0.006, "hedged": 0.01}

    def call(seconds: float) -> None:
        nonlocal now
        now += seconds

    systems = {name: partial(call, seconds) for name, seconds in times.items()}
    monkeypatch.setattr(straggler, "_clients_before_a_late_server", lambda *_: (0.005, systems))
    monkeypatch.setattr(straggler, "time", SimpleNamespace(perf_counter=lambda: now))
    found = straggler.straggler(release, 4)
    assert found["systems"]["unprotected"] == {"p50_ms": 500, "p90_ms": 500, "p99_ms": 500}
    assert found["p99_to_healthy"] == {"healthy": 1, "unprotected": 125, "quorum": 1.5, "hedged": 2.5}


def test_protected_clients_answer_before_a_server_that_never_does(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(straggler, "LATE_SHARE", 1.0)
    monkeypatch.setattr(straggler, "LATE_S", 7.0)  # beyond the deadline of a call
    monkeypatch.setattr(straggler, "PROBES", 5)
    with ExitStack() as stack:
        bundle = Bundle.open(release / "client", allow_unsigned=True)
        _, systems = straggler._clients_before_a_late_server(stack, release, bundle)
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
