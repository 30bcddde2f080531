"""What no input can make a round's results exceed.

Two bounds hold for every input whose values stay within their levels; the smaller one counts, output by output. The
fewest primes follow from it, so that no answer ever wraps around unnoticed.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.coded.rounds import IntegerMap, IntegerNetwork

Bounds = NDArray[np.float64]
#: Relative room for the rounding of float64 sums, which for the longest ones stays far below it.
ROOM = 1e-9
#: Of the longest row of a form: what shorter rows count as, so that no division makes rounding matter.
SHORTEST = 1e-3
#: Below this float64 has every whole number. Terms of a form may cancel, so its sums are exact or not used at all.
EXACT = 2**53
#: Eigenvalues are computed where they take fewer operations than this, some minutes,
CHEAP = 5 * 10**12
#: and where a matrix has fewer elements than this.
MOST = 2**26


def proven_bound(network: IntegerNetwork) -> int:
    """A magnitude that no result can exceed, whatever is shared.

    Args:
        network: One round's.

    Returns:
        The largest over all outputs.
    """
    low, high = interval(network)
    eigen = eigenvalue_bounds(network)
    if eigen is not None:
        low, high = np.maximum(low, eigen[0]), np.minimum(high, eigen[1])
    return math.ceil(max(-low.min(), high.max()) * (1 + ROOM))


def interval_bound(network: IntegerNetwork) -> int:
    """As `proven_bound`, but quicker and looser: by `interval` alone.

    Args:
        network: One round's.

    Returns:
        The largest over all outputs.
    """
    low, high = interval(network)
    return math.ceil(max(-low.min(), high.max()) * (1 + ROOM))


def interval(network: IntegerNetwork) -> tuple[Bounds, Bounds]:
    """Bounds by interval arithmetic: sums of absolute weights, with a square's own range after each square.

    Args:
        network: One round's.

    Returns:
        Lower and upper bounds of each output, float64 [*outputs].
    """
    high = torch.full((1, *network.inputs), float(network.largest), dtype=torch.float64)
    low = -high
    for layer, linear in zip(network.maps[:-1], network.linear, strict=True):
        low, high = _map_interval(layer, low, high)
        low, high = _square_interval(low, high, torch.from_numpy(linear)[:, None, None].double())
    low, high = (F.avg_pool2d(values, network.pool, divisor_override=1) for values in (low, high))
    low, high = _map_interval(network.maps[-1], low, high)
    return low[0].numpy(), high[0].numpy()


def eigenvalue_bounds(network: IntegerNetwork) -> tuple[Bounds, Bounds] | None:
    """Bounds of a quadratic form: extreme eigenvalues times the largest length, plus its linear term's own.

    For any positive d the form is at most the largest eigenvalue of D^-1/2 A D^-1/2 times the sum of d_i z_i^2, which
    is largest where every z_i is. With the lengths of the rows of A as d, inputs that count for less, such as those at
    the border of a window, weigh less; that is tighter than d = 1.

    An output of a convolution is a sum over its taps, of one form each, bounded apart. Near a border some taps see
    zeros alone, and their bounds hold there too.

    Args:
        network: One round's.

    Returns:
        Lower and upper bounds of each channel, float64 [channels, 1, 1]; None where the degree is not 2, a map is over
        positions, float64 would round the form, or it would take too long.
    """
    found = _forms(network)
    if found is None:
        return None
    hidden, linear, factors = found
    if _largest_sums(hidden, linear, factors) >= EXACT:
        return None
    (count, values), (channels, taps, _) = hidden.shape, factors.shape
    if channels * taps * values**2 * (count + 10 * values) > CHEAP:
        return None
    low, high = np.zeros(channels), np.zeros(channels)
    for channel, tap in np.ndindex(channels, taps):
        row = factors[channel, tap]
        form = hidden.T @ (row[:, None] * hidden)
        lengths = np.linalg.norm(form, axis=1)
        lengths = np.maximum(lengths, SHORTEST * lengths.max() or 1.0)
        form /= np.sqrt(np.outer(lengths, lengths))
        first, last = (float(each) for each in np.linalg.eigvalsh(form)[[0, -1]])
        radius = float(lengths.sum()) * network.largest**2
        room = ROOM * float(np.linalg.norm(form)) * radius
        straight = network.largest * float(np.abs(hidden.T @ (row * linear)).sum())
        low[channel] += min(first, 0.0) * radius - straight - room
        high[channel] += max(last, 0.0) * radius + straight + room
    return low[:, None, None], high[:, None, None]


def _forms(network: IntegerNetwork) -> tuple[Bounds, Bounds, Bounds] | None:
    """The forms' parts: hidden values over inputs, their linear terms, and outputs over hidden values, tap by tap.

    Where the last map is a convolution, one tap's window stands for all: others see the same window of inputs, or one
    of which padding makes a part zero.

    Returns:
        float64 [hidden, inputs], [hidden] and [channels, taps, hidden].
    """
    first, last = network.maps[0], network.maps[-1]
    if network.degree != 2 or "positions" in (first.over, last.over):
        return None
    channels, height, width = network.inputs
    if last.over == "window" and first.over == "window":
        height = width = (network.pool - 1) * first.stride + first.weight.shape[-1]
        window = (first.outputs[0], network.pool, network.pool)
        first = IntegerMap(first.over, first.weight, window, first.stride, 0)
    values = channels * height * width
    if values * math.prod(first.outputs) > MOST:
        return None
    responses = _apply(first, torch.eye(values, dtype=torch.float64).view(-1, channels, height, width)).flatten(1)
    weight = torch.from_numpy(last.weight).double()
    if last.over == "window":  # one tap after the other, all positions of a summed window alike
        taps = weight.flatten(2).transpose(1, 2)[:, :, :, None].expand(-1, -1, -1, network.pool**2).flatten(2)
    else:
        summed = (first.outputs[0], first.outputs[1] // network.pool, first.outputs[2] // network.pool)
        spread = weight.view(-1, *summed).repeat_interleave(network.pool, 2).repeat_interleave(network.pool, 3)
        taps = spread.flatten(1)[:, None]
    linear = np.repeat(network.linear[0], first.outputs[1] * first.outputs[2])
    return responses.T.numpy(), linear.astype(np.float64), taps.numpy()


def _largest_sums(hidden: Bounds, linear: Bounds, factors: Bounds) -> float:
    """What no part of a sum that makes up a form, or its linear term, exceeds."""
    most, terms = float(np.abs(hidden).max(initial=0)), float(np.abs(factors).sum(axis=2).max(initial=0))
    return most * max(most, float(np.abs(linear).max(initial=0)), 1.0) * terms


def _apply(layer: IntegerMap, values: Tensor, weight: Tensor | None = None) -> Tensor:
    """A map in float64."""
    weight = torch.from_numpy(layer.weight).to(values) if weight is None else weight
    return linear_map(values, weight, layer.over, layer.stride, layer.padding).view(len(values), *layer.outputs)


def _map_interval(layer: IntegerMap, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    weight = torch.from_numpy(layer.weight).double()
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    return (
        _apply(layer, low, positive) + _apply(layer, high, negative),
        _apply(layer, high, positive) + _apply(layer, low, negative),
    )


def _square_interval(low: Tensor, high: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Of h * (h + k)."""
    at_low, at_high = low * (low + k), high * (high + k)
    vertex = (-k / 2).clamp(min=low, max=high)
    return vertex * (vertex + k), torch.maximum(at_low, at_high)


def linear_map(values: Tensor, weight: Tensor, over: str, stride: int, padding: int) -> Tensor:
    """Apply a map's weights, in the type of both.

    Args:
        values: float [batch, channels, h, w].
        weight: As `IntegerMap.weight`.
        over: As there.
        stride: As there.
        padding: As there.

    Returns:
        float [batch, channels, h, w], or [batch, outputs] or [batch, channels, positions], to be put in shape.
    """
    if over == "window":
        return F.conv2d(values, weight, None, stride, padding)
    return F.linear(values.flatten(1 if over == "all" else 2), weight)
