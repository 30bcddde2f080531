"""Where the time of a call of PrivDFS goes: by stage, by server, and in the slow calls."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from privdfs import Result
from privdfs_bench.speed.connect import Bench
from privdfs_bench.speed.systems import Pixels

#: A slow call is one of the slowest hundredth.
SLOW = 0.99


def stages(bench: Bench, images: Sequence[Pixels], calls: int) -> dict[str, Any]:
    """Mean milliseconds of every stage, over calls of a pass of its own, in which the servers serve nobody else.

    The servers count time in all, not call by call, so these are means; means add up.

    Returns:
        The client's stages; for every server queue and compute by its own clock, and as wire what else passed between
        sending and answer: protobuf, gRPC on both sides, the network.
    """
    before, whole = bench.clock(), []
    for number in range(calls):
        started = time.perf_counter()
        bench.private.classify(images[number % len(images)])
        whole.append((time.perf_counter() - started) * 1e3)
    spent = [now.since(then) for now, then in zip(bench.clock(), before, strict=True)]
    timings = [result.timings for result in bench.private.results[-calls:]]
    servers_ms = _servers_ms(bench.private.results[-calls:])
    slowest = servers_ms.max(axis=1)
    found = {
        "decode_ms": float(np.mean([took.decode_ms for took in timings])),
        "encode_ms": float(np.mean([took.encode_ms for took in timings])),
        "slowest_server_ms": float(slowest.mean()),
        "fusion_ms": float(np.mean([took.fusion_ms for took in timings])),
    }
    found["rest_ms"] = float(np.mean(whole)) - sum(found.values())
    servers = [
        {**server, "wire_ms": mean - server["queue_ms"] - server["compute_ms"], "mean_ms": mean}
        for server, mean in zip(spent, servers_ms.mean(axis=0).tolist(), strict=True)
    ]
    return {
        "calls": calls,
        "mean_ms": round(float(np.mean(whole)), 3),
        **_rounded(found),
        "servers": [_rounded(server) for server in servers],
    }


def stragglers(results: Sequence[Result], samples: Sequence[float]) -> dict[str, Any]:
    """Which server a call waited for, how long, and what made the slow calls slow.

    Args:
        results: of the calls.
        samples: their milliseconds.

    Returns:
        `slowest`: fraction of calls in which each server was the last; `waited_ms`: mean of the last answer's time over
        the median server's. `slow_calls`: of the slowest hundredth, which server was last, and the mean milliseconds by
        which each stage exceeds its own median.
    """
    servers_ms = _servers_ms(results)
    last = servers_ms.argmax(axis=1)
    parts = {
        "decode": np.array([result.timings.decode_ms for result in results]),
        "encode": np.array([result.timings.encode_ms for result in results]),
        "servers": servers_ms.max(axis=1),
        "fusion": np.array([result.timings.fusion_ms for result in results]),
    }
    parts["rest"] = np.array(samples) - sum(parts.values())
    slow = np.argsort(samples)[int(SLOW * len(samples)) :]
    excess = {name: float((values[slow] - np.median(values)).mean()) for name, values in parts.items()}
    return {
        "slowest": _fractions(last, servers_ms.shape[1]),
        "waited_ms": round(float((servers_ms.max(axis=1) - np.median(servers_ms, axis=1)).mean()), 3),
        "slow_calls": {
            "calls": len(slow),
            "slowest": _fractions(last[slow], servers_ms.shape[1]),
            "excess_ms": _rounded(excess),
        },
    }


def _servers_ms(results: Sequence[Result]) -> np.ndarray:
    """Milliseconds of every call to every server: [calls, servers]. All have answered, or there would be no result."""
    return np.array([result.timings.servers_ms for result in results], np.float64)


def _fractions(last: np.ndarray, servers: int) -> list[float]:
    return [round(float(share), 3) for share in np.bincount(last, minlength=servers) / len(last)]


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}
