"""Keyed partitions: a public family of ways to deal the same values to the servers (PrivDFS-KD).

The masks choose the *pool*: the elements that any server gets. Partition 0 is the ownership that the masks learned.
Partition p deals the pool anew, and every server again gets `values` of its elements:

1. Words of 64 bits, little-endian, one for every unit of the feature, are read from SHAKE-256 of
   "privdfs deal", the seed and p (both as 8 bytes, big-endian). Sorting the units by their words gives the order of the
   deal. (A unit is an element, or a channel where whole channels are owned.)
2. The pool is dealt in this order: the first `values` elements to server 0, the next to server 1, and so on, from the
   beginning again where learned masks overlap and the pool is smaller than what the servers want together.

A user's key picks a partition (`privdfs.UserKey`). The branches are trained over the family, with a partition drawn for
each image. The idea of partitions that differ by user key is PrivDFS-KD's (arXiv 2508.04346v1, abstract); this family
is the project's own.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_CONTEXT = b"privdfs deal"
#: Partitions that `tables` deals at once.
_CHUNK = 256


class PartitionFamily(nn.Module):
    """All partitions of a keyed release.

    Attributes:
        order: The elements in the order of each partition's deal, int64 [partitions, elements].
        rank: Its inverse: when each element's turn comes, int64 [partitions, elements].
    """

    order: Tensor
    rank: Tensor

    def __init__(self, *, partitions: int, units: int, per_unit: int, values: int, seed: int) -> None:
        """Derive the orders of the deals; they are not saved, since they follow from the arguments.

        Args:
            partitions: Number of partitions, the learned one included.
            units: Of the feature: what is owned as a whole.
            per_unit: Elements of a unit, which lie side by side.
            values: Elements that each server gets.
            seed: Of the release; public.
        """
        super().__init__()
        self.partitions, self.values = partitions, values
        units_in_order = torch.from_numpy(deal_orders(seed, partitions, units))
        elements = units_in_order[..., None] * per_unit + torch.arange(per_unit)
        self.register_buffer("order", elements.flatten(1), persistent=False)
        self.register_buffer("rank", self.order.argsort(dim=1), persistent=False)

    def draw(self, batch: int) -> Tensor:
        """A random partition for every image, as in training.

        Args:
            batch: Number of images.

        Returns:
            int64 [batch].
        """
        return torch.randint(0, self.partitions, (batch,), device=self.order.device)

    def spread(self, batch: int) -> Tensor:
        """One partition after the other, as evenly as can be, for evaluation.

        Args:
            batch: Number of images.

        Returns:
            int64 [batch].
        """
        return torch.arange(batch, device=self.order.device) % self.partitions

    def forward(self, masks: Tensor, partitions: Tensor) -> Tensor:
        """Deal.

        Args:
            masks: Zeros and ones with or without a gradient, float [servers, channels, height, width].
            partitions: int64 [batch].

        Returns:
            Zeros and ones, float [batch, servers, channels, height, width]. The gradient flows into who is in the
            pool, also for elements outside it; partition 0 is `masks` itself.
        """
        owned = masks.flatten(1)
        owners = owned.sum(dim=0)
        inside = owners.detach() > 0.5
        in_order = inside[self.order[partitions]]
        # How many elements of the pool come before; an element outside the pool counts as the one before it, so that
        # its gradient is that of going to the same server.
        position = in_order.cumsum(dim=1) - 1
        starts = self.values * torch.arange(len(owned), device=owned.device)
        dealt = (position[:, None] - starts[:, None]).remainder(inside.sum()) < self.values
        dealt = dealt.gather(2, self.rank[partitions][:, None].expand(-1, len(owned), -1))
        pool = inside + owners - owners.detach()  # zeros and ones with the gradient of the owners
        dealt = torch.where((partitions == 0)[:, None, None], owned, dealt * pool)
        return dealt.view(len(partitions), *masks.shape)

    def tables(self, owned: Tensor) -> Tensor:
        """Which elements each server gets in each partition.

        Args:
            owned: The frozen ownership, bool [servers, elements].

        Returns:
            Positions in the flattened feature, ascending, int64 [partitions, servers, values].
        """
        masks, every = owned.float()[..., None, None], torch.arange(self.partitions, device=owned.device)
        dealt = torch.cat([self(masks, some).flatten(2) > 0.5 for some in every.split(_CHUNK)])
        return dealt.nonzero()[:, 2].view(self.partitions, len(owned), self.values)


def deal_orders(seed: int, partitions: int, units: int) -> NDArray[np.int64]:
    """The orders in which the partitions of a family deal the units of a feature.

    Args:
        seed: Of the release; public, 0 to 2**64 - 1.
        partitions: Number of partitions.
        units: Of the feature.

    Returns:
        A permutation of the units in every row, int64 [partitions, units].
    """
    streams = [
        hashlib.shake_256(_CONTEXT + seed.to_bytes(8, "big") + partition.to_bytes(8, "big")).digest(8 * units)
        for partition in range(partitions)
    ]
    words = np.frombuffer(b"".join(streams), "<u8").reshape(partitions, units)
    return words.argsort(axis=1, kind="stable").astype(np.int64)


def family_id(tables: Tensor) -> str:
    """Id of exactly these partitions: the first 16 bytes of SHA-256 of "privdfs family" and the tables, in hex.

    Args:
        tables: int64 [partitions, servers, values]; hashed as little-endian int32.

    Returns:
        32 hexadecimal digits.
    """
    data = tables.cpu().numpy().astype("<i4").tobytes()
    return hashlib.sha256(b"privdfs family" + data).hexdigest()[:32]
