"""One release beside what it is compared with: the whole measurement of bench/latency.py."""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from privdfs import Bundle
from privdfs._format import BASELINE_FOLDER, BASELINE_MODEL, CLIENT_FOLDER, server_folder
from privdfs._images import load_image
from privdfs_bench.releases import RELEASES, graph_digests, release_name, verified_graph
from privdfs_bench.results import ROOT, made_by, write_results
from privdfs_bench.speed.cold import cold_starts
from privdfs_bench.speed.connect import connect
from privdfs_bench.speed.crypten import measure_crypten
from privdfs_bench.speed.endpoints import Endpoints
from privdfs_bench.speed.network import through
from privdfs_bench.speed.page import DISTRIBUTIONS, STAGES, write_page
from privdfs_bench.speed.percentiles import CONFIDENCE, PERCENTILES, samples_needed
from privdfs_bench.speed.pictures import draw_distributions, draw_stages
from privdfs_bench.speed.random_release import write_random
from privdfs_bench.speed.rounds import ORDER_SEED, WARM_UP, check_crypten, measure_network, measure_systems
from privdfs_bench.speed.serving import Split, split_near, write_jpeg, write_split
from privdfs_bench.speed.systems import DEVICE_THREADS, Pixels
from privdfs_bench.speed.tls import secured
from privdfs_export.serve import serve_measured

REFERENCE_RELEASE = RELEASES / "fashion-resnet20"
COLD_STARTS, CRYPTEN_ANSWERS = 5, 5
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
    bundle = Bundle.open(release / CLIENT_FOLDER, allow_unsigned=True)
    manifest, n_servers = bundle.masked, bundle.n_servers
    files = sorted(IMAGES.glob("*.png"))
    images = [load_image(path, manifest.image) for path in files]
    graph = verified_graph(release / BASELINE_FOLDER, BASELINE_MODEL)
    split = split_near(graph, manifest.macs.head)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="privdfs-latency-")))
        repositories = [*(release / server_folder(server) for server in range(n_servers)), release / BASELINE_FOLDER]
        foreign = [
            write_jpeg(folder / "jpeg-baseline", graph, manifest),
            write_split(folder / "single-split", split, manifest),
        ]
        with console.status("starting tritonservers"):
            servers = stack.enter_context(serve_measured(repositories, foreign=foreign, http=True))
            in_tls, left_out = stack.enter_context(secured(servers[: n_servers + 1], repositories))
        for name, why in left_out.items():
            console.print(f"{name} is left out: {why}", highlight=False)
        plain = [one.endpoint for one in servers], [str(one.http) for one in servers[: n_servers + 1]]
        endpoints = Endpoints(*plain, **in_tls)
        about = _about(bundle, split, options.samples, endpoints.grpc[-1])
        with connect(bundle, release, split, images, servers, endpoints) as bench:
            found = measure_systems(bench, images, options.samples, console)
        found["networks"] = {}
        for network in options.network:
            with (
                through(network, endpoints.plain()) as proxy,
                connect(bundle, release, split, images, servers, endpoints.behind(proxy.endpoints)) as bench,
            ):
                shown = measure_network(bench, network, proxy, images, options.samples, console)
                found["networks"][network.name] = shown
        with console.status("cold starts"):
            wires = {"grpc": endpoints.grpc[:n_servers], "http": endpoints.http[:n_servers]}
            found["cold"] = cold_starts(release / CLIENT_FOLDER, files[0], wires, options.cold)
    if options.crypten is not None:
        with console.status("CrypTen"):
            _add_crypten(found, options.crypten, graph, images[0])
    return {
        "made_by": about,
        "release": release_name(release),
        "graphs": graph_digests(release),
        "confidence": CONFIDENCE,
        "samples_needed": {name: samples_needed(fraction) for name, fraction in PERCENTILES.items()},
        "image_bytes": images[0].nbytes,
        "left_out": left_out,
        **found,
    }


def _about(bundle: Bundle, split: Split, samples: int, endpoint: str) -> dict[str, Any]:
    """Where the result comes from, and what else decides how fast the machine is at this moment."""
    config = {
        "release": bundle.release,
        "samples": samples,
        "warmup": WARM_UP,
        "device_threads": DEVICE_THREADS,
        "split": {"after": split.feature, "shape": list(split.shape), "device_macs": split.macs},
    }
    about = made_by(config, seed=ORDER_SEED, endpoint=endpoint)
    governor = GOVERNOR.read_text(encoding="ascii").strip() if GOVERNOR.exists() else "not shown by this machine"
    about["machine"] |= {"governor": governor, "load": f"{os.getloadavg()[0]:.2f} before the run"}
    return about


def _add_crypten(found: dict[str, Any], python: Path, graph: bytes, image: Pixels) -> None:
    """The unprotected model under 2-party computation, and how much slower that is."""
    found["crypten"] = measure_crypten(python, graph, image[np.newaxis], CRYPTEN_ANSWERS)
    check_crypten(found["crypten"]["logits"], graph, image)
    ratio = found["crypten"]["p50_ms"] / found["systems"]["privdfs"]["p50_ms"]
    found["ratios"]["crypten_p50_to_privdfs_p50"] = round(ratio, 1)


@contextmanager
def given(path: Path, console: Console) -> Iterator[Path]:
    """The folder of the release that the command line names; that of a config lasts as long as it is measured.

    Raises:
        Error: the config does not load or does not fit pictures of that size, or a round of it needs too many primes.
        OSError: the release cannot be written.
    """
    if path.suffix != ".toml":
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="privdfs-latency-") as folder:
        release = Path(folder) / f"{path.stem}-random"
        with console.status("making a release with random weights"):
            write_random(path, RANDOM_SHAPE, RANDOM_CLASSES, release)
        yield release


def write(out: Path, results: dict[str, Any]) -> None:
    """Write the result file, the pictures and the page.

    Raises:
        OSError: they cannot be written.
    """
    write_results(out / "latency.json", results)
    draw_distributions(out / DISTRIBUTIONS, results)
    draw_stages(out / STAGES, results)
    write_page(out, results)


IMAGES = ROOT / "examples" / "images"
