"""The systems that bench/latency.py compares: PrivDFS, the floor under it, and what a user would pick instead.

Each takes one decoded image and ends with the index of a class. Everything on the device side computes in one thread.
"""

import asyncio
import io
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from privdfs import AsyncClient, Bundle, Client, Result
from privdfs._constants import ONNX_THREADS
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import client_graphs, user_key
from privdfs_bench.speed.percentiles import percentiles
from privdfs_bench.speed.stubs import StubError, logits_of, request_for
from privdfs_export.evaluate import partition_input

#: Of everything on the device's side, as in the SDK.
DEVICE_THREADS = ONNX_THREADS
TIMEOUT_S = 60.0
BATCH = 16
JPEG_QUALITY = 90
FLOAT_BYTES = 4
Pixels = NDArray[np.uint8]
#: What runs on the device, by the name that a result file uses.
Systems = Mapping[str, "System"]


@dataclass
class System:
    """One of the systems compared.

    Attributes:
        what: in words.
        bytes_up: bytes of one image's tensors, to each server; gRPC's own are not counted.
        bytes_down: bytes of the answers for one image, from each server.
        classify: uint8 [height, width, channels] to the index of a class.
        images: that one call classifies.
        first_ms: the very first call, in which connections are made.
        samples: milliseconds of every call after the warm-up, in order.
        cpu: milliseconds of processor time of this process in each of these calls, all its threads together.
    """

    what: str
    bytes_up: Sequence[int]
    bytes_down: Sequence[int]
    classify: Callable[[Pixels], int]
    images: int = 1
    first_ms: float = 0.0
    samples: list[float] = field(default_factory=list, repr=False)
    cpu: list[float] = field(default_factory=list, repr=False)

    def time(self, image: Pixels) -> tuple[float, float]:
        """Milliseconds of one call, by the clock and of the processor."""
        cpu, started = time.process_time(), time.perf_counter()
        self.classify(image)
        return (time.perf_counter() - started) * 1e3, (time.process_time() - cpu) * 1e3

    def summary(self) -> dict[str, Any]:
        """Percentiles with confidence intervals, and the raw samples."""
        return {
            "what": self.what,
            **percentiles(self.samples),
            "bytes_up": sum(self.bytes_up),
            "bytes_up_by_server": list(self.bytes_up),
            "bytes_down_by_server": list(self.bytes_down),
            "images": self.images,
            "samples": len(self.samples),
            "first_ms": round(self.first_ms, 3),
            "cpu_ms": round(float(np.mean(self.cpu)), 3),
            "samples_ms": [round(sample, 3) for sample in self.samples],
        }


