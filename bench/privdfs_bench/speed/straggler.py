"""Clients before one server that is sometimes late, without and with protection."""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from privdfs import Bundle, Client, Result, Retries, Server
from privdfs._format import CLIENT_FOLDER
from privdfs.testing import FakeServer
from privdfs_bench.releases import branch_graphs
from privdfs_bench.speed.systems import device_session

LATE_S, LATE_SHARE, PROBES = 0.5, 0.1, 100


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
