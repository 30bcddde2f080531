"""How long one image takes, against real tritonservers on this machine: PrivDFS, and what it is compared with.

    .venv/bin/python bench/latency.py [RELEASE] [--samples N]

RELEASE may also be the config of a training run: then it is a release with random weights, 224 pixels and 1,000 classes
(`random_release.py`), whose times are as good as those of trained weights:

    .venv/bin/python bench/latency.py configs/imagenet-resnet50.toml --samples 200

The systems take turns, in an order drawn anew for every round, so that a slow phase of the machine meets all of them.
All start from the same decoded images in memory and end with a label:

- privdfs           `Client.predict`: encode, one call to each server in parallel, fuse
- privdfs_async     `AsyncClient.predict`
- privdfs_batch     `Client.predict_batch`, 16 images in one call; its times are of the whole call
- floor             the least that the same work costs: two ONNX Runtime runs and a bare gRPC stub for each server,
                    called in threads as the SDK does
- floor_futures     the same with futures of grpc, which can be cancelled and cost more
- graphs_only       the two ONNX Runtime runs alone
- baseline_triton   the unprotected model on one tritonserver: the pixels by a bare gRPC stub
- baseline_jpeg     the same, compressed on the device and decoded on the server
- single_split      the unprotected model cut in two: a dense float32 feature to one tritonserver
- baseline_device   the unprotected model in this process, by ONNX Runtime

Everything on the device side computes in one thread. After the rounds (closed loop: a call begins when the last one
has ended) come passes of their own: calls that arrive at random times whether the last one has ended or not (open loop,
time from the planned arrival), stages by the servers' own statistics, calls through a network that a proxy imitates
(`--network`), and cold starts in fresh processes. Prints tables and writes bench/results/latency.json, raw samples
included, latency.html and pictures. `--check` writes nothing and compares the ratios with those of the committed
latency.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
    made_by,
    read_results,
    release_name,
    verified_graph,
    write_results,
)
from _crypten import measure_crypten
from _latency_check import MARGINS, Bar, Compared, bars, check_record, compare
from _latency_html import page
from _latency_pictures import draw_distributions, draw_stages
from _network import NETWORKS, Network, through
from _percentiles import CONFIDENCE, samples_needed
from _rounds import ORDER_SEED, WARM_UP, check_crypten, measure_network, measure_systems
from _serving import split_near, write_jpeg, write_split
from _systems import PERCENTILES, connect
from rich.console import Console
from rich.table import Table

from privdfs import Bundle, Error
from privdfs._command_line import signals_interrupt
from privdfs._constants import ONNX_THREADS
from privdfs._images import load_image
from privdfs_export.serve import serve_measured
from privdfs_training.config import load_config

REFERENCE_RELEASE = RELEASES / "fashion-resnet20"
COLD_STARTS, CRYPTEN_ANSWERS = 5, 5
#: What a phone on a good mobile network has.
DEFAULT_NETWORK = "20,10"
#: What random weights are given: the usual size of a picture, and as many classes as ImageNet's.
RANDOM_SHAPE, RANDOM_CLASSES = (3, 224, 224), 1000
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def measure(release: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one release.

    Returns:
        What goes into the result file.

    Raises:
        Error: the release cannot be used or served, or a server did not answer.
    """
    bundle = Bundle.open(release / "client", allow_unsigned=True)
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
        ]
        foreign = [
            write_jpeg(folder / "jpeg-baseline", graph, client),
            write_split(folder / "single-split", split, client),
        ]
        with console.status("starting tritonservers"):
            servers = stack.enter_context(serve_measured(repositories, foreign=foreign))
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
        with connect(bundle, release, split, images, servers, endpoints) as bench:
            found = measure_systems(bench, images, options.samples, console)
        found["networks"] = {}
        for network in options.network:
            with (
                through(network, endpoints) as proxy,
                connect(bundle, release, split, images, servers, proxy.endpoints) as bench,
            ):
                shown = measure_network(bench, network, proxy, images, options.samples, console)
                found["networks"][network.name] = shown
        with console.status("cold starts"):
            found["cold"] = cold_starts(release / "client", files[0], endpoints[:n_servers], options.cold)
        if options.crypten is not None:
            with console.status("CrypTen"):
                found["crypten"] = measure_crypten(options.crypten, graph, images[0][np.newaxis], CRYPTEN_ANSWERS)
            check_crypten(found["crypten"]["logits"], graph, images[0])
            found["ratios"]["crypten_p50_to_privdfs_p50"] = round(
                found["crypten"]["p50_ms"] / found["systems"]["privdfs"]["p50_ms"], 1
            )
    return {
        "made_by": about,
        "release": release_name(release),
        "confidence": CONFIDENCE,
        "samples_needed": {name: samples_needed(fraction) for name, fraction in PERCENTILES.items()},
        "image_bytes": images[0].nbytes,
        **found,
    }


