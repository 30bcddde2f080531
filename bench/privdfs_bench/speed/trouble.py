"""What goes wrong at one party for a while: it is cut off, slow, or has a full queue; or ten times the load comes.

Each run has three phases: all is well, the trouble, and all is well again. The release is a masked one of three
parties. `recovered_s` is how long after the trouble the first second begins in which every call is answered by all
servers (or by the quorum that it waits for), and p99 is at most twice what it was before.
"""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from privdfs import Bundle, Client
from privdfs._config import Wait, WireName
from privdfs_bench.releases import graph_digests
from privdfs_bench.speed.parties import Parties, slow
from privdfs_bench.speed.soak import CALLERS, TIMEOUT_S, Caller, MaskedTruth, Tally, open_release

RELEASE, PARTY, MOST_CALLS = "fashion-resnet20", 1, 500_000
#: Of a slow party; of the party with a queue, and how many may wait there.
SLOW_S, SERVICE_S, QUEUE = 0.2, 0.02, 4
LOAD, OVERLOAD_S, NORMAL = 10, 60.0, 2.0


@dataclass(frozen=True)
class Trouble:
    """One run.

    Attributes:
        kind: what goes wrong.
        wire: by which servers are asked.
        wait: of the client.
        min_answers: of the client.
        replicas: of every party.
    """

    kind: Literal["partition", "slow", "full queue", "overload"]
    wire: WireName
    wait: Wait = "all"
    min_answers: int | None = None
    replicas: int = 2

    @property
    def callers(self) -> int:
        """While the trouble lasts."""
        return CALLERS * (LOAD if self.kind in {"full queue", "overload"} else 1)


def _both(name: str, **options: Any) -> dict[str, Trouble]:  # noqa: ANN401 - of Trouble
    wires: tuple[WireName, WireName] = ("grpc", "http")
    return {f"{name}-{wire}": Trouble(wire=wire, **options) for wire in wires}


TROUBLES = {
    **_both("partition", kind="partition", min_answers=2),
    **_both("partition-quorum", kind="partition", min_answers=2, wait="quorum"),
    **_both("slow", kind="slow"),
    **_both("slow-quorum", kind="slow", min_answers=2, wait="quorum"),
    **_both("full-queue", kind="full queue", replicas=1),
    **_both("overload", kind="overload"),
}


class Phase:
    """The calls of one phase: their ends on the clock, and the tally."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.tally = Tally(np.full(MOST_CALLS, -1.0, np.float32))
        self._ends: list[tuple[float, float, bool, bool]] = []  # when, its seconds, answered, whole

    def run(self, caller: Caller, callers: int, seconds: float, enough: int) -> "Phase":
        """Let so many callers call again and again for some seconds; a call is whole if `enough` servers answered."""
        numbers, until = count(), time.monotonic() + seconds
        lock = threading.Lock()

        def work(_: int) -> None:
            while (started := time.monotonic()) < until:
                with lock:
                    number = next(numbers)
                result = caller.call(number, self.tally)
                ended = time.monotonic() if result is not None else started + float(self.tally.seconds[number])
                whole = result is not None and sum(result.answered) >= enough
                self._ends.append((ended, ended - started, result is not None, whole))

        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(work, range(callers)))
        return self

    def summary(self) -> dict[str, Any]:
        """The tally, calls a second, and the times of those that failed."""
        failed = sorted(seconds * 1e3 for _, seconds, answered, _ in self._ends if not answered)
        took = max(end for end, *_ in self._ends) - self.started
        errors = {f"error_p{p}_ms": round(float(np.percentile(failed, p)), 1) for p in (50, 99, 100)} if failed else {}
        return {**self.tally.summary(), "per_second": round(len(self._ends) / took, 1), **errors}

    def recovered_s(self, normal_ms: float) -> float | None:
        """When the first second begins that is as before; see `recovered_s`."""
        return recovered_s(self.started, [(end, seconds, whole) for end, seconds, _, whole in self._ends], normal_ms)


def recovered_s(started: float, calls: Sequence[tuple[float, float, bool]], normal_ms: float) -> float | None:
    """After how many seconds the first one begins in which all is as it was.

    Args:
        started: when the trouble was over, on the clock.
        calls: when each ended, how long it took in seconds, and whether it was answered by as many as it waits for.
        normal_ms: p99 before the trouble.

    Returns:
        None: there is no such second.
    """
    for second in range(int(max(end for end, *_ in calls) - started)):
        within = [(taken, whole) for end, taken, whole in calls if second <= end - started < second + 1]
        taken_ms = [taken * 1e3 for taken, _ in within]
        if within and all(whole for _, whole in within) and np.percentile(taken_ms, 99) <= NORMAL * normal_ms:
            return float(second)
    return None


def trouble(run: Trouble, seconds: float, folder: Path) -> dict[str, Any]:
    """Predict before, during and after a trouble.

    Args:
        run: which one.
        seconds: of each phase; ten times the load lasts a minute, or three times this if that is less.
        folder: for logs, and for a copy of the release.

    Raises:
        BenchError: the servers do not get ready.
    """
    release, bundle, images = open_release(RELEASE)
    flag, during_s = folder / "slow", min(OVERLOAD_S, 3 * seconds) if run.kind == "overload" else seconds
    served = release
    if run.kind in {"slow", "full queue"}:
        queue = QUEUE if run.kind == "full queue" else None
        served = slow(release, folder / "release", PARTY, SLOW_S if queue is None else SERVICE_S, flag, queue)
    parties = Parties(served, bundle.n_servers, run.replicas, run.wire, folder)
    with ExitStack() as stack:
        stack.enter_context(parties.running())
        client = stack.enter_context(_client(run, bundle, parties))
        caller = Caller(client, MaskedTruth(release, bundle, images), images)
        enough = run.min_answers if run.wait == "quorum" and run.min_answers else bundle.n_servers
        before = Phase().run(caller, CALLERS, seconds, enough)
        with _happening(run, parties, flag):
            during = Phase().run(caller, run.callers, during_s, enough)
        after = Phase().run(caller, CALLERS, seconds, enough)
    phases = {"before": before, "during": during, "after": after}
    told = {name: phase.summary() for name, phase in phases.items()}
    totals = {name: sum(phase[name] for phase in told.values()) for name in ("calls", "answered", "wrong", "late")}
    return {
        "release": RELEASE, "digests": graph_digests(release), "wire": run.wire, "servers": bundle.n_servers,
        "replicas": run.replicas, "wait": run.wait, "min_answers": run.min_answers or bundle.n_servers,
        "timeout_s": TIMEOUT_S, "callers": [CALLERS, run.callers, CALLERS], **totals, "phases": told,
        "recovered_s": after.recovered_s(told["before"]["p99_ms"]),
    }  # fmt: skip


def _client(run: Trouble, bundle: Bundle, parties: Parties) -> Client:
    client = Client(bundle, parties.servers, timeout=TIMEOUT_S, min_answers=run.min_answers, wait=run.wait)
    client.warmup(timeout=60)
    return client


@contextmanager
def _happening(run: Trouble, parties: Parties, flag: Path) -> Iterator[None]:
    """The trouble lasts as long as the `with`."""
    if run.kind == "partition":  # stopped processes take connections and bytes, and say nothing
        for each in parties.replicas[PARTY]:
            each.signal(signal.SIGSTOP)
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()
        for each in parties.replicas[PARTY]:
            each.signal(signal.SIGCONT)
