"""How long one image takes, against real tritonservers on this machine: PrivDFS, and what it is compared with.

    .venv/bin/python bench/latency.py [RELEASE] [--samples N]

The systems take turns, in an order drawn anew for every round, so that a slow phase of the machine meets all of them.
All start from the same decoded images in memory and end with a label:

- privdfs           `Client.predict`: encode, one call to each server in parallel, fuse
- baseline_triton   the unprotected model on one tritonserver: the pixels by a bare gRPC stub
- baseline_device   the unprotected model in this process, by ONNX Runtime

Everything on the device side runs in one thread. Prints a table and writes bench/results/latency.json, raw samples
included, and latency.png.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from _common import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    IMAGES,
    RELEASES,
    RESULTS,
    BenchError,
    made_by,
    release_name,
    user_key,
    verified_graph,
    write_results,
)
from _percentiles import CONFIDENCE, percentile, percentile_interval
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from privdfs import Bundle, Client, Error, Result
from privdfs._constants import ONNX_THREADS
from privdfs._images import load_image
from privdfs._manifest import bytes_up
from privdfs_export.serve import serve

REFERENCE_RELEASE = RELEASES / "fashion-resnet20"
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
TIMEOUT_S = 30.0
ORDER_SEED = 0
COLOURS = {"privdfs": "#1f77b4", "baseline_triton": "#d95f0e", "baseline_device": "#7f7f7f"}

Pixels = NDArray[np.uint8]


@dataclass
class System:
    """One of the systems compared.

    Attributes:
        what: in words.
        bytes_up: bytes of one image's payload, to all servers together; gRPC's own are not counted.
        classify: uint8 [height, width, channels] to the index of a class.
        first_ms: the very first call, in which connections are made.
        samples: milliseconds of every call after the warm-up, in order.
    """

    what: str
    bytes_up: int
    classify: Callable[[Pixels], int]
    first_ms: float = 0.0
    samples: list[float] = field(default_factory=list, repr=False)

    def time(self, image: Pixels) -> float:
        """Milliseconds of one call."""
        started = time.perf_counter()
        self.classify(image)
        return (time.perf_counter() - started) * 1e3

    def summary(self) -> dict[str, Any]:
        """Percentiles with confidence intervals, and the raw samples."""
        ordered = sorted(self.samples)
        found: dict[str, Any] = {"what": self.what}
        for name, fraction in PERCENTILES.items():
            ends = percentile_interval(ordered, fraction)
            found[f"{name}_ms"] = round(percentile(ordered, fraction), 3)
            found[f"{name}_interval_ms"] = [None if end is None else round(end, 3) for end in ends]
        return found | {
            "bytes_up": self.bytes_up,
            "samples": len(ordered),
            "first_ms": round(self.first_ms, 3),
            "samples_ms": [round(sample, 3) for sample in self.samples],
        }


class PrivDFS:
    """Keeps the results' own timings beside those of the stopwatch."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.results: list[Result] = []

    def classify(self, image: Pixels) -> int:
        """One call of the SDK."""
        self.results.append(self._client.predict(image))
        return self.results[-1].index

    def stages(self, last: int) -> dict[str, float]:
        """Median milliseconds of every stage, over the last calls; of the servers, the slowest in each call."""
        timings = [result.timings for result in self.results[-last:]]
        slowest = [max(ms for ms in took.servers_ms if ms is not None) for took in timings]
        return {
            "decode_ms": round(float(np.median([took.decode_ms for took in timings])), 3),
            "encode_ms": round(float(np.median([took.encode_ms for took in timings])), 3),
            "slowest_server_ms": round(float(np.median(slowest)), 3),
            "fusion_ms": round(float(np.median([took.fusion_ms for took in timings])), 3),
        }


