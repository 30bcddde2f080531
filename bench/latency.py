"""How long one image takes, against real tritonservers on this machine: PrivDFS, and what it is compared with.

    .venv/bin/python bench/latency.py [RELEASE] [--samples N]

The systems take turns, in an order drawn anew for every round, so that a slow phase of the machine meets all of them.
All start from the same decoded images in memory and end with a label:

- privdfs           `Client.predict`: encode, one call to each server in parallel, fuse
- privdfs_async     `AsyncClient.predict`
- privdfs_batch     `Client.predict_batch`, 16 images in one call; its times are of the whole call
- floor             the least that the same work costs: two ONNX Runtime runs and a bare gRPC stub for each server
- graphs_only       the two ONNX Runtime runs alone
- baseline_triton   the unprotected model on one tritonserver: the pixels by a bare gRPC stub
- baseline_jpeg     the same, compressed on the device and decoded on the server
- single_split      the unprotected model cut in two: a dense float32 feature to one tritonserver
- baseline_device   the unprotected model in this process, by ONNX Runtime

Everything on the device side computes in one thread. After the rounds (closed loop: a call begins when the last one
has ended) come passes of their own: calls that arrive at random times whether the last one has ended or not (open loop,
time from the planned arrival), stages by the servers' own statistics, and cold starts in fresh processes. Prints a
table and writes bench/results/latency.json, raw samples included, and pictures.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from _cold import cold_starts
from _common import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    IMAGES,
    RELEASES,
    RESULTS,
    BenchError,
    made_by,
    release_name,
    verified_graph,
    write_results,
)
from _latency_pictures import draw_distributions, draw_stages
from _percentiles import CONFIDENCE, samples_needed
from _serving import split_near, write_jpeg, write_split
from _stages import stages, stragglers
from _systems import PERCENTILES, Bench, Pixels, Systems, connect, percentiles
from rich.console import Console
from rich.progress import track
from rich.table import Table

from privdfs import Bundle, Error
from privdfs._constants import ONNX_THREADS
from privdfs._images import load_image
from privdfs_export.serve import serve_measured

REFERENCE_RELEASE = RELEASES / "fashion-resnet20"
ORDER_SEED = 0
#: Rounds before the first kept one: connections, caches, and the servers' first requests.
WARM_UP = 50
#: Calls of the passes after the rounds, at most.
STAGE_CALLS, OPEN_CALLS, COLD_STARTS = 500, 600, 5
#: Arrivals of the open loop, as a fraction of what PrivDFS could do in closed loop; in blocks, system by system.
OPEN_LOAD, OPEN_BLOCK = 0.5, 50
OPEN_SYSTEMS = ("privdfs", "floor", "baseline_triton")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def check_labels(systems: Systems, images: Sequence[Pixels]) -> None:
    """Check that what should be the same model gives the same classes, wherever it runs.

    Raises:
        BenchError: it does not.
    """
    for one, other in (
        ("baseline_triton", "baseline_device"),
        ("single_split", "baseline_device"),
        ("floor", "privdfs"),
    ):
        differing = sum(systems[one].classify(image) != systems[other].classify(image) for image in images)
        if differing:
            msg = f"{one} and {other} differ on {differing} of {len(images)} images: export the release again"
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


def measure(release: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one release.

    Returns:
        What goes into the result file.

    Raises:
        Error: the release cannot be used or served, or a server did not answer.
    """
    bundle = Bundle.open(release / "client")
    client, n_servers = bundle.manifest, bundle.n_servers
    files = sorted(IMAGES.glob("*.png"))
    images = [load_image(path, client.image) for path in files]
    graph = verified_graph(release / "baseline", "baseline")
    split = split_near(graph, client.macs.head)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="privdfs-latency-")))
        repositories = [
            *(release / f"server-{server}" for server in range(n_servers)),
            release / "baseline",
            write_jpeg(folder / "jpeg-baseline", graph, client),
            write_split(folder / "single-split", split, client),
        ]
        with console.status("starting tritonservers"):
            servers = stack.enter_context(serve_measured(repositories))
        endpoints = [server.endpoint for server in servers]
        about = made_by(
            {
                "release": bundle.release,
                "samples": options.samples,
                "warmup": WARM_UP,
                "device_threads": ONNX_THREADS,
                "split": {"after": split.feature, "shape": list(split.shape), "device_macs": split.macs},
            },
            seed=ORDER_SEED,
            endpoint=endpoints[-1],
        )
        about["machine"] |= _state_of_the_machine()
        bench = stack.enter_context(connect(bundle, release, split, images, servers, endpoints))
        found = measure_systems(bench, images, options.samples, console)
        check_labels(bench.systems, images)
        with console.status("cold starts"):
            found["cold"] = cold_starts(release / "client", files[0], endpoints[:n_servers], options.cold)
    return {
        "made_by": about,
        "release": release_name(release),
        "confidence": CONFIDENCE,
        "samples_needed": {name: samples_needed(fraction) for name, fraction in PERCENTILES.items()},
        "image_bytes": images[0].nbytes,
        **found,
    }


