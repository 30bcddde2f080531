"""Predictions while servers are killed and started again, and clients before one late server."""

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from privdfs import Bundle, Client, NotEnoughAnswersError, Result, Retries, Server
from privdfs._format import CLIENT_FOLDER, server_folder
from privdfs.testing import FakeServer
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import branch_graphs
from privdfs_bench.results import ROOT
from privdfs_bench.speed.systems import device_session
from privdfs_export.serve import RunningServer, kill, start_at

CONFIG = ROOT / "configs" / "fashion-resnet20-n5.toml"
NEEDED, CALLERS, IMAGES, CLASSES, SHAPE = 3, 2, 100, 10, (1, 28, 28)
TIMEOUT_S, GRACE_S, EVERY_S, READY_S = 1.0, 0.05, 3.0, 120.0
WARM_UP = 0.2  # of the predictions: allocators, breakers and connections settle
LATE_S, LATE_SHARE, PROBES = 0.5, 0.1, 100


class Restartable:
    """The tritonserver of one repository on a port of its own, to be killed and started again."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self._port}"
        self._folder, self._log = folder, log
        self._server: RunningServer | None = None

    @property
    def runs(self) -> bool:
        """Whether it has been started and not killed."""
        return self._server is not None

    def start(self) -> None:
        """Start it; it is ready some seconds later."""
        self._server = start_at(self._folder, self._port, self._log)

    def kill(self) -> None:
        """Kill it and all that it started, without a warning."""
        if self._server is not None:
            kill(self._server)
            self._server = None


class Truth:
    """The right answers: logits of every branch for every image, [images, servers, classes]."""

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


def process_figures() -> dict[str, float]:
    """Memory (MB), threads and file descriptors of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return {"rss_mb": int(fields["VmRSS"].split()[0]) / 1024, "threads": int(fields["Threads"]), "fds": descriptors}


def unrest(
    servers: Sequence[Restartable], answer: Callable[[], int], over: threading.Event, kinds: Counter[str]
) -> None:
    """Kill a server, or start one that was killed, every few seconds; never when fewer than enough would be left."""
    chance = random.Random(0)  # noqa: S311 - not for secrets
    while not over.wait(EVERY_S):
        gone = [server for server in servers if not server.runs]
        spare = answer() > NEEDED  # one that was started takes some seconds to
        if gone and (not spare or chance.random() < 0.5):
            gone[0].start()
            kinds["started again"] += 1
        elif spare:
            chance.choice([server for server in servers if server.runs]).kill()
            kinds["killed"] += 1


