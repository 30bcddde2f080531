"""What a call costs as the system grows: the curves of bench/scaling.py."""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from privdfs import AsyncClient, Bundle, Client
from privdfs._format import CLIENT_FOLDER, server_folder
from privdfs_bench.releases import bytes_up
from privdfs_bench.results import ROOT
from privdfs_bench.speed.percentiles import percentiles
from privdfs_bench.speed.random_release import write_random_release
from privdfs_bench.speed.rounds import take_samples
from privdfs_bench.speed.serving import server_time
from privdfs_bench.speed.stubs import stubs
from privdfs_bench.speed.systems import TIMEOUT_S, Floor, Pixels, PrivDFS, System
from privdfs_export.serve import RunningServer, serve_measured
from privdfs_training.config import Config
from privdfs_training.reading import load_config

CONFIG = ROOT / "configs" / "fashion-resnet20.toml"
SEED, WARM_UP, CLASSES = 0, 10, 10
SERVERS, BATCHES, SIZES = (1, 2, 3, 5, 7, 9), (1, 4, 16, 64), (32, 64, 128, 224)
SHARES, CONCURRENCY = (8, 64, 512, 2048), (1, 2, 4, 8, 16, 32, 64)
#: A feature that even the largest shares can be cut from.
SHARE_CHANNELS = 512
#: What a service usually promises; the throughput told is the most at which p99 keeps to it.
BOUND_MS = 50.0
CURVES = {
    "servers": "servers",
    "batch": "images a call",
    "image": "pixels of the image",
    "share": "bytes up",
    "concurrency": "calls at once",
}


@dataclass(frozen=True)
class Release:
    """A release whose servers run."""

    bundle: Bundle
    folder: Path
    servers: Sequence[RunningServer]

    @property
    def endpoints(self) -> list[str]:
        """Where its servers listen."""
        return [server.endpoint for server in self.servers]

    def images(self, count: int) -> Pixels:
        """Random images, uint8 [count, height, width, channels]."""
        spec = self.bundle.manifest.image
        shape = (count, spec.height, spec.width, spec.channels)
        return np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)


@contextmanager
def running(config: Config, image_shape: tuple[int, int, int], console: Console) -> Iterator[Release]:
    """Make a release with random weights, and run its servers."""
    with tempfile.TemporaryDirectory(prefix="privdfs-scaling-") as parent, ExitStack() as stack:
        folder = Path(parent) / "release"
        with console.status(f"{config.masks.servers} servers, {image_shape[1]} pixels, {config.masks.values} values"):
            write_random_release(config, image_shape, CLASSES, folder)
            bundle = Bundle.open(folder / CLIENT_FOLDER, allow_unsigned=True)
            paths = [folder / server_folder(server) for server in range(bundle.n_servers)]
            servers = stack.enter_context(serve_measured(paths))
        yield Release(bundle, folder, servers)


def measure_point(release: Release, batch: int, samples: int, console: Console) -> dict[str, Any]:
    """PrivDFS and the floor in turns; with more than one image a call, PrivDFS alone.

    Returns:
        Percentiles of both, bytes up, processor time of the client, and what a request costs by the servers' clocks.
    """
    images = list(release.images(batch))
    with ExitStack() as stack:
        called = stack.enter_context(stubs(release.endpoints))
        client = stack.enter_context(Client(release.bundle, release.endpoints, timeout=TIMEOUT_S))
        floor = Floor(release.folder, release.bundle, called)
        stack.callback(floor.close)
        sent = bytes_up(release.bundle)
        many = System("PrivDFS", sent, [], lambda _: client.predict_batch(images)[0].index, images=batch)
        systems = {"privdfs": System("PrivDFS", sent, [], PrivDFS(client).classify) if batch == 1 else many}
        if batch == 1:
            systems["floor"] = System("floor", sent, [], floor.classify)
        before = [server_time(server, stub, "branch") for server, stub in zip(release.servers, called, strict=True)]
        take_samples(systems, images, samples, WARM_UP, console)
        after = [server_time(server, stub, "branch") for server, stub in zip(release.servers, called, strict=True)]
    spent = [now.since(then) for now, then in zip(after, before, strict=True)]
    return {
        "bytes_up": sum(sent) * batch,
        "cpu_ms": round(float(np.mean(systems["privdfs"].cpu)), 3),
        "compute_ms": round(float(np.mean([one["compute_ms"] for one in spent])), 3),
        "queue_ms": round(float(np.mean([one["queue_ms"] for one in spent])), 3),
        **{name: percentiles(system.samples) for name, system in systems.items()},
    }


