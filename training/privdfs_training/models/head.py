"""What a device runs: a compact head, or none.

A compact head has depthwise-separable blocks (Howard et al., arXiv 1704.04861) and a narrow end. Depth is what lets it
throw away what the classes do not need; depthwise-separable convolutions make depth cheap.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.mirrored import pair_kernels, pair_norm
from privdfs_training.models.normalise import Normalise
from privdfs_training.precision import autocast_unless
from privdfs_training.quantise import ActivationQuantiser, fake_quantise_weight, round_to


class ConvUnit(nn.Module):
    """Convolution, batch normalisation and, usually, ReLU.

    Once its input is quantised, the statistics are fixed, the normalisation is folded into the weight, and the unit
    computes what int8 arithmetic computes: seven-bit weights, bias in steps of the 32-bit sums, eight-bit output.
    """

    def __init__(
        self,
        source: ActivationQuantiser,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        """Build one unit.

        Args:
            source: The quantiser whose output this unit takes.
            inputs: Channels in.
            outputs: Channels out.
            kernel: Height and width of the kernel.
            stride: Of the convolution.
            groups: Of the convolution; `inputs` for a depthwise one.
            relu: Whether a ReLU and an output quantiser follow. The last unit of a head has neither: the shares' own
                quantiser follows it.
        """
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.output = ActivationQuantiser(signed=False) if relu else None
        self._source = (source,)  # in a tuple, since it is another module's own submodule

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, h, w] to [batch, outputs, h / stride, w / stride], float."""
        features = self._integer_convolution(features) if self._source[0].on else self.bn(self._convolution(features))
        return features if self.output is None else self.output(F.relu(features))

    def _convolution(self, features: Tensor) -> Tensor:
        # On processors the bf16 gradient of a strided depthwise convolution takes longer than all the rest of a head.
        slow = features.device.type == "cpu" and self.conv.groups > 1 and self.conv.stride[0] > 1
        with autocast_unless(features.device.type, exact=slow):
            return self.conv(features.float() if slow else features)

    def _integer_convolution(self, features: Tensor) -> Tensor:
        mean, variance = self.bn.running_mean, self.bn.running_var
        if mean is None or variance is None:  # only where statistics are switched off, which this module never does
            raise AssertionError
        gain = self.bn.weight / torch.sqrt(variance + self.bn.eps)
        weight, scale = fake_quantise_weight(self.conv.weight * gain[:, None, None, None])
        bias = round_to(self.bn.bias - mean * gain, self._source[0].scale * scale)
        return F.conv2d(features, weight, bias, self.conv.stride, self.conv.padding, 1, self.conv.groups)


class SeparableBlock(nn.Module):
    """A depthwise unit and a pointwise one, with a shortcut where the shapes allow it."""

    def __init__(self, source: ActivationQuantiser, inputs: int, outputs: int, *, kernel: int, stride: int) -> None:
        """Build one block.

        Args:
            source: The quantiser whose output this block takes.
            inputs: Channels in.
            outputs: Channels out.
            kernel: Height and width of the depthwise kernel.
            stride: Of the depthwise convolution.
        """
        super().__init__()
        self.depthwise = ConvUnit(source, inputs, inputs, kernel, stride=stride, groups=inputs)
        self.pointwise = ConvUnit(output_of(self.depthwise), inputs, outputs, 1)
        self.sum = ActivationQuantiser(signed=False) if stride == 1 and inputs == outputs else None

    @property
    def output(self) -> ActivationQuantiser:
        """The quantiser of what this block returns."""
        return self.sum or output_of(self.pointwise)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, h, w] to [batch, outputs, h / stride, w / stride], float."""
        change = self.pointwise(self.depthwise(features))
        return change if self.sum is None else self.sum(features + change)


class Head(nn.Module):
    """What all client networks have in common: they go to int8 in two steps.

    Attributes:
        normalise: Of the pixels.
        input: Quantiser of the normalised pixels.
    """

    normalise: Normalise
    input: ActivationQuantiser

    def calibrate(self, *, on: bool) -> None:
        """Start or stop watching the activation ranges.

        Args:
            on: Whether to watch.
        """
        for quantiser in self._activation_quantisers():
            quantiser.calibrating = on

    def quantise(self) -> None:
        """Fold the normalisations and go to int8 for good. Call after some calibrated batches."""
        for quantiser in self._activation_quantisers():
            quantiser.switch_on()

    def _activation_quantisers(self) -> list[ActivationQuantiser]:
        return [module for module in self.modules() if isinstance(module, ActivationQuantiser)]


class PixelHead(Head):
    """No network at all: the normalised pixels in eight bits, of which coded shares take a few levels."""

    def __init__(self, image_channels: int) -> None:
        """Build the head.

        Args:
            image_channels: Of the image.
        """
        super().__init__()
        self.normalise = Normalise(image_channels)
        self.input = ActivationQuantiser(signed=True)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [batch, image_channels, height, width] to float, same shape, about unit variance."""
        return self.input(self.normalise(images))


class CompactHead(Head):
    """Client network of depthwise-separable blocks: image to feature."""

    def __init__(
        self,
        *,
        image_channels: int,
        stem: int,
        stages: tuple[tuple[int, int], ...],
        channels: int,
        stem_stride: int = 2,
        mirrored: bool = False,
    ) -> None:
        """Build the head.

        Args:
            image_channels: Of the image.
            stem: Channels of the first convolution.
            stages: (channels, blocks) of each stage; every stage but the first halves height and width.
            channels: Of the feature.
            stem_stride: Of the first convolution.
            mirrored: Whether a mirrored image gives the mirrored feature, with the halves of its channels exchanged.
                The width has to be even wherever it is halved, and every number of channels too.
        """
        super().__init__()
        self.normalise = Normalise(image_channels)
        self.input = ActivationQuantiser(signed=True)
        # Windows of three in steps of two lie differently from the right than from the left.
        halving = 4 if mirrored else 3
        self.stem = ConvUnit(self.input, image_channels, stem, halving if stem_stride == 2 else 3, stride=stem_stride)
        source, inputs = output_of(self.stem), stem
        self.blocks = nn.Sequential()
        for stage, (outputs, count) in enumerate(stages):
            for index in range(count):
                kernel, stride = (halving, 2) if stage and not index else (3, 1)
                block = SeparableBlock(source, inputs, outputs, kernel=kernel, stride=stride)
                self.blocks.append(block)
                source, inputs = block.output, outputs
        self.narrow = ConvUnit(source, inputs, channels, 1, relu=False)
        for unit in self.modules() if mirrored else ():
            if isinstance(unit, ConvUnit):
                pair_kernels(unit.conv, paired=unit is not self.stem)
                pair_norm(unit.bn)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the feature.

        Args:
            images: uint8 [batch, image_channels, height, width].

        Returns:
            float [batch, channels, h, w], about unit variance; height and width are halved by every stage but the
            first, and by the stem's stride.
        """
        # bf16 has too few bits for the sums that int8 arithmetic keeps exactly.
        with autocast_unless(images.device.type, exact=self.input.on):
            features = self.input(self.normalise(images)).contiguous(memory_format=torch.channels_last)
            return self.narrow(self.blocks(self.stem(features)))


def output_of(unit: ConvUnit) -> ActivationQuantiser:
    """The quantiser of what a unit with a ReLU returns.

    Args:
        unit: Not a head's last one.

    Returns:
        What the next unit takes as its source.
    """
    if unit.output is None:
        message = "only a head's last unit has no output quantiser, and nothing follows it"
        raise AssertionError(message)
    return unit.output
