"""A release with one-layer branches, made in milliseconds: what serving needs, and nothing learned."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from privdfs._manifest import (
    Accuracy,
    ClientManifest,
    ImageSpec,
    Macs,
    MadeBy,
    ServerManifest,
    ServerSpec,
    encode_manifest,
    sha256_file,
)
from privdfs_export.triton import ModelSpec, TensorSpec, write_model

RELEASE = "tiny-1"
SHARE_LENGTH = 12
IMAGE = (4, 4, 1)
CLASSES = 4
MAX_BATCH = 8

_MADE_BY = MadeBy(command="tests", commit="none", date="2026-01-01", seed=0, config={}, versions={})
_NO_DIGEST = "0" * 64


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
    source = TensorSpec("share", "int8", (SHARE_LENGTH,))
    _write(folder / f"server-{index}", index, "branch", source, graph if onnx_bytes is None else onnx_bytes, script)


def write_release(folder: Path, n_servers: int) -> Path:
    """Write a release: n servers, the baseline, and the client's manifest."""
    for index in range(n_servers):
        write_server(folder, index)
    graph = linear_graph("image", TensorProto.UINT8, IMAGE, seed=99).SerializeToString()
    _write(folder / "baseline", 0, "baseline", TensorSpec("image", "uint8", IMAGE), graph)
    client = ClientManifest(
        format_version=1,
        release=RELEASE,
        made_by=_MADE_BY,
        classes=tuple(f"class {index}" for index in range(CLASSES)),
        image=ImageSpec(height=IMAGE[0], width=IMAGE[1], channels=1),
        servers=tuple(ServerSpec(share_length=SHARE_LENGTH, levels=255, scale=1.0) for _ in range(n_servers)),
        max_batch=MAX_BATCH,
        files=dict.fromkeys(("encoder.onnx", "fusion.onnx", "golden.safetensors"), _NO_DIGEST),
        accuracy=Accuracy(data="none", images=1, baseline=0, fused=0, branches=(0.0,) * n_servers, subsets=()),
        macs=Macs(head=0, fusion=0, branch=0, baseline=0),
    )
    (folder / "client").mkdir()
    (folder / "client" / "manifest.json").write_bytes(encode_manifest(client))
    return folder


def _write(
    folder: Path, server: int, model: str, source: TensorSpec, graph: bytes, script: bytes | None = None
) -> None:
    parameters = {"privdfs_release": RELEASE, "privdfs_server": str(server)}
    answer = TensorSpec("logits", "float32", (CLASSES,))
    files = write_model(folder, ModelSpec(model, "python", (source,), answer, MAX_BATCH, parameters), graph)
    if script is not None:
        (folder / model / "1" / "model.py").write_bytes(script)
    manifest = ServerManifest(
        format_version=1,
        release=RELEASE,
        server=server,
        share_length=SHARE_LENGTH,
        scale=1.0,
        classes=CLASSES,
        engine="python",
        files={name: sha256_file(folder / name) for name in files},
        made_by=_MADE_BY,
    )
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))
