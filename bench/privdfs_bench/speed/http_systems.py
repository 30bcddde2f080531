"""The systems of bench/latency.py that speak HTTP: the SDK, the floor of plain sockets, the unprotected model."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from privdfs import AsyncClient, Bundle, Client
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import bytes_up, client_graphs, user_key
from privdfs_bench.speed.sockets import RawError, RawModel, connections
from privdfs_bench.speed.systems import (
    FLOAT_BYTES,
    TIMEOUT_S,
    AsyncPrivDFS,
    Pixels,
    PrivDFS,
    System,
    device_session,
)
from privdfs_export.evaluate import partition_input


class RawFloor:
    """The least that the same work costs over HTTP: two ONNX Runtime runs, and a plain socket for each server.

    One thread sends to all, then reads from all. As in `Floor`, nothing is checked.
    """

    def __init__(self, release: Path, bundle: Bundle, connections: Sequence[socket.socket]) -> None:
        self._encoder, self._fusion = map(device_session, client_graphs(release, bundle))
        partition = bundle.partition(user_key(bundle))
        self._partition = partition_input(None if partition is None else np.array([partition], np.int32))
        self._further = [values.tobytes() for values in self._partition.values()]
        keyed = {name: ("INT32", values.shape) for name, values in self._partition.items()}
        self._answered = np.ones((1, bundle.n_servers), np.bool_)
        self._models = [
            RawModel(connection, "branch", {"share": ("INT8", (1, server.share_length))} | keyed)
            for connection, server in zip(connections, bundle.masked.servers, strict=True)
        ]

    def classify(self, image: Pixels) -> int:
        """Encode, send to all servers, read from all, fuse."""
        shares = self._encoder.run(None, {"image": image[np.newaxis], **self._partition})
        for model, share in zip(self._models, shares, strict=True):
            model.send(share.tobytes(), *self._further)
        logits = np.stack([model.logits() for model in self._models])
        return int(self._fusion.run(None, {"logits": logits[np.newaxis], "answered": self._answered})[0].argmax())


class RawServer:
    """A model on one tritonserver behind a plain socket."""

    def __init__(self, connection: socket.socket, model: str, source: tuple[str, str, tuple[int, ...]]) -> None:
        name, datatype, shape = source
        self._model, self._name = RawModel(connection, model, {name: (datatype, shape)}), model

    def classify(self, image: Pixels) -> int:
        """One call to the server."""
        try:
            self._model.send(image.tobytes())
            return int(self._model.logits().argmax())
        except RawError as error:
            msg = f"the tritonserver of {self._name} does not answer ({error}): run the benchmark again"
            raise BenchError(msg) from error


@contextmanager
def http_systems(bundle: Bundle, release: Path, endpoints: Sequence[str]) -> Iterator[dict[str, System]]:
    """The systems, not called yet.

    Args:
        bundle: of the release.
        release: its folder.
        endpoints: of its servers, then of the unprotected model, "http://HOST:PORT".
    """
    image, classes = bundle.manifest.image, len(bundle.classes)
    shares, answers = bytes_up(bundle), [FLOAT_BYTES * classes] * bundle.n_servers
    shape = (1, image.height, image.width, image.channels)
    own, key = endpoints[: bundle.n_servers], user_key(bundle)
    with ExitStack() as stack:
        private = PrivDFS(stack.enter_context(Client(bundle, own, timeout=TIMEOUT_S, key=key)))
        asynchronous = AsyncPrivDFS(AsyncClient(bundle, own, timeout=TIMEOUT_S, key=key))
        stack.callback(asynchronous.close)
        *called, whole = stack.enter_context(connections(endpoints))
        baseline = RawServer(whole, "baseline", ("image", "UINT8", shape))
        floor = RawFloor(release, bundle, called)
        yield {
            "http": System("PrivDFS over HTTP", shares, answers, private.classify),
            "http_async": System("PrivDFS over HTTP, asyncio", shares, answers, asynchronous.classify),
            "http_floor": System("plain sockets, one thread", shares, answers, floor.classify),
            "http_baseline": System(
                "unprotected, pixels over HTTP", [int(np.prod(shape))], answers[:1], baseline.classify
            ),
        }
