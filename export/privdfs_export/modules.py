"""What the graphs of a masked release compute, as torch modules: `graphs` traces them."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.coded.system import CodedSystem
from privdfs_training.models.system import System
from privdfs_training.partitions import PartitionFamily


class Encoder(nn.Module):
    """Pixels to shares, as the device runs it."""

    def __init__(self, system: System) -> None:
        """Take the client's half of a system whose masks are frozen.

        Args:
            system: In evaluation mode.
        """
        super().__init__()
        self.head, self.quantiser = system.head, system.quantiser
        self.indices = [system.masks.indices(server) for server in range(system.masks.servers)]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            image: uint8 [batch, height, width, channels].

        Returns:
            One int8 [batch, values] per server.
        """
        feature = self.head(image.permute(0, 3, 1, 2)).flatten(1)
        return tuple(
            self.quantiser.integers(feature[:, indices], server).to(torch.int8)
            for server, indices in enumerate(self.indices)
        )


class PlacedBranch(nn.Module):
    """A branch that starts from the packed, dequantised share."""

    def __init__(self, system: System, server: int) -> None:
        """Take one server's half.

        Args:
            system: In evaluation mode, masks frozen.
            server: Which.
        """
        super().__init__()
        self.branch, self.shape = system.branches[server], system.masks.shape
        indices = system.masks.indices(server)
        self.channels = whole_channels(system, server)
        if self.channels is not None:
            self.branch = with_channels(self.branch, self.channels)
            self.shape = (len(self.channels), *self.shape[1:])
            return
        # Where each element of the feature finds its value: one past the end is the zero that pads the share.
        self.places = torch.full((math.prod(self.shape),), len(indices))
        self.places[indices] = torch.arange(len(indices))

    def forward(self, values: Tensor) -> Tensor:
        """Classify.

        Args:
            values: float [batch, values], in feature units.

        Returns:
            Logits, float [batch, classes].
        """
        if self.channels is not None:
            return self.branch(values.view(-1, *self.shape))
        return self.branch(F.pad(values, (0, 1))[:, self.places].view(-1, *self.shape))


def whole_channels(system: System, server: int) -> Tensor | None:
    """Channels of the feature that a server owns, where it owns nothing but whole channels.

    Args:
        system: Masks frozen.
        server: Which.

    Returns:
        int64 [channels], ascending; None where it owns parts of a channel.
    """
    owned = system.masks.owned[server].view(system.masks.shape[0], -1)
    if not torch.equal(owned.all(dim=1), owned.any(dim=1)):
        return None
    return torch.nonzero(owned.all(dim=1)).flatten()


def with_channels(branch: nn.Module, channels: Tensor) -> nn.Module:
    """A branch that takes some channels of the feature only: the others are zero, so the first convolution skips them.

    Args:
        branch: As it was trained; it is not changed.
        channels: Which, int64 [channels].

    Returns:
        A copy whose first convolution has the weights of these channels alone.
    """
    cut = copy.deepcopy(branch)
    name, first = next((name, module) for name, module in cut.named_children() if isinstance(module, nn.Conv2d))
    sliced = nn.Conv2d(
        len(channels),
        first.out_channels,
        first.kernel_size,  # pyright: ignore[reportArgumentType]  two numbers
        first.stride,  # pyright: ignore[reportArgumentType]
        first.padding,  # pyright: ignore[reportArgumentType]
        bias=first.bias is not None,
    )
    sliced.weight = nn.Parameter(first.weight.detach()[:, channels])
    sliced.bias = first.bias
    setattr(cut, name, sliced)
    return cut


class KeyedEncoder(nn.Module):
    """Pixels and the index of a partition to shares, as the device of a keyed release runs it."""

    def __init__(self, system: System, family: PartitionFamily) -> None:
        """Take the client's half of a keyed system whose masks are frozen.

        Args:
            system: In evaluation mode.
            family: Its partitions.
        """
        super().__init__()
        self.head, self.quantiser = system.head, system.quantiser
        self.tables = family.tables(system.masks.owned).to(torch.int32)

    def forward(self, image: Tensor, partition: Tensor) -> tuple[Tensor, ...]:
        """Encode.

        Args:
            image: uint8 [batch, height, width, channels].
            partition: int32 [batch, 1].

        Returns:
            One int8 [batch, values] per server.
        """
        feature = self.head(image.permute(0, 3, 1, 2)).flatten(1)
        places = self.tables[partition.squeeze(1)].long()
        return tuple(
            self.quantiser.integers(feature.gather(1, places[:, server]), server).to(torch.int8)
            for server in range(self.tables.shape[1])
        )


class KeyedBranch(nn.Module):
    """A branch that starts from the packed, dequantised share and the index of the partition that it is cut by."""

    def __init__(self, system: System, family: PartitionFamily, server: int) -> None:
        """Take one server's half of a keyed system.

        Args:
            system: In evaluation mode, masks frozen.
            family: Its partitions; only the places of this server are kept.
            server: Which.
        """
        super().__init__()
        self.branch, self.shape = system.branches[server], system.masks.shape
        self.table = family.tables(system.masks.owned)[:, server].to(torch.int32)

    def forward(self, values: Tensor, partition: Tensor) -> Tensor:
        """Classify.

        Args:
            values: float [batch, values], in feature units.
            partition: int32 [batch, 1].

        Returns:
            Logits, float [batch, classes].
        """
        places = self.table[partition.squeeze(1)].long()[:, None].expand(-1, 2, -1)
        given = torch.stack([values, torch.ones_like(values)], dim=1)
        channels, height, width = self.shape
        placed = values.new_zeros(values.shape[0], 2, channels * height * width).scatter(2, places, given)
        return self.branch(placed.view(-1, 2 * channels, height, width))


class FusionProbabilities(nn.Module):
    """Fusion, to probabilities."""

    def __init__(self, system: System) -> None:
        """Take the fusion.

        Args:
            system: In evaluation mode.
        """
        super().__init__()
        self.fusion = system.fusion

    def forward(self, logits: Tensor, answered: Tensor) -> Tensor:
        """Fuse.

        Args:
            logits: float [batch, servers, classes].
            answered: bool [batch, servers].

        Returns:
            Probabilities, float [batch, classes].
        """
        return self.fusion(logits, answered).softmax(dim=1)


class BaselinePixels(nn.Module):
    """The unprotected model on pixels as a device has them."""

    def __init__(self, system: System | CodedSystem) -> None:
        """Take the baseline.

        Args:
            system: In evaluation mode.
        """
        super().__init__()
        self.baseline = system.baseline

    def forward(self, image: Tensor) -> Tensor:
        """Classify.

        Args:
            image: uint8 [batch, height, width, channels].

        Returns:
            Logits, float [batch, classes].
        """
        # Cast first: TensorRT takes uint8 pixels, but can do nothing with them but cast them.
        return self.baseline(image.float().permute(0, 3, 1, 2))


def encoder_module(system: System) -> Encoder | KeyedEncoder:
    """What the encoder graph computes: pixels, and the partition in a keyed release, to shares.

    Args:
        system: In evaluation mode, masks frozen.
    """
    return Encoder(system) if system.family is None else KeyedEncoder(system, system.family)


def branch_module(system: System, server: int) -> PlacedBranch | KeyedBranch:
    """What a branch graph computes: dequantised values, and the partition in a keyed release, to logits.

    Args:
        system: In evaluation mode, masks frozen.
        server: Whose branch.
    """
    return PlacedBranch(system, server) if system.family is None else KeyedBranch(system, system.family, server)