def measure_systems(bench: Bench, images: Sequence[Pixels], samples: int, console: Console) -> dict[str, Any]:
    """The rounds, and the passes after them.

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
    return found


def ratios(systems: dict[str, Any]) -> dict[str, float]:
    """What the benchmark is about: PrivDFS against the others, within one run."""
    private = systems["privdfs"]
    others = ("floor", "baseline_triton", "baseline_jpeg", "single_split", "baseline_device")
    found = {f"privdfs_p50_to_{name}_p50": private["p50_ms"] / systems[name]["p50_ms"] for name in others}
    found["privdfs_p99_to_floor_p99"] = private["p99_ms"] / systems["floor"]["p99_ms"]
    found["privdfs_async_p50_to_floor_p50"] = systems["privdfs_async"]["p50_ms"] / systems["floor"]["p50_ms"]
    found["privdfs_cpu_to_graphs_cpu"] = private["cpu_ms"] / systems["graphs_only"]["cpu_ms"]
    found["floor_cpu_to_graphs_cpu"] = systems["floor"]["cpu_ms"] / systems["graphs_only"]["cpu_ms"]
    found["privdfs_bytes_up_to_pixels"] = private["bytes_up"] / systems["baseline_triton"]["bytes_up"]
    return {name: round(value, 3) for name, value in found.items()}


def _state_of_the_machine() -> dict[str, str]:
    """What else decides how fast it is at this moment."""
    governor = GOVERNOR.read_text(encoding="ascii").strip() if GOVERNOR.exists() else "not shown by this machine"
    return {"governor": governor, "load": f"{os.getloadavg()[0]:.2f} before the run"}


def table(results: dict[str, Any]) -> Table:
    """A line for each system, and one for its confidence intervals."""
    shown = Table(
        title=f"Latency of one call, ms, with {results['confidence']:.0%} intervals (?: needs more samples)",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    shown.add_column("system", no_wrap=True)
    for name in (*PERCENTILES, "cpu", "bytes up"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, values in results["systems"].items():
        last = (f"{values['cpu_ms']:.2f}", f"{values['bytes_up']:,}")
        shown.add_row(name, *(f"[bold]{values[f'{line}_ms']:.2f}[/]" for line in PERCENTILES), *last)
        shown.add_row("", *(f"[dim]{_interval(values[f'{line}_interval_ms'])}[/]" for line in PERCENTILES))
    return shown


def _interval(ends: Sequence[float | None]) -> str:
    return "..".join("?" if end is None else f"{end:.{2 if end < 10 else 1}f}" for end in ends)


def summary(results: dict[str, Any]) -> str:
    """What the table does not show, in a few lines."""
    stage, straggler, opened, cold = (results[name] for name in ("stages", "stragglers", "open_loop", "cold"))
    lines = [f"{name}: {value:.2f}" for name, value in results["ratios"].items()]
    parts = ("decode", "encode", "slowest_server", "fusion", "rest")
    lines.append(
        f"mean call {stage['mean_ms']:.2f} ms: " + ", ".join(f"{one} {stage[f'{one}_ms']:.2f}" for one in parts)
    )
    lines += [
        f"server {index}: wire {one['wire_ms']:.2f}, queue {one['queue_ms']:.2f}, compute {one['compute_ms']:.2f} ms; "
        f"the last to answer in {last:.0%} of the calls"
        for index, (one, last) in enumerate(zip(stage["servers"], straggler["slowest"], strict=True))
    ]
    excess = ", ".join(f"{name} {ms:+.2f}" for name, ms in straggler["slow_calls"]["excess_ms"].items())
    lines.append(
        f"waiting for the last server: {straggler['waited_ms']:.2f} ms beyond the median one; the slowest 1 % of the "
        f"calls take longer by: {excess} ms"
    )
    p99 = ", ".join(f"{name} {one['p50_ms']:.2f} / {one['p99_ms']:.2f}" for name, one in opened["systems"].items())
    lines.append(f"open loop, {opened['per_second']:.0f} arrivals a second, p50 / p99 ms: {p99}")
    lines += [
        f"cold start of {name}: import {one['import_ms']:.0f} + open {one['open_ms']:.0f} + first answer "
        f"{one['first_answer_ms']:.0f} = {one['total_ms']:.0f} ms; peak memory {one['peak_over_bare_mb']:.0f} MB over "
        "a bare interpreter"
        for name, one in ((name, cold[name]) for name in ("privdfs", "floor"))
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="latency", description="Measure the latency of a release.")
    parser.add_argument(
        "release",
        nargs="?",
        type=Path,
        default=REFERENCE_RELEASE,
        metavar="RELEASE",
        help="folder of a release (default: model_repository/fashion-resnet20)",
    )
    parser.add_argument(
        "--samples", type=int, default=4000, metavar="N", help="calls of each system; p99.9 needs 3688 (default: 4000)"
    )
    parser.add_argument(
        "--cold", type=int, default=COLD_STARTS, metavar="N", help=f"cold starts of each kind (default: {COLD_STARTS})"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="folder of latency.json and pictures (default: bench/…)",
    )
    options = parser.parse_args(arguments)
    if options.samples < 1 or options.cold < 1:
        parser.error("--samples and --cold must be at least 1")
    console = Console()
    try:
        results = measure(options.release, options, console)
        write_results(options.out / "latency.json", results)
        draw_distributions(options.out / "latency.png", results)
        draw_stages(options.out / "latency-stages.png", results)
    except KeyboardInterrupt:
        print("latency: stopped; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except subprocess.CalledProcessError as error:
        print(f"latency: a cold start failed:\n{error.stderr}", file=sys.stderr)
        return EXIT_ERROR
    except (Error, OSError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return EXIT_ERROR
    console.print(table(results))
    console.print(f"\n{summary(results)}", highlight=False)
    console.print(f"written to {options.out}/latency.json, with pictures", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
