"""The picture of bench/scaling.py: one panel for each curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw(path: Path, results: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Draw p50 and p99 of PrivDFS, p50 of the floor, what a request costs a server, and the calls in a second.

    Args:
        path: of the PNG.
        results: curves and their fitted growth.
        names: of the curves, and what grows in words.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(3.2 * len(names), 3.6), dpi=120, facecolor="white", layout="constrained")
    for axes, (name, what) in zip(figure.subplots(1, len(names)), names.items(), strict=True):
        points = results["curves"][name]
        sizes = [point["size"] for point in points]
        for label, style, colour in (("p50_ms", "o-", "#1f77b4"), ("p99_ms", "o:", "#1f77b4")):
            axes.plot(
                sizes, [point["privdfs"][label] for point in points], style, color=colour, label=f"PrivDFS {label[:3]}"
            )
        floor = [(point["size"], point["floor"]["p50_ms"]) for point in points if "floor" in point]
        if floor:
            axes.plot(*zip(*floor, strict=True), "s-", color="#2ca02c", label="floor p50", markersize=4)
        if "compute_ms" in points[0]:
            computed = [point["compute_ms"] for point in points]
            axes.plot(sizes, computed, "^-", color="#d95f0e", label="a server's compute", markersize=4)
        else:
            beside = axes.twinx()
            beside.plot(sizes, [point["per_second"] for point in points], "d-", color="#7f7f7f", markersize=4)
            beside.set_ylabel("calls a second (grey)")
            beside.set_ylim(bottom=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(what)
        axes.set_ylabel("milliseconds for one call")
        axes.spines["top"].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path)
