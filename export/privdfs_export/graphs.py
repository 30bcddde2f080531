"""A trained system to ONNX: encoder, branches, fusion, baseline. Standard operators only, opset 20, dynamic batch.

Guarantees:

- The encoder takes uint8 pixels and gives int8 shares: cast, normalisation, int8 head, quantisation and gather are
  all inside.
- A branch takes the int8 share as it travels; DequantizeLinear and the scatter back into place are its first nodes.
  Where a server owns whole channels there is no scatter: its first convolution has the weights of those alone.
  Its graph holds the positions of its own elements and nothing of another share.
- Everything that does not depend on the input is folded, so int8 weights are stored as int8.
"""

import copy
import io
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs._format import ANSWERED, IMAGE, LOGITS, PARTITION, PROBABILITIES, SHARE, share_name
from privdfs_export.errors import ExportError
from privdfs_training.coded.system import CodedSystem
from privdfs_training.models.system import System
from privdfs_training.partitions import PartitionFamily

OPSET = 20  # TensorRT's parser wants at most 22; the tracing exporter writes at most 20


class Encoder(nn.Module):
    """Pixels to shares, as the device runs it."""

    def __init__(self, system: System) -> None:
        """Take the client's half of a system whose masks are frozen.

        Args:
            system: In evaluation mode.
        """
        super().__init__()
        self.head, self.quantiser = system.head, system.quantiser
        self.indices = [system.masks.indices(server) for server in range(system.masks.servers)]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            image: uint8 [batch, height, width, channels].

        Returns:
            One int8 [batch, values] per server.
        """
        feature = self.head(image.permute(0, 3, 1, 2)).flatten(1)
        return tuple(
            self.quantiser.integers(feature[:, indices], server).to(torch.int8)
            for server, indices in enumerate(self.indices)
        )


class PlacedBranch(nn.Module):
    """A branch that starts from the packed, dequantised share."""

    def __init__(self, system: System, server: int) -> None:
        """Take one server's half.

        Args:
            system: In evaluation mode, masks frozen.
            server: Which.
        """
        super().__init__()
        self.branch, self.shape = system.branches[server], system.masks.shape
        indices = system.masks.indices(server)
        self.channels = whole_channels(system, server)
        if self.channels is not None:
            self.branch = with_channels(self.branch, self.channels)
            self.shape = (len(self.channels), *self.shape[1:])
            return
        # Where each element of the feature finds its value: one past the end is the zero that pads the share.
        self.places = torch.full((math.prod(self.shape),), len(indices))
        self.places[indices] = torch.arange(len(indices))

    def forward(self, values: Tensor) -> Tensor:
        """Classify.

        Args:
            values: float [batch, values], in feature units.

        Returns:
            Logits, float [batch, classes].
        """
        if self.channels is not None:
            return self.branch(values.view(-1, *self.shape))
        return self.branch(F.pad(values, (0, 1))[:, self.places].view(-1, *self.shape))


def whole_channels(system: System, server: int) -> Tensor | None:
    """Channels of the feature that a server owns, where it owns nothing but whole channels.

    Args:
        system: Masks frozen.
        server: Which.

    Returns:
        int64 [channels], ascending; None where it owns parts of a channel.
    """
    owned = system.masks.owned[server].view(system.masks.shape[0], -1)
    if not torch.equal(owned.all(dim=1), owned.any(dim=1)):
        return None
    return torch.nonzero(owned.all(dim=1)).flatten()


def with_channels(branch: nn.Module, channels: Tensor) -> nn.Module:
    """A branch that takes some channels of the feature only: the others are zero, so the first convolution skips them.

    Args:
        branch: As it was trained; it is not changed.
        channels: Which, int64 [channels].

    Returns:
        A copy whose first convolution has the weights of these channels alone.
    """
    cut = copy.deepcopy(branch)
    name, first = next((name, module) for name, module in cut.named_children() if isinstance(module, nn.Conv2d))
    sliced = nn.Conv2d(
        len(channels),
        first.out_channels,
        first.kernel_size,  # pyright: ignore[reportArgumentType]  two numbers
        first.stride,  # pyright: ignore[reportArgumentType]
        first.padding,  # pyright: ignore[reportArgumentType]
        bias=first.bias is not None,
    )
    sliced.weight = nn.Parameter(first.weight.detach()[:, channels])
    sliced.bias = first.bias
    setattr(cut, name, sliced)
    return cut


class KeyedEncoder(nn.Module):
    """Pixels and the index of a partition to shares, as the device of a keyed release runs it."""

    def __init__(self, system: System, family: PartitionFamily) -> None:
        """Take the client's half of a keyed system whose masks are frozen.

        Args:
            system: In evaluation mode.
            family: Its partitions.
        """
        super().__init__()
        self.head, self.quantiser = system.head, system.quantiser
        self.tables = family.tables(system.masks.owned).to(torch.int32)

    def forward(self, image: Tensor, partition: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            image: uint8 [batch, height, width, channels].
            partition: int32 [batch, 1].

        Returns:
            One int8 [batch, values] per server.
        """
        feature = self.head(image.permute(0, 3, 1, 2)).flatten(1)
        places = self.tables[partition.squeeze(1)].long()
        return tuple(
            self.quantiser.integers(feature.gather(1, places[:, server]), server).to(torch.int8)
            for server in range(self.tables.shape[1])
        )


