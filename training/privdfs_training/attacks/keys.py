"""Shares of a keyed release, where the values that a server gets differ from user to user.

A branch needs to know which partition a share is of, so an attacker does too. One that is after a single user makes
its pairs under that user's partition; one that learns once for all users puts every value in its place in the feature
(`placed`); one that does not know the partition learns from shares as they come, and shows what the rest is worth.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def other_partitions(count: int, partitions: int, known: Sequence[int], *, seed: int) -> Tensor:
    """Partitions for an attacker's pairs, none of which is the user's that it is after.

    Args:
        count: Of pairs.
        partitions: Of the release.
        known: The user's.
        seed: Of the draw.

    Returns:
        int64 [pairs].
    """
    others = torch.tensor([one for one in range(partitions) if one not in set(known)])
    return others[torch.randint(len(others), (count,), generator=torch.Generator().manual_seed(seed))]


def pool_of(tables: Tensor, members: Sequence[int]) -> Tensor:
    """The elements of the feature that some servers get in any partition.

    Args:
        tables: Places, int64 [partitions, servers, values].
        members: Servers.

    Returns:
        Ascending places, int64 [pool].
    """
    return torch.unique(tables[:, list(members)])


def placed(shares: Tensor, places: Tensor, pool: Tensor) -> Tensor:
    """Values in their places, and beside them which are there.

    Args:
        shares: int8 [images, values].
        places: Of each in the feature, int64 [images, values]; all are in the pool.
        pool: As `pool_of` gives it.

    Returns:
        Float [images, 2 * pool]: the values, zero where there is none; then ones where there is one.
    """
    at = torch.searchsorted(pool, places.contiguous())
    values = torch.zeros(len(shares), len(pool)).scatter_(1, at, shares.float())
    there = torch.zeros(len(shares), len(pool)).scatter_(1, at, 1.0)
    return torch.cat([values, there], dim=1)
