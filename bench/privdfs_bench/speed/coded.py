"""A coded release beside the unprotected model and a masked one, in one interleaved run; and its time on the device."""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from privdfs import Bundle, Client
from privdfs._coded import Coded
from privdfs._coded_format import round_bytes
from privdfs._format import CLIENT_FOLDER, ENCODER_NAME, ImageSpec, largest_coalition, server_folder
from privdfs._images import load_image
from privdfs._kinds import Answered, Outcome, Sent
from privdfs_bench.coded import CodedNetworks, open_coded
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import bytes_up, graph_digests, release_name, verified_graph
from privdfs_bench.results import ROOT, made_by, write_results
from privdfs_bench.speed.crypten import measure_crypten
from privdfs_bench.speed.endpoints import Endpoints
from privdfs_bench.speed.http_systems import RawServer
from privdfs_bench.speed.latency import REFERENCE_RELEASE
from privdfs_bench.speed.network import Network, Proxy, through
from privdfs_bench.speed.percentiles import CONFIDENCE
from privdfs_bench.speed.rounds import NETWORK_CALLS, NETWORK_WARM_UP, ORDER_SEED, WARM_UP, check_crypten, take_samples
from privdfs_bench.speed.sockets import connections
from privdfs_bench.speed.stubs import stubs
from privdfs_bench.speed.systems import (
    FLOAT_BYTES,
    TIMEOUT_S,
    OnDevice,
    OneServer,
    Pixels,
    PrivDFS,
    System,
    device_session,
)
from privdfs_bench.speed.tables import table as latency_table
from privdfs_bench.speed.tls import served, tls_systems
from privdfs_export.coded_writing import add_servers
from privdfs_export.serve import serve_measured

RESULT_NAME = "coded-latency.json"
IMAGES = ROOT / "examples" / "images"
#: Images of which each step on the device is timed, after some that are not.
DEVICE_CALLS, DEVICE_WARM_UP = 200, 3
CRYPTEN_ANSWERS = 5
#: Servers at each point of the curve.
SERVERS = (3, 4, 5, 7)


