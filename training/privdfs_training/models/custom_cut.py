"""Cutting a custom backbone behind a named layer: its first layers as an int8 head, its last ones as a branch.

torch.fx (Reed et al., arXiv 2112.08429) says what the module computes, operator by operator. A head goes to int8, so it
is a row of layers of which that is known: convolution, batch normalisation and ReLU, or pooling. A branch stays float
and may be anything that needs nothing of the backbone but what the named layer gives.
"""

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from privdfs_training.errors import TrainingConfigError
from privdfs_training.models.custom import CustomBackbone
from privdfs_training.models.head import ConvUnit, output_of
from privdfs_training.quantise import ActivationQuantiser

POOLS = {F.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d}
SHOWN = 12  # names in a message


@dataclass(frozen=True)
class Convolution:
    """Names of a convolution and of the normalisation behind it; a ReLU follows."""

    conv: str
    norm: str


#: One layer of a head, and the node of what it gives.
Layer = tuple[Convolution | nn.MaxPool2d | nn.AvgPool2d, fx.Node]


class CustomFront(nn.Module):
    """The first layers of a custom backbone, in the form that goes to int8."""

    def __init__(self, source: ActivationQuantiser, backbone: CustomBackbone, split: str) -> None:
        """Build it with fresh weights.

        Args:
            source: The quantiser of the pixels.
            backbone: Gives layers and sizes.
            split: Name of the last layer.

        Raises:
            TrainingConfigError: There is no such layer, or one before it has no int8 form.
        """
        super().__init__()
        self.layers, self._names = nn.Sequential(), list[Convolution]()
        self.width = backbone.normalise.mean.shape[1]
        for layer in _layers_until(backbone, split):
            if isinstance(layer, Convolution):
                self._names.append(layer)
                unit = _unit(source, backbone, layer)
                self.layers.append(unit)
                source, self.width = output_of(unit), unit.conv.out_channels
            else:
                pool = QuantisedPool(source, layer)
                self.layers.append(pool)
                source = pool.output
        self._output = (source,)  # in a tuple, since it is another module's own submodule

    @property
    def output(self) -> ActivationQuantiser:
        """The quantiser of what this returns."""
        return self._output[0]

    def start_from(self, backbone: CustomBackbone) -> None:
        """Copy the weights.

        Args:
            backbone: As the one that this was built from.
        """
        units = [unit for unit in self.layers if isinstance(unit, ConvUnit)]
        for unit, names in zip(units, self._names, strict=True):
            conv, norm = backbone.model.get_submodule(names.conv), backbone.model.get_submodule(names.norm)
            given = conv.state_dict(prefix="conv.") | norm.state_dict(prefix="bn.")
            bias = given.pop("conv.bias", None)
            if bias is not None:  # a normalisation takes it away again
                given["bn.running_mean"] = given["bn.running_mean"] - bias
            unit.load_state_dict(unit.state_dict() | given)

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, image_channels, h, w] to [batch, width, h / strides, w / strides], float."""
        return self.layers(pixels)


class QuantisedPool(nn.Module):
    """Pooling with an eight-bit output."""

    def __init__(self, source: ActivationQuantiser, pool: nn.MaxPool2d | nn.AvgPool2d) -> None:
        """Take the pooling.

        Args:
            source: The quantiser whose output this takes.
            pool: Has no weights.
        """
        super().__init__()
        self.pool = pool
        self.mean = ActivationQuantiser(signed=source.signed) if isinstance(pool, nn.AvgPool2d) else None
        # The largest of rounded values is a rounded value; rounding it again only tells the runtime so.
        self._source = (source,)

    @property
    def output(self) -> ActivationQuantiser:
        """The quantiser of what this returns."""
        return self.mean or self._source[0]

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, h, w] to [batch, channels, smaller h, smaller w], float."""
        return self.output(self.pool(features))