class KeyedBranch(nn.Module):
    """A branch that starts from the packed, dequantised share and the index of the partition that it is cut by."""

    def __init__(self, system: System, family: PartitionFamily, server: int) -> None:
        """Take one server's half of a keyed system.

        Args:
            system: In evaluation mode, masks frozen.
            family: Its partitions; only the places of this server are kept.
            server: Which.
        """
        super().__init__()
        self.branch, self.shape = system.branches[server], system.masks.shape
        self.table = family.tables(system.masks.owned)[:, server].to(torch.int32)

    def forward(self, values: Tensor, partition: Tensor) -> Tensor:
        """Classify.

        Args:
            values: float [batch, values], in feature units.
            partition: int32 [batch, 1].

        Returns:
            Logits, float [batch, classes].
        """
        places = self.table[partition.squeeze(1)].long()[:, None].expand(-1, 2, -1)
        given = torch.stack([values, torch.ones_like(values)], dim=1)
        channels, height, width = self.shape
        placed = values.new_zeros(values.shape[0], 2, channels * height * width).scatter(2, places, given)
        return self.branch(placed.view(-1, 2 * channels, height, width))


class FusionProbabilities(nn.Module):
    """Fusion, to probabilities."""

    def __init__(self, system: System) -> None:
        """Take the fusion.

        Args:
            system: In evaluation mode.
        """
        super().__init__()
        self.fusion = system.fusion

    def forward(self, logits: Tensor, answered: Tensor) -> Tensor:
        """Fuse.

        Args:
            logits: float [batch, servers, classes].
            answered: bool [batch, servers].

        Returns:
            Probabilities, float [batch, classes].
        """
        return self.fusion(logits, answered).softmax(dim=1)


class BaselinePixels(nn.Module):
    """The unprotected model on pixels as a device has them."""

    def __init__(self, system: System | CodedSystem) -> None:
        """Take the baseline.

        Args:
            system: In evaluation mode.
        """
        super().__init__()
        self.baseline = system.baseline

    def forward(self, image: Tensor) -> Tensor:
        """Classify.

        Args:
            image: uint8 [batch, height, width, channels].

        Returns:
            Logits, float [batch, classes].
        """
        # Cast first: TensorRT takes uint8 pixels, but can do nothing with them but cast them.
        return self.baseline(image.float().permute(0, 3, 1, 2))


def encoder_module(system: System) -> Encoder | KeyedEncoder:
    """What the encoder graph computes: pixels, and the partition in a keyed release, to shares.

    Args:
        system: In evaluation mode, masks frozen.
    """
    return Encoder(system) if system.family is None else KeyedEncoder(system, system.family)


def branch_module(system: System, server: int) -> PlacedBranch | KeyedBranch:
    """What a branch graph computes: dequantised values, and the partition in a keyed release, to logits.

    Args:
        system: In evaluation mode, masks frozen.
        server: Whose branch.
    """
    return PlacedBranch(system, server) if system.family is None else KeyedBranch(system, system.family, server)


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
        ExportError: The size of a product cannot be inferred.
    """
    single = onnx.ModelProto()
    single.CopyFrom(model)
    del single.graph.value_info[:]
    for value in [*single.graph.input, *single.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    # With one image every size is known, also where the batch is not the first dimension; zero stands for unknown.
    inferred = shape_inference.infer_shapes(single, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in [*inferred.input, *inferred.value_info, *inferred.output]
    }
    shapes |= {initializer.name: list(initializer.dims) for initializer in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type == "Conv":
            # [outputs, inputs / groups, height, width]: each output value costs one kernel.
            per_value = int(np.prod(shapes[node.input[1]][1:]))
        elif node.op_type in ("Gemm", "MatMul"):
            per_value = shapes[node.input[0]][-1]  # the factors may both be activations, as in attention
        else:
            continue
        values = int(np.prod(shapes[node.output[0]]))
        if not values or not per_value:
            message = f"the size of {node.output[0]} cannot be inferred, so its multiply-accumulates cannot be counted."
            raise ExportError(message)
        total += values * per_value
    return total


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
