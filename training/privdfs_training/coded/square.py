"""The square of a round and the sums over its windows, as training computes them.

What is squared is by far the largest tensor of a step, so both passes go through it in parts that fit a processor's
cache, and keep nothing between them but what the convolution gave.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: Values that are computed at once on a processor: a few tensors of them fit its cache.
PART = 2**17


def squared(mapped: Tensor, k: Tensor, *, unit: float, progress: float, pool: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, square with a linear term, and take means over windows: of v = unit * mapped, v * (v + k).

    Args:
        mapped: float [batch, channels, h, w].
        k: Of each channel, float [channels].
        unit: What one of `mapped` is worth.
        progress: From a ReLU (twice as large), 0, to the square, 1.
        pool: Height and width of the windows; divides h and w.

    Returns:
        The means, float32 (or float64, if `mapped` is) [batch, channels, h / pool, w / pool]; and of v, without a
        gradient, mean and variance of each channel over the batch, [channels] each.
    """
    return cast("tuple[Tensor, Tensor, Tensor]", _Squared.apply(mapped, k, unit, progress, pool))


class _Squared(torch.autograd.Function):
    """Both passes, part by part."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401  torch's
        mapped: Tensor,
        k: Tensor,
        unit: float,
        progress: float,
        pool: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(mapped, k)
        ctx.unit, ctx.progress, ctx.pool = unit, progress, pool
        total, squares = k.new_zeros(k.shape, dtype=torch.float64), k.new_zeros(k.shape, dtype=torch.float64)
        means = list[Tensor]()
        for part in mapped.split(_at_once(mapped)):
            values = _values(part, unit)
            square = values * values
            total += values.sum((0, 2, 3))
            squares += square.sum((0, 2, 3))
            square.addcmul_(values, k[:, None, None])
            if progress < 1:
                square = torch.lerp(2 * F.relu(values), square, progress)
            means.append(F.avg_pool2d(square, pool) if pool > 1 else square)
        count = mapped.numel() / len(k)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)  # rounding may leave less, where values hardly vary
        mean, variance = mean.to(k), variance.to(k)
        ctx.mark_non_differentiable(mean, variance)
        return torch.cat(means), mean, variance

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  as the decorator types it
        ctx: Any,  # noqa: ANN401  torch's
        *slopes: Tensor,
    ) -> tuple[Tensor, Tensor, None, None, None]:
        mapped, k = ctx.saved_tensors
        of_mapped, of_k = torch.empty_like(mapped), torch.zeros_like(k)
        windows = (slopes[0] / ctx.pool**2)[:, :, :, None, :, None]
        size = _at_once(mapped)
        windows = windows.expand(-1, -1, -1, ctx.pool, -1, ctx.pool)
        for part, slope, found in zip(*(each.split(size) for each in (mapped, windows, of_mapped)), strict=True):
            values = _values(part, ctx.unit)
            inner = torch.add(k[:, None, None], values, alpha=2)
            if ctx.progress < 1:
                inner = torch.lerp(2 * (values > 0).to(inner), inner, ctx.progress)
            _in_windows(values, ctx.pool).mul_(slope)
            _in_windows(inner, ctx.pool).mul_(slope)
            of_k += values.sum((0, 2, 3))
            found.copy_(inner.mul_(ctx.unit))
        return of_mapped, of_k * ctx.progress, None, None, None


def _at_once(mapped: Tensor) -> int:
    """Images of one part; all of them on a GPU."""
    return max(1, PART * len(mapped) // mapped.numel()) if mapped.is_cpu else len(mapped)


def _values(part: Tensor, unit: float) -> Tensor:
    """A part in units, in a tensor of its own, at least float32."""
    return part.to(torch.promote_types(part.dtype, torch.float32), copy=True).mul_(unit)


def _in_windows(values: Tensor, pool: int) -> Tensor:
    """[images, channels, h, w] seen as [images, channels, h / pool, pool, w / pool, pool]."""
    return values.unflatten(3, (-1, pool)).unflatten(2, (-1, pool))