class BaselineOnTriton:
    """The unprotected model behind a bare gRPC stub, with a prebuilt request."""

    def __init__(self, stub: Any, shape: tuple[int, ...]) -> None:  # noqa: ANN401 - tritonclient has no types
        from tritonclient.grpc import service_pb2

        self._infer = stub.ModelInfer
        messages: Any = service_pb2
        self._request = messages.ModelInferRequest(model_name="baseline")
        self._request.inputs.add(name="image", datatype="UINT8", shape=(1, *shape))
        self._request.outputs.add(name="logits")

    def classify(self, image: Pixels) -> int:
        """One call to the server."""
        self._request.raw_input_contents[:] = [image.tobytes()]
        try:
            response = self._infer(self._request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            msg = f"the baseline's tritonserver does not answer ({error}): run the benchmark again"
            raise BenchError(msg) from error
        return int(np.frombuffer(response.raw_output_contents[0], "<f4").argmax())


class BaselineOnDevice:
    """The unprotected model in this process."""

    def __init__(self, graph: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = ONNX_THREADS, 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def classify(self, image: Pixels) -> int:
        """One run of the graph."""
        return int(np.asarray(self._session.run(["logits"], {"image": image[np.newaxis]})[0]).argmax())


@contextmanager
def _systems(bundle: Bundle, release: Path, endpoints: Sequence[str]) -> Iterator[tuple[dict[str, System], PrivDFS]]:
    """All systems, not called yet: the servers of the release at the first endpoints, the baseline at the last."""
    from tritonclient.grpc import service_pb2_grpc

    image = bundle.manifest.image
    shape = (image.height, image.width, image.channels)
    with ExitStack() as stack:
        private = PrivDFS(stack.enter_context(Client(bundle, endpoints[:-1], timeout=TIMEOUT_S, key=user_key(bundle))))
        channel = stack.enter_context(grpc.insecure_channel(endpoints[-1], options=[("grpc.enable_http_proxy", 0)]))
        remote = BaselineOnTriton(service_pb2_grpc.GRPCInferenceServiceStub(channel), shape)
        local = BaselineOnDevice(verified_graph(release / "baseline", "baseline"))
        shares = sum(bytes_up(bundle.manifest))
        servers = f"{bundle.n_servers} tritonservers"
        yield (
            {
                "privdfs": System(f"PrivDFS, {servers}", shares, private.classify),
                "baseline_triton": System("unprotected, 1 tritonserver", int(np.prod(shape)), remote.classify),
                "baseline_device": System("unprotected, on the device", 0, local.classify),
            },
            private,
        )


def check_baselines(systems: dict[str, System], images: Sequence[Pixels]) -> None:
    """Check that the unprotected model is the same one, wherever it runs.

    Raises:
        BenchError: it gives other classes.
    """
    remote, local = systems["baseline_triton"].classify, systems["baseline_device"].classify
    differing = sum(remote(image) != local(image) for image in images)
    if differing:
        msg = (
            f"the baseline's tritonserver and this process differ on {differing} of {len(images)} images: export again"
        )
        raise BenchError(msg)


def take_samples(
    systems: dict[str, System], images: Sequence[Pixels], options: argparse.Namespace, console: Console
) -> None:
    """Time all systems in turns; the warm-up is not kept."""
    for system in systems.values():
        system.first_ms = system.time(images[0])
    generator, names = np.random.default_rng(ORDER_SEED), list(systems)
    rounds = range(-options.warmup, options.samples)
    for number in track(rounds, "measuring", console=console, transient=True):
        for name in generator.permutation(names):
            took = systems[name].time(images[number % len(images)])
            if number >= 0:
                systems[name].samples.append(took)


def measure(release: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one release.

    Returns:
        What goes into the result file.

    Raises:
        Error: the release cannot be used or served, or a server did not answer.
    """
    bundle = Bundle.open(release / "client")
    images = [load_image(path, bundle.manifest.image) for path in sorted(IMAGES.glob("*.png"))]
    repositories = [*(release / f"server-{server}" for server in range(bundle.n_servers)), release / "baseline"]
    with ExitStack() as stack:
        with console.status("starting tritonservers"):
            endpoints = stack.enter_context(serve(repositories))
        systems, private = stack.enter_context(_systems(bundle, release, endpoints))
        take_samples(systems, images, options, console)
        check_baselines(systems, images)
        config = {"release": bundle.release, "samples": options.samples, "warmup": options.warmup}
        about = made_by(config | {"device_threads": ONNX_THREADS}, seed=ORDER_SEED, endpoint=endpoints[-1])
    found = {name: system.summary() for name, system in systems.items()}
    found["privdfs"]["stages_p50"] = private.stages(options.samples)
    median = {name: values["p50_ms"] for name, values in found.items()}
    return {
        "made_by": about,
        "release": release_name(release),
        "confidence": CONFIDENCE,
        "systems": found,
        "ratios": {
            f"privdfs_p50_to_{name}_p50": round(median["privdfs"] / median[name], 3)
            for name in found
            if name != "privdfs"
        },
    }


def table(results: dict[str, Any]) -> Table:
    """A line for each system, and one for its confidence intervals."""
    shown = Table(
        title=f"Latency of one image, ms, with {results['confidence']:.0%} intervals",
        title_justify="left",
        show_edge=False,
    )
    shown.add_column("system", no_wrap=True)
    for name in (*PERCENTILES, "first", "bytes up"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, values in results["systems"].items():
        first, bytes_up = f"{values['first_ms']:.1f}", f"{values['bytes_up']:,}"
        shown.add_row(name, *(f"[bold]{values[f'{line}_ms']:.2f}[/]" for line in PERCENTILES), first, bytes_up)
        shown.add_row("", *(f"[dim]{_interval(values[f'{line}_interval_ms'])}[/]" for line in PERCENTILES))
    return shown


def _interval(ends: Sequence[float | None]) -> str:
    return "..".join("?" if end is None else f"{end:.2f}" for end in ends)


def draw(path: Path, results: dict[str, Any]) -> None:
    """Draw the distributions above each other, on one axis.

    Raises:
        OSError: the file cannot be written.
    """
    systems = results["systems"]
    everything = np.concatenate([values["samples_ms"] for values in systems.values()])
    edges = np.geomspace(max(everything.min() * 0.8, 1e-3), everything.max() * 1.25, 120)
    figure = Figure(figsize=(9, 1.7 * len(systems) + 1), dpi=120, facecolor="white", layout="constrained")
    rows = figure.subplots(len(systems), sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(rows, systems.items(), strict=True):
        axes.hist(values["samples_ms"], bins=edges, color=COLOURS[name], alpha=0.75)
        for line, style in zip(PERCENTILES, ("-", "--", ":"), strict=True):
            axes.axvline(values[f"{line}_ms"], color="black", linestyle=style, linewidth=1, label=line)
        numbers = ",  ".join(f"{line} {values[f'{line}_ms']:.2f}" for line in PERCENTILES)
        axes.set_title(f"{values['what']}:  {numbers} ms", fontsize=10, loc="left")
        axes.set_yticks([])
        axes.spines[["left", "top", "right"]].set_visible(False)
    rows[0].legend(fontsize=8, frameon=False, loc="upper right")
    rows[-1].set_xscale("log")
    rows[-1].set_xlabel("milliseconds for one image, logarithmic")
    rows[-1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    machine = results["made_by"]["machine"]
    samples = next(iter(systems.values()))["samples"]
    figure.suptitle(
        f"{results['release']}: {samples} calls each, all on one machine ({machine['processor']}, "
        f"{machine['cores']} cores)",
        fontsize=11,
    )
    figure.savefig(path)


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
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="calls of each system (default: 1000)")
    parser.add_argument("--warmup", type=int, default=50, metavar="N", help="calls before that (default: 50)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="folder of latency.json and .png (default: bench/…)"
    )
    options = parser.parse_args(arguments)
    if options.samples < 1 or options.warmup < 0:
        parser.error("--samples must be at least 1, --warmup at least 0")
    console = Console()
    try:
        results = measure(options.release, options, console)
        write_results(options.out / "latency.json", results)
        draw(options.out / "latency.png", results)
    except KeyboardInterrupt:
        print("latency: stopped; nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"latency: {error}", file=sys.stderr)
        return EXIT_ERROR
    console.print(table(results))
    ratios = "\n".join(f"{name}: {value:.2f}" for name, value in results["ratios"].items())
    stages = ", ".join(f"{name} {value:.2f}" for name, value in results["systems"]["privdfs"]["stages_p50"].items())
    console.print(f"\n{ratios}\nmedian of each stage of privdfs: {stages}", highlight=False)
    console.print(f"written to {options.out}/latency.json and .png", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