@contextmanager
def given(path: Path, console: Console) -> Iterator[Path]:
    """The folder of the release that the command line names; that of a config lasts as long as it is measured.

    Raises:
        Error: the config does not load, or does not fit pictures of that size.
        OSError: the release cannot be written.
    """
    if path.suffix != ".toml":
        yield path
        return
    from random_release import write_random_release  # it imports torch

    with tempfile.TemporaryDirectory(prefix="privdfs-latency-") as folder:
        release = Path(folder) / f"{path.stem}-random"
        with console.status("making a release with random weights"):
            write_random_release(load_config(path), RANDOM_SHAPE, RANDOM_CLASSES, release)
        yield release


def _network(text: str) -> Network | None:
    """A value of --network."""
    try:
        return None if text == "none" else Network.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _state_of_the_machine() -> dict[str, str]:
    """What else decides how fast it is at this moment."""
    governor = GOVERNOR.read_text(encoding="ascii").strip() if GOVERNOR.exists() else "not shown by this machine"
    return {"governor": governor, "load": f"{os.getloadavg()[0]:.2f} before the run"}


def table(title: str, systems: dict[str, Any]) -> Table:
    """A line for each system, and one for its confidence intervals."""
    shown = Table(
        title=title,
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    shown.add_column("system", no_wrap=True)
    for name in (*PERCENTILES, "cpu", "bytes up"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, values in systems.items():
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
    if "crypten" in results:
        lines.append(f"CrypTen, {results['crypten']['parties']} parties: p50 {results['crypten']['p50_ms']:.0f} ms")
    lines += [
        f"cold start of {name}: import {one['import_ms']:.0f} + open {one['open_ms']:.0f} + first answer "
        f"{one['first_answer_ms']:.0f} = {one['total_ms']:.0f} ms; peak memory {one['peak_over_bare_mb']:.0f} MB over "
        "a bare interpreter"
        for name, one in ((name, cold[name]) for name in ("privdfs", "floor"))
    ]
    return "\n".join(lines)


def bar_table(found: Sequence[Bar]) -> Table:
    """A line for each bar."""
    shown = Table("bar", title="Bars", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("limit", "measured", ""):
        shown.add_column(name, justify="right")
    for bar in found:
        measured = "not measured" if bar.measured is None else f"{bar.measured:.3g}"
        verdict = {None: "", True: "met", False: "[bold]missed[/]"}[bar.is_met]
        shown.add_row(bar.what, f"{'>=' if bar.at_least else '<='} {bar.limit:g}", measured, verdict)
    return shown


def check_table(compared: Sequence[Compared]) -> Table:
    """A line for each ratio that the record has too."""
    shown = Table("ratio", title="\nAgainst the record", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("record", "now", "limit", ""):
        shown.add_column(name, justify="right")
    for one in compared:
        values = (f"{value:.3f}" for value in (one.record, one.now, one.limit))
        shown.add_row(one.name, *values, "[bold]worse[/]" if one.is_worse else "")
    return shown


def write(out: Path, results: dict[str, Any]) -> None:
    """Write the result file, the pictures and the page.

    Raises:
        OSError: they cannot be written.
    """
    write_results(out / "latency.json", results)
    pictures = [out / "latency.png", out / "latency-stages.png"]
    draw_distributions(pictures[0], results)
    draw_stages(pictures[1], results)
    curves = out / "scaling.png"  # of bench/scaling.py, where it has run
    (out / "latency.html").write_text(page(results, [*pictures, *filter(Path.exists, [curves])]), encoding="utf-8")


def network_line(network: dict[str, Any]) -> str:
    """What the proxy is by its own measurement, and what passed it."""
    measured = network["measured"]
    ratio = network["ratios"]["privdfs_p50_to_baseline_triton_p50"]
    up = ", ".join(f"{name} {sum(wire['up_by_server']):.0f}" for name, wire in network["bytes_on_the_wire"].items())
    return (
        f"set to {network['rtt_ms']:g} ms and {network['mbit']:g} Mbit/s, measured {measured['rtt_ms']:.1f} ms and "
        f"{measured['mbit']:.1f} Mbit/s{'' if measured['as_set'] else ' ([bold]not as set[/]: a busy machine?)'}\n"
        f"privdfs_p50_to_baseline_triton_p50: {ratio:.3f}\nbytes up on the wire, gRPC's own included: {up}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 1 worse than the record (--check), 2 an error that the message explains, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="latency", description="Measure the latency of a release.")
    parser.add_argument(
        "release",
        nargs="?",
        type=Path,
        default=REFERENCE_RELEASE,
        metavar="RELEASE",
        help="folder of a release, or the config of one to be made with random weights (default: "
        "model_repository/fashion-resnet20)",
    )
    parser.add_argument(
        "--samples", type=int, default=4000, metavar="N", help="calls of each system; p99.9 needs 3688 (default: 4000)"
    )
    parser.add_argument(
        "--cold", type=int, default=COLD_STARTS, metavar="N", help=f"cold starts of each kind (default: {COLD_STARTS})"
    )
    parser.add_argument(
        "--network",
        action="append",
        type=_network,
        metavar="NETWORK",
        help=f"measure through this network too: {', '.join(NETWORKS)} or RTT,MBIT, in ms and Mbit/s; may be given "
        f"again; 'none' for loopback alone (default: {DEFAULT_NETWORK})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of latency.json and the rest (default: bench/results, and a folder in it for every release but "
        "the reference)",
    )
    parser.add_argument(
        "--crypten",
        type=Path,
        metavar="PYTHON",
        help="a Python that has crypten 0.4.1 and torch: the unprotected model under 2-party computation too",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; compare the ratios with those of latency.json in --out, and exit 1 when one is worse than "
        "its margin: " + ", ".join(f"{part} {margin:.0%}".replace("%", "%%") for part, margin in MARGINS.items()),
    )
    options = parser.parse_args(arguments)
    networks = [Network.parse(DEFAULT_NETWORK)] if options.network is None else options.network
    options.network = [network for network in networks if network is not None]
    if options.samples < 1 or options.cold < 1:
        parser.error("--samples and --cold must be at least 1")
    console, compared = Console(), None
    try:
        with given(options.release, console) as release:
            name = release_name(release)
            out = options.out or (RESULTS if name == REFERENCE_RELEASE.name else RESULTS / name)
            record = read_results(out / "latency.json") if options.check else {}
            if options.check:
                check_record(record, name)
            results = measure(release, options, console)
        if options.check:
            compared = compare(results, record)
        else:
            write(out, results)
    except KeyboardInterrupt:
        print("latency: stopped; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except subprocess.CalledProcessError as error:
        print(f"latency: {error.cmd[1]} failed:\n{error.stderr}", file=sys.stderr)
        return EXIT_ERROR
    except (Error, OSError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return EXIT_ERROR
    said = f"ms, with {results['confidence']:.0%} intervals (?: needs more samples)"
    console.print(table(f"Latency of one call on loopback, {said}", results["systems"]))
    for name, network in results["networks"].items():
        console.print(table(f"\nLatency through the network {name}, {said}", network["systems"]))
        console.print(network_line(network), highlight=False)
    console.print(f"\n{summary(results)}\n", highlight=False)
    console.print(bar_table(list(bars(results))))
    if compared is not None:
        console.print(check_table(compared))
        return int(any(one.is_worse for one in compared))
    console.print(f"written to {out}/latency.json and .html, with pictures", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    with signals_interrupt():
        sys.exit(main())
