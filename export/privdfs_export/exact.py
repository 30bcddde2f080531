"""INT8 for rounds of coded releases, where it is proven exact: every scale is 1, and nothing is ever rounded.

A round computes with whole numbers in float32. A convolution may run in INT8 instead and give the very same numbers
if, whatever residues the shares are,

- its inputs are whole numbers of at most 127, so that QuantizeLinear with scale 1 neither rounds nor cuts any;
- its weights are stored as int8 with scale 1;
- no sum of its products, nor a part of one, reaches 2^24: 32 bits hold it, and float32 has it, times a scale of 1.

`proven_bounds` shows this from the graph alone, operator by operator, so that whoever builds a plan need not believe
its exporter. What it does not know counts as unproven, and such a convolution stays as it is. So do reductions
modulo each prime, squares and pools: they need more than 8 bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from privdfs.coding import PRIMES
from privdfs_export.errors import PrecisionError

#: Below this float32 has every whole number.
EXACT = 2**24
#: Shares are centred residues of these primes.
_SHARE = max(PRIMES) // 2
#: The largest int8 of a symmetric quantisation.
_INT8 = 127
#: Of a value: what four roundings, by 2^-24 each, move it by at most. Two make a quotient: reciprocal and product.
_ROUNDING = 2.0**-22
#: Operators that move values, and compute nothing.
_MOVING = frozenset({"Reshape", "Transpose", "Slice", "Gather", "Pad", "Squeeze", "Unsqueeze", "Flatten"})
#: Types that a Cast may give, with the largest whole number up to which they have every one, of either sign.
_CASTS: Mapping[int, int] = {TensorProto.FLOAT: EXACT, TensorProto.INT32: EXACT, TensorProto.INT8: _INT8}


def with_exact_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A round's graph with its convolutions in INT8, as far as that is proven to give the same residues.

    Args:
        model: Of a round, as `coded_graphs.round_graph` makes it; it is not changed.

    Returns:
        A checked graph with the same inputs, outputs and results.

    Raises:
        PrecisionError: No convolution is proven to be exact.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    del graph.value_info[:]
    inputs = exact_layers(graph)
    if not inputs:
        message = (
            "no convolution of this round is proven exact in INT8: its inputs may exceed 127, its weights are not int8 "
            f"with scale 1, or its sums may reach {EXACT}. Build the plans with --precision fp32."
        )
        raise PrecisionError(message)
    one, zero = np.array(1, np.float32), np.array(0, np.int8)
    graph.initializer.extend([numpy_helper.from_array(one, "int8_one"), numpy_helper.from_array(zero, "int8_zero")])
    nodes, made = list[onnx.NodeProto](), set[str]()
    for node in graph.node:
        name = inputs.get(node.output[0])
        if name is not None:
            if name not in made:
                nodes += _there_and_back(name)
                made.add(name)
            node.input[0] = f"{name}_int8_dequantised"
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))  # the list below is about to be cleared
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(changed, full_check=True)
    return changed


def exact_layers(graph: onnx.GraphProto) -> dict[str, str]:
    """Convolutions that INT8 computes exactly.

    Args:
        graph: Of a round, in float32.

    Returns:
        The input of each by its output.
    """
    bounds = proven_bounds(graph)
    found = dict[str, str]()
    for node in graph.node:
        if node.op_type == "Conv" and node.output[0] in bounds and bounds[node.input[0]] <= _INT8:
            found[node.output[0]] = node.input[0]
    return found


def proven_bounds(graph: onnx.GraphProto) -> dict[str, int]:
    """Tensors that hold whole numbers alone, each with a magnitude that none of them exceeds, whatever the shares are.

    Args:
        graph: Of a round, in float32.

    Returns:
        Bounds below 2^24, by tensor; those of which nothing is proven are missing.
    """
    given = {value.name for value in graph.input}  # such an initializer is a default, which a request may replace
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer if each.name not in given}
    proof = _Proof(constants, {name: node for node in graph.node for name in node.output}, {})
    for name, values in constants.items():
        if values.dtype == np.float32 and (values == np.rint(values)).all():
            proof.keep(name, _largest(values))
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            proof.keep(value.name, _SHARE)
    for node in graph.node:
        proof.keep(node.output[0], proof.of(node))
    return proof.bounds


@dataclass(frozen=True)
class _Proof:
    """What is known of a graph so far.

    Attributes:
        constants: Values of every initializer, by name.
        producers: The node that gives a tensor.
        bounds: As `proven_bounds` gives them.
    """

    constants: Mapping[str, NDArray[np.generic]]
    producers: Mapping[str, onnx.NodeProto]
    bounds: dict[str, int]

    def keep(self, name: str, bound: float | None) -> None:
        """Remember a bound, if float32 has every whole number up to it."""
        if bound is not None and bound < EXACT:
            self.bounds[name] = math.floor(bound)

    def of(self, node: onnx.NodeProto) -> float | None:
        """What is proven of a node's output; None for nothing."""
        first, second = [*(self.bounds.get(name) for name in node.input), None, None][:2]
        found: float | None = None
        if node.domain not in ("", "ai.onnx"):  # may mean anything
            pass
        elif node.op_type == "DequantizeLinear":
            found = self._weights(node)
        elif node.op_type == "Round":
            found = self._window(node)
        elif first is None:
            pass
        elif node.op_type in _MOVING:
            found = max(first, self._padding(node))
        elif node.op_type == "Cast":
            (to,) = [each.i for each in node.attribute if each.name == "to"]
            found = first if first <= _CASTS.get(to, -1) else None
        elif node.op_type == "Sub" and second is None:
            found = self._residue(node, first)
        elif second is None:
            pass
        elif node.op_type == "Conv" and len(node.input) == 2:
            found = self._sums(node, first)
        else:
            found = {"Add": first + second, "Sub": first + second, "Mul": first * second}.get(node.op_type)
        return found

    def _padding(self, node: onnx.NodeProto) -> float:
        """What a Pad puts in; infinite where that is not known to be a whole number."""
        if node.op_type != "Pad":
            return 0
        if any(each.name in ("value", "pads") for each in node.attribute):  # before opset 11
            return math.inf
        value = node.input[2] if len(node.input) > 2 else ""
        return self.bounds.get(value, math.inf) if value else 0

    def _weights(self, node: onnx.NodeProto) -> float | None:
        """Constants that are stored as int8 with scale 1."""
        stored, scale, zero = (self.constants.get(name) for name in (*node.input, "", "")[:3])
        if stored is None or scale is None or stored.dtype != np.int8 or (scale != np.float32(1)).any():
            return None
        return None if zero is not None and zero.any() else _largest(stored)

    def _sums(self, node: onnx.NodeProto, bound: int) -> float | None:
        """Sums of products with constant weights, in whatever order and in whatever parts they are added."""
        dequantised = self._made_by(node.input[1], "DequantizeLinear")
        if dequantised is None:
            return None
        weights = np.abs(self.constants[dequantised.input[0]].astype(np.int64))
        return bound * float(weights.reshape(len(weights), -1).sum(axis=1).max())

    def _residue(self, node: onnx.NodeProto, bound: int) -> float | None:
        """Of x - p * round(x * (1 / p)): half of p, and what the quotient is off by, if p times it is exact."""
        multiple = self._factor(self._made_by(node.input[1], "Mul"))
        rounded = None if multiple is None else self._made_by(multiple[0], "Round")
        quotient = None if rounded is None else self._factor(self._made_by(rounded.input[0], "Mul"))
        if multiple is None or quotient is None or quotient[0] != node.input[0]:
            return None
        primes, reciprocals = multiple[1], quotient[1]
        if primes.shape != reciprocals.shape or (primes != np.rint(primes)).any() or (primes < 2).any():
            return None
        if (np.abs(primes * reciprocals - 1) > _ROUNDING / 2).any() or bound + primes.max() >= EXACT:
            return None
        return float(primes.max()) / 2 + bound * _ROUNDING

    def _window(self, node: onnx.NodeProto) -> float | None:
        """The rounded mean of a window times its area: the sum, if roundings move it by less than a half."""
        product = self._factor(self._made_by(node.input[0], "Mul"))
        pool = None if product is None else self._made_by(product[0], "AveragePool")
        if product is None or pool is None or pool.input[0] not in self.bounds:
            return None
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in pool.attribute}
        area = math.prod(given["kernel_shape"])
        if any(given.get("pads", ())) or given.get("ceil_mode") or (product[1] != area).any():
            return None
        largest = self.bounds[pool.input[0]] * area
        return largest if largest * _ROUNDING < 1 / 2 else None

    def _made_by(self, name: str, kind: str) -> onnx.NodeProto | None:
        node = self.producers.get(name)
        return node if node is not None and node.op_type == kind else None

    def _factor(self, node: onnx.NodeProto | None) -> tuple[str, NDArray[np.float64]] | None:
        """Of a product with a constant, the other side and the constant."""
        if node is None:
            return None
        for one, other in (tuple(node.input), tuple(node.input)[::-1]):
            if one in self.constants and other not in self.constants:
                return other, self.constants[one].astype(np.float64)
        return None


def _largest(values: NDArray[np.generic]) -> float:
    return float(np.abs(values.astype(np.float64)).max(initial=0))


def _there_and_back(name: str) -> list[onnx.NodeProto]:
    """To int8 and back, with scale 1."""
    return [
        helper.make_node("QuantizeLinear", [name, "int8_one", "int8_zero"], [f"{name}_int8"], f"{name}_quantise"),
        helper.make_node(
            "DequantizeLinear",
            [f"{name}_int8", "int8_one", "int8_zero"],
            [f"{name}_int8_dequantised"],
            f"{name}_dequantise",
        ),
    ]
