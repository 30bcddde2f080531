from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper

from privdfs_export import graphs
from privdfs_training.checkpoint import load_system
from privdfs_training.models.system import System
from tests.trained import shifted_images


@pytest.fixture(scope="module")
def system(trained_release: Path) -> System:
    return load_system(trained_release.parent / "run" / "system.safetensors").system


@pytest.fixture(scope="module")
def encoder(system: System) -> onnx.ModelProto:
    return graphs.encoder_graph(system)


def tensors(model: onnx.ModelProto) -> dict[str, tuple[int, list[int | str]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim],
        )
        for value in [*model.graph.input, *model.graph.output]
    }


def test_inputs_and_outputs_are_those_of_the_format(system: System, encoder: onnx.ModelProto) -> None:
    share = (TensorProto.INT8, ["batch", 12])
    assert tensors(encoder) == {
        "image": (TensorProto.UINT8, ["batch", 28, 28, 1]),
        "share_0": share,
        "share_1": share,
        "share_2": share,
    }
    assert tensors(graphs.branch_graph(system, 1)) == {"share": share, "logits": (TensorProto.FLOAT, ["batch", 10])}
    assert tensors(graphs.fusion_graph(system)) == {
        "logits": (TensorProto.FLOAT, ["batch", 3, 10]),
        "answered": (TensorProto.BOOL, ["batch", 3]),
        "probabilities": (TensorProto.FLOAT, ["batch", 10]),
    }
    assert tensors(graphs.baseline_graph(system)) == {
        "image": (TensorProto.UINT8, ["batch", 28, 28, 1]),
        "logits": (TensorProto.FLOAT, ["batch", 10]),
    }


def test_graphs_use_standard_operators_of_an_opset_that_tensorrt_reads(
    system: System, encoder: onnx.ModelProto
) -> None:
    every = [encoder, graphs.branch_graph(system, 0), graphs.fusion_graph(system), graphs.baseline_graph(system)]
    for model in every:
        assert [(opset.domain, opset.version <= 22) for opset in model.opset_import] == [("", True)]
        assert {node.domain for node in model.graph.node} == {""}


def test_a_branch_starts_by_dequantising_symmetrically_and_placing(system: System) -> None:
    model = graphs.branch_graph(system, 2)
    names = [node.op_type for node in model.graph.node]
    assert names[:4] == ["DequantizeLinear", "Pad", "Gather", "Reshape"]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    _, scale, zero = model.graph.node[0].input
    assert constants[scale] == np.float32(0.5)  # five levels
    assert (constants[zero].dtype, int(constants[zero])) == (np.int8, 0)


def test_the_heads_weights_are_stored_as_seven_bit_integers(encoder: onnx.ModelProto) -> None:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in encoder.graph.initializer}
    dequantised = {node.output[0]: node.input[0] for node in encoder.graph.node if node.op_type == "DequantizeLinear"}
    kernels = [constants[dequantised[node.input[1]]] for node in encoder.graph.node if node.op_type == "Conv"]
    assert len(kernels) == 8
    for kernel in kernels:
        assert kernel.dtype == np.int8
        assert np.abs(kernel).max() == 63


def test_the_runtime_fuses_the_head_to_integer_convolutions(encoder: onnx.ModelProto, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(encoder.SerializeToString(), options)
    names = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert names.count("QLinearConv") == 7  # all but the last, whose output is quantised to the shares' few levels


def test_the_shares_are_the_trained_ones(system: System, encoder: onnx.ModelProto) -> None:
    images, _ = shifted_images(5, seed=9)
    images = images[..., None]
    session = ort.InferenceSession(encoder.SerializeToString())
    shares = [np.asarray(share) for share in session.run(None, {"image": images})]
    with torch.inference_mode():
        feature = system.head(torch.from_numpy(images).permute(0, 3, 1, 2))
    for server in range(3):
        integers = system.quantiser.integers(feature, server).flatten(1)
        expected = integers[:, system.masks.owned[server]].numpy()
        assert (shares[server] == expected).mean() > 0.995
        assert set(np.unique(shares[server])) <= {-2, -1, 0, 1, 2}


def test_macs_are_those_counted_by_hand(system: System, encoder: onnx.ModelProto) -> None:
    stem = 14 * 14 * 8 * 9
    first = 14 * 14 * (8 * 9 + 8 * 16) + 14 * 14 * (16 * 9 + 16 * 16)
    second = 7 * 7 * (16 * 9 + 16 * 24)
    narrow = 7 * 7 * 24 * 4
    assert graphs.count_macs(encoder) == stem + first + second + narrow
    assert graphs.count_macs(graphs.fusion_graph(system)) == 3 * 11 * 16 + 16 * 10
