"""The tables and the picture of bench/load.py."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

COSTS = ("clients_cpu_ms", "servers_cpu_ms", "queue_ms", "compute_ms")


def tables(results: Mapping[str, Any]) -> Iterator[Table]:
    """One for each system, one of throughputs within the bound, one of the overload."""
    heads = ("clients", "calls / s", "p50 ms", "p99 ms", "errors", "clients' CPU", "servers' CPU", "queue", "compute")
    for system in results["systems"].values():
        shown = _table(f"\n{system['what']} (CPU, queue and compute: ms a call, all servers together)", heads)
        for point in system["points"]:
            cells = [point["clients"], point["per_second"], point.get("p50_ms"), point.get("p99_ms")]
            cells += [sum(point["errors"].values()), *(point[name] for name in COSTS)]
            shown.add_row(*map(_cell, cells))
        yield shown
    shown = _table(
        f"\nMost calls a second with p99 within {results['bound_ms']:g} ms",
        ("system", "clients", "calls / s", "to unprotected", "a party"),
    )
    for name, system in results["systems"].items():
        best = system["best"] or {}
        ratio = results["to_unprotected"].get(name)
        party = results["party_to_unprotected"].get(name)
        shown.add_row(*map(_cell, (system["what"], best.get("clients"), best.get("per_second"), ratio, party)))
    yield shown
    heads = ("system", "phase", "clients", "calls / s", "p99 ms", "errors", "error p99 ms", "recovered after s")
    shown = _table("\nTen times the load", heads)
    for system in results["systems"].values():
        found = system.get("overload", {"phases": {}})
        for at, (phase, row) in enumerate(found["phases"].items()):
            cells = [system["what"], phase, found["clients"][at], row["per_second"], row.get("p99_ms")]
            cells += [sum(row["errors"].values()), row.get("error_p99_ms")]
            cells += [found["recovered_s"] if phase == "after" else None]
            shown.add_row(*map(_cell, cells))
    yield shown


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """Draw calls a second by clients, and p99 by calls a second.

    Args:
        path: of the PNG.
        results: what the result file holds.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(9, 4.2), dpi=120, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    for system in results["systems"].values():
        points = [point for point in system["points"] if "p99_ms" in point]
        rates = [point["per_second"] for point in points]
        left.plot([point["clients"] for point in points], rates, "o-", label=system["what"], markersize=4)
        right.plot(rates, [point["p99_ms"] for point in points], "o-", markersize=4)
    right.axhline(results["bound_ms"], color="#7f7f7f", linewidth=1, linestyle=":")
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xlabel("clients at once")
    left.set_ylabel("calls a second")
    right.set_xlabel("calls a second")
    right.set_ylabel("p99, ms")
    right.set_yscale("log")
    right.yaxis.set_major_formatter("{x:g}")
    left.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def _table(title: str, heads: tuple[str, ...]) -> Table:
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for head in heads:
        shown.add_column(head, justify="left" if head in {"system", "phase"} else "right")
    return shown
