"""Pictures of bench/latency.py: distributions of all systems, and where the time of a call goes."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLOURS = {
    "privdfs": "#1f77b4",
    "floor": "#2ca02c",
    "baseline_triton": "#d95f0e",
    "http": "#1f77b4",
    "http_floor": "#2ca02c",
    "http_baseline": "#d95f0e",
}
OTHER_COLOUR = "#7f7f7f"
STAGE_COLOURS = {
    "decode": "#c6dbef",
    "encode": "#1f77b4",
    "wire": "#bdbdbd",
    "queue": "#fdae6b",
    "compute": "#d95f0e",
    "fusion": "#2ca02c",
    "rest": "#7f7f7f",
}
LINES = {"p50": "-", "p90": "--", "p99": ":"}


def draw_distributions(path: Path, results: dict[str, Any]) -> None:
    """Draw the distributions above each other, on one axis.

    Raises:
        OSError: the file cannot be written.
    """
    systems = results["systems"]
    everything = np.concatenate([values["samples_ms"] for values in systems.values()])
    edges = np.geomspace(max(everything.min() * 0.8, 1e-3), everything.max() * 1.25, 120)
    figure = Figure(figsize=(9, 1.3 * len(systems) + 1), dpi=120, facecolor="white", layout="constrained")
    rows = figure.subplots(len(systems), sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(rows, systems.items(), strict=True):
        axes.hist(values["samples_ms"], bins=edges, color=COLOURS.get(name, OTHER_COLOUR), alpha=0.75)
        for line, style in LINES.items():
            axes.axvline(values[f"{line}_ms"], color="black", linestyle=style, linewidth=1, label=line)
        numbers = ",  ".join(f"{line} {values[f'{line}_ms']:.2f}" for line in LINES)
        axes.set_title(f"{name}: {values['what']}:  {numbers} ms", fontsize=9, loc="left")
        axes.set_yticks([])
        axes.spines[["left", "top", "right"]].set_visible(False)
    rows[0].legend(fontsize=8, frameon=False, loc="upper right")
    rows[-1].set_xscale("log")
    rows[-1].set_xlabel("milliseconds for one call, logarithmic")
    rows[-1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    machine = results["made_by"]["machine"]
    samples = next(iter(systems.values()))["samples"]
    figure.suptitle(
        f"{results['release']}: {samples} calls each, all on one machine ({machine['processor']}, "
        f"{machine['cores']} cores)",
        fontsize=11,
    )
    figure.savefig(path)


def draw_stages(path: Path, results: dict[str, Any]) -> None:
    """Draw the stages of a mean call of PrivDFS one after the other, the servers below each other.

    Raises:
        OSError: the file cannot be written.
    """
    stages = results["stages"]
    servers = stages["servers"]
    figure = Figure(figsize=(9, 0.5 * (len(servers) + 2) + 1.3), dpi=120, facecolor="white", layout="constrained")
    axes = figure.subplots()
    labels = ["device", *(f"server {index}" for index in range(len(servers)))]
    begin = _bars(axes, 0, 0.0, {name: stages[f"{name}_ms"] for name in ("decode", "encode")})
    for row, server in enumerate(servers, start=1):
        _bars(axes, row, begin, {name: server[f"{name}_ms"] for name in ("wire", "queue", "compute")})
    end = begin + stages["slowest_server_ms"]
    axes.axvline(end, color="black", linewidth=0.8, linestyle=":")
    _bars(axes, 0, end, {name: stages[f"{name}_ms"] for name in ("fusion", "rest")})
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("milliseconds from the start of the call, means; dotted: the last answer of each call")
    handles = [Patch(color=colour) for colour in STAGE_COLOURS.values()]
    axes.legend(
        handles,
        list(STAGE_COLOURS),
        ncols=len(STAGE_COLOURS),
        fontsize=8,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.3),
    )
    figure.suptitle(f"{results['release']}: a mean call of {stages['mean_ms']:.2f} ms", fontsize=11)
    figure.savefig(path)


def _bars(axes: Axes, row: int, begin: float, stages: dict[str, float]) -> float:
    """Bars one after the other.

    Returns:
        Where the last ends.
    """
    for name, took in stages.items():
        axes.barh(row, max(took, 0.0), left=begin, color=STAGE_COLOURS[name], height=0.7)
        begin += max(took, 0.0)
    return begin