class CustomBranch(nn.Module):
    """The rest of a custom backbone, behind a convolution that widens a share to what the backbone has there."""

    def __init__(self, backbone: CustomBackbone, split: str, shape: tuple[int, int, int], key: str) -> None:
        """Build the branch with the backbone's present weights.

        Args:
            backbone: The baseline; it is copied, not kept.
            split: The last layer that the branch leaves out.
            shape: Channels, height, width of the share's feature.
            key: What the config calls the split point, for messages.

        Raises:
            TrainingConfigError: There is no such layer, more than its output is needed behind it, or the rest does not
                take the feature's height and width.
        """
        super().__init__()
        traced = _traced(backbone, key)
        cut = _node(traced, split, key)
        # As `models.custom` tries it; any image size would do.
        ShapeProp(traced).propagate(torch.zeros(2, *backbone.image_shape))
        at_cut = tuple(cut.meta["tensor_meta"].shape[1:]) if "tensor_meta" in cut.meta else ()
        if len(at_cut) != 3:
            message = f"{key}: behind {split} the backbone has {at_cut or 'no tensor'}, not channels, height and width"
            raise TrainingConfigError(message)
        self.widen = nn.Conv2d(shape[0], at_cut[0], 1, bias=False)
        self.norm = nn.BatchNorm2d(at_cut[0])
        self.rest = _rest(traced, cut, split, key, kept=backbone.model.state_dict().keys())
        try:
            with torch.no_grad():
                self.rest(torch.zeros(2, at_cut[0], *shape[1:]))
        except Exception as error:
            message = (
                f"{key}: the backbone's layers behind {split} take {at_cut[1]} x {at_cut[2]} positions, and the "
                f"feature has {shape[1]} x {shape[2]} ({type(error).__name__}: {error}). Let the head end with that "
                "many, or use branch.kind = 'residual'."
            )
            raise TrainingConfigError(message) from error

    def start_from(self, backbone: CustomBackbone) -> None:
        """Copy the weights of the remaining layers.

        Args:
            backbone: As the one that the branch was built from.
        """
        theirs = backbone.model.state_dict()
        self.rest.load_state_dict({name: theirs[name] for name in self.rest.state_dict()})

    def forward(self, feature: Tensor) -> Tensor:
        """Classify from one share.

        Args:
            feature: float [batch, channels, height, width], zero where another server or nobody owns.

        Returns:
            Logits, float [batch, classes].
        """
        return self.rest(self.norm(self.widen(feature)))


def _traced(backbone: CustomBackbone, key: str) -> fx.GraphModule:
    """The module, operator by operator, on weights of its own; a dropout written as a function stays off in it."""
    try:
        return fx.symbolic_trace(copy.deepcopy(backbone.model).eval())
    except Exception as error:
        message = (
            f"{key}: torch.fx cannot follow the module of {backbone.factory} ({type(error).__name__}: {error}), so it "
            "cannot be cut. Use head.kind = 'compact' and branch.kind = 'residual'."
        )
        raise TrainingConfigError(message) from error


