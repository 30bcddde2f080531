"""Graphs of the small releases in `tests/vectors/releases`: real operators, integer weights, so that nothing rounds.

Every product and sum is a whole number below 2^24, which float32 holds exactly, and every scale is a power of two. So
any ONNX runtime gives the same bytes, in whatever order it adds; only a softmax may differ in its last digits.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from privdfs._coded_format import CodedManifest, RoundSpec, largest_degree
from privdfs._format import ClientManifest, ImageSpec, key_spec, share_name

#: Of an input or output: its type, and its axes.
Axes = tuple[int, list[int | str]]

_FLOAT, _INT8, _INT64 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT64


def drawn(label: str, shape: tuple[int, ...], largest: int) -> NDArray[np.int8]:
    """Numbers from -largest to largest that depend on the label alone, not on a library's generator."""
    stream = np.frombuffer(hashlib.shake_256(label.encode()).digest(math.prod(shape)), np.uint8)
    return (stream % (2 * largest + 1) - largest).astype(np.int8).reshape(shape)


class _Graph:
    """Nodes and constants as they are added; the value of each call is the name of its output."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, NDArray[np.generic]] = {}

    def op(self, kind: str, *inputs: "str | np.generic | NDArray[np.generic]", out: str = "", **attributes: Any) -> str:
        """Add a node; numbers and arrays among its inputs become constants."""
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        name = out or f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, names, [name], **attributes))
        return name

    def weights(self, values: NDArray[np.int8]) -> str:
        """Integer weights, a byte each in the file."""
        return self.op("Cast", values, to=_FLOAT)

    def model(self, name: str, inputs: Mapping[str, Axes], outputs: Mapping[str, Axes]) -> bytes:
        """The file of a graph with these inputs and outputs, each a type and a shape."""
        starts, ends = (
            [helper.make_tensor_value_info(key, kind, axes) for key, (kind, axes) in side.items()]
            for side in (inputs, outputs)
        )
        constants = [numpy_helper.from_array(value, key) for key, value in self._constants.items()]
        graph = helper.make_graph(self._nodes, name, starts, ends, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)

    def _constant(self, value: "np.generic | NDArray[np.generic]") -> str:
        name = f"c{len(self._constants)}"
        self._constants[name] = np.asarray(value)
        return name


def _ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def _levels(graph: _Graph, value: str, scale: float, levels: int) -> str:
    """A float to one of so many levels: scaled by a power of two, rounded half to even, cut off."""
    largest = np.float32(levels // 2)
    return graph.op("Clip", graph.op("Round", graph.op("Mul", value, np.float32(scale))), -largest, largest)


def _head(graph: _Graph, label: str, image: ImageSpec, elements: int, levels: int) -> str:
    """An image to quantised values, float [batch, elements]."""
    pixels = image.height * image.width * image.channels
    centred = graph.op("Sub", graph.op("Cast", "image", to=_FLOAT), np.float32(128))
    row = graph.op("Reshape", centred, _ints(0, -1))
    feature = graph.op("MatMul", row, graph.weights(drawn(f"{label} head", (pixels, elements), 3)))
    return _levels(graph, feature, 2.0**-9, levels)


def _image(image: ImageSpec) -> dict[str, Axes]:
    return {"image": (TensorProto.UINT8, ["batch", image.height, image.width, image.channels])}


# ------------------------------------------------------------------------------------------------------------- masked


def dealt(label: str, lengths: Sequence[int], partitions: int) -> list[NDArray[np.int32]]:
    """For every server and partition, which of the values are its own: int32 [partitions, K_i] each."""
    total = sum(lengths)
    orders = [
        np.argsort(
            np.frombuffer(hashlib.shake_256(f"{label} deal {i}".encode()).digest(4 * total), ">u4"), kind="stable"
        )
        for i in range(partitions)
    ]
    return np.split(np.stack(orders).astype(np.int32), np.cumsum(lengths)[:-1], axis=1)


def masked_encoder(manifest: ClientManifest) -> bytes:
    """Image (and partition) to one share for each server."""
    graph, keys = _Graph(), key_spec(manifest)
    lengths = [server.share_length for server in manifest.servers]
    values = _head(graph, manifest.release, manifest.image, sum(lengths), manifest.servers[0].levels)
    index = "" if keys is None else graph.op("Squeeze", "partition", _ints(1))
    start = 0
    for server, length in enumerate(lengths):
        if keys is None:
            own = graph.op("Slice", values, _ints(start), _ints(start + length), _ints(1))
        else:
            places = graph.op("Gather", dealt(manifest.release, lengths, keys.partitions)[server], index)
            own = graph.op("GatherElements", values, places, axis=1)
        graph.op("Cast", own, to=_INT8, out=share_name(server))
        start += length
    inputs = _image(manifest.image) | ({} if keys is None else {"partition": (TensorProto.INT32, ["batch", 1])})
    shares = {share_name(server): (_INT8, ["batch", length]) for server, length in enumerate(lengths)}
    return graph.model("encoder", inputs, shares)


def masked_branch(manifest: ClientManifest, server: int) -> bytes:
    """Share (and partition) to logits: a linear layer, of which a partition picks the rows."""
    graph, keys, classes = _Graph(), key_spec(manifest), len(manifest.classes)
    about = manifest.servers[server]
    feature = graph.op("DequantizeLinear", "share", np.float32(about.scale), np.int8(0))
    inputs: dict[str, Axes] = {"share": (_INT8, ["batch", about.share_length])}
    if keys is None:
        readout = graph.weights(drawn(f"{manifest.release} branch {server}", (about.share_length, classes), 3))
        graph.op("MatMul", feature, readout, out="logits")
    else:
        lengths = [each.share_length for each in manifest.servers]
        rows = graph.weights(drawn(f"{manifest.release} branch {server}", (sum(lengths), classes), 3))
        index = graph.op("Squeeze", "partition", _ints(1))
        places = graph.op("Gather", dealt(manifest.release, lengths, keys.partitions)[server], index)
        product = graph.op("MatMul", graph.op("Unsqueeze", feature, _ints(1)), graph.op("Gather", rows, places))
        graph.op("Squeeze", product, _ints(1), out="logits")
        inputs["partition"] = (TensorProto.INT32, ["batch", 1])
    return graph.model("branch", inputs, {"logits": (_FLOAT, ["batch", classes])})


def masked_fusion(manifest: ClientManifest) -> bytes:
    """Mean of the logits that arrived, those of later servers counting more, then softmax."""
    graph, servers, classes = _Graph(), len(manifest.servers), len(manifest.classes)
    arrived = graph.op("Cast", "answered", to=_FLOAT)
    weights = graph.op("Mul", arrived, np.arange(1, servers + 1, dtype=np.float32))
    each = graph.op("Unsqueeze", weights, _ints(2))
    total = graph.op("ReduceSum", graph.op("Mul", "logits", each), _ints(1), keepdims=0)
    count = graph.op("ReduceSum", each, _ints(1), keepdims=0)
    graph.op("Softmax", graph.op("Div", total, count), axis=-1, out="probabilities")
    inputs = {
        "logits": (_FLOAT, ["batch", servers, classes]),
        "answered": (TensorProto.BOOL, ["batch", servers]),
    }
    return graph.model("fusion", inputs, {"probabilities": (_FLOAT, ["batch", classes])})


# -------------------------------------------------------------------------------------------------------------- coded


def _primes(moduli: Sequence[int], axes: int) -> NDArray[np.float32]:
    """The primes, for an array whose last axes follow that of the primes."""
    return np.array(moduli, np.float32).reshape(-1, *[1] * axes)


def _reduced(graph: _Graph, value: str, primes: NDArray[np.float32]) -> str:
    """The centred residue. A prime is odd, so no quotient is half-way between two whole numbers."""
    quotient = graph.op("Round", graph.op("Div", value, primes))
    return graph.op("Sub", value, graph.op("Mul", quotient, primes))


def _sharing(graph: _Graph, values: str, chosen: str, about: RoundSpec) -> None:
    """Values float [batch, elements], of which `chosen` [batch, values] travel, to the outputs `shares`, `values`."""
    graph.op("Cast", values, to=_INT8, out="values")
    randomness = graph.op("Transpose", graph.op("Cast", "randomness", to=_FLOAT), perm=[0, 2, 1, 3])  # B P T V
    blinding = graph.op("MatMul", graph.op("Cast", "powers", to=_FLOAT), randomness)  # B P N V
    shares = graph.op("Add", blinding, graph.op("Unsqueeze", chosen, _ints(1, 2)))
    reduced = _reduced(graph, shares, _primes(about.moduli, 2))
    graph.op("Cast", graph.op("Transpose", reduced, perm=[0, 2, 1, 3]), to=_INT8, out="shares")


def _decoded(graph: _Graph, about: RoundSpec) -> str:
    """Answers and weights to integers, float [batch, outputs]: Garner's digits, centred, stay below 2^24."""
    answers = graph.op("Transpose", graph.op("Cast", "answers", to=_FLOAT), perm=[0, 2, 1, 3])  # B P A O
    weights = graph.op("Unsqueeze", graph.op("Cast", "weights", to=_FLOAT), _ints(1))  # P 1 A
    residues = graph.op("Squeeze", graph.op("MatMul", weights, answers), _ints(2))  # B P O
    total, product = "", 1
    for column, prime in enumerate(about.moduli):
        residue = graph.op("Gather", residues, np.int64(column), axis=1)
        modulus = np.array(prime, np.float32)
        if not total:
            total = _reduced(graph, residue, modulus)
        else:
            rest = _reduced(graph, graph.op("Sub", residue, total), modulus)
            inverse = np.float32(pow(product, -1, prime))
            digit = _reduced(graph, graph.op("Mul", rest, inverse), modulus)
            total = graph.op("Add", total, graph.op("Mul", digit, np.float32(product)))
        product *= prime
    return total


