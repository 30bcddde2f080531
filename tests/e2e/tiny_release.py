"""A release with one-layer branches, made in milliseconds: what serving needs, and nothing learned."""

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from privdfs._files import sha256_file
from privdfs._format import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Accuracy,
    ClientManifest,
    ImageSpec,
    Macs,
    MadeBy,
    ServerSpec,
)
from privdfs._manifest import encode_manifest
from privdfs._verify import server_manifest
from privdfs_export import writing
from privdfs_export.writing import Sidecar

RELEASE = "tiny-1"
SHARE_LENGTH = 12
IMAGE = (4, 4, 1)
CLASSES = 4
MAX_BATCH = 8


def linear_graph(name: str, dtype: int, shape: tuple[int, ...], seed: int) -> onnx.ModelProto:
    """Graph `name` [batch, *shape] -> `logits` float32 [batch, CLASSES]: flatten, times a random matrix."""
    weights = np.random.default_rng(seed).standard_normal((int(np.prod(shape)), CLASSES), dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [name], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["values"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info(name, dtype, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_server(folder: Path, index: int, *, onnx_bytes: bytes | None = None, script: bytes | None = None) -> None:
    """Write `server-<index>`; bytes replace its graph or its script, to make a listed but broken server."""
    graph = linear_graph("share", TensorProto.INT8, (SHARE_LENGTH,), seed=index).SerializeToString()
    server = folder / f"server-{index}"
    chosen = graph if onnx_bytes is None else onnx_bytes
    writing.write_server(server, client_manifest(index + 1), index, chosen, "python", Sidecar())
    if script is not None:
        (server / "branch" / "1" / "model.py").write_bytes(script)
        manifest = server_manifest(server)
        files = {name: sha256_file(server / name) for name in manifest.files}
        (server / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))


def write_release(folder: Path, n_servers: int) -> Path:
    """Write a release: n servers, the baseline, and the client's manifest."""
    for index in range(n_servers):
        write_server(folder, index)
    graph = linear_graph("image", TensorProto.UINT8, IMAGE, seed=99).SerializeToString()
    client = client_manifest(n_servers)
    writing.write_baseline(folder / "baseline", client, graph, "python", Sidecar())
    (folder / "client").mkdir()
    (folder / "client" / MANIFEST_NAME).write_bytes(encode_manifest(client))
    return folder


def client_manifest(n_servers: int) -> ClientManifest:
    """Of a release whose client cannot be opened: it names files that are not there."""
    return ClientManifest(
        format_version=FORMAT_VERSION,
        release=RELEASE,
        made_by=MadeBy(command="tests", commit="none", date="2026-01-01", seed=0, config={}, versions={}),
        classes=tuple(f"class {index}" for index in range(CLASSES)),
        image=ImageSpec(height=IMAGE[0], width=IMAGE[1], channels=1),
        servers=tuple(ServerSpec(share_length=SHARE_LENGTH, levels=255, scale=1.0) for _ in range(n_servers)),
        max_batch=MAX_BATCH,
        files=dict.fromkeys(("encoder.onnx", "fusion.onnx", "golden.safetensors"), "0" * 64),
        accuracy=Accuracy(data="none", images=1, baseline=0, fused=0, branches=(0.0,) * n_servers, subsets=()),
        macs=Macs(head=0, fusion=0, branch=0, baseline=0),
    )
