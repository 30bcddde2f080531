"""A head made of the backbone's own first layers, in a form that goes to int8 as the compact head does.

It starts from the baseline's weights. Convolutions become the units of `models.head`; a ViT keeps its blocks, whose
linear layers take eight-bit activations and seven-bit weights while layer normalisation, softmax and GELU stay float.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.models.backbone import Backbone, blocks_before
from privdfs_training.models.custom import CustomBackbone
from privdfs_training.models.custom_cut import CustomFront
from privdfs_training.models.head import ConvUnit, Head, output_of
from privdfs_training.models.normalise import Normalise
from privdfs_training.models.resnet import BasicBlock, Bottleneck, ResNet
from privdfs_training.models.vit import Block, VisionTransformer, embed
from privdfs_training.precision import autocast_unless
from privdfs_training.quantise import ActivationQuantiser, fake_quantise_weight, round_to


class BackboneHead(Head):
    """Client network: image to feature, by the backbone's first layers and a narrow convolution."""

    def __init__(self, backbone: Backbone, split: str, *, channels: int, stride: int) -> None:
        """Build the head with the backbone's present weights.

        Args:
            backbone: The baseline; it is copied, not kept.
            split: The last layer of the head: one of `models.backbone.split_points`, or the name of a custom
                backbone's layer.
            channels: Of the feature.
            stride: Of the narrow convolution, which sees (2 * stride - 1) x (2 * stride - 1) positions.

        Raises:
            TrainingConfigError: The backbone has no such split point, or a custom one no int8 form up to there.
        """
        super().__init__()
        self.normalise = Normalise(backbone.normalise.mean.shape[1])
        self.input = ActivationQuantiser(signed=True)
        if isinstance(backbone, CustomBackbone):
            self.front = CustomFront(self.input, backbone, split)
        elif isinstance(backbone, ResNet):
            self.front = ResNetFront(self.input, backbone, blocks_before(backbone, split, "head.split"))
        else:
            self.front = VitFront(self.input, backbone, blocks_before(backbone, split, "head.split"))
        self.narrow = ConvUnit(self.front.output, self.front.width, channels, 2 * stride - 1, stride=stride, relu=False)
        self.start_from(backbone)

    def start_from(self, backbone: Backbone) -> None:
        """Copy the weights of the backbone's first layers and its normalisation of pixels.

        Args:
            backbone: As the one that the head was built from.
        """
        self.normalise.load_state_dict(backbone.normalise.state_dict())
        self.front.start_from(backbone)  # pyright: ignore[reportArgumentType]  a front is built for its backbone's class

    def forward(self, images: Tensor) -> Tensor:
        """Compute the feature.

        Args:
            images: uint8 [batch, image_channels, height, width].

        Returns:
            float [batch, channels, h / stride, w / stride], about unit variance, where [h, w] is the grid at the split
            point: of pixels in a ResNet, of patches in a ViT.
        """
        # bf16 has too few bits for the sums that int8 arithmetic keeps exactly.
        with autocast_unless(images.device.type, exact=self.input.on):
            pixels = self.input(self.normalise(images)).contiguous(memory_format=torch.channels_last)
            return self.narrow(self.front(pixels))


class ResNetFront(nn.Module):
    """The stem and the first blocks of a ResNet."""

    def __init__(self, source: ActivationQuantiser, backbone: ResNet, blocks: int) -> None:
        """Build it with fresh weights.

        Args:
            source: The quantiser of the pixels.
            backbone: Gives the sizes.
            blocks: How many of its blocks.
        """
        super().__init__()
        self.stem = _unit(source, backbone.conv1, relu=True)
        self.pooled = isinstance(backbone.maxpool, nn.MaxPool2d)
        self.width = backbone.channels_behind(blocks)
        source = output_of(self.stem)
        self.blocks = nn.Sequential()
        for block in list(backbone.blocks().values())[:blocks]:
            units = ResidualUnits(source, block)
            self.blocks.append(units)
            source = units.output
        self._output = (source,)  # in a tuple, since it is another module's own submodule

    @property
    def output(self) -> ActivationQuantiser:
        """The quantiser of what this returns."""
        return self._output[0]

    def start_from(self, backbone: ResNet) -> None:
        """Copy the weights.

        Args:
            backbone: As the one that this was built from.
        """
        _copy(self.stem, backbone.conv1, backbone.bn1)
        for mine, theirs in zip(self.blocks, backbone.blocks().values(), strict=False):
            mine.start_from(theirs)  # pyright: ignore[reportCallIssue]  all of them are ResidualUnits

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, image_channels, h, w] to [batch, width, h / strides, w / strides], float."""
        features = self.stem(pixels)
        if self.pooled:
            # The largest of rounded values is a rounded value; rounding it again only tells the runtime so.
            features = output_of(self.stem)(F.max_pool2d(features, 3, 2, 1))
        return self.blocks(features)


class ResidualUnits(nn.Module):
    """A residual block of units, with eight-bit addends and an eight-bit sum."""

    def __init__(self, source: ActivationQuantiser, block: BasicBlock | Bottleneck) -> None:
        """Build one block with fresh weights.

        Args:
            source: The quantiser whose output this block takes.
            block: Gives the sizes.
        """
        super().__init__()
        self.units = nn.Sequential()
        *inner, (last, _) = block.units()
        self.downsample = None
        if block.downsample is not None:
            inputs, stride = block.conv1.in_channels, max(convolution.stride[0] for convolution, _ in block.units())
            self.downsample = ConvUnit(source, inputs, last.out_channels, 1, stride=stride, relu=False)
            self.shortcut = ActivationQuantiser(signed=True)
        for convolution, _ in inner:
            unit = _unit(source, convolution, relu=True)
            self.units.append(unit)
            source = output_of(unit)
        self.units.append(_unit(source, last, relu=False))
        self.change = ActivationQuantiser(signed=True)
        self.output = ActivationQuantiser(signed=False)

    def start_from(self, block: BasicBlock | Bottleneck) -> None:
        """Copy the weights.

        Args:
            block: As the one that this was built from.
        """
        for unit, (convolution, normalisation) in zip(self.units, block.units(), strict=True):
            _copy(unit, convolution, normalisation)
        if self.downsample is not None and block.downsample is not None:
            _copy(self.downsample, *block.downsample)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, h, w] to [batch, outputs, h / stride, w / stride], float."""
        change = self.change(self.units(features))
        if self.downsample is not None:
            features = self.shortcut(self.downsample(features))
        return self.output(F.relu(features + change))


