"""A trained system to ONNX: encoder, branches, fusion, baseline. Standard operators only, opset 20, dynamic batch.

Guarantees:

- The encoder takes uint8 pixels and gives int8 shares: cast, normalisation, int8 head, quantisation and gather are
  all inside.
- A branch takes the int8 share as it travels; DequantizeLinear and the scatter back into place are its first nodes.
  Where a server owns whole channels there is no scatter: its first convolution has the weights of those alone.
  Its graph holds the positions of its own elements and nothing of another share.
- Everything that does not depend on the input is folded, so int8 weights are stored as int8.
"""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper, shape_inference
from torch import Tensor

from privdfs._format import ANSWERED, IMAGE, LOGITS, PARTITION, PROBABILITIES, SHARE, share_name
from privdfs_export.errors import ExportError
from privdfs_export.modules import BaselinePixels, FusionProbabilities, branch_module, encoder_module
from privdfs_export.tracing import export_graph
from privdfs_training.coded.system import CodedSystem
from privdfs_training.models.custom import UNCOUNTED
from privdfs_training.models.system import System


def encoder_graph(system: System) -> onnx.ModelProto:
    """`image` uint8 [batch, height, width, channels] to `share_0`, `share_1`, … int8 [batch, values].

    Of a keyed system it also takes `partition` int32 [batch, 1].

    Args:
        system: In evaluation mode, masks frozen, head quantised.

    Returns:
        A checked ONNX model.
    """
    channels, height, width = system.image_shape
    image = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    outputs = [share_name(server) for server in range(system.masks.servers)]
    partition = _traced_partition(system)
    return export_graph(encoder_module(system), (image, *partition.values()), [IMAGE, *partition], outputs)


def branch_graph(system: System, server: int) -> onnx.ModelProto:
    """`share` int8 [batch, values] to `logits` float32 [batch, classes].

    Of a keyed system it also takes `partition` int32 [batch, 1].

    Args:
        system: In evaluation mode, masks frozen.
        server: Whose branch.

    Returns:
        A checked ONNX model.
    """
    values = torch.zeros(2, system.masks.values)
    partition = _traced_partition(system)
    inputs = (values, *partition.values())
    graph = export_graph(branch_module(system, server), inputs, ["values", *partition], [LOGITS])
    return _start_from_int8(graph, system.quantiser.scale(server))


def fusion_graph(system: System) -> onnx.ModelProto:
    """`logits` float32 [batch, servers, classes], `answered` bool [batch, servers] to `probabilities` float32.

    Args:
        system: In evaluation mode.

    Returns:
        A checked ONNX model.
    """
    servers = system.masks.servers
    inputs = (torch.zeros(2, servers, system.classes), torch.ones(2, servers, dtype=torch.bool))
    return export_graph(FusionProbabilities(system), inputs, [LOGITS, ANSWERED], [PROBABILITIES])


def baseline_graph(system: System | CodedSystem) -> onnx.ModelProto:
    """`image` uint8 [batch, height, width, channels] to `logits` float32 [batch, classes].

    Args:
        system: In evaluation mode.

    Returns:
        A checked ONNX model.
    """
    channels, height, width = system.image_shape
    image = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    return export_graph(BaselinePixels(system), (image,), [IMAGE], [LOGITS])


def _traced_partition(system: System) -> dict[str, Tensor]:
    """The further input of a keyed release's graphs, for two images."""
    return {} if system.family is None else {PARTITION: torch.zeros(2, 1, dtype=torch.int32)}


def count_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates per image of all convolutions and matrix products.

    Args:
        model: With a dynamic batch as first dimension of every activation.

    Returns:
        The count for a batch of one.

    Raises:
        ExportError: An operator multiplies in a way that is not counted.
    """
    uncounted = sorted({node.op_type for node in model.graph.node} & UNCOUNTED)
    if uncounted:
        message = (
            f"a graph has {', '.join(uncounted)}, whose multiply-accumulates are not counted, and a release says how "
            "many there are: express it by convolutions and matrix products."
        )
        raise ExportError(message)
    products = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    single = onnx.ModelProto()
    single.CopyFrom(model)
    del single.graph.value_info[:]
    for value in [*single.graph.input, *single.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    needed = {name for node in products for name in (*node.input[:2], node.output[0])}
    shapes = _inferred_shapes(single)
    unknown = sorted(name for name in needed if not shapes.get(name) or 0 in shapes[name])
    if unknown:
        shapes |= _seen_shapes(single, unknown)
    total = 0
    for node in products:
        values = int(np.prod(shapes[node.output[0]]))
        if node.op_type == "Conv":
            # [outputs, inputs / groups, height, width]: each output value costs one kernel.
            per_value = int(np.prod(shapes[node.input[1]][1:]))
        elif node.op_type == "ConvTranspose":
            # [inputs, outputs / groups, height, width]: each input value costs one kernel.
            per_value, values = int(np.prod(shapes[node.input[1]][1:])), int(np.prod(shapes[node.input[0]]))
        else:
            transposed = any(given.name == "transA" and given.i for given in node.attribute)
            # The factors may both be activations, as in attention.
            per_value = shapes[node.input[0]][0 if transposed else -1]
        total += values * per_value
    return total


def _inferred_shapes(single: onnx.ModelProto) -> dict[str, list[int]]:
    """Sizes of a graph's tensors for one image, which are known also where the batch is not first; 0: unknown."""
    inferred = shape_inference.infer_shapes(single, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in [*inferred.input, *inferred.value_info, *inferred.output]
    }
    return shapes | {initializer.name: list(initializer.dims) for initializer in inferred.initializer}


def _seen_shapes(single: onnx.ModelProto, names: Sequence[str]) -> dict[str, list[int]]:
    """The same by computing one image, for sizes that the graph itself computes."""
    watched = onnx.ModelProto()
    watched.CopyFrom(single)
    given = {value.name for value in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    zeros = {}
    for value in watched.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        sizes = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        zeros[value.name] = np.zeros(sizes, kind)
    found = session.run(list(names), zeros)
    return {name: list(np.asarray(values).shape) for name, values in zip(names, found, strict=True)}


def _start_from_int8(model: onnx.ModelProto, scale: float) -> onnx.ModelProto:
    """Put DequantizeLinear before a graph whose first input is the dequantised share."""
    graph = model.graph
    values = graph.input[0].name
    node = helper.make_node(
        "DequantizeLinear", [SHARE, "share_scale", "share_zero_point"], [values], "dequantise_share"
    )
    length = graph.input[0].type.tensor_type.shape.dim[1].dim_value
    others = list(graph.input)[1:]
    del graph.input[:]
    graph.input.extend([helper.make_tensor_value_info(SHARE, onnx.TensorProto.INT8, ["batch", length]), *others])
    graph.node.insert(0, node)
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), "share_scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "share_zero_point"))
    onnx.checker.check_model(model, full_check=True)
    return model
