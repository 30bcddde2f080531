"""The picture of all runs of the sweeps: accuracy lost against what a minority reconstructs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from privdfs_bench.audit.frontier import minority


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy lost against what a minority reconstructs; the size of a point is the client's compute.

    Args:
        results: as read from the result file.
        path: of the PNG.
    """
    sets = sorted({run["data"] for run in results["runs"]})
    figure = Figure(figsize=(8 * len(sets), 5.5), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False)
    for axis, name in zip(axes[0], sets, strict=True):
        floor = results["floors"][name]["class_mean"]
        points = {}
        for run in (run for run in results["runs"] if run["data"] == name):
            lost, leaked = 100 * (run["baseline"] - run["accuracy"]), minority(run)["psnr"]
            axis.scatter(leaked, lost, s=4000 * run["client_macs"] / run["baseline_macs"], alpha=0.6)
            points[run["name"].partition("-")[2]] = (leaked, lost)
        axis.axvline(floor, color="grey", linestyle=":", label=f"class mean, {floor:.2f} dB")
        axis.axhline(1, color="grey", linestyle="--", label="one point lost")
        axis.set(
            title=name,
            xlabel="worst minority, PSNR in dB (left is better)",
            ylabel="points of accuracy lost (down is better)",
        )
        axis.legend(loc="best", fontsize=8)
        for i, (run, point) in enumerate(sorted(points.items(), key=lambda one: one[1][1])):
            axis.annotate(
                run,
                point,
                xytext=(1.02, (i + 0.5) / len(points)),
                textcoords="axes fraction",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": "grey", "linewidth": 0.5},
            )
    figure.savefig(path, dpi=110)
