"""Precision that lives in the graph: what a branch computes in FP16, BF16 or INT8 is written into its ONNX.

TensorRT 11 builds strongly typed networks only, so the graph decides every type, and ONNX Runtime computes the very
same graph: accuracy can be measured where there is no GPU.

- FP16, BF16: every float32 constant and cast is turned; inputs and outputs stay as they are, so clients see no change.
- INT8: explicit QuantizeLinear and DequantizeLinear, symmetric, zero point 0. Weights of convolutions and linear
  layers are stored as int8 with one scale per output channel, their inputs have one scale per tensor, biases stay
  float. The input of a residual addition to a convolution is quantised too, so that an engine can add within it.
- A scale comes from a range that was measured on real shares (`measure_ranges`): the clip with the smallest squared
  error of rounding, among fractions of the largest value. Ranges are stored beside a graph, so that a GPU host can
  choose INT8 without any data.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, get_args

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from privdfs_export.errors import PrecisionError
from privdfs_export.sessions import session

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: The largest int8 of a symmetric quantisation.
_LIMIT = 127
_HALF_MAX = 65504.0
#: Tried clips of a range, as fractions of the largest value.
_CLIPS = np.linspace(0.2, 1.0, 41)
#: Of a tensor's values, so many at most decide on the clip.
_SAMPLE = 200_000
#: Layers with weights -> the axis of the weight that counts outputs (of Gemm: when it is transposed).
_LAYERS: Mapping[str, int] = {"Conv": 0, "Gemm": 0, "MatMul": 1}


def check_precision(name: str) -> Precision:
    """A precision by its name.

    Args:
        name: As a person wrote it.

    Returns:
        The precision, typed.

    Raises:
        PrecisionError: The name is unknown.
    """
    for known in PRECISIONS:
        if name == known:
            return known
    message = f"there is no precision {name!r}. Choose one of {', '.join(PRECISIONS)}."
    raise PrecisionError(message)


def with_precision(
    graph: onnx.ModelProto, precision: Precision, ranges: Mapping[str, float] | None = None
) -> onnx.ModelProto:
    """A float32 graph in another precision.

    Args:
        graph: As `graphs` makes it; it is not changed.
        precision: Wanted.
        ranges: For INT8, of every tensor that `quantised_tensors` names, the largest absolute value to keep.

    Returns:
        A checked graph with the same inputs and outputs.

    Raises:
        PrecisionError: Ranges are missing, or a weight is too large for FP16.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.value_info[:]
    if precision in ("int8", "int8-fp16"):
        _quantise(model.graph, {} if ranges is None else ranges)
    if precision in ("fp16", "int8-fp16"):
        _cast(model.graph, TensorProto.FLOAT16)
    if precision == "bf16":
        _cast(model.graph, TensorProto.BFLOAT16)
    # The types of a bfloat16 convolution are checked by TensorRT: ONNX allows them from opset 22 on only.
    onnx.checker.check_model(model, full_check=precision != "bf16")
    return model


def quantised_tensors(graph: onnx.GraphProto) -> list[str]:
    """Activations that INT8 quantises, in the order of the graph.

    Args:
        graph: In float32.

    Returns:
        Their names.
    """
    producers = {name: node.op_type for node in graph.node for name in node.output}
    names = dict.fromkeys(node.input[0] for node, _ in _layers(graph))
    for node in graph.node:
        # The other side of a residual addition to a convolution.
        if node.op_type == "Add" and "Conv" in {producers.get(name) for name in node.input}:
            both = [name for name in node.input if name in producers]
            names |= dict.fromkeys(both[1:] if producers[both[0]] == "Conv" else both[:1])
    return list(names)


def measure_ranges(graph: onnx.ModelProto, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, float]:
    """What INT8 needs to know of the activations.

    Args:
        graph: In float32; it is not changed.
        inputs: Real inputs of the graph, each [images, …].

    Returns:
        Largest absolute value to keep, by tensor.
    """
    names = quantised_tensors(graph.graph)
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in known
    )
    found = session(model.SerializeToString()).run(names, dict(inputs))
    return {name: _best_clip(np.asarray(values)) for name, values in zip(names, found, strict=True)}


