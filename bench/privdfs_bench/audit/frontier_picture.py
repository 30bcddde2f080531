"""The picture of the frontier: every release's accuracy against the device's compute, with what a minority learns."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from privdfs._format import largest_coalition

COLOURS = {"masked": "tab:orange", "coded": "tab:blue"}
LABELS_APART = 0.0425  # of the axis's height: a line of text
#: Under this name the PNG carries the digest of what it shows.
SHOWS = "shows"


class Point(NamedTuple):
    """One release in the picture.

    Attributes:
        name: The release's.
        data: Its data set.
        sharing: "masked" or "coded".
        compute: Device multiply-accumulates over the baseline's.
        accuracy: Over tritonservers.
        alone: Of a linear readout: what the device could answer without any server.
        baseline: Of the unprotected model.
        learnt: What the largest minority learns, in words.
    """

    name: str
    data: str
    sharing: str
    compute: float
    accuracy: float
    alone: float
    baseline: float
    learnt: str


def points(accuracy: Mapping[str, Any], privacy: Mapping[str, Any]) -> list[Point]:
    """The releases with a ResNet that have been measured.

    Args:
        accuracy: Entries of accuracy.json by name.
        privacy: Entries of privacy.json by name.

    Returns:
        One point a release, in the order of names.
    """
    return [
        Point(
            name,
            entry["data"].partition(",")[0],
            entry.get("sharing", "masked"),
            entry["client_macs"] / entry["baseline_macs"],
            entry["fused"],
            entry["linear_readouts"],
            entry["baseline"],
            _learnt(entry, privacy.get(name)),
        )
        for name, entry in sorted(accuracy.items())
        if entry["backbone"].startswith("resnet")
    ]


def _learnt(entry: Mapping[str, Any], audit: Mapping[str, Any] | None) -> str:
    """What the largest minority learns: proven of coded releases, measured of masked ones."""
    if entry.get("sharing") == "coded":
        return "nothing (proven)"
    if audit is None:
        return "not measured"
    worst = audit["worst"][str(largest_coalition(len(entry["branches"])))]
    return f"{worst['psnr'] - worst.get('floor', audit['floor']['class_mean']):+.2f} dB"


def draw(shown: Sequence[Point], path: Path) -> None:
    """Draw the picture, one panel a data set.

    Args:
        shown: The releases.
        path: Of the PNG.
    """
    sets = sorted({point.data for point in shown})
    figure = Figure(figsize=(7 * len(sets), 5), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    for axis, data in zip(axes, sets, strict=True):
        _panel(axis, data, [point for point in shown if point.data == data])
    figure.savefig(path, dpi=110, metadata={SHOWS: digest(shown)})


def _panel(axis: Axes, data: str, here: Sequence[Point]) -> None:
    """One data set: points with their names at the right, the bars as lines."""
    for point in here:
        colour = COLOURS[point.sharing]
        axis.plot([100 * point.compute] * 2, [100 * point.alone, 100 * point.accuracy], color=colour, alpha=0.3)
        axis.scatter(100 * point.compute, 100 * point.accuracy, s=70, color=colour, zorder=3)
        axis.scatter(100 * point.compute, 100 * point.alone, s=35, marker="_", color=colour, zorder=3)
    for sharing, colour in COLOURS.items():
        axis.scatter([], [], s=70, color=colour, label=f"{sharing} shares")
    axis.scatter([], [], s=35, marker="_", color="grey", label="linear readout on the device: no server")
    best = 100 * max(point.baseline for point in here)
    axis.axhline(best, color="grey", linewidth=0.8, label=f"unprotected model, {best:.2f} %")
    axis.axhline(best - 1, color="grey", linewidth=0.8, linestyle="--", label="one point below it")
    axis.axvline(5, color="grey", linewidth=0.8, linestyle=":", label="a twentieth of its compute")
    low, high = min(100 * point.alone for point in here), best
    axis.set(
        title=data,
        xscale="log",
        xlim=(2, 400),
        ylim=(low - 0.08 * (high - low), high + 0.1 * (high - low)),
        xlabel="device compute, % of the unprotected model's (left is better)",
        ylabel="accuracy in % (up is better)",
    )
    axis.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    axis.set_xticks([], minor=True)
    for point, height in zip(here, _apart(axis, here), strict=True):
        # Labels of neighbours stand in one column, so that none hides another's point.
        column = max(other.compute for other in here if other.compute < 3 * point.compute)
        axis.annotate(
            f"{point.name}: {point.learnt}",
            (100 * point.compute, 100 * point.accuracy),
            xytext=(100 * column * 1.35, height),
            textcoords="data",
            va="center",
            fontsize=8,
            color=COLOURS[point.sharing],
            bbox={"color": "white", "pad": 0.5},
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": COLOURS[point.sharing], "linewidth": 0.5},
        )
    axis.legend(loc="lower right", fontsize=8)


def _apart(axis: Axes, here: Sequence[Point]) -> list[float]:
    """Heights of the labels, in the points' order from top to bottom, none over another."""
    bottom, top = axis.get_ylim()
    least = LABELS_APART * (top - bottom)
    heights: dict[str, float] = {}
    above = top
    for point in sorted(here, key=lambda one: -one.accuracy):
        above = heights[point.name] = min(100 * point.accuracy, above - least)
    return [heights[point.name] for point in here]


def digest(shown: Sequence[Point]) -> str:
    """Of all that the picture shows."""
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def is_current(shown: Sequence[Point], path: Path) -> bool:
    """Whether a PNG shows these points.

    Args:
        shown: The releases.
        path: Of the PNG.
    """
    if not path.exists():
        return False
    with Image.open(path) as picture:
        return picture.info.get(SHOWS) == digest(shown)
