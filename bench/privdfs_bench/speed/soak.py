"""Predictions while processes are killed and started again: every answer compared with the right one.

A client of two callers predicts, and every party has two replicas. Every few seconds one process is killed, or one that
was killed is started again; never the last one of a party, as no orchestrator does either. What is read all the time:
memory, threads and descriptors of this process.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from privdfs import Bundle, Client, Error, NotEnoughAnswersError, Result
from privdfs._config import WireName
from privdfs._format import CLIENT_FOLDER, ClientManifest
from privdfs._images import load_image
from privdfs_bench.releases import RELEASES, branch_graphs, graph_digests
from privdfs_bench.results import ROOT
from privdfs_bench.speed.parties import Parties, lying
from privdfs_bench.speed.systems import device_session

CALLERS, REPLICAS, BLOCKS = 2, 2, 100
TIMEOUT_S, GRACE_S, EVERY_S = 2.0, 0.05, 3.0
WARM_UP = 0.2  # of the predictions: allocators, breakers and connections settle
IMAGES = ROOT / "examples" / "images"
#: An app that follows the advice of an error waits before it calls again.
PAUSE_S = 0.05


@dataclass(frozen=True)
class Steady:
    """A soak with replicas.

    Attributes:
        release: its name in model_repository.
        wire: by which servers are asked.
        colluding: of a coded release, T.
        min_answers: how many servers must answer; None: the client's default.
        liar: index of a party that lies.
    """

    release: str
    wire: WireName
    colluding: int | None = None
    min_answers: int | None = None
    liar: int | None = None


#: Of five parties one may lie where all answer: three answers decode, two more correct one lie.
STEADY = {
    "masked-grpc": Steady("fashion-resnet20", "grpc"),
    "masked-http": Steady("fashion-resnet20", "http"),
    "coded-grpc": Steady("fashion-coded-r1", "grpc", colluding=1),
    "coded-http": Steady("fashion-coded-r1", "http", colluding=1),
    "coded-liar-grpc": Steady("fashion-coded-r1", "grpc", colluding=1, min_answers=5, liar=4),
    "coded-liar-http": Steady("fashion-coded-r1", "http", colluding=1, min_answers=5, liar=4),
}


class Truth(Protocol):
    """The right answers."""

    def agrees(self, image: int, result: Result) -> bool:
        """Whether a result is right for the servers that it names."""
        ...


class MaskedTruth:
    """What the same branches give in this process for the servers that each result names.

    Args:
        release: folder of the release.
        bundle: of it.
        images: uint8 [images, height, width, channels].
    """

    def __init__(self, release: Path, bundle: Bundle, images: np.ndarray) -> None:
        shares = bundle.encode(images)
        branches = map(device_session, branch_graphs(release, bundle))
        answers = [branch.run(None, {"share": share})[0] for branch, share in zip(branches, shares, strict=True)]
        self._logits = np.stack(answers, axis=1)
        self._bundle = bundle

    def agrees(self, image: int, result: Result) -> bool:
        """Whether a result is what the answers of these servers come to."""
        expected = self._bundle.fuse(self._logits[image : image + 1], np.array([result.answered]))[0]
        return bool(np.abs(expected - result.probabilities).max() < 1e-3)


class CodedTruth:
    """Coded answers are exact, whoever answered: what a client without servers gives.

    Args:
        release: folder of the release, of honest servers.
        images: uint8 [images, height, width, channels].
        colluding: T.
    """

    def __init__(self, release: Path, images: np.ndarray, colluding: int | None) -> None:
        with Client.local(release, timeout=600, colluding=colluding) as client:
            self._probabilities = [each.probabilities for each in client.predict_batch(images)]

    def agrees(self, image: int, result: Result) -> bool:
        """Whether a result is the one that all servers' exact answers come to."""
        return bool(np.abs(self._probabilities[image] - result.probabilities).max() < 1e-6)


@dataclass
class Tally:
    """What became of calls; `kinds` names errors by their causes, `seconds` holds every call's time."""

    seconds: np.ndarray
    answered: int = 0
    wrong: int = 0
    missing: int = 0
    late: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    named_after: int | None = None
    named_wrongly: int = 0

    def summary(self) -> dict[str, Any]:
        """Counts, and percentiles in milliseconds."""
        taken = self.seconds[self.seconds >= 0] * 1e3
        calls = max(1, len(taken))
        ms = {f"p{p}_ms": round(float(np.percentile(taken, p)), 2) if len(taken) else None for p in (50, 99)}
        return {
            "calls": len(taken), "answered": self.answered, "answered_share": round(self.answered / calls, 6),
            "wrong": self.wrong, "late": self.late, "with_servers_missing": self.missing, "errors": dict(self.kinds),
            **ms, "slowest_ms": round(float(taken.max()), 1) if len(taken) else None,
        }  # fmt: skip