class QuantisedLinear(nn.Linear):
    """A linear layer that takes eight-bit activations and seven-bit weights once its quantiser is enabled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build one layer.

        Args:
            inputs: Values in.
            outputs: Values out.
        """
        super().__init__(inputs, outputs)
        self.input = ActivationQuantiser(signed=True)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  the name is torch's
        """[..., inputs] to [..., outputs], float."""
        values = self.input(input)
        if not self.input.on:
            return super().forward(values)
        # Transposed before it is rounded, so that the exported weight is stored the way a matrix product takes it.
        weight, _ = fake_quantise_weight(self.weight.t(), axis=1)
        return values @ weight + self.bias


class VitFront(nn.Module):
    """The patches and the first blocks of a ViT, with the names of `models.vit`. The class token stays inside."""

    def __init__(self, source: ActivationQuantiser, backbone: VisionTransformer, blocks: int) -> None:
        """Build it with fresh weights.

        Args:
            source: The quantiser of the pixels.
            backbone: Gives the sizes.
            blocks: How many of its blocks.
        """
        super().__init__()
        self.width = backbone.width
        self.cls_token = nn.Parameter(torch.zeros_like(backbone.cls_token))
        self.pos_embed = nn.Parameter(torch.zeros_like(backbone.pos_embed))
        self.patch_embed = QuantisedPatches(source, backbone.patch_embed.proj)
        self.blocks = nn.Sequential(*(Block(self.width, backbone.heads, QuantisedLinear) for _ in range(blocks)))
        self.output = ActivationQuantiser(signed=True)

    def start_from(self, backbone: VisionTransformer) -> None:
        """Copy the weights.

        Args:
            backbone: As the one that this was built from.
        """
        mine = self.state_dict()
        self.load_state_dict(mine | {name: value for name, value in backbone.state_dict().items() if name in mine})

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, image_channels, h, w] to [batch, width, h / patch, w / patch], float."""
        grid = self.patch_embed(pixels)
        tokens = self.blocks(embed(grid, self.cls_token, self.pos_embed))
        tokens = tokens[:, 1:].transpose(1, 2).reshape(-1, *map(int, grid.shape[1:]))
        return self.output(tokens.contiguous(memory_format=torch.channels_last))


class QuantisedPatches(nn.Module):
    """The convolution that turns patches into tokens, with an eight-bit output."""

    def __init__(self, source: ActivationQuantiser, convolution: nn.Conv2d) -> None:
        """Build it with fresh weights.

        Args:
            source: The quantiser of the pixels.
            convolution: Gives the sizes.
        """
        super().__init__()
        patch = convolution.kernel_size
        self.proj = nn.Conv2d(convolution.in_channels, convolution.out_channels, patch, patch)  # pyright: ignore[reportArgumentType]
        self.output = ActivationQuantiser(signed=True)
        self._source = (source,)  # in a tuple, since it is another module's own submodule

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, channels, h, w] to [batch, width, h / patch, w / patch], float."""
        bias = self.proj.bias
        if not self._source[0].on or bias is None:
            return self.output(self.proj(pixels))
        weight, scale = fake_quantise_weight(self.proj.weight)
        bias = round_to(bias, self._source[0].scale * scale)
        return self.output(F.conv2d(pixels, weight, bias, self.proj.stride))


def _unit(source: ActivationQuantiser, convolution: nn.Conv2d, *, relu: bool) -> ConvUnit:
    return ConvUnit(
        source,
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size[0],
        stride=convolution.stride[0],
        relu=relu,
    )


def _copy(unit: nn.Module, convolution: nn.Module, normalisation: nn.Module) -> None:
    given = convolution.state_dict(prefix="conv.") | normalisation.state_dict(prefix="bn.")
    unit.load_state_dict(unit.state_dict() | given)