def _sharing_inputs(about: RoundSpec) -> dict[str, Axes]:
    primes = len(about.moduli)
    return {
        "randomness": (_INT8, ["batch", "colluding", primes, about.values]),
        "powers": (_INT8, [primes, "servers", "colluding"]),
    }


def _sharing_outputs(about: RoundSpec) -> dict[str, Axes]:
    shares = ["batch", "servers", len(about.moduli), about.values]
    return {"shares": (_INT8, shares), "values": (_INT8, ["batch", about.elements])}


def _answers(about: RoundSpec) -> dict[str, Axes]:
    primes = len(about.moduli)
    answers = ["batch", "answered", primes, about.outputs]
    return {"answers": (_INT8, answers), "weights": (_INT8, [primes, "answered"])}


def coded_encoder(manifest: CodedManifest) -> bytes:
    """Image to the shares of the first round; a fixed mask chooses which values travel."""
    graph, first = _Graph(), manifest.rounds[0]
    places = range(first.elements - first.values, first.elements)
    mask = np.array([float(place in places) for place in range(first.elements)], np.float32)
    values = graph.op("Mul", _head(graph, manifest.release, manifest.image, first.elements, first.levels), mask)
    chosen = graph.op("Gather", values, _ints(*places), axis=1)
    _sharing(graph, values, chosen, first)
    return graph.model("encoder", _image(manifest.image) | _sharing_inputs(first), _sharing_outputs(first))


