"""Kernels in mirrored pairs: a network that gives the mirrored feature of a mirrored image.

The second half of a layer's channels has the kernels of the first half, mirrored left to right, with the halves of
their inputs exchanged. Mirror an image, and every feature comes out mirrored, with the halves of its channels exchanged
(Cohen and Welling, arXiv 1602.07576, section 4, for the group of identity and mirror). A last layer that treats both
halves alike then answers as if it had seen the mean of both views, for about the compute of one.
Pairs are equal by construction: there is one parameter for both, under `parametrizations`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Kernels(nn.Module):
    """Kernels of the first half of the outputs to those of all."""

    def __init__(self, *, paired: bool) -> None:
        super().__init__()
        self.paired = paired

    def forward(self, first: Tensor) -> Tensor:
        """[outputs / 2, inputs, height, width] to [outputs, inputs, height, width]."""
        second = first.flip(-1)
        return torch.cat([first, second.roll(first.shape[1] // 2, 1) if self.paired else second])

    def right_inverse(self, kernels: Tensor) -> Tensor:
        """All kernels to those that are kept."""
        return kernels[: len(kernels) // 2].clone()


class _Sums(nn.Module):
    """Weights of sums over the first half of the inputs to those over all."""

    def __init__(self, inputs: tuple[int, int, int]) -> None:
        super().__init__()
        self.inputs = inputs

    def forward(self, first: Tensor) -> Tensor:
        """[outputs, inputs / 2] to [outputs, inputs]."""
        channels, height, width = self.inputs
        mirrored = first.view(-1, channels // 2, height, width).flip(-1).flatten(1)
        return torch.cat([first, mirrored], dim=1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """All weights to those that are kept."""
        return weight[:, : math.prod(self.inputs) // 2].clone()


class _Twice(nn.Module):
    """Values of the first half of the channels to those of all."""

    def forward(self, first: Tensor) -> Tensor:
        """[channels / 2] to [channels]."""
        return first.repeat(2)

    def right_inverse(self, values: Tensor) -> Tensor:
        """All values to those that are kept."""
        return values[: len(values) // 2].clone()


def pair_kernels(layer: nn.Module, *, paired: bool = True) -> None:
    """Let a convolution have its kernels in pairs.

    Args:
        layer: With a `weight`, float [outputs, inputs, height, width]; changed in place. A depthwise one has 1 input.
        paired: Whether its inputs are pairs too; an image's channels are not.
    """
    parametrize.register_parametrization(layer, "weight", _Kernels(paired=paired))


def pair_sums(layer: nn.Module, inputs: tuple[int, int, int]) -> None:
    """Let a linear layer treat both halves of its input channels alike: it answers mirror images alike.

    Args:
        layer: With a `weight`, float [outputs, inputs]; changed in place.
        inputs: Channels, height, width.
    """
    parametrize.register_parametrization(layer, "weight", _Sums(inputs))


def pair_values(module: nn.Module, *names: str) -> None:
    """Let parameters be the same for both halves of the channels.

    Args:
        module: Which has them, float [channels] each; changed in place.
        names: Of the parameters.
    """
    for name in names:
        parametrize.register_parametrization(module, name, _Twice())


def pair_norm(norm: nn.BatchNorm2d) -> None:
    """Let a batch normalisation have the same gains, biases and running statistics in both halves of its channels.

    Args:
        norm: Changed in place.
    """
    pair_values(norm, "weight", "bias")
    norm.register_forward_hook(lambda module, *_: pair_statistics(module) if module.training else None)


def pair_statistics(norm: nn.Module) -> None:
    """Replace the running statistics of both halves of the channels by their mean.

    Args:
        norm: A batch normalisation; changed in place.
    """
    for values in (norm.get_buffer("running_mean"), norm.get_buffer("running_var")):
        # Through `data`: autograd keeps them with the step, and would see the change, though it never looks at them.
        values.data.copy_(values.view(2, -1).mean(dim=0).repeat(2))
