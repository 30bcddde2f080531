"""A whole release, tiny but real: ONNX graphs, manifests and golden examples, as an exporter writes them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from privdfs._manifest import (
    FORMAT_VERSION,
    Accuracy,
    ClientManifest,
    ImageSpec,
    Leakage,
    Macs,
    MadeBy,
    ServerManifest,
    ServerSpec,
    SubsetAccuracy,
    encode_manifest,
    sha256_file,
)
from privdfs._onnx import Graph, TensorSpec

CLASSES = ("ankle boot", "bag", "coat", "dress")
HEIGHT, WIDTH = 12, 10
MAX_BATCH = 4
SCALE = 0.25
MADE_BY = MadeBy(command="privdfs-export", commit="abc", date="2026-01-01", seed=0, config={}, versions={"onnx": "1"})


def build_release(
    folder: Path,
    *,
    release: str = "tiny-1",
    share_lengths: tuple[int, ...] = (5, 6, 7),
    channels: int = 3,
    seed: int = 0,
) -> Path:
    """Write a release; the weights depend on the seed only."""
    rng = np.random.default_rng(seed)
    n_servers, n_classes = len(share_lengths), len(CLASSES)
    client = folder / "client"
    client.mkdir(parents=True)
    pixels = HEIGHT * WIDTH * channels
    projections = [rng.normal(size=(pixels, length)).astype(np.float32) / 60 for length in share_lengths]
    save_model(client / "encoder.onnx", encoder_graph(projections, channels))
    save_model(client / "fusion.onnx", fusion_graph(n_servers, n_classes))
    readouts = [rng.normal(size=(length, n_classes)).astype(np.float32) for length in share_lengths]
    for i, readout in enumerate(readouts):
        write_server(folder / f"server-{i}", release, i, readout)
    write_golden(client, share_lengths, readouts, channels, rng)
    write_client_manifest(client, release, share_lengths, channels)
    return folder


def write_client_manifest(client: Path, release: str, share_lengths: tuple[int, ...], channels: int) -> None:
    n_servers = len(share_lengths)
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
        ),
        macs=Macs(head=100, fusion=10, branch=20, baseline=1000),
        leakage=(
            Leakage(
                coalition=(0,), attack="ridge", psnr=9.0, ssim=0.1, floor=8.5, images=8, date="2026-01-01", commit="abc"
            ),
        ),
    )
    (client / "manifest.json").write_bytes(encode_manifest(manifest))


def write_server(folder: Path, release: str, index: int, readout: np.ndarray) -> None:
    length, n_classes = readout.shape
    version = folder / "branch" / "1"
    version.mkdir(parents=True)
    save_model(version / "model.onnx", branch_graph(readout))
    (folder / "branch" / "config.pbtxt").write_text('name: "branch"\n')
    manifest = ServerManifest(
        format_version=FORMAT_VERSION,
        release=release,
        server=index,
        share_length=length,
        scale=SCALE,
        classes=n_classes,
        engine="python",
        files=digests(folder),
        made_by=MADE_BY,
    )
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))


def write_golden(
    client: Path, share_lengths: tuple[int, ...], readouts: list[np.ndarray], channels: int, rng: np.random.Generator
) -> None:
    n_images, n_servers, n_classes = 6, len(share_lengths), len(CLASSES)
    images = rng.integers(0, 256, (n_images, HEIGHT, WIDTH, channels), dtype=np.uint8)
    encoder = Graph(
        "encoder",
        (client / "encoder.onnx").read_bytes(),
        [TensorSpec("image", "uint8", images.shape[1:])],
        [TensorSpec(f"share_{i}", "int8", (length,)) for i, length in enumerate(share_lengths)],
        1,
    )
    shares = encoder.run({"image": images})
    pairs = zip(shares, readouts, strict=True)
    logits = np.stack([share.astype(np.float32) * SCALE @ readout for share, readout in pairs], axis=1)
    fusion = Graph(
        "fusion",
        (client / "fusion.onnx").read_bytes(),
        [TensorSpec("logits", "float32", (n_servers, n_classes)), TensorSpec("answered", "bool", (n_servers,))],
        [TensorSpec("probabilities", "float32", (n_classes,))],
        1,
    )
    (probabilities,) = fusion.run({"logits": logits, "answered": np.ones((n_images, n_servers), dtype=bool)})
    tensors = {"images": images, "logits": logits, "probabilities": probabilities}
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