def coded_branch(manifest: CodedManifest, number: int) -> bytes:
    """Residues to residues: the linear map A, or of degree 2 B (A x + a)^2, modulo each prime."""
    graph, about = _Graph(), manifest.rounds[number - 1]
    first, constant, second = polynomial(manifest.release, number, about)
    primes = _primes(about.moduli, 1)
    hidden = graph.op("MatMul", graph.op("Cast", "share", to=_FLOAT), graph.weights(first))
    hidden = _reduced(graph, graph.op("Add", hidden, graph.weights(constant)), primes)
    if about.degree == 2:
        square = _reduced(graph, graph.op("Mul", hidden, hidden), primes)
        hidden = _reduced(graph, graph.op("MatMul", square, graph.weights(second)), primes)
    graph.op("Cast", hidden, to=_INT8, out="residues")
    shape = len(about.moduli)
    inputs = {"share": (_INT8, ["batch", shape, about.values])}
    return graph.model("branch", inputs, {"residues": (_INT8, ["batch", shape, about.outputs])})


def polynomial(
    release: str, number: int, about: RoundSpec
) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int8]]:
    """What every server computes in a round: A [values, hidden], a [hidden], B [hidden, outputs]."""
    label = f"{release} round {number}"
    hidden = 6 if about.degree == 2 else about.outputs
    return (
        drawn(f"{label} A", (about.values, hidden), 3),
        drawn(f"{label} a", (hidden,), 9),
        drawn(f"{label} B", (hidden, about.outputs), 3),
    )


def coded_relay(manifest: CodedManifest, number: int) -> bytes:
    """Answers of a round, and values shared before where it adds them, to the shares of the next."""
    graph, (about, following) = _Graph(), manifest.rounds[number - 1 : number + 1]
    results = _decoded(graph, about)
    inputs = _answers(about) | _sharing_inputs(following)
    if about.added:
        inputs["added"] = (_INT8, ["batch", about.outputs])
        earlier = graph.op("Mul", graph.op("Cast", "added", to=_FLOAT), np.float32(256))
        results = graph.op("Add", results, earlier)
    values = _levels(graph, results, 2.0**-10, following.levels)
    _sharing(graph, values, values, following)
    return graph.model(f"relay-{number}", inputs, _sharing_outputs(following))


def coded_fusion(manifest: CodedManifest) -> bytes:
    """Answers of the last round to probabilities."""
    graph, last = _Graph(), manifest.rounds[-1]
    scale = 2.0 ** -(11 if largest_degree(manifest) == last.degree else 3)
    graph.op("Softmax", graph.op("Mul", _decoded(graph, last), np.float32(scale)), axis=-1, out="probabilities")
    outputs = {"probabilities": (_FLOAT, ["batch", len(manifest.classes)])}
    return graph.model("fusion", _answers(last), outputs)
