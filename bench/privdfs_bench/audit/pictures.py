"""Pictures of an audit: what came out of every attack, and how that grows with servers and with queries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from privdfs._format import largest_coalition

#: Pixels between images, and the least width of an image in the picture.
GAP, SHOWN_WIDTH = 2, 56


@dataclass(frozen=True)
class Strip:
    """One row of the picture.

    Attributes:
        label: What stands to its left.
        images: uint8 [images, channels, height, width].
    """

    label: str
    images: NDArray[np.uint8]

    def __repr__(self) -> str:
        """No images."""
        return f"Strip({self.label!r}, {len(self.images)} images)"


def draw_reconstructions(path: Path, strips: Sequence[Strip]) -> None:
    """Draw strips below each other, every pixel as it is.

    Raises:
        OSError: The file cannot be written.
    """
    rows = [_side_by_side(strip.images) for strip in strips]
    height, width = rows[0].shape[0] / 100, rows[0].shape[1] / 100
    label = 0.055 * max(len(strip.label) for strip in strips) + 0.2  # inches
    figure = Figure(figsize=(label + width, height * len(rows)), dpi=100, facecolor="white")
    total = label + width
    for at, (strip, row) in enumerate(zip(strips, rows, strict=True)):
        axes = figure.add_axes((label / total, 1 - (at + 1) / len(rows), width / total, 1 / len(rows)))
        axes.imshow(row, interpolation="nearest", aspect="auto")
        axes.axis("off")
        axes.text(-0.01, 0.5, strip.label, transform=axes.transAxes, ha="right", va="center", fontsize=8)
    figure.savefig(path)


def draw_collusion(path: Path, entry: Mapping[str, Any]) -> None:
    """Draw what coalitions reconstruct above the class mean, by their size, a line for each attack.

    Args:
        path: Of the PNG.
        entry: Of the release in the result file.

    Raises:
        OSError: The file cannot be written.
    """
    figure, axes = _axes()
    sizes = sorted({one["size"] for one in entry["coalitions"]})
    for attack in dict.fromkeys(one["attack"] for one in entry["coalitions"]):
        rows = [one for one in worst_rows(entry) if one["attack"] == attack]
        points = [(one["size"], one["psnr"] - one["floor"]) for one in rows]
        spread = np.array([[one["psnr"] - one["interval"][0], one["interval"][1] - one["psnr"]] for one in rows])
        axes.errorbar(*zip(*points, strict=True), yerr=spread.T, fmt="o-", label=attack, markersize=4, capsize=2)
    minority = largest_coalition(max(sizes))
    axes.axvspan(0.5, minority + 0.5, color="#2ca02c", alpha=0.08)
    axes.text(0.55, 0.98, "minority", transform=axes.get_xaxis_transform(), va="top", color="#2ca02c", fontsize=8)
    axes.set_xlim(0.5, max(sizes) + 0.5)
    axes.set_xticks(sizes)
    axes.set_xlabel("servers that put their shares together, the worst coalition of each size")
    best = max(entry["undefended"].values(), default=None)
    beside = "" if best is None else f"; undefended split: {best - entry['floor']['class_mean']:+.1f} dB"
    _finish(figure, axes, f"{entry['release']}: collusion{beside}", path)


def draw_queries(path: Path, entry: Mapping[str, Any]) -> None:
    """Draw what a decoder reconstructs above the class mean, by the pairs that it was trained on.

    Args:
        path: Of the PNG.
        entry: As above, with queries.

    Raises:
        OSError: The file cannot be written.
    """
    figure, axes = _axes()
    rows = query_rows(entry)
    points = [(one["pairs"], one["psnr"] - one["floor"]) for one in rows]
    members = ", ".join(map(str, rows[0]["members"]))
    axes.plot(*zip(*points, strict=True), "o-", label=f"{rows[0]['attack']}, servers {members}")
    axes.set_xscale("log")
    axes.set_xticks([pairs for pairs, _ in points], [f"{pairs:,}" for pairs, _ in points], rotation=45, ha="right")
    axes.minorticks_off()
    axes.set_xlabel("pairs of image and share that the attacker learned from, logarithmic")
    _finish(figure, axes, f"{entry['release']}: queries", path)


def worst_rows(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every attack and size the worst coalition, the larger coalitions last."""
    worst: dict[tuple[int, str], dict[str, Any]] = {}
    for one in entry["coalitions"]:
        key = (one["size"], one["attack"])
        if key not in worst or one["psnr"] - one["floor"] > worst[key]["psnr"] - worst[key]["floor"]:
            worst[key] = one
    return sorted(worst.values(), key=lambda one: (one["size"], one["psnr"] - one["floor"]))


def query_rows(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The query-limited attackers, and last the same attack with all pairs; none if there was no such attack."""
    queries = sorted(entry["queries"], key=lambda one: one["pairs"])
    if not queries:
        return []
    same = ("attack", "members", "images")
    whole = [one for one in entry["coalitions"] if all(one[key] == queries[0][key] for key in same)]
    return [*queries, *whole[:1]]


def _side_by_side(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [images, channels, height, width] to one picture, uint8 [height, width, 3], with white between."""
    times = max(1, SHOWN_WIDTH // images.shape[3])
    coloured = np.repeat(images, 3, axis=1) if images.shape[1] == 1 else images
    large = coloured.repeat(times, axis=2).repeat(times, axis=3)
    spaced = np.pad(large, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP)), constant_values=255)
    return np.concatenate(list(spaced.transpose(0, 2, 3, 1)), axis=1)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 4.2), dpi=110, facecolor="white", layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Figure, axes: Axes, title: str, path: Path) -> None:
    """Say what the vertical axis is, and write."""
    axes.axhline(0, color="grey", linestyle=":", linewidth=1)
    axes.set_ylabel("dB above the class mean (dotted)")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="best")
    figure.savefig(path)
