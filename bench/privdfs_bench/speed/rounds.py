"""The passes of bench/latency.py over connected systems: closed loop, open loop, and a network between."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from privdfs_bench.errors import BenchError
from privdfs_bench.speed.connect import Bench
from privdfs_bench.speed.network import Network, Proxy
from privdfs_bench.speed.percentiles import percentiles
from privdfs_bench.speed.stages import stages, stragglers
from privdfs_bench.speed.systems import OnDevice, Pixels, Systems
from privdfs_bench.speed.tls import GRPCS_SYSTEMS, HTTPS_SYSTEMS

ORDER_SEED = 0
#: Rounds before the first kept one: connections, caches, and the servers' first requests.
WARM_UP, NETWORK_WARM_UP = 50, 3
#: Calls of the passes after the rounds, at most.
STAGE_CALLS, OPEN_CALLS, NETWORK_CALLS, WIRE_CALLS = 500, 600, 200, 10
#: Arrivals of the open loop, as a fraction of what PrivDFS could do in closed loop; in blocks, system by system.
OPEN_LOAD, OPEN_BLOCK = 0.5, 50
OPEN_SYSTEMS = ("privdfs", "floor", "baseline_triton", "http")
#: What a connection that is not used may send meanwhile: HTTP/2's own.
IDLE_BYTES = 40
#: Of CrypTen's 16 bits behind the point, relative to the largest logit.
CRYPTEN_TOLERANCE = 0.02
#: What PrivDFS is compared with.
OTHERS = ("floor", "floor_futures", "baseline_triton", "baseline_jpeg", "single_split", "baseline_device")
HTTP_SYSTEMS = ("http", "http_async", "http_floor", "http_baseline")
#: What uses the network, one image a call.
NETWORK_SYSTEMS = (
    "privdfs",
    "privdfs_async",
    *(name for name in OTHERS if name != "baseline_device"),
    *HTTP_SYSTEMS,
    *GRPCS_SYSTEMS,
    *HTTPS_SYSTEMS,
)


def measure_systems(bench: Bench, images: Sequence[Pixels], samples: int, console: Console) -> dict[str, Any]:
    """The rounds on loopback, and the passes after them.

    Returns:
        Systems, ratios, stages, stragglers, open loop.
    """
    systems = bench.systems
    take_samples(systems, images, samples, WARM_UP, console)
    results = bench.private.results
    summaries = {name: system.summary() for name, system in systems.items()}
    found = {
        "systems": summaries,
        "ratios": ratios(summaries),
        "stragglers": stragglers(results[-samples:], systems["privdfs"].samples),
    }
    with console.status("stages and open loop"):
        found["stages"] = stages(bench, images, min(samples, STAGE_CALLS))
        found["open_loop"] = open_loop(systems, images, min(samples, OPEN_CALLS))
    check_labels(systems, images)
    return found


def measure_network(
    bench: Bench, network: Network, proxy: Proxy, images: Sequence[Pixels], samples: int, console: Console
) -> dict[str, Any]:
    """Rounds through a network.

    Returns:
        Its settings, what it is by its own measurement, systems, ratios, and bytes on the wire for one call.
    """
    systems = {name: bench.systems[name] for name in NETWORK_SYSTEMS if name in bench.systems}
    take_samples(systems, images, min(samples, NETWORK_CALLS), NETWORK_WARM_UP, console)
    wire = {}
    for name, system in systems.items():
        before = np.array(proxy.bytes())
        for number in range(WIRE_CALLS):
            system.classify(images[number % len(images)])
        passed = (np.array(proxy.bytes()) - before) / WIRE_CALLS
        used = passed[passed[:, 0] > IDLE_BYTES]
        wire[name] = {"up_by_server": used[:, 0].tolist(), "down_by_server": used[:, 1].tolist()}
    summaries = {name: system.summary() for name, system in systems.items()}
    return {
        "rtt_ms": network.rtt_ms,
        "mbit": network.mbit,
        "measured": proxy.measured,
        "systems": summaries,
        "ratios": ratios(summaries),
        "bytes_on_the_wire": wire,
    }


def check_labels(systems: Systems, images: Sequence[Pixels]) -> None:
    """Check that what should be the same model gives the same classes, wherever it runs.

    Raises:
        BenchError: it does not.
    """
    for one, other in (
        ("baseline_triton", "baseline_device"),
        ("single_split", "baseline_device"),
        ("floor", "privdfs"),
        ("floor_futures", "privdfs"),
        ("http", "privdfs"),
        ("http_floor", "privdfs"),
        ("http_baseline", "baseline_device"),
        ("grpcs", "privdfs"),
        ("grpcs_baseline", "baseline_device"),
        ("https", "privdfs"),
        ("https_baseline", "baseline_device"),
    ):
        if one not in systems:
            continue
        differing = sum(systems[one].classify(image) != systems[other].classify(image) for image in images)
        if differing:
            msg = f"{one} and {other} differ on {differing} of {len(images)} images: export the release again"
            raise BenchError(msg)


def check_crypten(logits: Sequence[float], graph: bytes, image: Pixels) -> None:
    """Check that CrypTen has computed the model that it is compared with, so far as its fixed point goes.

    Raises:
        BenchError: it has not.
    """
    expected = OnDevice(graph).logits(image)
    error = float(np.abs(np.array(logits) - expected).max() / np.abs(expected).max())
    if not error <= CRYPTEN_TOLERANCE:
        msg = f"CrypTen's logits are off by {error:.1%} of the largest: it has not computed this model"
        raise BenchError(msg)


def take_samples(systems: Systems, images: Sequence[Pixels], samples: int, warmup: int, console: Console) -> None:
    """Time all systems in turns; the warm-up is not kept."""
    for system in systems.values():
        system.first_ms, _ = system.time(images[0])
    generator, names = np.random.default_rng(ORDER_SEED), list(systems)
    for number in track(range(-warmup, samples), "measuring", console=console, transient=True):
        for name in generator.permutation(names):
            took, cpu = systems[name].time(images[number % len(images)])
            if number >= 0:
                systems[name].samples.append(took)
                systems[name].cpu.append(cpu)


def open_loop(systems: Systems, images: Sequence[Pixels], calls: int) -> dict[str, Any]:
    """Calls that arrive at random, whether the one before has ended or not, at the same rate for all systems.

    One device makes them, one after the other; a call that arrives while it is busy waits, and its time counts from
    when it arrived. That is what a closed loop leaves out.

    Args:
        systems: measured in closed loop already.
        images: to call them with.
        calls: of each system.

    Returns:
        The rate, and percentiles for each system.
    """
    per_second = OPEN_LOAD * 1e3 / float(np.mean(systems["privdfs"].samples))
    generator = np.random.default_rng(ORDER_SEED)
    samples: dict[str, list[float]] = {name: [] for name in OPEN_SYSTEMS}
    while len(samples["privdfs"]) < calls:
        for name in generator.permutation(OPEN_SYSTEMS):
            gaps = generator.exponential(1 / per_second, min(OPEN_BLOCK, calls - len(samples[name])))
            for number, arrival in enumerate(time.perf_counter() + gaps.cumsum()):
                time.sleep(max(0.0, arrival - time.perf_counter()))
                systems[name].classify(images[number % len(images)])
                samples[name].append((time.perf_counter() - arrival) * 1e3)
    return {
        "per_second": round(per_second, 2),
        "calls": calls,
        "systems": {
            name: percentiles(found) | {"samples_ms": [round(sample, 3) for sample in found]}
            for name, found in samples.items()
        },
    }


def ratios(systems: Mapping[str, Any]) -> dict[str, float]:
    """What the benchmark is about: PrivDFS against the others, within one run; some of them may not have run."""
    private = systems["privdfs"]
    others = [name for name in OTHERS if name in systems]
    found = {f"privdfs_p50_to_{name}_p50": private["p50_ms"] / systems[name]["p50_ms"] for name in others}
    found["privdfs_p99_to_floor_p99"] = private["p99_ms"] / systems["floor"]["p99_ms"]
    found["privdfs_async_p50_to_floor_p50"] = systems["privdfs_async"]["p50_ms"] / systems["floor"]["p50_ms"]
    found["privdfs_bytes_up_to_pixels"] = private["bytes_up"] / systems["baseline_triton"]["bytes_up"]
    if "graphs_only" in systems:
        found["privdfs_cpu_to_graphs_cpu"] = private["cpu_ms"] / systems["graphs_only"]["cpu_ms"]
        found["floor_cpu_to_graphs_cpu"] = systems["floor"]["cpu_ms"] / systems["graphs_only"]["cpu_ms"]
    return {name: round(value, 3) for name, value in (found | _http_ratios(systems) | _tls_ratios(systems)).items()}


def _http_ratios(systems: Mapping[str, Any]) -> dict[str, float]:
    """PrivDFS over HTTP against its floor, against itself over gRPC, and against the unprotected model over HTTP."""
    http, grpc, graphs = (systems.get(name) for name in ("http", "privdfs", "graphs_only"))
    if http is None or grpc is None:
        return {}
    found = {
        "http_p50_to_floor": http["p50_ms"] / systems["http_floor"]["p50_ms"],
        "http_p50_to_grpc_p50": http["p50_ms"] / grpc["p50_ms"],
        "http_p50_to_baseline_p50": http["p50_ms"] / systems["http_baseline"]["p50_ms"],
        "http_async_p50_to_floor": systems["http_async"]["p50_ms"] / systems["http_floor"]["p50_ms"],
        "http_cpu_to_grpc_cpu": http["cpu_ms"] / grpc["cpu_ms"],
    }
    if graphs is not None:
        found["http_cpu_to_graphs_cpu"] = http["cpu_ms"] / graphs["cpu_ms"]
        found["http_floor_cpu_to_graphs_cpu"] = systems["http_floor"]["cpu_ms"] / graphs["cpu_ms"]
    return found


def _tls_ratios(systems: Mapping[str, Any]) -> dict[str, float]:
    """What TLS costs PrivDFS, and PrivDFS against the unprotected model where both use it."""
    found = {}
    for secured, plain, wire in (("grpcs", "privdfs", "grpc"), ("https", "http", "http")):
        if secured in systems and plain in systems:
            p50 = systems[secured]["p50_ms"]
            found[f"{secured}_p50_to_{wire}_p50"] = p50 / systems[plain]["p50_ms"]
            found[f"{secured}_p50_to_unprotected_{secured}_p50"] = p50 / systems[f"{secured}_baseline"]["p50_ms"]
    return found
