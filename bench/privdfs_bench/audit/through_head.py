"""An exported encoder as a differentiable function: the attacker's way from images to the values before rounding.

An attacker has the encoder of the bundle, as everybody has. This runs its ONNX graph in torch on float images, with
gradients that pass the rounding inside the int8 head straight through, and stops before the last rounding, whose
outcome the attacker knows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from privdfs._format import share_name
from privdfs_training.errors import AttackError
from privdfs_training.parallel import CPU

Operator = Callable[[Sequence[Any], Mapping[str, Any]], Tensor]
#: Operators whose second input says shapes or axes, which the processor has to know.
SHAPED_BY_SECOND = frozenset({"Reshape", "Squeeze", "ReduceMean"})


def through_graph(
    model: bytes, outputs: Sequence[str], fixed: Mapping[str, Tensor], device: torch.device = CPU
) -> Callable[[Tensor], Tensor]:
    """A graph as a function of images.

    Args:
        model: Serialised ONNX with an input `image`, uint8 [batch, height, width, channels].
        outputs: Tensors of the graph to give, each [batch, values]; side by side in the result.
        fixed: Further inputs, with a batch of one.
        device: Where it computes.

    Returns:
        From float [batch, channels, height, width] in 0..1 to float [batch, values].

    Raises:
        AttackError: The graph has an operator that is not known here.
    """
    graph = onnx.load_from_string(model).graph
    constants = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    nodes = _needed(graph.node, outputs)
    unknown = sorted({node.op_type for node in nodes} - OPERATORS.keys())
    if unknown:
        raise AttackError(
            f"no way through this head: the operators {', '.join(unknown)} are not known (audit/through_head.py)"
        )
    shapes = {node.input[1] for node in nodes if node.op_type in SHAPED_BY_SECOND and len(node.input) > 1}
    constants = {name: value if name in shapes else value.to(device) for name, value in constants.items()}
    fixed = {name: value.to(device) for name, value in fixed.items()}
    attributes = [{one.name: helper.get_attribute_value(one) for one in node.attribute} for node in nodes]

    def run(images: Tensor) -> Tensor:
        values: dict[str, Any] = {"": None, **constants}
        values |= {name: value.expand(len(images), *value.shape[1:]) for name, value in fixed.items()}
        values["image"] = images.permute(0, 2, 3, 1) * 255
        for node, about in zip(nodes, attributes, strict=True):
            values[node.output[0]] = OPERATORS[node.op_type]([values[name] for name in node.input], about)
        return torch.cat([values[name].flatten(1) for name in outputs], dim=1)

    return run


def before_rounding(model: bytes, members: Sequence[int]) -> list[str]:
    """Names of the tensors that become some servers' shares by cutting, rounding and casting.

    Args:
        model: Serialised encoder.
        members: Indices of the servers.

    Raises:
        AttackError: The graph does not end like that.
    """
    made_by = {node.output[0]: node for node in onnx.load_from_string(model).graph.node}
    names = []
    for server in members:
        name = share_name(server)
        for wanted in ("Cast", "Round", "Clip"):
            node = made_by.get(name)
            if node is None or node.op_type != wanted:
                raise AttackError("the encoder does not end with cutting, rounding and casting: export it again")
            name = node.input[0]
        names.append(name)
    return names


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that outputs depend on, in order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _conv(inputs: Sequence[Any], about: Mapping[str, Any]) -> Tensor:
    pads, dilations = about.get("pads", [0] * 4), about.get("dilations", [1, 1])
    half = len(pads) // 2
    padded = F.pad(inputs[0], (pads[1], pads[half + 1], pads[0], pads[half])) if any(pads) else inputs[0]
    bias = inputs[2] if len(inputs) > 2 else None
    return F.conv2d(padded, inputs[1], bias, about.get("strides", [1, 1]), 0, dilations, about.get("group", 1))


def _along(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """A scale per channel, shaped to multiply."""
    return (
        values
        if values.ndim == 0 or values.numel() == 1
        else values.view([-1 if at == axis else 1 for at in range(like.ndim)])
    )


def _quantise(inputs: Sequence[Any], about: Mapping[str, Any]) -> Tensor:
    """Integers as float; the gradient passes the rounding, and is zero where values are cut."""
    scale = _along(inputs[1], inputs[0], about.get("axis", 1))
    zero = inputs[2] if len(inputs) > 2 else torch.zeros((), dtype=torch.uint8)
    limits = torch.iinfo(zero.dtype)
    real = inputs[0] / scale
    rounded = real + (real.round() - real).detach()
    return (rounded + _along(zero.float(), inputs[0], about.get("axis", 1))).clamp(limits.min, limits.max)


def _dequantise(inputs: Sequence[Any], about: Mapping[str, Any]) -> Tensor:
    values, axis = inputs[0].float(), about.get("axis", 1)
    zero = _along(inputs[2].float(), values, axis) if len(inputs) > 2 else 0
    return (values - zero) * _along(inputs[1], values, axis)


def _gather(inputs: Sequence[Any], about: Mapping[str, Any]) -> Tensor:
    axis, index = about.get("axis", 0) % inputs[0].ndim, inputs[1].long()
    found = inputs[0].index_select(axis, index.flatten() % inputs[0].shape[axis])
    return found.reshape(*inputs[0].shape[:axis], *index.shape, *inputs[0].shape[axis + 1 :])


def _reshape(inputs: Sequence[Any], _about: Mapping[str, Any]) -> Tensor:
    shape = inputs[1].tolist()
    return inputs[0].reshape([inputs[0].shape[at] if size == 0 else size for at, size in enumerate(shape)])


def _cast(inputs: Sequence[Any], about: Mapping[str, Any]) -> Tensor:
    """Types of integers that index stay; everything that an image becomes is float anyway."""
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(about["to"]))
    if inputs[0].is_floating_point():
        return inputs[0]
    return inputs[0].to(torch.float32 if wanted.kind == "f" else torch.int64)


def _reduce_mean(inputs: Sequence[Any], about: Mapping[str, Any]) -> Tensor:
    axes = inputs[1].tolist() if len(inputs) > 1 else about["axes"]
    return inputs[0].mean(dim=axes, keepdim=bool(about.get("keepdims", 1)))


def _gemm(inputs: Sequence[Any], about: Mapping[str, Any]) -> Tensor:
    weight = inputs[1].T if about.get("transB", 0) else inputs[1]
    return inputs[0] @ weight + (inputs[2] if len(inputs) > 2 else 0)


OPERATORS: dict[str, Operator] = {
    "Transpose": lambda inputs, about: inputs[0].permute(*about["perm"]),
    "Cast": _cast,
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "Div": lambda inputs, _: inputs[0] / inputs[1],
    "Relu": lambda inputs, _: F.relu(inputs[0]),
    "Sqrt": lambda inputs, _: inputs[0].sqrt(),
    "Erf": lambda inputs, _: inputs[0].erf(),
    "MatMul": lambda inputs, _: inputs[0] @ inputs[1],
    "Softmax": lambda inputs, about: inputs[0].softmax(dim=about.get("axis", -1)),
    "Flatten": lambda inputs, about: inputs[0].flatten(about.get("axis", 1)),
    "Squeeze": lambda inputs, _: inputs[0].squeeze(inputs[1].tolist()),
    "Identity": lambda inputs, _: inputs[0],
    "Conv": _conv,
    "Gemm": _gemm,
    "QuantizeLinear": _quantise,
    "DequantizeLinear": _dequantise,
    "Gather": _gather,
    "GatherElements": lambda inputs, about: inputs[0].gather(about.get("axis", 0), inputs[1].long()),
    "Reshape": _reshape,
    "ReduceMean": _reduce_mean,
}
