"""`python bench/soak.py`: predictions over five real tritonservers, one killed or started again every few seconds.

The release has random weights, so answers are compared with what the same branches give in this process for the servers
that each result names: a result that differs would be wrong and not flagged. Memory, threads and file descriptors of
this process are read all the time; growth is counted after the warm-up.

A second part has one server that holds one answer in ten back for half a second, on servers in this process, and
compares the latency of a client without and with protection: `wait="quorum"` with one answer less, and hedges to a
second, healthy replica of that server after the 95th percentile of its healthy times.

Results go to bench/results/soak.json.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from _common import EXIT_ERROR, EXIT_INTERRUPTED, RESULTS, ROOT, BenchError, made_by, write_results
from random_release import write_random_release

from privdfs import Bundle, Client, Error, NotEnoughAnswersError, Result, Retries, Server
from privdfs._command_line import signals_interrupt, whole_number
from privdfs._local import open_branch
from privdfs.testing import FakeServer
from privdfs_export.serve import find_tritonserver
from privdfs_training.config import load_config

CONFIG = ROOT / "configs" / "fashion-resnet20-n5.toml"
NEEDED, CALLERS, IMAGES, CLASSES, SHAPE = 3, 2, 100, 10, (1, 28, 28)
TIMEOUT_S, GRACE_S, EVERY_S, READY_S = 1.0, 0.05, 3.0, 120.0
WARM_UP = 0.2  # of the predictions: allocators, breakers and connections settle
LATE_S, LATE_SHARE, PROBES = 0.5, 0.1, 100


class Triton:
    """A tritonserver on a port of its own, to be killed and started again."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self.port}"
        self._folder, self._log = folder, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether it has been started and not killed."""
        return self._process is not None

    def start(self) -> None:
        """Start it; it is ready some seconds later."""
        line = [
            str(find_tritonserver()), f"--model-repository={self._folder}", "--model-control-mode=none",
            "--disable-auto-complete-config", "--allow-http=false", "--allow-metrics=false",
            "--grpc-address=127.0.0.1", f"--grpc-port={self.port}",
            f"--backend-config=python,shm-region-prefix-name={self._shared}",
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def kill(self) -> None:
        """Kill it and all that it started, without a warning."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
            for path in Path("/dev/shm").glob(f"{self._shared}*"):  # noqa: S108 - where Linux keeps shared memory
                path.unlink(missing_ok=True)

    @property
    def _shared(self) -> str:
        return f"privdfs-soak-{self.port}"


class Truth:
    """The right answers: logits of every branch for every image, [images, servers, classes]."""

    def __init__(self, release: Path, bundle: Bundle, images: np.ndarray) -> None:
        shares = bundle.encode(images)
        graphs = [open_branch(release, bundle.manifest, i) for i in range(bundle.n_servers)]
        self._logits = np.stack([g.run({"share": share})[0] for g, share in zip(graphs, shares, strict=True)], axis=1)
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


def unrest(servers: Sequence[Triton], answer: Callable[[], int], over: threading.Event, kinds: Counter[str]) -> None:
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
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *SHAPE[1:], SHAPE[0]), dtype=np.uint8)
    truth = Truth(release, bundle, images)
    servers = [Triton(release / f"server-{i}", folder / f"{i}.log") for i in range(bundle.n_servers)]
    over, kinds, counts = threading.Event(), Counter[str](), Counter[str]()
    figures: list[dict[str, float]] = []
    slowest, late, answered = 0.0, 0, 0

    def one(number: int) -> tuple[str, float]:
        nonlocal answered
        started = time.monotonic()
        try:
            result = client.predict(images[number % IMAGES])
            answered = sum(result.answered)
            kind = "right" if truth.agrees(number % IMAGES, result) else "wrong"
            kind += "" if all(result.answered) else ", some servers missing"
        except NotEnoughAnswersError as error:
            kind, answered = "typed error", len(error.answered)
        return kind, time.monotonic() - started

    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.kill)
            server.start()
        client = stack.enter_context(
            Client(bundle, [server.endpoint for server in servers], timeout=TIMEOUT_S, min_answers=NEEDED)
        )
        until = time.monotonic() + READY_S
        while not all(row.ok for row in client.health(timeout=2)):
            if time.monotonic() > until:
                raise BenchError(f"the tritonservers did not get ready: see {folder}")
            time.sleep(0.3)
        troubles = threading.Thread(target=unrest, args=(servers, lambda: answered, over, kinds))
        stack.callback(troubles.join)  # before the servers are killed
        stack.callback(over.set)
        troubles.start()
        started = time.monotonic()
        pool = stack.enter_context(ThreadPoolExecutor(CALLERS))
        block = max(CALLERS, predictions // 100)
        for first in range(0, predictions, block):
            for kind, seconds in pool.map(one, range(first, min(first + block, predictions))):
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


def straggler(release: Path, calls: int) -> dict[str, Any]:
    """Latency with one server that is sometimes late, in milliseconds; the systems take turns.

    Args:
        release: folder of the release.
        calls: of each system.
    """
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    spec = bundle.manifest.image
    image = np.zeros((spec.height, spec.width, spec.channels), np.uint8)
    chance = random.Random(0)  # noqa: S311 - not for secrets
    with ExitStack() as stack:
        prompt = [stack.enter_context(FakeServer.for_release(release, i)) for i in range(bundle.n_servers)]
        branch = open_branch(release, bundle.manifest, 0)

        def answer(share: np.ndarray) -> np.ndarray:
            if chance.random() < LATE_SHARE:
                time.sleep(LATE_S)
            return branch.run({"share": share})[0]

        tardy = stack.enter_context(FakeServer(bundle, 0, answer))
        others = [Server(fake.endpoint) for fake in prompt[1:]]

        def client(first: list[str], **options: Any) -> Callable[[], Result]:  # noqa: ANN401 - a client's
            made = stack.enter_context(Client(bundle, [Server(first), *others], timeout=5, **options))
            made.warmup()
            return lambda: made.predict(image)

        fewer = bundle.n_servers - 1
        healthy = client([prompt[0].endpoint])
        probes = [healthy().timings.servers_ms[0] or 0.0 for _ in range(PROBES)]
        hedge_s = float(np.percentile(probes, 95)) / 1e3
        hedges = Retries(hedge_after=hedge_s, hedge_budget=0.2)
        systems = {
            "healthy": healthy,
            "unprotected": client([tardy.endpoint]),
            "quorum": client([tardy.endpoint], wait="quorum", min_answers=fewer),
            "hedged": client([tardy.endpoint, prompt[0].endpoint], retries=hedges),
        }
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0 done, 2 an error that the message explains, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="soak", description="Predict while servers are killed and started again.")
    parser.add_argument("--predictions", type=whole_number(1, 10**9), default=100_000, metavar="N")
    parser.add_argument(
        "--straggler-calls",
        type=whole_number(1, 10**9),
        default=1000,
        metavar="N",
        help="of each system (default: 1000)",
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="of the release with random weights")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="privdfs-soak-"))
    try:
        release = folder / "release"
        write_random_release(load_config(options.config), SHAPE, CLASSES, release)
        found = {
            "made_by": made_by({"load": os.getloadavg()}, seed=0),
            "straggler": straggler(release, options.straggler_calls),
            "soak": soak(release, options.predictions, folder),
        }
        write_results(options.out, found)
    except (Error, OSError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        return EXIT_INTERRUPTED
    shutil.rmtree(folder)
    print(json.dumps({name: found[name] for name in ("straggler", "soak")}, indent=1))
    return 0


if __name__ == "__main__":
    with signals_interrupt():
        sys.exit(main())
