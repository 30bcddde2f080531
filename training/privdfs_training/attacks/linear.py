"""A linear attacker, solved in closed form: weak, and so cheap that it can look at every coalition.

It says which coalitions of a size a strong attacker should spend its time on, and how strong such an attacker must be
at the least.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Of the ridge, times the mean of the Gram matrix's diagonal: small, there for values that never change.
RIDGE = 1e-4
AT_ONCE = 5000
#: Values of more levels are told apart in so many equally filled steps.
STEPS = 16
#: Ridges to choose from where there are more values than pairs, as above; and the share of the pairs that chooses.
RIDGES, HELD_OUT = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e2), 0.1


@dataclass(frozen=True)
class LinearSums:
    """Sums over images, from which ridge regression of pixels on shares is solved for any coalition.

    Every level of every value has a weight of its own, so what a value means need not grow with it. Sums are made
    once; a coalition takes its rows and columns of them.

    Attributes:
        edges: Of every server, where another level begins.
        starts: Of every server, its first indicator; and, last, the number of indicators. Indicator 0 is constant.
        gram: Indicators times indicators, float64.
        cross: Indicators times pixels, float64.
        shape: Channels, height, width of an image.
    """

    edges: tuple[Tensor, ...]
    starts: tuple[int, ...]
    gram: Tensor
    cross: Tensor
    shape: tuple[int, ...]

    def __repr__(self) -> str:
        """Sizes, never values."""
        return f"LinearSums({len(self.edges)} servers, {len(self.gram)} indicators)"

    def kept(self, members: Sequence[int]) -> Tensor:
        """Indicators of a coalition, int64 [kept]."""
        return torch.tensor([0, *(at for one in members for at in range(self.starts[one], self.starts[one + 1]))])

    def weights(self, members: Sequence[int]) -> Tensor:
        """Weights of a coalition's indicators, float64 [kept, pixels]."""
        kept = self.kept(members)
        ridge = RIDGE * self.gram.diagonal().mean() * torch.eye(len(kept), dtype=self.gram.dtype)
        return torch.linalg.solve(self.gram[kept][:, kept] + ridge, self.cross[kept])


