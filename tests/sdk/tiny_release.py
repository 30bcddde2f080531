"""A whole release, tiny but real: ONNX graphs, manifests and golden examples, as an exporter writes them."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from privdfs._files import sha256_file
from privdfs._format import (
    FORMAT_VERSION,
    PARTITION,
    Accuracy,
    ClientManifest,
    ImageSpec,
    KeySpec,
    Leakage,
    Macs,
    MadeBy,
    MaliciousAccuracy,
    ServerManifest,
    ServerSpec,
    Signature,
    SubsetAccuracy,
    TensorSpec,
)
from privdfs._manifest import encode_manifest
from privdfs._onnx import Graph

CLASSES = ("ankle boot", "bag", "coat", "dress")
HEIGHT, WIDTH = 12, 10
MAX_BATCH = 4
SCALE = 0.25
FAMILY = "0123456789abcdef" * 2
MADE_BY = MadeBy(command="privdfs-export", commit="abc", date="2026-01-01", seed=0, config={}, versions={"onnx": "1"})


def build_release(
    folder: Path,
    *,
    release: str = "tiny-1",
    share_lengths: tuple[int, ...] = (5, 6, 7),
    channels: int = 3,
    seed: int = 0,
    partitions: int | None = None,
) -> Path:
    """Write a release; the weights depend on the seed only. With `partitions` it is a keyed one."""
    rng = np.random.default_rng(seed)
    n_servers, n_classes = len(share_lengths), len(CLASSES)
    client = folder / "client"
    client.mkdir(parents=True)
    pixels = HEIGHT * WIDTH * channels
    projections = [rng.normal(size=(pixels, length)).astype(np.float32) / 60 for length in share_lengths]
    save_model(client / "fusion.onnx", fusion_graph(n_servers, n_classes))
    readouts = [rng.normal(size=(length, n_classes)).astype(np.float32) for length in share_lengths]
    if partitions is None:
        keys, encoder = None, encoder_graph(projections, channels)
        branches = [branch_graph(readout) for readout in readouts]
    else:
        keys = KeySpec(partitions=partitions, family=FAMILY)
        dealt = np.stack([rng.permutation(sum(share_lengths)) for _ in range(partitions)]).astype(np.int32)
        tables = np.split(dealt, np.cumsum(share_lengths)[:-1], axis=1)
        encoder = keyed_encoder_graph(projections, tables, channels)
        branches = [keyed_branch_graph(*pair) for pair in zip(readouts, tables, strict=True)]
    save_model(client / "encoder.onnx", encoder)
    for i, branch in enumerate(branches):
        write_server(folder / f"server-{i}", release, i, share_lengths[i], branch, keys)
    write_golden(client, share_lengths, channels, rng, keys)
    write_client_manifest(client, release, share_lengths, channels, keys)
    return folder


def write_client_manifest(
    client: Path, release: str, share_lengths: tuple[int, ...], channels: int, keys: KeySpec | None
) -> None:
    n_servers = len(share_lengths)
    lied = MaliciousAccuracy(liars=1, random=0.45, constant=0.4, flipped=0.46, runner_up=0.41, adversarial=0.35)
    manifest = ClientManifest(
        format_version=FORMAT_VERSION,
        release=release,
        made_by=MADE_BY,
        classes=CLASSES,
        image=ImageSpec(height=HEIGHT, width=WIDTH, channels=channels),  # pyright: ignore[reportArgumentType] - 1 or 3
        servers=tuple(ServerSpec(share_length=length, levels=15, scale=SCALE) for length in share_lengths),
        max_batch=MAX_BATCH,
        files=digests(client),
        accuracy=Accuracy(
            data="noise",
            images=8,
            baseline=0.5,
            fused=0.5,
            branches=(0.25,) * n_servers,
            subsets=(SubsetAccuracy(answered=(0,), accuracy=0.25),),
            malicious=() if n_servers < 3 else (lied,),
        ),
        macs=Macs(head=100, fusion=10, branch=20, baseline=1000),
        leakage=(
            Leakage(
                coalition=(0,), attack="ridge", psnr=9.0, ssim=0.1, floor=8.5, images=8, date="2026-01-01", commit="abc"
            ),
        ),
        keys=msgspec.UNSET if keys is None else keys,
    )
    (client / "manifest.json").write_bytes(encode_manifest(manifest))


def write_server(
    folder: Path, release: str, index: int, length: int, graph: onnx.GraphProto, keys: KeySpec | None
) -> None:
    version = folder / "branch" / "1"
    version.mkdir(parents=True)
    save_model(version / "model.onnx", graph)
    (folder / "branch" / "config.pbtxt").write_text('name: "branch"\n')
    manifest = ServerManifest(
        format_version=FORMAT_VERSION,
        release=release,
        server=index,
        share_length=length,
        scale=SCALE,
        classes=len(CLASSES),
        engine="python",
        files=digests(folder),
        made_by=MADE_BY,
        keys=msgspec.UNSET if keys is None else keys,
    )
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))


def write_golden(
    client: Path, share_lengths: tuple[int, ...], channels: int, rng: np.random.Generator, keys: KeySpec | None
) -> None:
    n_images, n_servers, n_classes = 6, len(share_lengths), len(CLASSES)
    tensors = {} if keys is None else {PARTITION: np.arange(n_images, dtype=np.int32)[:, None] % keys.partitions}
    images = rng.integers(0, 256, (n_images, HEIGHT, WIDTH, channels), dtype=np.uint8)
    partition = [] if keys is None else [TensorSpec(PARTITION, "int32", (1,))]
    shares = [TensorSpec(f"share_{i}", "int8", (length,)) for i, length in enumerate(share_lengths)]
    signature = Signature((TensorSpec("image", "uint8", images.shape[1:]), *partition), tuple(shares))
    encoder = Graph("encoder", (client / "encoder.onnx").read_bytes(), signature, 1)
    shares = encoder.run({"image": images, **tensors})
    logits = rng.normal(size=(n_images, n_servers, n_classes)).astype(np.float32)
    heard = TensorSpec("logits", "float32", (n_servers, n_classes)), TensorSpec("answered", "bool", (n_servers,))
    signature = Signature(heard, (TensorSpec("probabilities", "float32", (n_classes,)),))
    fusion = Graph("fusion", (client / "fusion.onnx").read_bytes(), signature, 1)
    (probabilities,) = fusion.run({"logits": logits, "answered": np.ones((n_images, n_servers), dtype=bool)})
    tensors |= {"images": images, "logits": logits, "probabilities": probabilities}
    tensors |= {f"share_{i}": share for i, share in enumerate(shares)}
    save_file(tensors, client / "golden.safetensors")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def encoder_graph(projections: list[np.ndarray], channels: int) -> onnx.GraphProto:
    """Image -> centred, projected, rounded and clipped to -7..7."""
    constants = {
        "middle": np.float32(127.5),
        "flat": np.array([0, -1], dtype=np.int64),
        "low": np.float32(-7),
        "high": np.float32(7),
    } | {f"projection_{i}": projection for i, projection in enumerate(projections)}
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["pixels", "middle"], ["centred"]),
        helper.make_node("Reshape", ["centred", "flat"], ["row"]),
    ]
    for i in range(len(projections)):
        nodes += [
            helper.make_node("MatMul", ["row", f"projection_{i}"], [f"feature_{i}"]),
            helper.make_node("Round", [f"feature_{i}"], [f"rounded_{i}"]),
            helper.make_node("Clip", [f"rounded_{i}", "low", "high"], [f"clipped_{i}"]),
            helper.make_node("Cast", [f"clipped_{i}"], [f"share_{i}"], to=TensorProto.INT8),
        ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", HEIGHT, WIDTH, channels])
    shares = [
        helper.make_tensor_value_info(f"share_{i}", TensorProto.INT8, ["batch", projection.shape[1]])
        for i, projection in enumerate(projections)
    ]
    return helper.make_graph(nodes, "encoder", [image], shares, initializers(constants))


def keyed_encoder_graph(projections: list[np.ndarray], tables: list[np.ndarray], channels: int) -> onnx.GraphProto:
    """Image -> all values, as `encoder_graph` makes them -> each server's, by tables int32 [partitions, K_i]."""
    graph = encoder_graph([np.concatenate(projections, axis=1)], channels)
    graph.node[-1].output[0] = "values"
    graph.node.append(helper.make_node("Squeeze", ["partition", "last"], ["index"]))
    graph.initializer.extend(initializers({"last": np.array([1], np.int64)}))
    del graph.output[:]
    for i, table in enumerate(tables):
        graph.node.append(helper.make_node("Gather", [f"table_{i}", "index"], [f"places_{i}"]))
        graph.node.append(helper.make_node("GatherElements", ["values", f"places_{i}"], [f"share_{i}"], axis=1))
        graph.initializer.extend(initializers({f"table_{i}": table}))
        graph.output.append(helper.make_tensor_value_info(f"share_{i}", TensorProto.INT8, ["batch", table.shape[1]]))
    graph.input.append(helper.make_tensor_value_info("partition", TensorProto.INT32, ["batch", 1]))
    return graph


