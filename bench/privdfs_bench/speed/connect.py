"""All systems of one release, connected: what bench/latency.py measures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from privdfs import AsyncClient, Bundle, Client
from privdfs._format import BASELINE_FOLDER, BASELINE_MODEL
from privdfs_bench.releases import bytes_up, user_key, verified_graph
from privdfs_bench.speed.endpoints import Endpoints
from privdfs_bench.speed.http_systems import http_systems
from privdfs_bench.speed.serving import ServerTime, Split, server_time
from privdfs_bench.speed.stubs import stubs
from privdfs_bench.speed.systems import (
    BATCH,
    FLOAT_BYTES,
    TIMEOUT_S,
    AsyncPrivDFS,
    Floor,
    OnDevice,
    OneServer,
    Pixels,
    PrivDFS,
    System,
    device_session,
    to_jpeg,
)
from privdfs_bench.speed.tls import tls_systems
from privdfs_export.serve import RunningServer


@dataclass(frozen=True)
class Bench:
    """All systems of one release, connected.

    Attributes:
        systems: by name.
        private: the SDK's client among them.
        clock: reads what each server of the release has spent so far.
    """

    systems: dict[str, System]
    private: PrivDFS
    clock: Callable[[], list[ServerTime]]


@contextmanager
def connect(
    bundle: Bundle,
    release: Path,
    split: Split,
    images: Sequence[Pixels],
    servers: Sequence[RunningServer],
    endpoints: Endpoints,
) -> Iterator[Bench]:
    """All systems, not called yet.

    Args:
        bundle: of the release.
        release: its folder.
        split: of its unprotected model.
        images: that they will be called with.
        servers: of the release; then those of the unprotected model, of its JPEG form, of the split.
        endpoints: where these are reached, in TLS too.
    """
    servers_of_release = servers[: bundle.n_servers]
    with ExitStack() as stack:
        called = stack.enter_context(stubs(endpoints.grpc))
        watched = stack.enter_context(stubs([server.endpoint for server in servers_of_release]))
        own = endpoints.grpc[: bundle.n_servers]
        key = user_key(bundle)
        private = PrivDFS(stack.enter_context(Client(bundle, own, timeout=TIMEOUT_S, key=key)))
        asynchronous = AsyncPrivDFS(AsyncClient(bundle, own, timeout=TIMEOUT_S, key=key))
        stack.callback(asynchronous.close)
        floor = Floor(release, bundle, called[: bundle.n_servers])
        stack.callback(floor.close)
        systems = _ours(bundle, private, asynchronous, floor)
        systems |= _others(
            bundle, verified_graph(release / BASELINE_FOLDER, BASELINE_MODEL), split, images, called[-3:]
        )
        systems |= stack.enter_context(http_systems(bundle, release, endpoints.http))
        sizes = bytes_up(bundle), [FLOAT_BYTES * len(bundle.classes)] * bundle.n_servers
        systems |= stack.enter_context(tls_systems(bundle, sizes, endpoints, key=key))
        yield Bench(
            systems,
            private,
            lambda: [server_time(one, stub, "branch") for one, stub in zip(servers_of_release, watched, strict=True)],
        )


def _ours(bundle: Bundle, private: PrivDFS, asynchronous: AsyncPrivDFS, floor: Floor) -> dict[str, System]:
    """The SDK, and the floor under it."""
    shares, answers = bytes_up(bundle), [FLOAT_BYTES * len(bundle.classes)] * bundle.n_servers
    batch = f"PrivDFS, {BATCH} images a call"
    return {
        "privdfs": System(f"PrivDFS, {bundle.n_servers} servers", shares, answers, private.classify),
        "privdfs_async": System("PrivDFS, asyncio", shares, answers, asynchronous.classify),
        "privdfs_batch": System(batch, shares, answers, private.classify_batch, images=BATCH),
        "floor": System("blocking calls by bare stubs", shares, answers, floor.classify),
        "floor_futures": System("futures of bare stubs", shares, answers, floor.classify_by_futures),
        "graphs_only": System("encoder and fusion, no network", [], [], floor.classify_offline),
    }


def _others(
    bundle: Bundle, unprotected: bytes, split: Split, images: Sequence[Pixels], called: Sequence[Any]
) -> dict[str, System]:
    """What a user would pick instead; the stubs are of the unprotected model, of its JPEG form, of the split."""
    image, down = bundle.manifest.image, [FLOAT_BYTES * len(bundle.classes)]
    shape = (1, image.height, image.width, image.channels)
    half, device = device_session(split.device), OnDevice(unprotected)

    def feature(image: Pixels) -> bytes:
        return np.asarray(half.run(None, {"image": image[np.newaxis]})[0], "<f4").tobytes()

    whole, compressed, cut = (one.ModelInfer for one in called)
    baseline = OneServer(whole, "baseline", ("image", "UINT8", shape), lambda image: image.tobytes())
    jpeg = OneServer(compressed, "jpeg", ("jpeg", "UINT8", (-1,)), to_jpeg)
    single = OneServer(cut, "split", (split.feature, "FP32", (1, *split.shape)), feature)
    encoded = round(float(np.mean([len(to_jpeg(one)) for one in images])))
    dense = FLOAT_BYTES * int(np.prod(split.shape))
    return {
        "baseline_triton": System("unprotected, pixels to 1 server", [int(np.prod(shape))], down, baseline.classify),
        "baseline_jpeg": System("unprotected, JPEG to 1 server", [encoded], down, jpeg.classify),
        "single_split": System("one split, dense float32 feature", [dense], down, single.classify),
        "baseline_device": System("unprotected, on the device", [], [], device.classify),
    }