def linear_sums(
    shares: Sequence[Tensor], images: Tensor, edges: Sequence[Tensor] | None = None
) -> tuple[LinearSums, float]:
    """Look at pairs.

    Args:
        shares: One per server: int8 [images, values].
        images: uint8 [images, channels, height, width].
        edges: Of every server, where another level begins; None takes the levels that occur.

    Returns:
        The sums, and that of all pixels squared.
    """
    known = [_edges(share) for share in shares] if edges is None else list(edges)
    widths = [1, *(share.shape[1] * len(begins) for share, begins in zip(shares, known, strict=True))]
    parts = []
    for start in range(0, len(images), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        pixels = images[part].flatten(1).double() / 255
        columns = _indicators([share[part] for share in shares], known)
        parts.append((columns.T @ columns, columns.T @ pixels, pixels.square().sum()))
    gram, cross, power = (torch.stack(column).sum(dim=0) for column in zip(*parts, strict=True))
    starts = tuple(itertools.accumulate(widths))
    return LinearSums(tuple(known), starts, gram, cross, tuple(images.shape[1:])), float(power)


def linear_reconstruct(sums: LinearSums, members: Sequence[int], shares: Sequence[Tensor]) -> Tensor:
    """Reconstruct from the shares of one coalition.

    Args:
        sums: Over the attacker's own pairs.
        members: Servers of the coalition, in order.
        shares: Of the members, in that order: int8 [images, values].

    Returns:
        float32 [images, channels, height, width] in 0..1.
    """
    weights, known = sums.weights(members), [sums.edges[one] for one in members]
    parts = []
    for start in range(0, len(shares[0]), AT_ONCE):
        columns = _indicators([share[start : start + AT_ONCE] for share in shares], known)
        parts.append((columns @ weights).clamp(0, 1).float().unflatten(1, sums.shape))
    return torch.cat(parts)


def rank_by_linear_score(
    shares: Sequence[Tensor], images: Tensor, shares_test: Sequence[Tensor], images_test: Tensor, size: int
) -> list[tuple[int, ...]]:
    """Coalitions of a size, first those from whose shares ridge regression reconstructs other images best.

    Args:
        shares: One per server: int8 [images, values].
        images: uint8 [images, channels, height, width].
        shares_test: One per server: int8 [test images, values].
        images_test: uint8 [test images, channels, height, width].
        size: Number of servers in a coalition, from 1 to all.

    Returns:
        The members of each, in order.
    """
    servers = range(len(shares))
    if size == len(shares):
        return [tuple(servers)]
    return rank_groups(shares, images, shares_test, images_test, itertools.combinations(servers, size))


def rank_groups(
    parts: Sequence[Tensor],
    images: Tensor,
    parts_test: Sequence[Tensor],
    images_test: Tensor,
    groups: Iterable[tuple[int, ...]],
) -> list[tuple[int, ...]]:
    """As `rank_by_linear_score`, for any groups of any parts of what is sent, such as single values.

    Args:
        parts: int8 [images, values] each.
        images: uint8 [images, channels, height, width].
        parts_test: int8 [test images, values] each.
        images_test: uint8 [test images, channels, height, width].
        groups: Indices of parts.

    Returns:
        The groups, in order; those that are equally good as they came.
    """
    sums, _ = linear_sums(parts, images)
    test, power = linear_sums(parts_test, images_test, sums.edges)

    def error(members: tuple[int, ...]) -> float:
        """Sum of squared errors on the test images."""
        kept, weights = sums.kept(members), sums.weights(members)
        return power + float((weights * (test.gram[kept][:, kept] @ weights - 2 * test.cross[kept])).sum())

    return sorted(groups, key=error)


def by_linear_score(
    shares: Sequence[Tensor], images: Tensor, shares_test: Sequence[Tensor], images_test: Tensor, size: int
) -> tuple[int, ...]:
    """The first of `rank_by_linear_score`, whose arguments these are."""
    return rank_by_linear_score(shares, images, shares_test, images_test, size)[0]


def wide_reconstruct(shares: Tensor, images: Tensor, received: Tensor) -> Tensor:
    """Ridge regression of the pixels on thousands of values, each with one weight; solved with one unknown for a pair.

    Args:
        shares: [pairs, values], numbers.
        images: uint8 [pairs, channels, height, width].
        received: [targets, values].

    Returns:
        float32 [targets, channels, height, width] in 0..1.
    """
    rows, pixels = shares.flatten(1).float(), images.flatten(1).float() / 255
    mean, spread = rows.mean(dim=0), rows.std(dim=0)
    scale = torch.where(spread > 0, 1 / spread, 0.0) / max(1, rows.shape[1]) ** 0.5
    rows = (rows - mean) * scale
    middle = pixels.mean(dim=0)
    held = max(1, int(HELD_OUT * len(rows)))
    near, wanted = rows @ rows.T, pixels - middle

    def weights(count: int, ridge: float) -> Tensor:
        gram = near[:count, :count].double()
        eye = torch.eye(count, dtype=torch.float64) * ridge * gram.diagonal().mean()
        return torch.linalg.solve(gram + eye, wanted[:count].double()).float()

    def error(ridge: float) -> float:
        known = len(rows) - held
        return float((near[known:, :known] @ weights(known, ridge) - wanted[known:]).square().mean())

    best = weights(len(rows), min(RIDGES, key=error))
    parts = [middle + ((part.flatten(1).float() - mean) * scale) @ rows.T @ best for part in received.split(AT_ONCE)]
    return torch.cat(parts).clamp(0, 1).unflatten(1, images.shape[1:])


def _edges(share: Tensor) -> Tensor:
    """All levels of a server's values but the lowest; of many levels some."""
    levels = torch.unique(share)
    if len(levels) > STEPS:
        ordered = share.flatten().sort().values
        levels = torch.unique(ordered[torch.arange(STEPS) * len(ordered) // STEPS])
    return levels[1:].float()


def _indicators(shares: Sequence[Tensor], edges: Sequence[Tensor]) -> Tensor:
    """A constant, and of every value which of its levels it has, but the lowest: float64 [images, indicators]."""
    columns = [torch.ones(len(shares[0]), 1, dtype=torch.float64)]
    for share, begins in zip(shares, edges, strict=True):
        level = torch.bucketize(share.float(), begins, right=True)
        columns.append((level[:, :, None] == torch.arange(1, len(begins) + 1)).flatten(1).double())
    return torch.cat(columns, dim=1)
