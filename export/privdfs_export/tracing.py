"""A torch module to an ONNX graph: standard operators only, one opset, constants folded."""

import io
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

OPSET = 20  # TensorRT's parser wants at most 22; the tracing exporter writes at most 20


def export_graph(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: Sequence[str],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]] | None = None,
) -> onnx.ModelProto:
    """Trace a module into a graph.

    Args:
        module: What to trace.
        inputs: Examples, to trace with.
        names: Of the inputs.
        outputs: Names of what it gives.
        axes: Names of the axes whose length may change, by tensor; where a tensor is not named, its first, "batch".

    Returns:
        The graph, checked, with everything folded that depends on no input.
    """
    buffer = io.BytesIO()
    dynamic = {name: dict((axes or {}).get(name, {0: "batch"})) for name in (*names, *outputs)}
    with warnings.catch_warnings():
        # The tracing exporter is the one that writes fake quantisation as QuantizeLinear and DequantizeLinear; torch
        # calls it old.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            inputs,
            buffer,  # pyright: ignore[reportArgumentType]  the tracing exporter writes to any file object
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes=dynamic,
        )
    model = onnx.load_from_string(buffer.getvalue())
    _fold_constants(model.graph)
    for value in [*model.graph.input, *model.graph.output]:
        for axis, name in dynamic[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    onnx.checker.check_model(model, full_check=True)
    return model


def _fold_constants(graph: onnx.GraphProto) -> None:
    """Evaluate every node whose inputs are all known, except the dequantisation of weights, which engines must see."""
    known = {initializer.name: initializer for initializer in graph.initializer}
    kept = []
    for node in graph.node:
        # An empty name is an optional input that is not given.
        constant = all(name in known or not name for name in node.input) and node.op_type != "DequantizeLinear"
        if not constant:
            kept.append(node)
            continue
        values = ReferenceEvaluator(_single_node(node)).run(
            None, {name: numpy_helper.to_array(known[name]) for name in node.input if name}
        )
        for name, value in zip(node.output, values, strict=True):
            known[name] = numpy_helper.from_array(np.asarray(value), name)
    used = {name for node in kept for name in node.input}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept)
    graph.initializer.extend(tensor for name, tensor in known.items() if name in used)


def _single_node(node: onnx.NodeProto) -> onnx.ModelProto:
    inputs = [helper.make_empty_tensor_value_info(name) for name in node.input if name]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
