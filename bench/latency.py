"""How long one image takes, against real tritonservers on this machine: PrivDFS, and what it is compared with.

    .venv/bin/python bench/latency.py [RELEASE] [--samples N]

RELEASE may also be the config of a training run: then it is a release with random weights, 224 pixels and 1,000 classes
(bench/random_release.py), whose times are as good as those of trained weights:

    .venv/bin/python bench/latency.py configs/imagenet-resnet50.toml --samples 200

The systems take turns, in an order drawn anew for every round, so that a slow phase of the machine meets all of them.
All start from the same decoded images in memory and end with a label:

- privdfs           `Client.predict` over gRPC: encode, one call to each server in parallel, fuse
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
- http, http_async  `Client.predict` and `AsyncClient.predict` over HTTP
- http_floor        the least that HTTP costs: the two ONNX Runtime runs and a plain socket for each server, in one
                    thread: send to all, then read from all
- http_baseline     the unprotected model on one tritonserver: the pixels by a plain socket
- https, grpcs      `Client.predict` in TLS: over HTTP by a gateway (nginx) before each of the same servers, over gRPC
                    to tritonservers that speak TLS themselves
- https_baseline, grpcs_baseline
                    the unprotected model by the same ways: a socket in TLS to a gateway, a bare stub in TLS

Without nginx (`make nginx`) the rows of HTTPS are left out, and the result file says why under `left_out`.

Everything on the device side computes in one thread. After the rounds (closed loop: a call begins when the last one
has ended) come passes of their own: calls that arrive at random times whether the last one has ended or not (open loop,
time from the planned arrival), stages by the servers' own statistics, calls through a network that a proxy imitates
(`--network`), and cold starts in fresh processes. Prints tables and writes bench/results/latency.json, raw samples
included, latency.html and pictures. `--check` writes nothing and compares the ratios with those of the committed
latency.json.

A coded release takes turns with the unprotected model on a tritonserver, over gRPC and HTTP, in TLS too, with a masked
release over gRPC and HTTP, and with the same model in this process; then through every `--network`. What its device
spends on the head, on sharing and on decoding is told apart. It writes coded-latency.json:

    .venv/bin/python bench/latency.py model_repository/fashion-coded-r1 --network 20,100 --network 50,100
    .venv/bin/python bench/latency.py configs/imagenet-resnet50-coded.toml --beside configs/imagenet-resnet50.toml
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from privdfs_bench.releases import is_coded, release_name
from privdfs_bench.results import RESULTS, read_results
from privdfs_bench.script import EXIT_ERROR, run, start
from privdfs_bench.speed.check import MARGINS, bars, check_record, compare
from privdfs_bench.speed.coded import measure_coded, show_coded, write_coded
from privdfs_bench.speed.latency import COLD_STARTS, REFERENCE_RELEASE, given, measure, write
from privdfs_bench.speed.network import NETWORKS, Network
from privdfs_bench.speed.tables import bar_table, check_table, show

#: What a phone on a good mobile network has.
DEFAULT_NETWORK = "20,10"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 1 worse than the record (--check), 2 an error that the message explains, 130 interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    networks = [Network.parse(DEFAULT_NETWORK)] if options.network is None else options.network
    options.network = [network for network in networks if network is not None]
    if options.samples < 1 or options.cold < 1:
        parser.error("--samples and --cold must be at least 1")
    console = Console()

    def coded(release: Path) -> int:
        if options.check:
            parser.error("--check is for masked releases: coded ones have no record of ratios yet")
        with ExitStack() as stack:
            beside = None if options.beside is None else stack.enter_context(given(options.beside, console))
            results = measure_coded(release, beside, options, console)
        written = write_coded(options.out or RESULTS / release_name(release), results)
        show_coded(results, console)
        console.print(f"written to {written}", highlight=False, soft_wrap=True)
        return 0

    def work() -> int:
        with given(options.release, console) as release:
            if is_coded(release):
                return coded(release)
            name = release_name(release)
            out = options.out or (RESULTS if name == REFERENCE_RELEASE.name else RESULTS / name)
            record = read_results(out / "latency.json") if options.check else {}
            if options.check:
                check_record(record, name)
            results = measure(release, options, console)
        if not options.check:
            write(out, results)
        show(results, console)
        console.print(bar_table(list(bars(results))))
        if not options.check:
            console.print(f"written to {out}/latency.json and .html, with pictures", highlight=False, soft_wrap=True)
            return 0
        compared = compare(results, record)
        console.print(check_table(compared))
        return int(any(one.is_worse for one in compared))

    try:
        return run("latency", work, stopped="nothing was written")
    except subprocess.CalledProcessError as error:
        print(f"latency: {' '.join(map(str, error.cmd[1:3]))} failed:\n{error.stderr}", file=sys.stderr)
        return EXIT_ERROR


def _network(text: str) -> Network | None:
    """A value of --network."""
    try:
        return None if text == "none" else Network.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="latency", description="Measure the latency of a release.")
    release = (
        "folder of a release, or the config of one to be made with random weights (default: "
        "model_repository/fashion-resnet20)"
    )
    parser.add_argument("release", nargs="?", type=Path, default=REFERENCE_RELEASE, metavar="RELEASE", help=release)
    samples = "calls of each system; p99.9 needs 3688 (default: 4000)"
    parser.add_argument("--samples", type=int, default=4000, metavar="N", help=samples)
    cold = f"cold starts of each kind (default: {COLD_STARTS})"
    parser.add_argument("--cold", type=int, default=COLD_STARTS, metavar="N", help=cold)
    network = (
        f"measure through this network too: {', '.join(NETWORKS)} or RTT,MBIT, in ms and Mbit/s; may be given again; "
        f"'none' for loopback alone (default: {DEFAULT_NETWORK})"
    )
    parser.add_argument("--network", action="append", type=_network, metavar="NETWORK", help=network)
    out = (
        "folder of latency.json and the rest (default: bench/results, and a folder in it for every release but the "
        "reference)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help=out)
    servers = "of a coded release, how many servers are called (default: 3)"
    parser.add_argument("--servers", type=int, default=3, choices=range(1, 17), metavar="N", help=servers)
    beside = (
        "of a coded release, the masked one that takes turns with it, or a config as RELEASE may be (default: "
        "model_repository/fashion-resnet20 for its images, none for others)"
    )
    parser.add_argument("--beside", type=Path, metavar="RELEASE", help=beside)
    crypten = "a Python that has crypten 0.4.1 and torch: the unprotected model under 2-party computation too"
    parser.add_argument("--crypten", type=Path, metavar="PYTHON", help=crypten)
    margins = ", ".join(f"{part} {margin:.0%}".replace("%", "%%") for part, margin in MARGINS.items())
    check = (
        "write nothing; compare the ratios with those of latency.json in --out, and exit 1 when one is worse than its "
        f"margin: {margins}"
    )
    parser.add_argument("--check", action="store_true", help=check)
    return parser


if __name__ == "__main__":
    start(main)
