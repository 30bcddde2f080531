"""What the graphs of a coded release compute, as torch modules; `coded_graphs` traces them and says what they promise.

See `privdfs.coding` for the mathematics.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_export.errors import ExportError
from privdfs_export.exact import EXACT
from privdfs_training.coded.rounds import IntegerMap, IntegerNetwork, Logits, Relay
from privdfs_training.coded.system import CodedSystem

#: No reduced value exceeds this, however its quotient was rounded: int8 holds it.
REDUCED = 127


def exact_pieces(layer: IntegerMap) -> list[tuple[int, int]]:
    """Cut a map's inputs so that no sum of products of reduced values reaches 2^24.

    Args:
        layer: With integer weights.

    Returns:
        First and last-plus-one of each piece's inputs: channels ("window"), values ("all") or positions.

    Raises:
        ExportError: A single input is too much, which no trained weight of at most 8 bits is.
    """
    loads = np.abs(_kernel(layer).numpy()).sum(axis=(2, 3)).astype(np.int64)  # [outputs, inputs]
    pieces, start, total = list[tuple[int, int]](), 0, np.zeros(len(loads), np.int64)
    for index in range(loads.shape[1]):
        column = loads[:, index] * REDUCED
        if column.max() >= EXACT:
            message = f"an input of {layer} counts for more than 2^24. Train it with smaller weights."
            raise ExportError(message)
        if (total + column).max() >= EXACT:
            pieces.append((start, index))
            start, total = index, np.zeros_like(total)
        total = total + column
    return [*pieces, (start, loads.shape[1])]


class Residues(nn.Module):
    """Reduces integers modulo each prime; primes lie within the batch axis."""

    def __init__(self, moduli: Sequence[int]) -> None:
        """Take the primes."""
        super().__init__()
        self.count = len(moduli)
        self.primes = torch.tensor(moduli, dtype=torch.float32)

    def forward(self, values: Tensor) -> Tensor:
        """[batch * primes, ...] to centred residues, up to an approximate quotient: magnitudes stay below 128."""
        shape = _sizes(values)[1:]
        split = values.reshape(-1, self.count, math.prod(shape))
        primes = self.primes[:, None]
        reduced = split - primes * torch.round(split * (1 / primes))
        return reduced.reshape(-1, *shape)

    def canonical(self, values: Tensor) -> Tensor:
        """As `forward`, of values that it gave: now the quotient is exact, and residues lie within half a prime."""
        return self(values)


class RoundModule(nn.Module):
    """What a server computes in one round, for all primes at once."""

    def __init__(self, network: IntegerNetwork, moduli: Sequence[int], sent: Sequence[int] = ()) -> None:
        """Take a round.

        Args:
            network: Its integers.
            moduli: The primes.
            sent: Which of the inputs travel, ascending; empty: all.
        """
        super().__init__()
        self.network, self.residues, self.count = network, Residues(moduli), len(moduli)
        self.weights = [_kernel(layer) for layer in network.maps]
        self.pieces = [exact_pieces(layer) for layer in network.maps]
        primes = np.array(moduli)[:, None]
        half = primes // 2
        # The linear term's factor modulo each prime, so that h + k stays small.
        self.linear = [torch.from_numpy(((k[None] + half) % primes - half).astype(np.float32)) for k in network.linear]
        self.places = None
        if len(sent):
            self.places = torch.full((math.prod(network.inputs),), len(sent))
            self.places[torch.tensor(sent)] = torch.arange(len(sent))

    def forward(self, share: Tensor) -> Tensor:
        """Evaluate.

        Args:
            share: int8 [batch, primes, values].

        Returns:
            int8 [batch, primes, outputs], centred residues.
        """
        values = share.float()
        if self.places is not None:
            values = F.pad(values, (0, 1))[:, :, self.places]
        values = values.reshape(-1, *self.network.inputs)
        for index in range(len(self.network.linear)):
            values = self._map(index, values)
            values = self.residues(values * self._plus_linear(index, values))
        if self.network.pool > 1:
            area = self.network.pool**2
            # There is no sum over windows; a mean times their area is off by rounding where it is no power of two.
            values = self.residues(torch.round(F.avg_pool2d(values, self.network.pool) * area))
        values = self.residues.canonical(self._map(len(self.network.linear), values))
        return values.reshape(-1, self.count, math.prod(self.network.outputs)).to(torch.int8)

    def _plus_linear(self, index: int, values: Tensor) -> Tensor:
        """H + k, whose k is another residue for each prime."""
        _, channels, *rest = _sizes(values)
        split = values.reshape(-1, self.count, channels, math.prod(rest))
        return (split + self.linear[index][:, :, None]).reshape(-1, channels, *rest)

    def _map(self, index: int, values: Tensor) -> Tensor:
        """A linear map, always as a convolution: of a matrix product ONNX Runtime would make an inexact MatMulNBits."""
        layer, weight = self.network.maps[index], self.weights[index]
        if layer.over == "all":
            values = values.reshape(-1, weight.shape[1], 1, 1)
        elif layer.over == "positions":  # they become channels, and channels become positions
            channels, height, width = _sizes(values)[1:]
            values = values.reshape(-1, channels, height * width).transpose(1, 2).unsqueeze(3)
        total: Tensor | None = None
        for first, last in self.pieces[index]:
            whole = (first, last) == (0, int(weight.shape[1]))
            taken, part = (values, weight) if whole else (values[:, first:last], weight[:, first:last])
            result = self.residues(F.conv2d(taken, part, None, layer.stride, layer.padding))
            total = result if total is None else self.residues(total + result)
        assert total is not None  # noqa: S101 - there is at least one piece
        if layer.over == "positions":
            # Not squeeze(3), of which the exporter makes an If.
            total = total.reshape(-1, *_sizes(total)[1:3]).transpose(1, 2)
        return total.reshape(-1, *layer.outputs)


class Sharing(nn.Module):
    """Shares integers among servers: Shamir's polynomials with coefficients that are inputs."""

    def __init__(self, moduli: Sequence[int]) -> None:
        """Take the primes."""
        super().__init__()
        self.primes = torch.tensor(moduli, dtype=torch.float32)[:, None, None]

    def forward(self, values: Tensor, randomness: Tensor, powers: Tensor) -> Tensor:
        """Share.

        Every sum is a whole number of at most 127 + 16 x 120 x 120 < 2^18. Below 2^22 its quotient by a prime p is off
        by less than 1 / (2 p), which is how close it can come to a tie: one reduction gives the canonical residue.

        Args:
            values: Integers that int8 holds, float [batch, values].
            randomness: int8 [batch, colluding, primes, values], uniform centred residues, never used before.
            powers: int8 [primes, servers, colluding], a_i to the power of 1 .. T modulo each prime, centred.

        Returns:
            int8 [batch, servers, primes, values].
        """
        # [primes, servers, T] x [batch, primes, T, values]; what is permuted is as small as it gets
        blinded = torch.matmul(powers.float(), randomness.permute(0, 2, 1, 3).float())
        return _reduced(values[:, None, None, :] + blinded, self.primes).to(torch.int8).permute(0, 2, 1, 3)


