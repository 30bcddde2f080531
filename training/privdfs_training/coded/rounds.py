"""A trained round as plain integers: what servers compute, what the device makes of it, and what both must know.

`IntegerRound` holds the numbers and evaluates them with int64 alone, as they are or modulo a prime as a server does;
training, export and tests are held to what it gives. `Round` describes it, for a manifest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privdfs.coding import Integers, centred

Shape = tuple[int, int, int]
Over = Literal["window", "all", "positions"]


@dataclass(frozen=True)
class Round:
    """Description of one round, of plain integers and tuples.

    Attributes:
        inputs: Channels, height, width of what the device shares.
        outputs: The same of what it decodes.
        sent: Which of the inputs travel, ascending, in the order of channels, rows, columns; the others are zero for
            everybody. Empty: all.
        largest: Magnitude that no shared value exceeds.
        degree: Of the servers' polynomial.
        moduli: The fewest primes that tell all results apart.
        bound: Magnitude that no result can exceed, whatever is shared; proven.
        seen: Largest magnitude met on some training images; it promises nothing.
        skip: Number of the round, from 1, whose shared values the device adds to the results; 0: none.
        shift: Binary digits that the device drops when it makes the next values; 0 in the last round.
        macs: Multiply-accumulates of one server's maps for one image and one prime.
    """

    inputs: Shape
    outputs: Shape
    sent: tuple[int, ...]
    largest: int
    degree: int
    moduli: tuple[int, ...]
    bound: int
    seen: int
    skip: int
    shift: int
    macs: int


@dataclass(frozen=True)
class IntegerMap:
    """One linear map with integer weights.

    Attributes:
        over: "window": a convolution, "all": of everything at once, "positions": of each channel's positions alike.
        weight: int64 [outputs, inputs, kernel, kernel], [outputs, values] or [positions out, positions].
        outputs: Channels, height, width that it gives.
        stride: Of a convolution.
        padding: Zeros on each side, of a convolution.
    """

    over: Over
    weight: Integers
    outputs: Shape
    stride: int
    padding: int

    def __repr__(self) -> str:
        """Sizes, never weights."""
        return f"IntegerMap({self.over!r}, {self.weight.shape})"

    def __call__(self, values: Integers) -> Integers:
        """[batch, channels, h, w] to [batch, *outputs], int64."""
        if self.over == "all":
            mapped = values.reshape(len(values), -1) @ self.weight.T
        elif self.over == "positions":
            mapped = values.reshape(*values.shape[:2], -1) @ self.weight.T
        else:
            size = self.weight.shape[-1]
            padded = np.pad(values, ((0, 0), (0, 0), *[(self.padding,) * 2] * 2))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))
            windows = windows[:, :, :: self.stride, :: self.stride]
            mapped = np.moveaxis(np.tensordot(windows, self.weight, ((1, 4, 5), (1, 2, 3))), 3, 1)
        return mapped.reshape(len(values), *self.outputs)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        channels, height, width = self.outputs
        times = {"window": height * width, "all": 1, "positions": channels}[self.over]
        return self.weight.size * times


@dataclass(frozen=True)
class IntegerNetwork:
    """What every server computes in one round: a polynomial of degree 2 to the power of the number of squares.

    Attributes:
        inputs: Channels, height, width of what is shared.
        largest: Magnitude that no shared value exceeds.
        maps: The linear maps; after each but the last comes `h * (h + k)`.
        linear: k of each of these, int64 [channels].
        pool: Height and width of the windows that are summed before the last map.
    """

    inputs: Shape
    largest: int
    maps: tuple[IntegerMap, ...]
    linear: tuple[Integers, ...]
    pool: int

    @property
    def degree(self) -> int:
        """Of the polynomial."""
        return 2 ** len(self.linear)

    @property
    def outputs(self) -> Shape:
        """Channels, height, width of the results."""
        return self.maps[-1].outputs

    def __call__(self, values: Integers, modulus: int | None = None) -> Integers:
        """Evaluate the polynomial.

        Args:
            values: Shared values, or residues of them, [batch, *inputs].
            modulus: The prime; None computes the integers themselves.

        Returns:
            Results, or their centred residues, [batch, *outputs].
        """

        def reduced(values: Integers) -> Integers:
            return values if modulus is None else centred(values, modulus)

        for layer, k in zip(self.maps[:-1], self.linear, strict=True):
            values = reduced(layer(values))
            values = reduced(values * (values + k[:, None, None]))
        batch, channels, height, width = values.shape
        windows = values.reshape(batch, channels, height // self.pool, self.pool, width // self.pool, self.pool)
        return reduced(self.maps[-1](reduced(windows.sum(axis=(3, 5)))))


@dataclass(frozen=True)
class Relay:
    """How the device makes the values of the next round: results scaled, shifted to bias and skip, rounded, cut.

    The lower cut is a ReLU, since the offset moves what is cut off there.

    Attributes:
        multiplier: int64 [channels].
        offset: int64 [channels]; with one half of what the shift drops, so that it rounds.
        shift: Binary digits that are dropped.
        largest: Magnitude at which values are cut.
        skip: Number of the round, from 1, whose shared values are added; 0: none.
        skip_multiplier: Of these values, int64 [channels].
    """

    multiplier: Integers
    offset: Integers
    shift: int
    largest: int
    skip: int
    skip_multiplier: Integers

    def __call__(self, results: Integers, shared: Sequence[Integers]) -> Integers:
        """The next values.

        Args:
            results: [batch, channels, h, w].
            shared: What was shared in every round so far, the one of the results included.

        Returns:
            Same shape, magnitudes up to `largest`.
        """
        scaled = results * self.multiplier[:, None, None] + self.offset[:, None, None]
        if self.skip:
            scaled = scaled + shared[self.skip - 1] * self.skip_multiplier[:, None, None]
        return np.clip(scaled >> self.shift, -self.largest, self.largest)


@dataclass(frozen=True)
class Logits:
    """How the device makes the answer of the last round's results.

    Attributes:
        gain: float64 [classes].
        bias: float64 [classes].
    """

    gain: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, results: Integers) -> NDArray[np.float32]:
        """[batch, classes, 1, 1] to float32 [batch, classes]."""
        return (results[:, :, 0, 0] * self.gain + self.bias).astype(np.float32)


@dataclass(frozen=True)
class IntegerRound:
    """One round: the servers' part and the device's.

    Attributes:
        network: What every server computes on its share.
        device: What the device makes of the decoded results; `Logits` in the last round.
    """

    network: IntegerNetwork
    device: Relay | Logits


def run(rounds: Sequence[IntegerRound], values: Integers) -> tuple[list[Integers], list[Integers], NDArray[np.float32]]:
    """All rounds with plain int64 arithmetic and no shares: what everything else is compared with.

    Args:
        rounds: In order.
        values: What the first one takes, [batch, channels, h, w].

    Returns:
        What is shared in each round, each round's results, and the logits.
    """
    shared, results = [values], list[Integers]()
    for current in rounds:
        results.append(current.network(shared[-1]))
        if isinstance(current.device, Logits):
            break
        shared.append(current.device(results[-1], shared))
    final = rounds[-1].device
    if not isinstance(final, Logits):
        message = "the last round gives logits"
        raise TypeError(message)
    return shared, results, final(results[-1])
