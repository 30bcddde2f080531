"""Servers of the systems that PrivDFS is compared with, beyond the baseline of the release, and what servers report.

Made from the release's own unprotected model, into a temporary folder: one that decodes JPEG on the server, and one
that starts from a dense float32 feature, the rest of the model staying on the device (single split).
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import shape_inference

from privdfs._files import sha256_file
from privdfs._format import IMAGE, LOGITS, MANIFEST_NAME, RELEASE_PARAMETER, ClientManifest, ServerManifest, TensorSpec
from privdfs._manifest import encode_manifest
from privdfs_bench.errors import BenchError
from privdfs_bench.speed.stubs import StubError, statistics_of
from privdfs_export.graphs import count_macs
from privdfs_export.serve import ADMIN_HEADER, RunningServer
from privdfs_export.triton import ModelSpec, write_model

JPEG_ENGINE = Path(__file__).parent / "jpeg_engine" / "model.py"
#: An encoded image has no fixed length, so Triton cannot batch it.
JPEG_CONFIG = """name: "jpeg"
backend: "python"
max_batch_size: 0
input {{ name: "jpeg" data_type: TYPE_UINT8 dims: -1 }}
output {{ name: "logits" data_type: TYPE_FP32 dims: [1, {classes}] }}
instance_group {{ kind: KIND_CPU count: 1 }}
response_cache {{ enable: false }}
parameters {{ key: "mode" value {{ string_value: "{mode}" }} }}
"""


STATISTICS_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Split:
    """A model cut in two at one tensor.

    Attributes:
        device: serialised ONNX, image to `feature`.
        server: serialised ONNX, `feature` to logits.
        feature: name of the tensor in both.
        shape: of the feature, without the batch.
        macs: multiply-accumulates of the device's half.
    """

    device: bytes
    server: bytes
    feature: str
    shape: tuple[int, ...]
    macs: int


def split_near(graph: bytes, macs: int) -> Split:
    """Cut a model where one float tensor carries everything, and the device's half costs about as much as asked.

    Args:
        graph: serialised ONNX with the input `image` and the output `logits`.
        macs: that the device may spend, as multiply-accumulates per image.

    Raises:
        BenchError: there is no such tensor.
    """
    model = shape_inference.infer_shapes(onnx.load_from_string(graph), strict_mode=True, data_prop=True)
    shapes = {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)[1:]
        for value in model.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    extractor = onnx.utils.Extractor(model)
    found: list[tuple[int, str, onnx.ModelProto]] = []
    for name in _narrow_points(model.graph):
        if shapes.get(name) and all(shapes[name]):
            device = extractor.extract_model([IMAGE], [name])
            cost = count_macs(device)
            if cost:
                found.append((cost, name, device))
    if not found:
        msg = "the baseline has no layer at which one tensor carries everything, so there is no single split of it"
        raise BenchError(msg)
    cost, name, device = min(found, key=lambda candidate: abs(candidate[0] - macs))
    server = extractor.extract_model([name], [LOGITS])
    return Split(device.SerializeToString(), server.SerializeToString(), name, shapes[name], cost)


def _narrow_points(graph: onnx.GraphProto) -> Iterator[str]:
    """Tensors that alone carry everything from the nodes before them to those after them, in order."""
    last = {name: number for number, node in enumerate(graph.node) for name in node.input}
    constants = {tensor.name for tensor in graph.initializer}
    alive = {value.name for value in graph.input} - constants
    for number, node in enumerate(graph.node[:-1]):
        alive = {name for name in (*alive, *node.output) if last.get(name, -1) > number}
        if len(alive) == 1:
            yield from alive


def write_split(folder: Path, split: Split, client: ClientManifest) -> Path:
    """Write the server's half of a single split as a repository.

    Returns:
        The folder.
    """
    answer = TensorSpec(LOGITS, "float32", (len(client.classes),))
    source = TensorSpec(split.feature, "float32", split.shape)
    spec = ModelSpec("split", "python", (source,), answer, client.max_batch, {RELEASE_PARAMETER: client.release})
    return _with_manifest(folder, write_model(folder, spec, split.server), client)


def write_jpeg(folder: Path, graph: bytes, client: ClientManifest) -> Path:
    """Write the unprotected model as a repository whose server takes a JPEG file.

    Returns:
        The folder.
    """
    version = folder / "jpeg" / "1"
    version.mkdir(parents=True)
    mode = "L" if client.image.channels == 1 else "RGB"
    config = JPEG_CONFIG.format(classes=len(client.classes), mode=mode)
    (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")
    (version / "model.onnx").write_bytes(graph)
    shutil.copyfile(JPEG_ENGINE, version / "model.py")
    return _with_manifest(folder, ["jpeg/config.pbtxt", "jpeg/1/model.onnx", "jpeg/1/model.py"], client)


def _with_manifest(folder: Path, files: Sequence[str], client: ClientManifest) -> Path:
    manifest = ServerManifest(
        format_version=client.format_version,
        release=client.release,
        server=0,
        share_length=1,
        scale=1.0,
        classes=len(client.classes),
        engine="python",
        files={name: sha256_file(folder / name) for name in files},
        made_by=client.made_by,
    )
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    return folder


@dataclass(frozen=True)
class ServerTime:
    """What a tritonserver has spent on a model so far: requests, and milliseconds in all."""

    requests: int
    queue_ms: float
    compute_ms: float

    def since(self, before: "ServerTime") -> dict[str, float]:
        """Mean milliseconds of a request since an earlier reading."""
        requests = max(1, self.requests - before.requests)
        return {
            "queue_ms": (self.queue_ms - before.queue_ms) / requests,
            "compute_ms": (self.compute_ms - before.compute_ms) / requests,
        }


def server_time(server: RunningServer, stub: Any, model: str) -> ServerTime:  # noqa: ANN401 - tritonclient has no types
    """Ask a server for its own statistics.

    Args:
        server: started by this program.
        stub: on a channel to it.
        model: which of its models.

    Raises:
        BenchError: it does not answer.
    """
    try:
        found = statistics_of(stub, model, (ADMIN_HEADER, server.admin), STATISTICS_TIMEOUT_S)
    except StubError as error:
        msg = f"the tritonserver of {server.repository} gives no statistics ({error}): run the benchmark again"
        raise BenchError(msg) from error
    compute = found.compute_input.ns + found.compute_infer.ns + found.compute_output.ns
    return ServerTime(found.success.count, found.queue.ns / 1e6, compute / 1e6)