class Decoding(nn.Module):
    """Integers from the answers of enough servers: interpolation at 0, then the Chinese remainder theorem."""

    def __init__(self, moduli: Sequence[int]) -> None:
        """Take the primes."""
        super().__init__()
        product = math.prod(moduli)
        others = [product // prime for prime in moduli]  # each is zero modulo all primes but its own
        inverses = [pow(other, -1, prime) for other, prime in zip(others, moduli, strict=True)]
        self.product = torch.tensor(product, dtype=torch.float64)
        self.primes, self.others, self.inverses = (
            torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (moduli, others, inverses)
        )

    def forward(self, answers: Tensor, weights: Tensor) -> Tensor:
        """Decode.

        Sums of products of residues stay below 2^18, as in `Sharing`. Six residues times products of five primes stay
        below 2^50, and float64 has all whole numbers up to 2^53. The quotient of the last reduction is less than 4, so
        it is off by less than 2^-50, and no result that the primes tell apart is so close to half their product.

        Args:
            answers: int8 [batch, answered, primes, outputs].
            weights: int8 [primes, answered], what each answer counts for, centred residues.

        Returns:
            Whole numbers, float64 [batch, outputs].
        """
        # [primes, 1, answered] x [batch, primes, answered, outputs]
        sums = torch.matmul(weights.float()[:, None], answers.permute(0, 2, 1, 3).float()).double()
        joined = (self.others * _reduced(sums * self.inverses, self.primes)).sum((1, 2))
        return _reduced(joined, self.product)


def _reduced(values: Tensor, primes: Tensor) -> Tensor:
    """Whole numbers to centred residues, which are canonical where the quotient, before rounding, is precise enough."""
    return values - primes * torch.round(values * (1 / primes))


class CodedEncoder(nn.Module):
    """Pixels to shares of the first round, and the integers that are shared, for a later round that adds them."""

    def __init__(self, system: CodedSystem, moduli: Sequence[int], sent: Sequence[int]) -> None:
        """Take the device's head.

        Args:
            system: In evaluation mode.
            moduli: The primes of the first round.
            sent: Which values travel, ascending; empty: all.
        """
        super().__init__()
        self.system, self.sharing, self.sent = system, Sharing(moduli), list(sent)

    def forward(self, image: Tensor, randomness: Tensor, powers: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            image: uint8 [batch, height, width, channels].
            randomness: As `Sharing` takes it.
            powers: As there.

        Returns:
            Shares int8 [batch, servers, primes, values sent], and what the feature's values are, int8 [batch, values],
            zero where nothing is sent.
        """
        values = self.system.values(image.permute(0, 3, 1, 2)).flatten(1)
        sent = values[:, self.sent] if self.sent else values
        return self.sharing(sent, randomness, powers), values.to(torch.int8)


class RelayModule(nn.Module):
    """Answers of one round to the shares of the next."""

    def __init__(self, relay: Relay, moduli: Sequence[int], next_moduli: Sequence[int], positions: int) -> None:
        """Take what the device does between two rounds.

        Args:
            relay: Its integers.
            moduli: The primes of the round that was answered.
            next_moduli: Those of the next one.
            positions: Height times width of the results.
        """
        super().__init__()
        self.decoding, self.sharing, self.relay = Decoding(moduli), Sharing(next_moduli), relay
        # Moved up by `largest` steps, so that whatever is not cut is not negative, and a division rounds it down.
        offset = relay.offset + (relay.largest << relay.shift)
        self.multiplier, self.offset, self.skip = (
            torch.from_numpy(np.repeat(values, positions))
            for values in (relay.multiplier, offset, relay.skip_multiplier)
        )

    def forward(
        self, answers: Tensor, weights: Tensor, randomness: Tensor, powers: Tensor, added: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Go on.

        Args:
            answers: As `Decoding` takes them.
            weights: As there.
            randomness: As `Sharing` takes it.
            powers: As there.
            added: What an earlier round shared, int8 [batch, values], where this one adds it.

        Returns:
            Shares int8 [batch, servers, primes, values], and what they share, int8 [batch, values].
        """
        scaled = self.decoding(answers, weights).to(torch.int64) * self.multiplier + self.offset
        if added is not None:
            scaled = scaled + added.to(torch.int64) * self.skip
        steps = torch.div(torch.maximum(scaled, torch.tensor(0)), 2**self.relay.shift, rounding_mode="trunc")
        values = torch.clamp(steps.float(), max=2 * self.relay.largest) - self.relay.largest
        return self.sharing(values, randomness, powers), values.to(torch.int8)


class CodedFusion(nn.Module):
    """Answers of the last round to probabilities."""

    def __init__(self, logits: Logits, moduli: Sequence[int]) -> None:
        """Take the last round's scaling.

        Args:
            logits: Its factors.
            moduli: The primes of the last round.
        """
        super().__init__()
        self.decoding = Decoding(moduli)
        self.gain, self.bias = torch.from_numpy(logits.gain), torch.from_numpy(logits.bias)

    def forward(self, answers: Tensor, weights: Tensor) -> Tensor:
        """Probabilities, float32 [batch, classes]; arguments as `Decoding` takes them."""
        logits = self.decoding(answers, weights) * self.gain + self.bias
        return torch.softmax(logits.float(), dim=1)


def _sizes(values: Tensor) -> tuple[int, ...]:
    """Lengths of the axes as plain numbers, which a trace takes as they are."""
    return tuple(int(size) for size in values.shape)


def _kernel(layer: IntegerMap) -> Tensor:
    """A map's weights as those of a convolution, float32 [outputs, inputs, height, width]."""
    weight = torch.from_numpy(layer.weight.astype(np.float32))
    return weight if layer.over == "window" else weight[:, :, None, None]
