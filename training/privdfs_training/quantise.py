"""Fake quantisation with straight-through gradients (Jacob et al., arXiv 1712.05877).

Two uses. Shares get very few levels: bits per share bound what a server can learn, and they are what travels. The
head's weights and activations get int8, so that the trained network is, number for number, the int8 graph that
devices run.
"""

import torch
from torch import Tensor, nn

# Seven bits. Old x86 processors multiply uint8 by int8 and add pairs in saturating 16 bits: 2 * 255 * 63 fits, 2 *
# 255 * 127 does not. So no processor's sums differ from another's.
WEIGHT_LIMIT = 63
MOMENTUM = 0.05  # of the running activation range


class ShareQuantiser(nn.Module):
    """Clamp a feature to [-1, 1] and round it to a few levels.

    The scale is fixed: the batch normalisation before it learns the gain of every channel.
    """

    def __init__(self, levels: int) -> None:
        """Choose the number of levels.

        Args:
            levels: Odd, 3 to 255; zero is one of them.
        """
        super().__init__()
        self.limit = (levels - 1) // 2

    @property
    def scale(self) -> float:
        """Feature units of one integer step."""
        return 1 / self.limit

    def integers(self, feature: Tensor) -> Tensor:
        """Integer levels as float, in [-limit, limit], without a gradient path of their own.

        Args:
            feature: float, any shape.

        Returns:
            float, same shape.
        """
        return torch.round(torch.clamp(feature, -1.0, 1.0) * self.limit)

    def forward(self, feature: Tensor) -> Tensor:
        """Quantise to the levels in feature units; the gradient is that of the clamp alone.

        Args:
            feature: float, any shape.

        Returns:
            float, same shape, in [-1, 1].
        """
        clamped = torch.clamp(feature, -1.0, 1.0)
        return clamped + (self.integers(feature) * self.scale - clamped).detach()


class ActivationQuantiser(nn.Module):
    """Eight bits for one activation tensor, from a running maximum.

    Does nothing until `calibrating` or `enabled` is set; both are buffers, so a checkpoint brings them back.
    """

    maximum: Tensor
    enabled: Tensor

    def __init__(self, *, signed: bool) -> None:
        """Choose the sign.

        Args:
            signed: int8 in [-127, 127]; otherwise uint8, for what follows a ReLU.
        """
        super().__init__()
        self.signed = signed
        self.calibrating = False
        self.register_buffer("maximum", torch.zeros(()))
        self.register_buffer("enabled", torch.zeros((), dtype=torch.bool))

    @property
    def scale(self) -> Tensor:
        """Activation units of one integer step, float32 scalar."""
        return self.maximum / (127 if self.signed else 255)

    def forward(self, activation: Tensor) -> Tensor:
        """Observe, quantise, or pass through.

        Args:
            activation: float, any shape; non-negative where unsigned.

        Returns:
            float, same shape.
        """
        if self.calibrating:
            largest = activation.detach().abs().amax().float()
            self.maximum.lerp_(largest, MOMENTUM if self.maximum > 0 else 1.0)
        if not self.enabled:
            return activation
        low, high = (-128, 127) if self.signed else (0, 255)
        zero = torch.zeros((), dtype=torch.int32)
        return torch.fake_quantize_per_tensor_affine(activation, self.scale, zero, low, high)


def fake_quantise_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a convolution's weight to seven bits, one scale per output channel.

    Args:
        weight: float [outputs, inputs, height, width].

    Returns:
        The rounded weight, float, same shape; and the scales, float [outputs].
    """
    scale = weight.detach().abs().amax(dim=(1, 2, 3)).clamp(min=1e-8) / WEIGHT_LIMIT
    zero = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -128, 127), scale


def round_to(values: Tensor, step: Tensor) -> Tensor:
    """Round to multiples of a step; the gradient passes straight through.

    Args:
        values: float, any shape.
        step: float, same shape.

    Returns:
        float, same shape.
    """
    return values + (torch.round(values / step) * step - values).detach()
