"""A trained coded system to ONNX: what servers evaluate on their shares, and what the device does around it.

Guarantees:

- A round's graph computes modulo each prime, exactly: every sum of products stays below 2^24, where float32 has every
  integer; sums that could grow beyond that are cut into pieces, each reduced before it is added.
  `coded_modules.exact_pieces` proves it from the weights alone.
- All primes run as one batch with one set of small integer weights, which are never reduced.
- What leaves a graph are canonical centred residues, so that any two exact runtimes give the same bytes.
- Randomness and interpolation weights are inputs like any other: one encoder and one relay serve every number of
  servers, and every number of colluding ones.
- The device's own arithmetic has whole numbers alone: sharing in float32 below 2^22, decoding in float64 below 2^53,
  scaling and rounding in int64, as in `privdfs_training.coded.rounds`.

Operators are those that TensorRT takes too: casts, convolutions, matrix products, rounding. See the module
`privdfs.coding` for the mathematics.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from privdfs_export.coded_modules import REDUCED, CodedEncoder, CodedFusion, RelayModule, RoundModule
from privdfs_export.errors import ExportError
from privdfs_export.tracing import export_graph
from privdfs_training.coded.rounds import IntegerNetwork, Logits, Relay
from privdfs_training.coded.system import CodedSystem


def round_graph(network: IntegerNetwork, moduli: Sequence[int], sent: Sequence[int] = ()) -> onnx.ModelProto:
    """The graph of one round, the same for every server: `share` int8 to `residues` int8.

    Args:
        network: The round's integers.
        moduli: Its primes.
        sent: Which of its inputs travel, ascending; empty: all.

    Returns:
        With weights stored as int8.

    Raises:
        ExportError: A sum cannot be computed exactly, or a weight does not fit int8.
    """
    module = RoundModule(network, moduli, sent)
    values = len(sent) or math.prod(network.inputs)
    share = torch.zeros(2, len(moduli), values, dtype=torch.int8)
    return _with_small_weights(export_graph(module, (share,), ["share"], ["residues"]))


def encoder_graph(system: CodedSystem, moduli: Sequence[int], sent: Sequence[int] = ()) -> onnx.ModelProto:
    """Image, randomness and powers to shares.

    Args:
        system: In evaluation mode.
        moduli: The primes of the first round.
        sent: Which values of the feature travel, ascending; empty: all.

    Returns:
        Inputs `image`, `randomness`, `powers`; outputs `shares` and `values`.
    """
    channels, height, width = system.image_shape
    image = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    values = len(sent) or math.prod(system.polynomials[0].inputs)
    inputs = (image, *_sharing_inputs(len(moduli), values))
    names = ["image", "randomness", "powers"]
    return export_graph(CodedEncoder(system, moduli, sent), inputs, names, ["shares", "values"], _AXES)


def relay_graph(
    network: IntegerNetwork, relay: Relay, moduli: Sequence[int], next_moduli: Sequence[int]
) -> onnx.ModelProto:
    """Answers of one round to the shares of the next.

    Args:
        network: The round's integers.
        relay: What the device does with its results.
        moduli: The round's primes.
        next_moduli: Those of the next round.

    Returns:
        Inputs `answers`, `weights`, `randomness`, `powers` and, where it adds what an earlier round shared, `added`;
        outputs `shares` and `values`.
    """
    _, height, width = network.outputs
    outputs = math.prod(network.outputs)
    module = RelayModule(relay, moduli, next_moduli, height * width)
    inputs = [*_answers(len(moduli), outputs), *_sharing_inputs(len(next_moduli), outputs)]
    names = ["answers", "weights", "randomness", "powers"]
    if relay.skip:
        inputs.append(torch.zeros(2, outputs, dtype=torch.int8))
        names.append("added")
    return export_graph(module, tuple(inputs), names, ["shares", "values"], _AXES)


def fusion_graph(network: IntegerNetwork, logits: Logits, moduli: Sequence[int]) -> onnx.ModelProto:
    """Answers of the last round to probabilities.

    Args:
        network: The last round's integers.
        logits: What the device makes of its results.
        moduli: Its primes.

    Returns:
        Inputs `answers` and `weights`; output `probabilities`.
    """
    inputs = _answers(len(moduli), math.prod(network.outputs))
    return export_graph(CodedFusion(logits, moduli), tuple(inputs), ["answers", "weights"], ["probabilities"], _AXES)


#: Axes whose length depends on how many servers there are, how many may collude, and how many answered.
_AXES: dict[str, dict[int, str]] = {
    "randomness": {0: "batch", 1: "colluding"},
    "powers": {1: "servers", 2: "colluding"},
    "answers": {0: "batch", 1: "answered"},
    "weights": {1: "answered"},
    "shares": {0: "batch", 1: "servers"},
}


def _sharing_inputs(primes: int, values: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(2, 2, primes, values, dtype=torch.int8), torch.zeros(primes, 5, 2, dtype=torch.int8)


def _answers(primes: int, outputs: int) -> list[Tensor]:
    return [torch.zeros(2, 3, primes, outputs, dtype=torch.int8), torch.zeros(primes, 3, dtype=torch.int8)]


def _with_small_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store integer weights as int8 behind DequantizeLinear with scale 1, which is how TensorRT takes them."""
    graph = model.graph
    used = {name for node in graph.node if node.op_type == "Conv" for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name in used]:
        values: NDArray[np.generic] = numpy_helper.to_array(tensor)
        if np.abs(values.astype(np.float64)).max(initial=0) > REDUCED:
            message = f"a weight of this round exceeds {REDUCED}, so int8 cannot hold it. Train it with 8 bits at most."
            raise ExportError(message)
        name, constants = (
            tensor.name,
            (("int8", values.astype(np.int8)), ("scale", np.float32(1)), ("zero", np.int8(0))),
        )
        graph.initializer.remove(tensor)
        graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), f"{name}_{kind}") for kind, value in constants
        )
        inputs = [f"{name}_{kind}" for kind, _ in constants]
        graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], f"dequantise_{name}"))
    onnx.checker.check_model(model, full_check=True)
    return model
