"""A linear attacker, solved in closed form: weak, and so cheap that it can look at every coalition.

It says which coalition of a size a strong attacker should spend its time on.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

#: Of the ridge, times the mean of the Gram matrix's diagonal: small, there for values that never change.
RIDGE = 1e-4
AT_ONCE = 5000


def by_linear_score(
    shares: Sequence[Tensor], images: Tensor, shares_test: Sequence[Tensor], images_test: Tensor, size: int
) -> tuple[int, ...]:
    """The coalition of a size from whose shares ridge regression reconstructs other images best.

    Every level of every value has a weight of its own, so what a value means need not grow with it. Sums over the
    images are made once; a coalition takes its rows and columns of them.

    Args:
        shares: One per server: int8 [images, values].
        images: uint8 [images, channels, height, width].
        shares_test: One per server: int8 [test images, values].
        images_test: uint8 [test images, channels, height, width].
        size: Number of servers in the coalition, from 1 to all.

    Returns:
        Its members, in order.
    """
    servers = range(len(shares))
    if size == len(shares):
        return tuple(servers)
    levels = [torch.unique(share) for share in shares]
    widths = [1, *(share.shape[1] * (len(known) - 1) for share, known in zip(shares, levels, strict=True))]
    ends = torch.tensor(widths).cumsum(0).tolist()
    gram, cross, _ = _sums(shares, images, levels)
    gram_test, cross_test, power_test = _sums(shares_test, images_test, levels)
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)

    def error(members: tuple[int, ...]) -> float:
        """Sum of squared errors on the test images."""
        kept = torch.tensor([0, *(column for one in members for column in range(ends[one], ends[one + 1]))])
        weights = torch.linalg.solve((gram + ridge)[kept][:, kept], cross[kept])
        inner = (weights * (gram_test[kept][:, kept] @ weights - 2 * cross_test[kept])).sum()
        return float(power_test + inner)

    return min(itertools.combinations(servers, size), key=error)


def _sums(shares: Sequence[Tensor], images: Tensor, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over images of indicators times indicators, indicators times pixels, and pixels squared, float64."""
    parts = []
    for start in range(0, len(images), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        pixels = images[part].flatten(1).double() / 255
        columns = [torch.ones(len(pixels), 1, dtype=torch.float64)]
        for share, known in zip(shares, levels, strict=True):
            columns.append((share[part, :, None] == known[1:]).flatten(1).double())
        indicators = torch.cat(columns, dim=1)
        parts.append((indicators.T @ indicators, indicators.T @ pixels, pixels.square().sum()))
    return tuple(torch.stack(column).sum(dim=0) for column in zip(*parts, strict=True))  # type: ignore[return-value]