def measure_coded(release: Path, beside: Path | None, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one coded release.

    Args:
        release: Its folder.
        beside: Folder of a masked release of the same images; None takes the reference where it is one, else none.
        options: Of the command line.
        console: For progress.

    Returns:
        What goes into the result file.

    Raises:
        Error: A release cannot be used or served, or a server did not answer.
    """
    networks, servers = open_coded(release), options.servers
    image = networks.manifest.image
    images = [load_image(path, image) for path in sorted(IMAGES.glob("*.png"))]
    masked = _masked(beside, image)
    repositories = [release / server_folder(server) for server in range(servers)]
    if masked is not None:
        repositories += [masked.folder / server_folder(server) for server in range(masked.bundle.n_servers)]
    repositories += [release / "baseline"]
    with ExitStack() as stack:
        with console.status(f"starting {len(repositories)} tritonservers"):
            endpoints, left_out = stack.enter_context(served(repositories, [*range(servers), -1]))
        for name, why in left_out.items():
            console.print(f"{name} is left out: {why}", highlight=False)
        other = None if masked is None else masked.bundle.release
        config = {"release": networks.manifest.release, "beside": other, "samples": options.samples, "warmup": WARM_UP}
        about = made_by(config, seed=ORDER_SEED, endpoint=endpoints.grpc[0])
        with connected(release, networks, masked, endpoints, servers) as systems:
            take_samples(systems, images, options.samples, WARM_UP, console)
            summaries = {name: system.summary() for name, system in systems.items()}
        far = {}
        for network in options.network:
            with (
                through(network, endpoints.plain()) as proxy,
                connected(release, networks, masked, endpoints.behind(proxy.endpoints), servers) as systems,
            ):
                far[network.name] = _far(systems, network, proxy, images, options.samples, console)
    with console.status("time on the device"):
        spent = device_ms(networks, images[0], servers)
    results = {
        "made_by": about,
        "release": release_name(release),
        "graphs": graph_digests(release),
        **sharing(networks, servers),
        "confidence": CONFIDENCE,
        "left_out": {_in_tls(name): why for name, why in left_out.items()},
        "systems": summaries,
        "ratios": ratios(summaries),
        "networks": far,
        "device_ms": spent,
    }
    if options.crypten is not None:
        with console.status("CrypTen"):
            _add_crypten(results, options.crypten, verified_graph(release / "baseline", "baseline"), images[0])
    return results


@dataclass(frozen=True)
class Masked:
    """The masked release that takes turns with the coded one.

    Attributes:
        folder: Of the release.
        bundle: Of its client.
    """

    folder: Path
    bundle: Bundle


def _masked(folder: Path | None, image: ImageSpec) -> Masked | None:
    """The release beside, which must take the same images; without a folder the reference, where it does."""
    chosen = folder or REFERENCE_RELEASE
    bundle = Bundle.open(chosen / CLIENT_FOLDER, allow_unsigned=True)
    if bundle.masked.image == image:
        return Masked(chosen, bundle)
    if folder is None:
        return None
    raise BenchError(f"{bundle.release} takes other images: name a masked release of the same data with --beside")


def _add_crypten(results: dict[str, Any], python: Path, graph: bytes, image: Pixels) -> None:
    """The unprotected model of the release under 2-party computation, and how much slower that is."""
    found = measure_crypten(python, graph, image[np.newaxis], CRYPTEN_ANSWERS)
    check_crypten(found["logits"], graph, image)
    results["crypten"] = found
    ratio = found["p50_ms"] / results["systems"]["coded"]["p50_ms"]
    results["ratios"]["crypten_p50_to_coded_p50"] = round(ratio, 1)


def _far(
    systems: dict[str, System],
    network: Network,
    proxy: Proxy,
    images: Sequence[Pixels],
    samples: int,
    console: Console,
) -> dict[str, Any]:
    """Rounds through a network, of the systems that use one."""
    used = {name: system for name, system in systems.items() if name != "baseline_device"}
    take_samples(used, images, min(samples, NETWORK_CALLS), NETWORK_WARM_UP, console)
    found = {name: system.summary() for name, system in used.items()}
    return {
        "rtt_ms": network.rtt_ms,
        "mbit": network.mbit,
        "measured": proxy.measured,
        "systems": found,
        "ratios": ratios(found),
    }


def sharing(networks: CodedNetworks, servers: int) -> dict[str, Any]:
    """What every entry says of how a coded release shares."""
    rounds = networks.rounds
    up, down = (sum(way) for way in zip(*map(round_bytes, rounds), strict=True))
    return {
        "sharing": "coded",
        "servers": servers,
        "colluding": largest_coalition(servers),
        "rounds": len(rounds),
        "degree": [each.degree for each in rounds],
        "moduli": [list(each.moduli) for each in rounds],
        "bytes_up": up,
        "bytes_down": down,
    }


@contextmanager
def connected(
    release: Path, networks: CodedNetworks, masked: Masked | None, endpoints: Endpoints, servers: int
) -> Iterator[dict[str, System]]:
    """The systems, not called yet.

    Args:
        release: Folder of the coded release.
        networks: Of it.
        masked: The other release, if any.
        endpoints: Of the servers of both, in that order, and of the unprotected model; in TLS without the other's.
        servers: Of the coded release.
    """
    graph, image = verified_graph(release / "baseline", "baseline"), networks.manifest.image
    up, down = (sum(way) for way in zip(*map(round_bytes, networks.rounds), strict=True))
    answer = FLOAT_BYTES * len(networks.manifest.classes)
    shape = (1, image.height, image.width, image.channels)
    with ExitStack() as stack:
        (stub,) = stack.enter_context(stubs(endpoints.grpc[-1:]))
        (connection,) = stack.enter_context(connections(endpoints.http[-1:]))
        bundle = Bundle.open(release / CLIENT_FOLDER, allow_unsigned=True)

        def called(bundle: Bundle, endpoints: Sequence[str]) -> Callable[[Pixels], int]:
            return PrivDFS(stack.enter_context(Client(bundle, endpoints, timeout=TIMEOUT_S))).classify

        http_whole = RawServer(connection, "baseline", ("image", "UINT8", shape))
        whole = OneServer(stub.ModelInfer, "baseline", ("image", "UINT8", shape), lambda one: one.tobytes())
        sizes, pixels = ([up] * servers, [down] * servers), ([int(np.prod(shape))], [answer])
        what = f"coded shares, {servers} servers, T = {largest_coalition(servers)}, rounds: {len(networks.rounds)}"
        systems = {
            "coded": System(what, *sizes, called(bundle, endpoints.grpc[:servers])),
            "baseline_triton": System("unprotected, pixels to 1 server", *pixels, whole.classify),
            "baseline_device": System("unprotected, on the device", [], [], OnDevice(graph).classify),
            "http_coded": System("coded shares over HTTP", *sizes, called(bundle, endpoints.http[:servers])),
            "http_baseline": System("unprotected, pixels over HTTP", *pixels, http_whole.classify),
        }
        if masked is not None:
            other = masked.bundle
            masked_sizes, what = (bytes_up(other), [answer] * other.n_servers), f"masked shares, {other.release}"
            systems |= {
                "masked": System(what, *masked_sizes, called(other, endpoints.grpc[servers:-1])),
                "http_masked": System(
                    "masked shares over HTTP", *masked_sizes, called(other, endpoints.http[servers:-1])
                ),
            }
        in_tls = stack.enter_context(tls_systems(bundle, sizes, endpoints, what="coded shares"))
        yield systems | {_in_tls(name): system for name, system in in_tls.items()}


def _in_tls(name: str) -> str:
    """`https` as `https_coded`; the unprotected model's keeps its name."""
    return name if name.endswith("_baseline") else f"{name}_coded"


def ratios(systems: Mapping[str, Any]) -> dict[str, float]:
    """Of the coded release to the others over the same wire, of TLS to plaintext, and of HTTP to gRPC."""
    coded, http = systems["coded"], systems["http_coded"]
    others = ("masked", "baseline_triton", "baseline_device")
    found = {
        f"coded_p50_to_{name}_p50": coded["p50_ms"] / systems[name]["p50_ms"] for name in others if name in systems
    }
    for name in ("masked", "baseline"):
        if f"http_{name}" in systems:
            found[f"http_coded_p50_to_{name}_p50"] = http["p50_ms"] / systems[f"http_{name}"]["p50_ms"]
    for wire, plain in (("grpcs", coded), ("https", http)):
        if f"{wire}_coded" in systems:
            p50 = systems[f"{wire}_coded"]["p50_ms"]
            found[f"{wire}_coded_p50_to_baseline_p50"] = p50 / systems[f"{wire}_baseline"]["p50_ms"]
            found[f"{wire}_coded_p50_to_plain_p50"] = p50 / plain["p50_ms"]
    found["http_coded_p50_to_grpc_p50"] = http["p50_ms"] / coded["p50_ms"]
    found["http_coded_cpu_to_grpc_cpu"] = http["cpu_ms"] / coded["cpu_ms"]
    return {name: round(value, 3) for name, value in found.items()}


def device_ms(networks: CodedNetworks, image: Pixels, servers: int) -> dict[str, float]:
    """Median milliseconds of one image on the device, one step after the other.

    Args:
        networks: The release.
        image: uint8 [height, width, channels].
        servers: N, with the default T.

    Returns:
        `head`: the network up to the values that are shared. `sharing`: the first round's randomness and shares.
        `decoding`: all that follows answers: finding liars, decoding, sharing again, and the fusion. And the ratio of
        the last two to the first.
    """
    kind = Coded.check(networks.device, networks.manifest, servers, None)
    pixels = image[np.newaxis]
    head = device_session(head_graph(networks.files[ENCODER_NAME]))
    residues = networks.plain(pixels).residues
    outcomes = [[Outcome(server, 0.0, one) for server in range(servers)] for one in residues]

    spent: dict[str, list[float]] = {"head": [], "sharing": [], "decoding": []}
    for turn in range(DEVICE_WARM_UP + DEVICE_CALLS):
        started = time.perf_counter()
        head.run(None, {"image": pixels})
        headed = time.perf_counter()
        sent: Sent | Answered = kind.begin(pixels)
        shared = time.perf_counter()
        for answers in outcomes:
            assert isinstance(sent, Sent)  # noqa: S101  only the last round is followed by an answer
            sent = kind.take(sent, answers)
        decoded = time.perf_counter()
        if turn >= DEVICE_WARM_UP:
            spent["head"].append(headed - started)
            # What encoding takes beyond the head alone, call by call: a slow phase of the machine meets both.
            spent["sharing"].append((shared - headed) - (headed - started))
            spent["decoding"].append(decoded - shared)
    found = {name: max(0.0, 1e3 * statistics.median(times)) for name, times in spent.items()}
    found["sharing_and_decoding_to_head"] = (found["sharing"] + found["decoding"]) / found["head"]
    return {name: round(value, 4) for name, value in found.items()}


def head_graph(encoder: bytes) -> bytes:
    """The encoder up to the values that are shared, as ONNX."""
    graph = onnx.load_from_string(encoder)
    return onnx.utils.Extractor(graph).extract_model(["image"], ["values"]).SerializeToString()


def coded_points(release: Path, samples: int, console: Console) -> list[dict[str, Any]]:
    """What a call costs with more servers, and what a server spends.

    Args:
        release: Folder of a coded release.
        samples: Calls at each point.
        console: For progress.

    Returns:
        A point for each number of servers with its default T that decodes; others need T = 1.

    Raises:
        Error: The release cannot be used or served, or a server did not answer.
    """
    networks, points = open_coded(release), list[dict[str, Any]]()
    image = networks.manifest.image
    shape = (image.height, image.width, image.channels)
    pixels = np.random.default_rng(ORDER_SEED).integers(0, 256, shape, dtype=np.uint8)
    with tempfile.TemporaryDirectory(prefix="privdfs-scaling-") as folder:
        copy = copied(release, Path(folder), max(SERVERS))
        for servers in SERVERS:
            with serve_measured([copy / server_folder(server) for server in range(servers)]) as running:
                endpoints = [one.endpoint for one in running]
                with Client(copy / "client", endpoints, allow_unsigned=True, timeout=TIMEOUT_S) as client:
                    coded = PrivDFS(client)
                    system = System(f"{servers} servers", [], [], coded.classify)
                    take_samples({"coded": system}, [pixels], samples, WARM_UP, console)
            summary = system.summary()
            kept = {name: summary[name] for name in ("p50_ms", "p90_ms", "p99_ms", "cpu_ms")}
            points.append(sharing(networks, servers) | kept)
    return points


def copied(release: Path, folder: Path, servers: int) -> Path:
    """A release with folders for so many servers."""
    copy = folder / release.name
    shutil.copytree(release, copy)
    present = len(list(copy.glob("server-*")))
    if present < servers:
        add_servers(copy, servers)
    return copy


def write_coded(out: Path, results: Mapping[str, Any]) -> Path:
    """Write the result file.

    Raises:
        OSError: It cannot be written.
    """
    path = out / RESULT_NAME
    write_results(path, results)
    return path


def show_coded(results: Mapping[str, Any], console: Console) -> None:
    """Print the tables of a run, and the bars."""
    console.print(latency_table("Latency of one call on loopback, ms", results["systems"]))
    for name, network in results["networks"].items():
        console.print(latency_table(f"\nLatency through the network {name}, ms", network["systems"]))
    told = "\n".join(f"{name}: {value:g}" for name, value in results["ratios"].items())
    spent = ", ".join(f"{name} {value:.3f}" for name, value in results["device_ms"].items())
    console.print(f"\n{told}\non the device, ms: {spent}\n", highlight=False)
    shown = Table("bar", "limit", "measured", title="Bars", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for what, limit, measured in bars(results):
        shown.add_row(what, limit, "not measured" if measured is None else f"{measured:.3g}")
    console.print(shown)


def bars(results: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """The bars of coded releases: what, the limit, and what was measured."""
    found = results["ratios"]
    return [
        ("coded p50 / masked p50, loopback", "<= 1.5 for one round", found.get("coded_p50_to_masked_p50")),
        ("sharing and decoding / head, on the device", "<= 2", results["device_ms"]["sharing_and_decoding_to_head"]),
        ("CrypTen p50 / coded p50", ">= 30", found.get("crypten_p50_to_coded_p50")),
    ]