def _node(traced: fx.GraphModule, split: str, key: str) -> fx.Node:
    """What a named layer gives, after the ReLU that follows it directly."""
    within = [node for node in traced.graph.nodes if split in _owners(node)]
    if not split or not within:
        names = dict.fromkeys(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
        shown = ", ".join(list(names)[:SHOWN]) + (f", and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        message = f"{key} is {split!r}, which this backbone does not have. Its layers: {shown}."
        raise TrainingConfigError(message)
    follower = _follower(within[-1])
    return follower if follower is not None and _is_relu(traced, follower) else within[-1]


def _owners(node: fx.Node) -> Iterator[str]:
    """Names of the modules that a node is inside of, and of the module that it calls."""
    yield from node.meta.get("nn_module_stack", {})
    if node.op == "call_module":
        name = str(node.target)
        yield from (name[:end] for end in range(len(name) + 1) if end == len(name) or name[end] == ".")


def _rest(traced: fx.GraphModule, cut: fx.Node, split: str, key: str, kept: Collection[str]) -> fx.GraphModule:
    """What the module computes behind a node; of its tensors, checkpoints hold those that are kept."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    copies[cut] = graph.placeholder("feature")
    nodes = list(traced.graph.nodes)
    behind = nodes[nodes.index(cut) + 1 :]
    constants = [node for node in nodes if node.op == "get_attr"]

    def of(node: fx.Node) -> fx.Node:
        if node not in copies:
            message = (
                f"{key}: the backbone cannot be cut behind {split}: {node.name}, which is computed before it, is "
                "needed behind it too. Cut where one tensor carries everything."
            )
            raise TrainingConfigError(message)
        return copies[node]

    for node in (*constants, *(node for node in behind if node.op != "get_attr")):
        copies[node] = graph.node_copy(node, of)
    rest = fx.GraphModule(traced, graph)
    rest.graph.eliminate_dead_code()
    rest.recompile()
    rest.delete_all_unused_submodules()
    for name, value in list(rest.named_buffers()):
        if name not in kept:  # torch.fx forgets that checkpoints are not to hold it
            owner, _, last = name.rpartition(".")
            rest.get_submodule(owner).register_buffer(last, value, persistent=False)
    return rest


def _layers_until(backbone: CustomBackbone, split: str) -> list[Convolution | nn.MaxPool2d | nn.AvgPool2d]:
    """The layers of a head, up to a named one."""
    traced = _traced(backbone, "head.split")
    cut = _node(traced, split, "head.split")
    node = next(node for node in traced.graph.nodes if node.op == "placeholder")
    layers, points = [], list[str]()
    while (found := _layer_behind(traced, node)) is not None:
        layer, node = found
        layers.append(layer)
        if node is cut:
            return layers
        if isinstance(layer, Convolution):
            points.append(layer.norm)
        elif node.op == "call_module":
            points.append(str(node.target))
    where = f"Heads of this backbone can end at {', '.join(points[:SHOWN])}. " if points else ""
    message = (
        f"head.split is {split!r}, where no head can end: a head is a row of layers that go to int8, which are Conv2d "
        f"with BatchNorm2d and ReLU, MaxPool2d and AvgPool2d. {where}Or use head.kind = 'compact'."
    )
    raise TrainingConfigError(message)


def _layer_behind(traced: fx.GraphModule, node: fx.Node) -> Layer | None:
    """The layer that takes what a node gives, if nothing else does."""
    first = _follower(node)
    while first is not None and isinstance(_module(traced, first), nn.Identity):
        first = _follower(first)
    if first is None:
        return None
    module = _module(traced, first)
    if first.op == "call_function" and first.target in POOLS:
        module = POOLS[first.target](*first.args[1:], **first.kwargs)  # pyright: ignore[reportArgumentType]  the same
    if _is_plain(module, nn.MaxPool2d, nn.AvgPool2d):
        return copy.deepcopy(module), first  # pyright: ignore[reportReturnType]  one of these two
    norm = _follower(first)
    relu = None if norm is None else _follower(norm)
    if norm is None or relu is None or not _is_relu(traced, relu):
        return None
    normalisation = _module(traced, norm)
    if not _is_plain(module, nn.Conv2d) or not _is_plain(normalisation, nn.BatchNorm2d):
        return None
    assert isinstance(module, nn.Conv2d)  # noqa: S101
    assert isinstance(normalisation, nn.BatchNorm2d)  # noqa: S101
    plain = module.padding_mode == "zeros" and module.dilation == (1, 1) and isinstance(module.padding, tuple)
    whole = normalisation.affine and normalisation.track_running_stats
    return (Convolution(str(first.target), str(norm.target)), relu) if plain and whole else None


def _unit(source: ActivationQuantiser, backbone: CustomBackbone, names: Convolution) -> ConvUnit:
    """A unit with the sizes of a convolution of the backbone."""
    conv, norm = backbone.model.get_submodule(names.conv), backbone.model.get_submodule(names.norm)
    assert isinstance(conv, nn.Conv2d)  # noqa: S101  as `_layer_behind` found them
    assert isinstance(norm, nn.BatchNorm2d)  # noqa: S101
    size, padding = conv.kernel_size, conv.padding
    unit = ConvUnit(source, conv.in_channels, conv.out_channels, 1, groups=conv.groups)
    unit.conv = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        size,  # pyright: ignore[reportArgumentType]  a pair
        conv.stride,  # pyright: ignore[reportArgumentType]
        padding,  # pyright: ignore[reportArgumentType]
        groups=conv.groups,
        bias=False,
    )
    unit.bn.eps, unit.bn.momentum = norm.eps, norm.momentum
    return unit


def _follower(node: fx.Node) -> fx.Node | None:
    """The only node that takes what a node gives."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_plain(module: nn.Module | None, *kinds: type[nn.Module]) -> bool:
    """Whether a module is just what its class says: no subclass, and no weights that a hook or a rule computes."""
    if module is None or type(module) not in kinds:
        return False
    return not module._forward_pre_hooks and not module._forward_hooks  # noqa: SLF001  torch has no other way to ask


def _is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    called = (node.op, node.target)
    functions = (F.relu, torch.relu, torch.relu_, F.relu_)
    return (
        isinstance(_module(traced, node), nn.ReLU)
        or (node.op == "call_function" and node.target in functions)
        or called in (("call_method", "relu"), ("call_method", "relu_"))
    )
