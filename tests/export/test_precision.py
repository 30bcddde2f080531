"""Precisions in the graph: what ONNX Runtime computes from the very graphs that engines are built from."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from privdfs_export import graphs, modules
from privdfs_export.errors import PrecisionError
from privdfs_export.precision import (
    PRECISIONS,
    Precision,
    check_precision,
    measure_ranges,
    quantised_tensors,
    with_precision,
)
from privdfs_export.sessions import session
from tests.export.small_branches import branch_inputs, branch_models, untrained

RELEASES = Path(__file__).parents[2] / "model_repository"
REFERENCE = RELEASES / "fashion-resnet20"


@pytest.fixture(scope="module")
def branches() -> dict[str, onnx.ModelProto]:
    return branch_models()


def answers(model: onnx.ModelProto, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    return np.asarray(session(model.SerializeToString()).run(None, inputs)[0])


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("kind", ["compact", "channels", "keyed", "resnet", "vit"])
def test_fp16_stays_close_and_int8_too(branches: dict[str, onnx.ModelProto], kind: str) -> None:
    model = branches[kind]
    inputs = branch_inputs(model)
    exact = answers(model, inputs)
    ranges = measure_ranges(model, inputs)
    limits: dict[Precision, float] = {"fp32": 0, "fp16": 2e-2, "int8": 0.1, "int8-fp16": 0.1}
    for precision, limit in limits.items():
        found = answers(with_precision(model, precision, ranges), inputs)
        off = np.abs(found - exact).max() / np.abs(exact).max()
        assert off <= limit, precision
        assert found.dtype == np.float32
        assert precision == "fp32" or off > 0  # else nothing was turned


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_and_outputs_stay(branches: dict[str, onnx.ModelProto], precision: Precision) -> None:
    for model in branches.values():
        turned = with_precision(model, precision, measure_ranges(model, branch_inputs(model)))
        assert list(turned.graph.input) == list(model.graph.input)
        assert list(turned.graph.output) == list(model.graph.output)


def test_no_float32_is_left_in_half_precision(branches: dict[str, onnx.ModelProto]) -> None:
    for precision, kind in (("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)):
        for model in branches.values():
            turned = with_precision(model, check_precision(precision))
            types = {tensor.data_type for tensor in turned.graph.initializer}
            assert TensorProto.FLOAT not in types
            assert kind in types


def test_int8_quantises_every_layer_symmetrically(branches: dict[str, onnx.ModelProto]) -> None:
    model = branches["resnet"]
    turned = with_precision(model, "int8", measure_ranges(model, branch_inputs(model)))
    known, producers = constants(turned), {node.output[0]: node for node in turned.graph.node}
    layers = [node for node in turned.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 5
    for layer in layers:
        activation, weight = producers[layer.input[0]], producers[layer.input[1]]
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert producers[activation.input[0]].op_type == "QuantizeLinear"
        integers, scale, zero = (known[name] for name in weight.input)
        assert (integers.dtype, np.abs(integers.astype(int)).max()) == (np.int8, 127)
        assert scale.shape == (integers.shape[0],)  # one for each output channel
        assert not zero.any()
        assert known[activation.input[1]].shape == ()
        assert known[activation.input[2]] == 0
        assert known[layer.input[2]].dtype == np.float32  # biases are not quantised


def test_both_sides_of_a_residual_addition_are_int8_for_an_engine_to_fuse() -> None:
    model = graphs.branch_graph(untrained(), 0)
    names = quantised_tensors(model.graph)
    turned = with_precision(model, "int8", dict.fromkeys(names, 1.0))
    producers = {name: node.op_type for node in turned.graph.node for name in node.output}
    additions = [node for node in turned.graph.node if node.op_type == "Add"]
    assert additions
    for node in additions:
        assert {producers[name] for name in node.input} == {"Conv", "DequantizeLinear"}


def test_ranges_come_from_the_shares_and_cut_outliers() -> None:
    values = np.zeros((1, 10_001), np.float32)
    values[0, :10_000] = np.linspace(-1, 1, 10_000)
    values[0, -1] = 4
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("MatMul", ["y", "w"], ["logits"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 10_001])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.ones((10_001, 1), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert list(measure_ranges(model, {"x": values[:, :]})) == ["y"]
    wide = measure_ranges(model, {"x": values})["y"]
    values[0, -1] = 1
    narrow = measure_ranges(model, {"x": values})["y"]
    assert narrow == pytest.approx(1)
    assert narrow < wide <= 4
    assert measure_ranges(model, {"x": 0 * values})["y"] == 1  # a scale of zero would divide by zero


def test_int8_without_ranges_says_where_they_come_from() -> None:
    model = graphs.branch_graph(untrained(), 0)
    with pytest.raises(PrecisionError, match=r"measured range of \d+ tensors .* Export the release again"):
        with_precision(model, "int8")


def test_fp16_refuses_what_it_cannot_hold() -> None:
    model = graphs.branch_graph(untrained(), 0)
    bias = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 1 and tensor.data_type == 1)
    bias.CopyFrom(numpy_helper.from_array(np.full(tuple(bias.dims), 1e6, np.float32), bias.name))
    with pytest.raises(PrecisionError, match=r"values above 65504, which FP16 cannot hold\. Take bf16 or fp32"):
        with_precision(model, "fp16")
    ranges = dict.fromkeys(quantised_tensors(graphs.branch_graph(untrained(), 0).graph), 1e-12)
    with pytest.raises(PrecisionError, match="too small for FP16"):
        with_precision(graphs.branch_graph(untrained(), 0), "int8-fp16", ranges)


def test_a_wrong_name_is_told_the_right_ones() -> None:
    with pytest.raises(PrecisionError, match=r"no precision 'fp8'\. Choose one of fp32, fp16, bf16, int8, int8-fp16"):
        check_precision("fp8")


def test_channel_masks_slice_the_first_convolution_and_scatter_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    system = untrained(masks={"unit": "channel", "values": 32})
    model = graphs.branch_graph(system, 1)
    assert [node.op_type for node in model.graph.node[:3]] == ["DequantizeLinear", "Reshape", "Conv"]
    assert constants(model)[model.graph.node[2].input[1]].shape[1] == 2  # of the feature's four channels
    monkeypatch.setattr(modules, "whole_channels", lambda _system, _server: None)
    scattered = graphs.branch_graph(system, 1)
    assert [node.op_type for node in scattered.graph.node[:4]] == ["DequantizeLinear", "Pad", "Gather", "Reshape"]
    values, width, kernel, cut = 4 * 4, 16, 9, 2
    assert graphs.count_macs(scattered) - graphs.count_macs(model) == values * width * kernel * cut
    inputs = branch_inputs(model)
    np.testing.assert_allclose(answers(model, inputs), answers(scattered, inputs), atol=1e-5)


@pytest.mark.slow
def test_int8_of_the_reference_release_agrees_with_float32() -> None:
    """On the golden examples only, as the test images are not at hand; the manifest has the whole test set."""
    golden = load_file(REFERENCE / "client" / "golden.safetensors")
    for server in range(3):
        model = onnx.load(REFERENCE / f"server-{server}" / "branch" / "1" / "model.onnx")
        inputs: dict[str, NDArray[np.generic]] = {"share": golden[f"share_{server}"]}
        exact = answers(model, inputs)
        found = answers(with_precision(model, "int8", measure_ranges(model, inputs)), inputs)
        assert (found.argmax(1) == exact.argmax(1)).all()