def keyed_branch_graph(readout: np.ndarray, table: np.ndarray) -> onnx.GraphProto:
    """Share and partition -> every value weighted by the place that the partition gives it."""
    weights = np.resize(readout, (table.max() + 1, readout.shape[1]))
    constants = {
        "scale": np.float32(SCALE),
        "zero": np.int8(0),
        "weights": weights,
        "table": table,
        "middle": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["share", "scale", "zero"], ["feature"]),
        helper.make_node("Squeeze", ["partition", "middle"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["places"]),
        helper.make_node("Gather", ["weights", "places"], ["readout"]),
        helper.make_node("Unsqueeze", ["feature", "middle"], ["row"]),
        helper.make_node("MatMul", ["row", "readout"], ["product"]),
        helper.make_node("Squeeze", ["product", "middle"], ["logits"]),
    ]
    share = helper.make_tensor_value_info("share", TensorProto.INT8, ["batch", readout.shape[0]])
    partition = helper.make_tensor_value_info("partition", TensorProto.INT32, ["batch", 1])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", readout.shape[1]])
    return helper.make_graph(nodes, "branch", [share, partition], [logits], initializers(constants))


def branch_graph(readout: np.ndarray) -> onnx.GraphProto:
    """Share -> dequantised, one linear layer."""
    constants = {"scale": np.float32(SCALE), "zero": np.int8(0), "readout": readout}
    nodes = [
        helper.make_node("DequantizeLinear", ["share", "scale", "zero"], ["feature"]),
        helper.make_node("MatMul", ["feature", "readout"], ["logits"]),
    ]
    share = helper.make_tensor_value_info("share", TensorProto.INT8, ["batch", readout.shape[0]])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", readout.shape[1]])
    return helper.make_graph(nodes, "branch", [share], [logits], initializers(constants))


def fusion_graph(n_servers: int, n_classes: int) -> onnx.GraphProto:
    """Mean of the logits that arrived, those of later servers counting more, then softmax."""
    constants = {
        "last": np.array([2], dtype=np.int64),
        "servers": np.array([1], dtype=np.int64),
        "importance": np.arange(1, n_servers + 1, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["answered"], ["arrived"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["arrived", "importance"], ["weight"]),
        helper.make_node("Unsqueeze", ["weight", "last"], ["weights"]),
        helper.make_node("Mul", ["logits", "weights"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "servers"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "servers"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Softmax", ["mean"], ["probabilities"], axis=-1),
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n_servers, n_classes])
    answered = helper.make_tensor_value_info("answered", TensorProto.BOOL, ["batch", n_servers])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", n_classes])
    return helper.make_graph(nodes, "fusion", [logits, answered], [probabilities], initializers(constants))


def initializers(constants: Mapping[str, np.ndarray | np.generic]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]


def save_model(path: Path, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