class Caller:
    """Predicts the images in turn, compares every answer with the truth, and counts.

    Args:
        client: to predict with.
        truth: of the images.
        images: uint8 [images, height, width, channels].
        liar: who lies, as far as anybody does.
    """

    def __init__(self, client: Client, truth: Truth, images: np.ndarray, liar: int | None = None) -> None:
        self.client, self._truth, self._images, self._liar = client, truth, images, liar
        self._lock = threading.Lock()

    def call(self, number: int, tally: Tally) -> Result | None:
        """Make the call with this number; what comes of it goes into the tally."""
        image, started = number % len(self._images), time.monotonic()
        try:
            result = self.client.predict(self._images[image])
        except Error as error:
            self._note(tally, number, time.monotonic() - started, None, error)
            time.sleep(PAUSE_S)
            return None
        self._note(tally, number, time.monotonic() - started, result, None)
        return result

    def _note(self, tally: Tally, number: int, seconds: float, result: Result | None, error: Error | None) -> None:
        wrong = result is not None and not self._truth.agrees(number % len(self._images), result)
        with self._lock:
            tally.seconds[number] = seconds
            tally.late += seconds > TIMEOUT_S + GRACE_S
            tally.wrong += wrong
            if result is None:
                tally.kinds[_told(error)] += 1
                return
            tally.answered += 1
            tally.missing += not all(result.answered)
            named = set(result.corrected) | set(result.suspects)
            if self._liar in named and tally.named_after is None:
                tally.named_after = number + 1
            tally.named_wrongly += bool(named - {self._liar})


def _told(error: Error | None) -> str:
    """An error and its causes, by their types."""
    if not isinstance(error, NotEnoughAnswersError):
        return type(error).__name__
    return f"{type(error).__name__}: {', '.join(sorted({type(each).__name__ for each in error.causes.values()}))}"


def process_figures() -> dict[str, float]:
    """Memory (MB), threads and file descriptors of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return {"rss_mb": int(fields["VmRSS"].split()[0]) / 1024, "threads": int(fields["Threads"]), "fds": descriptors}


def growth(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """How much each figure has grown after the warm-up, from the first to the last fifth of what follows it.

    Of memory the median counts; of threads and descriptors the most, since connections come and go with the servers.
    """
    settled = figures[int(len(figures) * WARM_UP) :]
    part = max(1, len(settled) // 5)
    first, last = (
        {name: [row[name] for row in rows] for name in rows[0]} for rows in (settled[:part], settled[-part:])
    )
    reduce: dict[str, Callable[[list[float]], Any]] = {"rss_mb": np.median, "threads": max, "fds": max}
    return {name: round(float(take(last[name]) - take(first[name])), 2) for name, take in reduce.items()}


def unrest(parties: Parties, over: threading.Event, events: Counter[str]) -> None:
    """Every few seconds kill a process, or start one again that was killed; never the last one of a party."""
    chance = random.Random(0)  # noqa: S311 - not for secrets
    while not over.wait(EVERY_S):
        gone = [each for each in parties.all if not each.runs]
        spare = [each for party in parties.replicas if all(one.ready for one in party) for each in party]
        if gone and (not spare or chance.random() < 0.5):
            events["ended by itself"] += chance.choice(gone).start()
            events["started again"] += 1
        elif spare:
            chance.choice(spare).kill()
            events["killed"] += 1


@contextmanager
def troubled(parties: Parties, events: Counter[str]) -> Iterator[None]:
    """Unrest inside the `with`."""
    over = threading.Event()
    thread = threading.Thread(target=unrest, args=(parties, over, events))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def open_release(name: str) -> tuple[Path, Bundle, np.ndarray]:
    """A release's folder, its bundle, and the demo's images for it, uint8 [images, height, width, channels]."""
    release = RELEASES / name
    bundle = Bundle.open(release / CLIENT_FOLDER, allow_unsigned=True)
    return release, bundle, np.stack([load_image(path, bundle.manifest.image) for path in sorted(IMAGES.glob("*.png"))])


def soak(run: Steady, predictions: int, folder: Path) -> dict[str, Any]:
    """Predict while processes come and go.

    Args:
        run: which release, and how.
        predictions: how many.
        folder: for logs, and for copies of the release.

    Raises:
        BenchError: the servers do not get ready.
    """
    release, bundle, images = open_release(run.release)
    masked = isinstance(bundle.manifest, ClientManifest)
    truth = MaskedTruth(release, bundle, images) if masked else CodedTruth(release, images, run.colluding)
    served = release if run.liar is None else lying(release, folder / "release", run.liar)
    servers = len(list(release.glob("server-*")))
    parties, events = Parties(served, servers, REPLICAS, run.wire, folder), Counter[str]()
    tally = Tally(np.full(predictions, -1.0, np.float32))
    figures: list[dict[str, float]] = []
    with ExitStack() as stack:
        stack.enter_context(parties.running())
        client = stack.enter_context(
            Client(bundle, parties.servers, timeout=TIMEOUT_S, min_answers=run.min_answers, colluding=run.colluding)
        )
        client.warmup(timeout=60)
        stack.enter_context(troubled(parties, events))
        caller, pool = Caller(client, truth, images, run.liar), stack.enter_context(ThreadPoolExecutor(CALLERS))
        started, block = time.monotonic(), max(CALLERS, predictions // BLOCKS)
        for first in range(0, predictions, block):
            for _ in pool.map(lambda number: caller.call(number, tally), range(first, min(first + block, predictions))):
                pass
            figures.append(process_figures())
        took = time.monotonic() - started
    liar = {} if run.liar is None else {
        "liar": run.liar, "named_after": tally.named_after, "named_wrongly": tally.named_wrongly
    }  # fmt: skip
    return {
        "release": run.release, "digests": graph_digests(release), "wire": run.wire, "servers": servers,
        "replicas": REPLICAS, "colluding": run.colluding, "callers": CALLERS, "timeout_s": TIMEOUT_S,
        "seconds": round(took, 1), "events": dict(events), **tally.summary(), **liar,
        "growth_after_warm_up": growth(figures),
        "at_the_end": {name: round(value, 1) for name, value in figures[-1].items()},
    }  # fmt: skip