def _best_clip(values: NDArray[np.generic]) -> float:
    """The clip whose rounding to int8 has the smallest squared error; 1 for a tensor that is always zero."""
    magnitudes = np.abs(values.astype(np.float32)).ravel()
    largest = float(magnitudes.max(initial=0))
    if largest == 0:
        return 1.0
    sample = magnitudes[:: max(1, len(magnitudes) // _SAMPLE)]
    scales = _CLIPS * largest / _LIMIT
    errors = [float(np.square(np.minimum(np.rint(sample / s), _LIMIT) * s - sample).mean()) for s in scales]
    return float(_CLIPS[int(np.argmin(errors))] * largest)


def _layers(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Convolutions and linear layers with a constant weight, and the axis of that weight that counts outputs."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _LAYERS and node.input[1] in constants and node.input[0] not in constants:
            axis = _LAYERS[node.op_type]
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            yield node, 1 if node.op_type == "Gemm" and not transposed else axis


def _quantise(graph: onnx.GraphProto, ranges: Mapping[str, float]) -> None:
    names = quantised_tensors(graph)
    missing = [name for name in names if name not in ranges]
    if missing:
        message = (
            f"INT8 needs the measured range of {len(missing)} tensors of this graph, such as {missing[0]}. "
            "Export the release again with this version, which measures them in masked releases, or take another "
            "precision."
        )
        raise PrecisionError(message)
    _quantise_weights(graph)
    consumers = {"Add", *_LAYERS}
    nodes = []
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "int8_zero"))
    made: set[str] = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name not in names or node.op_type not in consumers:
                continue
            if name not in made:
                nodes.extend(_quantise_activation(graph, name, ranges[name]))
                made.add(name)
            node.input[index] = f"{name}_int8_dequantised"
        nodes.append(node)
    # A node of a list of protobuf is gone when the list is cleared: keep copies.
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _quantise_activation(graph: onnx.GraphProto, name: str, clip: float) -> list[onnx.NodeProto]:
    scale = numpy_helper.from_array(np.array(clip / _LIMIT, np.float32), f"{name}_int8_scale")
    graph.initializer.append(scale)
    return [
        helper.make_node("QuantizeLinear", [name, scale.name, "int8_zero"], [f"{name}_int8"], f"{name}_quantise"),
        helper.make_node(
            "DequantizeLinear",
            [f"{name}_int8", scale.name, "int8_zero"],
            [f"{name}_int8_dequantised"],
            f"{name}_dequantise",
        ),
    ]


def _quantise_weights(graph: onnx.GraphProto) -> None:
    """Store weights as int8, one scale per output channel, each with a DequantizeLinear in front of its layer."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    axes = {node.input[1]: axis for node, axis in _layers(graph)}
    for node, _ in _layers(graph):
        node.input[1] = f"{node.input[1]}_dequantised"
    for position, (name, axis) in enumerate(axes.items()):
        weight = numpy_helper.to_array(constants[name])
        others = tuple(i for i in range(weight.ndim) if i != axis)
        largest = np.abs(weight).max(axis=others)
        scale = (np.where(largest > 0, largest, 1) / _LIMIT).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        integers = np.rint(weight / scale.reshape(shape)).astype(np.int8)
        zeros = np.zeros(len(scale), np.int8)
        graph.initializer.remove(constants[name])
        graph.initializer.extend(
            numpy_helper.from_array(array, f"{name}{suffix}")
            for array, suffix in ((integers, ""), (scale, "_scale"), (zeros, "_zero"))
        )
        node = helper.make_node(
            "DequantizeLinear",
            [name, f"{name}_scale", f"{name}_zero"],
            [f"{name}_dequantised"],
            f"{name}_dequantise",
            axis=axis,
        )
        graph.node.insert(position, node)


def _cast(graph: onnx.GraphProto, kind: int) -> None:
    """Turn every float32 constant and cast into another float type; inputs and outputs keep theirs."""
    attributes = [(node, attribute) for node in graph.node for attribute in node.attribute]
    held = [attribute.t for _, attribute in attributes if attribute.HasField("t")]
    for tensor in [*graph.initializer, *held]:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(_turned(tensor, kind))
    for node, attribute in attributes:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = kind
    for value in _floats(graph.input):
        _rename(graph, value, f"{value}_turned", of_inputs=True)
        graph.node.insert(0, helper.make_node("Cast", [value], [f"{value}_turned"], to=kind))
    for value in _floats(graph.output):
        _rename(graph, value, f"{value}_turned", of_inputs=False)
        graph.node.append(helper.make_node("Cast", [f"{value}_turned"], [value], to=TensorProto.FLOAT))


def _floats(values: Iterable[onnx.ValueInfoProto]) -> list[str]:
    return [value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT]


def _rename(graph: onnx.GraphProto, old: str, new: str, *, of_inputs: bool) -> None:
    for node in graph.node:
        for names in (node.input,) if of_inputs else (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def _turned(tensor: onnx.TensorProto, kind: int) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if kind == TensorProto.BFLOAT16:
        return numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), tensor.name)
    if np.abs(values).max(initial=0) > _HALF_MAX:
        message = (
            f"the constant {tensor.name} has values above {_HALF_MAX:.0f}, which FP16 cannot hold. "
            "Take bf16 or fp32 for this release."
        )
        raise PrecisionError(message)
    turned = values.astype(np.float16)
    if tensor.name.endswith("_scale") and not turned.all():
        message = (
            f"the scale {tensor.name} is too small for FP16, as all values of its tensor are tiny. Take int8 without "
            "fp16, or bf16, for this release."
        )
        raise PrecisionError(message)
    return numpy_helper.from_array(turned, tensor.name)
