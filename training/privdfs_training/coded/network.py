"""Polynomial networks as training sees them: integer weights by rounding, gradients straight through it.

In training the integers are computed in floating point, up to its rounding. In evaluation they are exact, and those of
the very `IntegerRound` that servers and devices get.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs.coding import Integers
from privdfs_training import parallel
from privdfs_training.coded.bounds import interval_bound, linear_map
from privdfs_training.coded.config import Linear, MapConfig, RoundConfig
from privdfs_training.coded.rounds import IntegerMap, IntegerNetwork, IntegerRound, Logits, Over, Relay, Shape
from privdfs_training.coded.square import squared
from privdfs_training.errors import RangeError, TrainingConfigError
from privdfs_training.mirrored import pair_kernels, pair_norm, pair_statistics, pair_sums, pair_values
from privdfs_training.precision import autocast_unless

Reals = NDArray[np.float64]
#: Root mean square of weights and of shared values, as a share of the largest one: what is divided by it has about
#: unit variance. Batch normalisation makes up for the rest.
SPREAD = 0.4
#: Standard deviations at which values are cut before they are shared.
CUT = 2.0
#: Of the running spread of what is squared.
MOMENTUM = 0.05
#: Binary digits of the factors by which the device scales results, as far as int64 has room for them.
FACTOR_BITS = 20
LARGEST_BF16_STRIDE = 2  # on processors
#: The linear term beside the square, in the polynomial of degree 2 that is closest to a ReLU of a normal variable: from
#: its coefficients in Hermite polynomials (Park et al., arXiv 2201.06699, section 3).
HERMITE = math.sqrt(2 * math.pi)
#: Up to here float64 has every integer.
EXACT = 2**53
EXACT_FLOAT32 = 2**24
EXACT_IMAGES = 100  # at once: what lies between two maps then stays in a processor's cache


def to_levels(values: Tensor, largest: int) -> Tensor:
    """Values of unit variance to integers; the gradient passes the rounding, and stops where a value is cut.

    Args:
        values: float, any shape.
        largest: Magnitude of the largest integer.

    Returns:
        Integers as float32, same shape.
    """
    steps = (values.float() * (largest / CUT)).clamp(-largest, largest)
    return steps + (steps.detach().round() - steps.detach())


class PolynomialMap(nn.Module):
    """One linear map whose weights are rounded to integers, every output with a step of its own.

    Attributes:
        outputs: Channels, height, width that it gives.
        unit: About the standard deviation of what it gives for values of unit variance.
    """

    def __init__(self, planned: MapConfig, inputs: Shape, outputs: int, bits: int, *, mirrored: bool = False) -> None:
        """Start with random weights.

        Args:
            planned: Its section.
            inputs: Channels, height, width that it takes.
            outputs: As in its section, or the number of classes.
            bits: Of the integer weights.
            mirrored: Whether windows have to lie alike from the left and from the right.

        Raises:
            TrainingConfigError: A window is larger than what it moves over, or windows lie differently.
        """
        super().__init__()
        channels, height, width = inputs
        self.over: Over = planned.over
        self.stride = planned.stride
        self.padding = planned.kernel // 2 if planned.kernel % 2 else 0
        self.limit = 2 ** (bits - 1) - 1
        self.outputs: Shape = (outputs, 1, 1)
        shape: tuple[int, ...] = (outputs, math.prod(inputs))
        if planned.over == "window":
            shape = (outputs, channels, planned.kernel, planned.kernel)
            high, wide = ((size + 2 * self.padding - planned.kernel) // planned.stride + 1 for size in (height, width))
            if min(high, wide) < 1:
                message = f"kernel = {planned.kernel} does not fit into {height} x {width} positions"
                raise TrainingConfigError(message)
            if mirrored and (width + 2 * self.padding - planned.kernel) % planned.stride:
                message = (
                    f"sharing.mirrored needs windows that lie alike from both sides, and of {width} positions in a row "
                    f"kernel = {planned.kernel} in steps of {planned.stride} does not reach the last ones"
                )
                raise TrainingConfigError(message)
            self.outputs = (outputs, high, wide)
        elif planned.over == "positions":
            shape = (outputs, height * width)
            self.outputs = (channels, height, width) if outputs == height * width else (channels, outputs, 1)
        fan_in = math.prod(shape[1:])
        # What rounds, squares and normalises does not care how large weights are, but the optimiser's steps do.
        self.weight = nn.Parameter(torch.randn(shape) * math.sqrt(2 / fan_in))
        self.unit = SPREAD * self.limit * math.sqrt(fan_in)

    def integers(self) -> Tensor:
        """The weights as integers, float; the gradient passes the rounding straight through."""
        step = self.weight.detach().flatten(1).abs().amax(dim=1).clamp(min=1e-12) / self.limit
        steps = self.weight / step.view(-1, *[1] * (self.weight.ndim - 1))
        return steps + (steps.detach().round() - steps.detach())

    def forward(self, values: Tensor) -> Tensor:
        """Map float [batch, channels, h, w] to [batch, *outputs], under autocast of its type."""
        return self._mapped(values, self.integers())

    def absolute(self, largest: Tensor) -> Tensor:
        """What results cannot exceed where values do not exceed `largest`, float [1, channels, h, w]."""
        return self._mapped(largest, self.integers().abs())

    def _mapped(self, values: Tensor, weight: Tensor) -> Tensor:
        # On processors torch 2.13's bf16 gradient of a padded 7x7 convolution of stride 7 can write outside its memory.
        unsafe = values.is_cpu and self.stride > LARGEST_BF16_STRIDE
        with autocast_unless(values.device.type, exact=unsafe):
            mapped = linear_map(values, weight, self.over, self.stride, self.padding)
        return mapped.view(len(values), *self.outputs)

    def plain(self) -> IntegerMap:
        """The map with its integers."""
        weight = self.integers().detach().round().cpu().numpy().astype(np.int64)
        return IntegerMap(self.over, weight, self.outputs, self.stride, self.padding)


class PolynomialRound(nn.Module):
    """All servers' network of one round, and the device's scaling of its results.

    Attributes:
        inputs: Channels, height, width of what is shared.
        outputs: The same of the results.
        largest: Magnitude of what is shared.
        progress: From a ReLU, 0, to the square, 1; training alone looks at it.
    """

    def __init__(
        self,
        planned: RoundConfig,
        inputs: Shape,
        *,
        bits: int,
        classes: int,
        next_largest: int,
        skipped: int,
        mirrored: bool = False,
        linear: Linear = "learned",
    ) -> None:
        """Start with random weights, and a linear term as large as the square, or as config says.

        Args:
            planned: Its section.
            inputs: Channels, height, width of what is shared.
            bits: Of the integer weights.
            classes: Outputs of a last map that does not say how many.
            next_largest: Magnitude of the values that the device makes of the results; 0 in the last round.
            skipped: Magnitude of the values that a skip adds; 0 without one.
            mirrored: Whether kernels are mirrored pairs, as those are that gave what is shared.
            linear: What stands beside each square: "learned", a share of the spread of what is squared; "hermite", the
                same, beginning as in a ReLU's best approximation, and of what is squared without its mean; "none".

        Raises:
            TrainingConfigError: Windows are larger than what they move over, or do not divide what they sum over.
        """
        super().__init__()
        self.inputs, self.largest, self.next_largest = inputs, planned.levels // 2, next_largest
        self.pool, self.skip, self.skipped, self.progress = planned.pool, planned.skip, skipped, 1.0
        self.mirrored, self.linear_term = mirrored, linear
        self.hidden, self.linear, self.spreads = nn.ModuleList(), nn.ParameterList(), nn.ModuleList()
        # What one unit of training is worth in integers: for the result of each hidden map, and for the last square.
        self.worth, self.square_worth = list[float](), 1.0
        shape = inputs
        for each in planned.hidden:
            layer = PolynomialMap(each, shape, each.outputs, bits, mirrored=mirrored)
            spread = layer.unit * (1 if self.worth else SPREAD * self.largest)
            self.worth.append(spread * self.square_worth)
            self.square_worth = self.worth[-1] ** 2
            self.hidden.append(layer)
            if linear != "none":
                first = torch.full(
                    (layer.outputs[0] // (2 if mirrored else 1),), HERMITE if linear == "hermite" else 1.0
                )
                self.linear.append(nn.Parameter(first))
            self.spreads.append(nn.BatchNorm2d(layer.outputs[0], momentum=MOMENTUM, affine=False))
            shape = layer.outputs
        if shape[1] % self.pool or shape[2] % self.pool:
            message = f"pool = {self.pool} does not divide the {shape[1]} x {shape[2]} positions that it sums over"
            raise TrainingConfigError(message)
        shape = (shape[0], shape[1] // self.pool, shape[2] // self.pool)
        self.output = PolynomialMap(planned.output, shape, planned.output.outputs or classes, bits, mirrored=mirrored)
        self.outputs = self.output.outputs
        self.norm = nn.BatchNorm2d(self.outputs[0])
        self.skip_gain = nn.Parameter(torch.ones(self.outputs[0])) if self.skip else None
        if mirrored:
            self._mirror(shape)

    def forward(self, shared: Sequence[Tensor]) -> Tensor:
        """What training computes.

        Args:
            shared: Integers as float [batch, channels, h, w] that the device shared in every round so far; the last
                are this round's.

        Returns:
            Results of about unit variance, with what a skip adds, float32 [batch, *outputs].
        """
        values, before, last = shared[-1], 1.0, len(self.worth) - 1
        for index, (layer, worth) in enumerate(zip(self._squared(), self.worth, strict=True)):
            k = self._linear(index)
            values, mean, variance = squared(
                layer(values),
                (k + (k.round() - k).detach()) / worth,
                unit=before / worth,
                progress=self.progress,
                pool=self.pool if index == last else 1,
            )
            self._watch(index, mean, variance, images=len(values))
            before = worth**2
        if not self.worth and self.pool > 1:
            values = F.avg_pool2d(values, self.pool)
        results = self.norm(self.output(values).float())
        if self.skip_gain is None:
            return results
        return results + self.skip_gain[:, None, None] * shared[self.skip - 1] * (CUT / self.skipped)

    def range_bits(self) -> Tensor:
        """Binary digits that sums of absolute weights prove to be enough, mean over the outputs; float32 scalar."""
        with torch.autocast(self.norm.weight.device.type, enabled=False):
            high = torch.full((1, *self.inputs), float(self.largest), device=self.norm.weight.device)
            for index, layer in enumerate(self._squared()):
                high = layer.absolute(high)
                high = high * (high + self._linear(index).abs()[:, None, None])
            high = F.avg_pool2d(high, self.pool, divisor_override=1) if self.pool > 1 else high
            return self.output.absolute(high).log2().mean()

    @torch.no_grad()
    def plain(self) -> IntegerRound:
        """The round as servers and the device get it, with batch normalisation as in evaluation.

        Raises:
            RangeError: Results can grow so large that they would not be exact in float64.
        """
        linear = tuple(self._linear(index).round().cpu().numpy().astype(np.int64) for index in range(len(self.hidden)))
        maps = tuple(layer.plain() for layer in (*self._squared(), self.output))
        network = IntegerNetwork(self.inputs, self.largest, maps, linear, self.pool)
        bound = interval_bound(network)
        if bound >= EXACT:
            message = (
                f"a round's results can reach 2^{math.log2(bound):.1f}, and exact sums end at 2^53. Use fewer levels, "
                "fewer bits, or narrower hidden maps."
            )
            raise RangeError(message)
        mean, variance = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
        gain = self.norm.weight.double() / torch.sqrt(variance.double() + self.norm.eps)
        bias = self.norm.bias.double() - mean.double() * gain
        gain = (gain / (self.square_worth * self.pool**2)).cpu().numpy()
        if not self.next_largest:
            return IntegerRound(network, Logits(gain, bias.cpu().numpy()))
        steps = self.next_largest / CUT
        skip = np.zeros(len(gain)) if self.skip_gain is None else self.skip_gain.double().cpu().numpy()
        skip = skip * CUT / max(self.skipped, 1)
        return IntegerRound(network, self._relay(gain * steps, bias.cpu().numpy() * steps, skip * steps, bound))

    def _linear(self, index: int) -> Tensor:
        """The k of one square, not rounded yet, float [channels]: a learned factor times its input's spread.

        The square and k times v - mean, where v is squared, are those of v and k - 2 mean, up to a constant.
        """
        spread = self.spreads[index].get_buffer("running_var").sqrt()
        if self.linear_term == "none":
            return torch.zeros_like(spread)
        factor = self.linear[index]
        k = (factor.repeat(2) if self.mirrored else factor) * spread
        if self.linear_term == "hermite":
            k = k - 2 * self.spreads[index].get_buffer("running_mean")
        return k * self.worth[index]

    def _watch(self, index: int, mean: Tensor, variance: Tensor, images: int) -> None:
        """Remember how what is squared spreads."""
        spread = self.spreads[index]
        if isinstance(spread, nn.BatchNorm2d) and spread.training:
            parallel.remember(spread, mean, variance, images * math.prod(self._squared()[index].outputs[1:]))
            if self.mirrored:
                pair_statistics(spread)

    def _mirror(self, last_inputs: Shape) -> None:
        """Let mirrored values give mirrored results, halves of channels exchanged, or the same logits."""
        for layer in self._squared():
            pair_kernels(layer)
        if self.output.over == "all":
            pair_sums(self.output, last_inputs)
            return
        pair_kernels(self.output)
        pair_norm(self.norm)
        if self.skip:
            pair_values(self, "skip_gain")

    def _squared(self) -> list[PolynomialMap]:
        """The hidden maps."""
        return [layer for layer in self.hidden if isinstance(layer, PolynomialMap)]

    def _relay(self, gain: Reals, bias: Reals, skip: Reals, bound: int) -> Relay:
        """Factors and offsets as integers, such that every sum fits int64."""
        largest = [float(np.abs(values).max()) for values in (gain, bias, skip)]
        reached = bound * largest[0] + largest[1] + 1 + self.skipped * largest[2]  # in levels, before the cut
        digits = FACTOR_BITS - math.frexp(largest[0])[1]
        shift = max(0, min(digits, 62 - math.frexp(reached)[1]))

        def scaled(values: Reals) -> Integers:
            return np.rint(values * 2.0**shift).astype(np.int64)

        return Relay(scaled(gain), scaled(bias + 0.5), shift, self.next_largest, self.skip, scaled(skip))


def exact(network: IntegerNetwork, values: Integers, device: torch.device) -> Integers:
    """What servers compute, by sums of integers that floating point has every one of: exact in any order.

    Args:
        network: One round's.
        values: [batch, *inputs].
        device: Where to compute.

    Returns:
        [batch, *outputs].
    """
    with torch.autocast(device.type, enabled=False):
        found = [_exact(network, part.to(device)) for part in torch.from_numpy(values).split(EXACT_IMAGES)]
    return torch.cat(found).cpu().numpy().astype(np.int64)


def _small(network: IntegerNetwork) -> bool:
    """Whether float32, which takes half the time, has every sum of the first map, which usually has most of them."""
    weight = network.maps[0].weight
    window = 1 if network.linear else network.pool**2  # without a square, what it takes are sums over windows
    reached = network.largest * window * np.abs(weight).reshape(len(weight), -1).sum(axis=1).max()
    return bool(reached <= EXACT_FLOAT32)


def _sums_plainly(values: Tensor) -> bool:
    """Whether convolutions only multiply and add. Other libraries transform first (Winograd), and round."""
    return values.is_cpu and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def _exact(network: IntegerNetwork, values: Tensor) -> Tensor:
    """The same for a few images, float64."""
    found = values.double()  # a GPU sums no windows of int64
    for index, layer in enumerate(network.maps):
        if index == len(network.linear) and network.pool > 1:
            found = F.avg_pool2d(found, network.pool, divisor_override=1)
        kind = torch.float32 if index == 0 and _small(network) and _sums_plainly(found) else torch.float64
        weight = torch.from_numpy(layer.weight).to(found.device, kind)
        found = linear_map(found.to(kind), weight, layer.over, layer.stride, layer.padding)
        found = found.view(-1, *layer.outputs).double()
        if index < len(network.linear):
            found = found * (found + torch.from_numpy(network.linear[index]).to(found)[:, None, None])
    return found