class PrivDFS:
    """The SDK's client; keeps the results' own timings beside those of the stopwatch."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.results: list[Result] = []

    def classify(self, image: Pixels) -> int:
        """One call of the SDK."""
        self.results.append(self._client.predict(image))
        return self.results[-1].index

    def classify_batch(self, image: Pixels) -> int:
        """One call for `BATCH` images; time does not depend on what they show."""
        return self._client.predict_batch([image] * BATCH)[0].index


class AsyncPrivDFS:
    """The SDK's asynchronous client, one call at a time; starting the loop for each is counted."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()

    def classify(self, image: Pixels) -> int:
        """One call of the SDK."""
        return self._loop.run_until_complete(self._client.predict(image)).index

    def close(self) -> None:
        """Close the connections and the loop."""
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class Floor:
    """The least that the same work costs in Python: two ONNX Runtime runs, and a bare gRPC stub for each server.

    No deadline is kept, no answer is checked, no error handled, and nothing but the class comes out.
    """

    def __init__(self, release: Path, bundle: Bundle, stubs: Sequence[Any]) -> None:
        self._encoder, self._fusion = map(device_session, client_graphs(release, bundle))
        partition = bundle.partition(user_key(bundle))
        self._partition = partition_input(None if partition is None else np.array([partition], np.int32))
        self._further = list(self._partition.values())
        self._answered = np.ones((1, bundle.n_servers), np.bool_)
        self._threads = ThreadPoolExecutor(max(1, bundle.n_servers - 1))
        self._requests = [
            request_for("branch", {"share": ("INT8", (1, server.share_length))} | self._partition_input)
            for server in bundle.masked.servers
        ]
        self._calls = [stub.ModelInfer for stub in stubs]

    @property
    def _partition_input(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {name: ("INT32", values.shape) for name, values in self._partition.items()}

    def classify(self, image: Pixels) -> int:
        """Encode, call all servers at once, each in a thread and the last in this one, fuse."""
        shares = self._encoder.run(None, {"image": image[np.newaxis], **self._partition})

        def ask(server: int) -> Any:  # noqa: ANN401 - a message
            request = self._requests[server]
            request.raw_input_contents[:] = [shares[server].tobytes(), *(one.tobytes() for one in self._further)]
            return self._calls[server](request, timeout=TIMEOUT_S)

        started = [self._threads.submit(ask, server) for server in range(len(shares) - 1)]
        last = ask(len(shares) - 1)
        answers = [future.result() for future in started]
        return self._fuse([*answers, last])

    def classify_by_futures(self, image: Pixels) -> int:
        """The same with grpc's futures, which can be cancelled: grpc starts a thread for each."""
        shares = self._encoder.run(None, {"image": image[np.newaxis], **self._partition})
        started = []
        for call, request, share in zip(self._calls, self._requests, shares, strict=True):
            request.raw_input_contents[:] = [share.tobytes(), *(one.tobytes() for one in self._further)]
            started.append(call.future(request, timeout=TIMEOUT_S))
        return self._fuse([future.result() for future in started])

    def _fuse(self, answers: Sequence[Any]) -> int:
        logits = np.stack([logits_of(answer) for answer in answers])
        fused = self._fusion.run(None, {"logits": logits[np.newaxis], "answered": self._answered})
        return int(fused[0].argmax())

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def classify_offline(self, image: Pixels) -> int:
        """The two graphs and nothing else: what the processor must do, whatever the client."""
        self._encoder.run(None, {"image": image[np.newaxis], **self._partition})
        classes = self._fusion.get_inputs()[0].shape[2]
        logits = np.zeros((1, self._answered.shape[1], classes), np.float32)
        return int(self._fusion.run(None, {"logits": logits, "answered": self._answered})[0].argmax())


class OneServer:
    """A model on one tritonserver behind a bare gRPC stub, with a prebuilt request.

    Args:
        call: the stub's method.
        model: name of the model.
        source: name, type and shape of its input.
        encode: an image to the bytes of that input, and its shape.
    """

    def __init__(
        self,
        call: Any,  # noqa: ANN401 - tritonclient has no types
        model: str,
        source: tuple[str, str, tuple[int, ...]],
        encode: Callable[[Pixels], bytes],
    ) -> None:
        name, datatype, shape = source
        self._call, self._encode = call, encode
        self._request = request_for(model, {name: (datatype, shape)})
        self._fixed = all(size > 0 for size in shape)

    def classify(self, image: Pixels) -> int:
        """One call to the server."""
        data = self._encode(image)
        if not self._fixed:
            self._request.inputs[0].shape[:] = [len(data)]
        self._request.raw_input_contents[:] = [data]
        try:
            response = self._call(self._request, timeout=TIMEOUT_S)
        except StubError as error:
            msg = f"the tritonserver of {self._request.model_name} does not answer ({error}): run the benchmark again"
            raise BenchError(msg) from error
        return int(logits_of(response).argmax())


class OnDevice:
    """The unprotected model in this process."""

    def __init__(self, graph: bytes) -> None:
        self._session = device_session(graph)

    def classify(self, image: Pixels) -> int:
        """One run of the graph."""
        return int(self.logits(image).argmax())

    def logits(self, image: Pixels) -> NDArray[np.float32]:
        """What it gives for one image, float32 [classes]."""
        return np.asarray(self._session.run(["logits"], {"image": image[np.newaxis]})[0])[0]


def to_jpeg(image: Pixels) -> bytes:
    """One image as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(axis=2) if image.shape[2] == 1 else image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def device_session(graph: bytes) -> Any:  # noqa: ANN401 - its results have too many types
    """A graph as the SDK runs it on the device: in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = DEVICE_THREADS, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
