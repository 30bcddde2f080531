"""Fake quantisation with straight-through gradients (Jacob et al., arXiv 1712.05877).

Two uses. Shares get very few levels: bits per share bound what a server can learn, and they are what travels. The
head's weights and activations get int8, so that the trained network is, number for number, the int8 graph that
devices run.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from privdfs_training.switch import Switched

# Seven bits. Old x86 processors multiply uint8 by int8 and add pairs in saturating 16 bits: 2 * 255 * 63 fits, 2 *
# 255 * 127 does not. So no processor's sums differ from another's.
WEIGHT_LIMIT = 63
MOMENTUM = 0.05  # of the running activation range


class ShareQuantiser(nn.Module):
    """Round each server's values to a few integer levels; one step size and, if learned, one range per server.

    Fixed: the feature is cut to [-1, 1]; the batch normalisation before it learns the gain of every channel. Learned:
    the step follows Esser et al. (arXiv 1902.08153), the range Uhlich et al. (arXiv 1905.11452), so that together with
    a price on bits each server finds its own number of levels, at most those of the config.

    Attributes:
        log_step: Logarithm of each server's step in feature units, float32 [servers].
        range: Largest integer of each server before rounding, float32 [servers].
    """

    def __init__(self, levels: int, *, servers: int, learned: bool) -> None:
        """Start with the same step and the full range for everybody.

        Args:
            levels: Odd, 3 to 255; zero is one of them.
            servers: Number of servers.
            learned: Whether steps and ranges are trained.
        """
        super().__init__()
        self.largest, self.learned = (levels - 1) // 2, learned
        self.log_step = nn.Parameter(torch.full((servers,), -math.log(self.largest)), learned)
        self.range = nn.Parameter(torch.full((servers,), float(self.largest)), learned)

    def scale(self, server: int) -> float:
        """Feature units of one integer step of one server's share."""
        return float(self.log_step[server].detach().exp()) if self.learned else 1 / self.largest

    def limit(self, server: int) -> int:
        """Largest integer in one server's share."""
        return int(self._real_limit().detach()[server].round()) if self.learned else self.largest

    def integers(self, feature: Tensor, server: int) -> Tensor:
        """Integer levels as float, in [-limit, limit], without a gradient path of their own.

        Args:
            feature: float, any shape.
            server: Whose step and range.

        Returns:
            float, same shape.
        """
        limit = self.limit(server)
        return torch.round(torch.clamp(feature / self.scale(server), -limit, limit))

    def steps(self, feature: Tensor) -> Tensor:
        """The feature in every server's steps, not yet rounded or cut.

        Args:
            feature: float [batch, channels, height, width].

        Returns:
            float [batch, servers, channels, height, width].
        """
        return feature[:, None].float() / self._per_server(self._step())

    def forward(self, steps: Tensor) -> Tensor:
        """Round, cut and return to feature units; the gradient passes the rounding straight through.

        Args:
            steps: What `steps` gave.

        Returns:
            float, same shape.
        """
        real = self._real_limit()
        limit = self._per_server(real + (torch.round(real) - real).detach())
        cut = torch.maximum(torch.minimum(steps, limit), -limit)
        return (cut + (torch.round(cut) - cut).detach()) * self._per_server(self._step())

    def bits(self) -> Tensor:
        """Bits of one value at equally likely levels, float [servers]; the gradient reaches the range."""
        return torch.log2(2 * self._real_limit() + 1)

    def _step(self) -> Tensor:
        return self.log_step.exp() if self.learned else torch.full_like(self.log_step, 1 / self.largest)

    def _real_limit(self) -> Tensor:
        return self.range.clamp(1, self.largest)

    def _per_server(self, values: Tensor) -> Tensor:
        return values[:, None, None, None]


class ActivationQuantiser(Switched):
    """Eight bits for one activation tensor, from a running maximum.

    Does nothing until `calibrating` is set or it is switched on; a checkpoint brings the range and the switch back.
    """

    maximum: Tensor

    def __init__(self, *, signed: bool) -> None:
        """Choose the sign.

        Args:
            signed: int8, with a range of 127 steps either way; otherwise uint8, for what follows a ReLU.
        """
        super().__init__("enabled")
        self.signed = signed
        self.calibrating = False
        self.register_buffer("maximum", torch.zeros(()))

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
        if not self.on:
            return activation
        low, high = (-128, 127) if self.signed else (0, 255)
        if activation.is_cpu and self.maximum > 0 and not torch.onnx.is_in_onnx_export():
            return _Rounding.apply(activation, self.scale, low, high)
        zero = torch.zeros((), dtype=torch.int32, device=activation.device)
        return torch.fake_quantize_per_tensor_affine(activation, self.scale, zero, low, high)


class _Rounding(torch.autograd.Function):
    """Exactly what torch's operator gives, but faster on a processor."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor, scale: Tensor, low: int, high: int) -> Tensor:  # noqa: ANN401  torch's
        steps = torch.round(activation * (1 / scale))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((steps >= low) & (steps <= high))
        return steps.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401  likewise
        (inside,) = ctx.saved_tensors
        return slopes[0] * inside, None, None, None


def fake_quantise_weight(weight: Tensor, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Round a weight to seven bits, one scale per output channel.

    Args:
        weight: float; of a convolution [outputs, inputs, height, width].
        axis: Dimension of the outputs.

    Returns:
        The rounded weight, float, same shape; and the scales, float [outputs].
    """
    others = [dimension for dimension in range(weight.ndim) if dimension != axis]
    scale = weight.detach().abs().amax(dim=others).clamp(min=1e-8) / WEIGHT_LIMIT
    if weight.is_cuda:  # torch's operator reads its zero points back to check them, which a recording does not bear
        return _straight_through(weight, scale, axis), scale
    zero = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -128, 127), scale


def _straight_through(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    """What torch's fake quantisation gives, number for number, where nothing is cut; `round_to` rounds once more."""
    scale = scale.view([-1 if at == axis else 1 for at in range(weight.ndim)])
    rounded = torch.round(weight.detach() * (1 / scale)) * scale
    return rounded + (weight - weight.detach())


def round_to(values: Tensor, step: Tensor) -> Tensor:
    """Round to multiples of a step; the gradient passes straight through.

    Args:
        values: float, any shape.
        step: float, same shape.

    Returns:
        float, same shape.
    """
    return values + (torch.round(values / step) * step - values).detach()
