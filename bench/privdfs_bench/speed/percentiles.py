"""Percentiles of latencies, with confidence intervals that assume nothing about their distribution."""

import math
from collections.abc import Sequence
from typing import Any

CONFIDENCE = 0.95


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The smallest sample that is not below `fraction` of all samples (nearest rank).

    Args:
        ordered: samples in ascending order, at least one.
        fraction: above 0 and up to 1: 0.99 for p99.
    """
    return ordered[max(1, math.ceil(fraction * len(ordered))) - 1]


def percentile_interval(
    ordered: Sequence[float], fraction: float, confidence: float = CONFIDENCE
) -> tuple[float | None, float | None]:
    """Confidence interval of the true percentile, between two order statistics, with equal tails.

    The number of samples below the true percentile is binomial whatever the distribution; that gives the ranks. It
    takes samples to be independent, so slow phases of a machine make it too narrow.

    Args:
        ordered: samples in ascending order.
        fraction: which percentile, between 0 and 1: 0.99 for p99.
        confidence: that the interval holds it.

    Returns:
        Lower and upper end; None where too few samples were taken to bound that side.
    """
    tail, below = (1 - confidence) / 2, _binomial_cdf(len(ordered), fraction)
    # The r-th smallest sample is above the true percentile when fewer than r samples lie below it, and so on.
    lower = sum(1 for probability in below if probability <= tail)
    upper = next(rank for rank, probability in enumerate(below, start=1) if probability >= 1 - tail)
    return (
        ordered[lower - 1] if lower >= 1 else None,
        ordered[upper - 1] if upper <= len(ordered) else None,
    )


def samples_needed(fraction: float, confidence: float = CONFIDENCE) -> int:
    """How many samples bound a percentile on both sides; with fewer, `percentile_interval` leaves an end open."""
    tail = (1 - confidence) / 2
    return math.ceil(math.log(tail) / math.log(max(fraction, 1 - fraction)))


def _binomial_cdf(trials: int, chance: float) -> list[float]:
    """P(X <= k) for k = 0..trials."""
    total, cumulative = 0.0, []
    for hits in range(trials + 1):
        ways = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
        total += math.exp(ways + hits * math.log(chance) + (trials - hits) * math.log1p(-chance))
        cumulative.append(min(total, 1.0))
    cumulative[-1] = 1.0
    return cumulative


PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


def percentiles(samples: Sequence[float]) -> dict[str, Any]:
    """Percentiles of samples, each with its confidence interval; an end that too few samples bound is None."""
    ordered = sorted(samples)
    found: dict[str, Any] = {}
    for name, fraction in PERCENTILES.items():
        found[f"{name}_ms"] = round(percentile(ordered, fraction), 3)
        ends = percentile_interval(ordered, fraction)
        found[f"{name}_interval_ms"] = [None if end is None else round(end, 3) for end in ends]
    return found