def soak(release: Path, predictions: int, folder: Path) -> dict[str, Any]:
    """Predict while servers come and go.

    Args:
        release: folder of the release.
        predictions: how many.
        folder: for logs.

    Raises:
        BenchError: the servers do not get ready.
    """
    bundle = Bundle.open(release / CLIENT_FOLDER, allow_unsigned=True)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *SHAPE[1:], SHAPE[0]), dtype=np.uint8)
    truth = Truth(release, bundle, images)
    servers = [Restartable(release / server_folder(i), folder / f"{i}.log") for i in range(bundle.n_servers)]
    over, kinds, counts = threading.Event(), Counter[str](), Counter[str]()
    figures: list[dict[str, float]] = []
    slowest, late = 0.0, 0
    with ExitStack() as stack:
        caller = Caller(_connected(stack, bundle, servers, folder), truth, images)
        troubles = threading.Thread(target=unrest, args=(servers, lambda: caller.answered, over, kinds))
        stack.callback(troubles.join)  # before the servers are killed
        stack.callback(over.set)
        troubles.start()
        started = time.monotonic()
        pool = stack.enter_context(ThreadPoolExecutor(CALLERS))
        block = max(CALLERS, predictions // 100)
        for first in range(0, predictions, block):
            for kind, seconds in pool.map(caller.call, range(first, min(first + block, predictions))):
                counts[kind] += 1
                slowest, late = max(slowest, seconds), late + (seconds > TIMEOUT_S + GRACE_S)
            figures.append(process_figures())
        took = time.monotonic() - started
    settled = figures[int(len(figures) * WARM_UP) :]
    growth = {name: round(settled[-1][name] - settled[0][name], 2) for name in settled[0]}
    return {
        "predictions": predictions, "seconds": round(took, 1), "events": dict(kinds), "outcomes": dict(counts),
        "slowest_s": round(slowest, 3), "beyond_deadline_50ms": late, "growth_after_warm_up": growth,
        "at_the_end": {name: round(value, 1) for name, value in figures[-1].items()},
    }  # fmt: skip


class Caller:
    """Predicts the images in turn, and compares every answer with the truth."""

    def __init__(self, client: Client, truth: Truth, images: np.ndarray) -> None:
        self._client, self._truth, self._images = client, truth, images
        #: How many servers answered the latest call.
        self.answered = 0

    def call(self, number: int) -> tuple[str, float]:
        """One call: what came of it, in words, and its seconds."""
        started, image = time.monotonic(), number % len(self._images)
        try:
            result = self._client.predict(self._images[image])
            self.answered = sum(result.answered)
            kind = "right" if self._truth.agrees(image, result) else "wrong"
            kind += "" if all(result.answered) else ", some servers missing"
        except NotEnoughAnswersError as error:
            kind, self.answered = "typed error", len(error.answered)
        return kind, time.monotonic() - started


def _connected(stack: ExitStack, bundle: Bundle, servers: Sequence[Restartable], folder: Path) -> Client:
    """Start the servers, and give a client of them when all are ready."""
    for server in servers:
        stack.callback(server.kill)
        server.start()
    endpoints = [server.endpoint for server in servers]
    client = stack.enter_context(Client(bundle, endpoints, timeout=TIMEOUT_S, min_answers=NEEDED))
    until = time.monotonic() + READY_S
    while not all(row.ok for row in client.health(timeout=2)):
        if time.monotonic() > until:
            raise BenchError(f"the tritonservers did not get ready: see {folder}")
        time.sleep(0.3)
    return client


def straggler(release: Path, calls: int) -> dict[str, Any]:
    """Latency with one server that is sometimes late, in milliseconds; the systems take turns.

    Args:
        release: folder of the release.
        calls: of each system.
    """
    bundle = Bundle.open(release / CLIENT_FOLDER, allow_unsigned=True)
    with ExitStack() as stack:
        hedge_s, systems = _clients_before_a_late_server(stack, release, bundle)
        samples: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(calls):
            for name, run in systems.items():
                started = time.perf_counter()
                run()
                samples[name].append((time.perf_counter() - started) * 1e3)
    table = {
        name: {f"p{p}_ms": round(float(np.percentile(ms, p)), 2) for p in (50, 90, 99)} for name, ms in samples.items()
    }
    usual = table["healthy"]["p99_ms"]
    return {
        "calls": calls, "late_s": LATE_S, "late_share": LATE_SHARE,
        "hedge_after_s": round(hedge_s, 4), "systems": table,
        "p99_to_healthy": {name: round(row["p99_ms"] / usual, 2) for name, row in table.items()},
    }  # fmt: skip


def _clients_before_a_late_server(
    stack: ExitStack, release: Path, bundle: Bundle
) -> tuple[float, dict[str, Callable[[], Result]]]:
    """After how many seconds the hedging client hedges, and a call of every client."""
    spec = bundle.manifest.image
    image = np.zeros((spec.height, spec.width, spec.channels), np.uint8)
    chance = random.Random(0)  # noqa: S311 - not for secrets
    prompt = [stack.enter_context(FakeServer.for_release(release, i)) for i in range(bundle.n_servers)]
    branch = device_session(branch_graphs(release, bundle)[0])

    def answer(share: np.ndarray) -> np.ndarray:
        if chance.random() < LATE_SHARE:
            time.sleep(LATE_S)
        return np.asarray(branch.run(None, {"share": share})[0])

    tardy = stack.enter_context(FakeServer(bundle, 0, answer))
    others = [Server(fake.endpoint) for fake in prompt[1:]]

    def client(first: list[str], **options: Any) -> Callable[[], Result]:  # noqa: ANN401 - a client's
        made = stack.enter_context(Client(bundle, [Server(first), *others], timeout=5, **options))
        made.warmup()
        return lambda: made.predict(image)

    healthy = client([prompt[0].endpoint])
    probes = [healthy().timings.servers_ms[0] or 0.0 for _ in range(PROBES)]
    hedge_s = float(np.percentile(probes, 95)) / 1e3
    hedges = Retries(hedge_after=hedge_s, hedge_budget=0.2)
    return hedge_s, {
        "healthy": healthy,
        "unprotected": client([tardy.endpoint]),
        "quorum": client([tardy.endpoint], wait="quorum", min_answers=bundle.n_servers - 1),
        "hedged": client([tardy.endpoint, prompt[0].endpoint], retries=hedges),
    }