def measure_concurrency(release: Release, calls_at_once: int, samples: int) -> dict[str, Any]:
    """So many callers share one asynchronous client; each calls again when it has its answer.

    Returns:
        Percentiles, and calls that ended in a second.
    """
    (image,) = release.images(1)

    async def run() -> tuple[list[float], float]:
        taken: list[float] = []

        async def caller(client: AsyncClient) -> None:
            while len(taken) < samples:
                started = time.perf_counter()
                await client.predict(image)
                taken.append((time.perf_counter() - started) * 1e3)

        async with AsyncClient(release.bundle, release.endpoints, timeout=TIMEOUT_S) as client:
            await client.predict(image)
            begun = time.perf_counter()
            await asyncio.gather(*(caller(client) for _ in range(calls_at_once)))
            return taken, time.perf_counter() - begun

    taken, seconds = asyncio.run(run())
    return {"per_second": round(len(taken) / seconds, 1), "privdfs": percentiles(taken)}


def fit(sizes: Sequence[float], times: Sequence[float]) -> dict[str, float]:
    """A straight line through the medians, by least squares.

    Args:
        sizes: of what grows.
        times: milliseconds.

    Returns:
        `base_ms` at size zero, `slope_ms` for each further one, and the fraction of the variance that this explains.
    """
    x, y = np.array(sizes, np.float64), np.array(times, np.float64)
    slope, base = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    explained = 1 - float(((y - base - slope * x) ** 2).sum()) / spread if spread else 1.0
    return {"base_ms": round(float(base), 4), "slope_ms": float(f"{slope:.4g}"), "explained": round(explained, 3)}


def measure(samples: int, console: Console) -> dict[str, list[dict[str, Any]]]:
    """All curves, with so many calls at each point: for each a list of points, each with its `size`."""
    base = load_config(CONFIG)
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in CURVES}
    for servers in SERVERS:
        config = replace(base, masks=replace(base.masks, servers=servers))
        with running(config, (1, 28, 28), console) as release:
            curves["servers"].append({"size": servers} | measure_point(release, 1, samples, console))
            if servers == base.masks.servers:
                for batch in BATCHES:
                    curves["batch"].append({"size": batch} | measure_point(release, batch, samples, console))
                for calls in CONCURRENCY:
                    with console.status(f"{calls} calls at once"):
                        point = measure_concurrency(release, calls, max(samples, 2 * calls))
                    curves["concurrency"].append({"size": calls} | point)
    for pixels in SIZES:
        with running(base, (3, pixels, pixels), console) as release:
            curves["image"].append({"size": pixels * pixels} | measure_point(release, 1, samples, console))
    wide = replace(base, head=replace(base.head, channels=SHARE_CHANNELS))
    for values in SHARES:
        with running(replace(wide, masks=replace(wide.masks, values=values)), (1, 28, 28), console) as release:
            point = measure_point(release, 1, samples, console)
            curves["share"].append({"size": point["bytes_up"]} | point)
    return curves


def summarise(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Fitted growth of every curve, and the most calls a second that keep to the bound."""
    growth = {
        name: fit([point["size"] for point in points], [point["privdfs"]["p50_ms"] for point in points])
        for name, points in curves.items()
    }
    within = [point["per_second"] for point in curves["concurrency"] if point["privdfs"]["p99_ms"] <= BOUND_MS]
    (one,) = [point for point in curves["batch"] if point["size"] == 1]
    service = fit([point["size"] for point in curves["batch"]], [point["compute_ms"] for point in curves["batch"]])
    return {
        "growth": growth,
        "throughput": {"bound_ms": BOUND_MS, "per_second": max(within, default=None)},
        # What the queueing estimate of docs/SCALING.md starts from.
        "service": {"one_ms": one["compute_ms"], "base_ms": service["base_ms"], "image_ms": service["slope_ms"]},
    }


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """One for each curve."""
    for name, points in results["curves"].items():
        shown = Table(title=f"\n{CURVES[name]}", title_justify="left", box=None, padding=(0, 2, 0, 0))
        for head in (CURVES[name], "p50", "p99", "floor p50", "cpu", "server's compute", "calls / s"):
            shown.add_column(head, justify="right")
        for point in points:
            cells = [point["privdfs"]["p50_ms"], point["privdfs"]["p99_ms"], point.get("floor", {}).get("p50_ms")]
            cells += [point.get("cpu_ms"), point.get("compute_ms"), point.get("per_second")]
            shown.add_row(f"{point['size']:,}", *("" if cell is None else f"{cell:.2f}" for cell in cells))
        line = results["growth"][name]
        shown.caption = f"{line['base_ms']:.2f} ms + {line['slope_ms']:.3g} ms each; explains {line['explained']:.0%}"
        shown.caption_justify = "left"
        yield shown
