"""What travels to servers of a coded release: whether it looks like noise, as it must.

A look from outside, beside the proof: it would see a generator that is off uniform, randomness that is used twice, and
shares that depend on each other. It says nothing of what a clever generator could hide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from privdfs.coding import Residues
from privdfs_bench.coded import CodedNetworks

#: Chance may do worse than this once in a thousand times.
LEAST_P = 1e-3
#: Values of a call that are compared with each other, and calls of one image.
COLUMNS, CALLS = 4096, 1024


@dataclass(frozen=True)
class WireCheck:
    """One look at what travels.

    Attributes:
        check: Its name.
        p: How often uniform, independent residues would look worse; already for all that was compared together.
        compared: Numbers, or pairs of them.
        largest: The largest correlation that was found; None where none was looked for.
    """

    check: str
    p: float
    compared: int
    largest: float | None = None


def check_wire(
    networks: CodedNetworks, images: NDArray[np.uint8], servers: int, colluding: int, amount: int
) -> list[WireCheck]:
    """Look at what travels to the servers, in every round.

    Args:
        networks: The release.
        images: uint8 [images, height, width, channels]; the first one is sent again and again.
        servers: N.
        colluding: T.
        amount: Bytes to count.

    Returns:
        Whether residues are uniform; any two values (of one server or several, of one prime or two) correlated; any two
        calls correlated; and two sharings of one image related.
    """
    counts = [[np.zeros(prime, np.int64) for prime in each.moduli] for each in networks.rounds]
    plain, seen = networks.plain(images), 0
    while seen < amount:
        for round_counts, shares in zip(counts, networks.sharings(images, plain, servers, colluding), strict=True):
            _count(round_counts, shares)
            seen += shares.size
    checks = [_uniform("uniform", [one for found in counts for one in found])]
    same = np.repeat(images[:1], CALLS, axis=0)
    calls = networks.sharings(same, networks.plain(same), servers, colluding)
    apart = [[np.zeros(prime, np.int64) for prime in each.moduli] for each in networks.rounds]
    for each, found, shares in zip(networks.rounds, apart, calls, strict=True):
        differences = shares[0::2].astype(np.int16) - shares[1::2]
        for column, prime in enumerate(each.moduli):
            found[column] += np.bincount((differences[:, :, column] % prime).ravel(), minlength=prime)
    checks.append(_uniform("two sharings of one image", [one for found in apart for one in found]))
    # Of as many servers as may collude: with one more, values do depend on each other.
    columns = np.concatenate([shares[:, :colluding].reshape(CALLS, -1) for shares in calls], axis=1)
    chosen = columns[:, np.linspace(0, columns.shape[1] - 1, min(COLUMNS, columns.shape[1])).astype(int)]
    return [*checks, _correlated("two values", chosen), _correlated("two calls", columns.T)]


def _count(counts: Sequence[NDArray[np.int64]], shares: Residues) -> None:
    """Add to how often each residue occurs; one that is none of its prime ends up in no other's place."""
    for column, count in enumerate(counts):
        prime = len(count)
        count[:] += np.bincount((shares[:, :, column].astype(np.int16) % prime).ravel(), minlength=prime)


def _uniform(check: str, counts: Sequence[NDArray[np.int64]]) -> WireCheck:
    """Chi-squared of each count by itself; the worst, for as many as there are."""
    worst = 1.0
    for found in counts:
        expected = found.sum() / len(found)
        squared = float(((found - expected) ** 2 / expected).sum())
        half = torch.tensor([(len(found) - 1) / 2, squared / 2], dtype=torch.float64)
        worst = min(worst, float(torch.special.gammaincc(half[0], half[1])))
    return WireCheck(check, _together(worst, len(counts)), int(sum(found.sum() for found in counts)))


def _correlated(check: str, columns: NDArray[np.int8]) -> WireCheck:
    """The largest correlation of any two columns of [samples, columns]; one that never changes counts as one with all.

    Under chance, a correlation times the root of the number of samples is about normal.
    """
    values = torch.from_numpy(np.ascontiguousarray(columns)).float()
    values -= values.mean(dim=0)
    spread = values.square().sum(dim=0).sqrt()
    if not bool((spread > 0).all()):
        return WireCheck(check, 0.0, columns.shape[1], 1.0)
    values /= spread
    found = (values.T @ values).abs().fill_diagonal_(0)
    largest, pairs = float(found.max()), columns.shape[1] * (columns.shape[1] - 1) // 2
    alone = math.erfc(largest * math.sqrt(len(columns) / 2))
    return WireCheck(check, _together(alone, pairs), pairs, largest)


def _together(least: float, tried: int) -> float:
    """How often chance does so badly in the worst of several tries."""
    return -math.expm1(tried * math.log1p(-min(least, 1 - 1e-16)))
