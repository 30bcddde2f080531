"""A row of soak.json, as the soak and the load write it."""

from typing import Any


def soak_row(**changes: Any) -> dict[str, Any]:
    """One run of the soak without a fault, but for what is changed."""
    grown = {"rss_mb": 0.1, "threads": 0, "fds": 6}
    row = {"calls": 10, "answered": 10, "answered_share": 1.0, "wrong": 0, "late": 0, "errors": {}, "p50_ms": 1.0}
    row |= {
        "p99_ms": 2.0,
        "slowest_ms": 3.0,
        "events": {"killed": 1},
        "servers": 3,
        "replicas": 2,
        "growth_after_warm_up": grown,
    }
    return row | changes
