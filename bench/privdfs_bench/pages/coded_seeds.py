"""The table of coded releases trained from several seeds, in docs/FRONTIER.md."""

import statistics
from collections.abc import Mapping
from typing import Any

from privdfs_bench.pages.marks import source


def coded_seeds_table(
    seeds: Mapping[str, Any], accuracy_of_seeds: Mapping[str, Any], accuracy: Mapping[str, Any]
) -> str:
    """Markdown table of coded releases and the same from other seeds, with mean and spread.

    Args:
        seeds: seeds.json, whose runs are called after their release, as fashion-coded-seed-1.
        accuracy_of_seeds: Releases of seeds-accuracy.json.
        accuracy: Releases of accuracy.json.
    """
    runs = _runs(accuracy_of_seeds)
    attacked = {run["name"]: run for run in seeds.get("coded", [])}
    if not runs:
        return "Coded releases have one seed so far: `python bench/frontier.py configs/seeds/fashion-coded.toml`."
    rows = [
        "| release | seed | coded | minus baseline | minus linear readout | T + 1 servers, above class mean |",
        "| --- " * 6 + "|",
    ]
    about = []
    for name in sorted(set(map(_release, runs))):
        found: dict[str, tuple[float | None, ...]] = {"0, the release": (*_points(accuracy[name]), None)}
        for run in (run for run in runs if _release(run) == name):
            measured, decoded = accuracy_of_seeds[run], None
            if attack := attacked.get(run):
                decoded = attack["decoded"]["psnr"] - attack["floor"]["class_mean"]
                about.append(source(attack["made_by"]))
            found[run.rpartition("-")[2]] = (*_points(measured), decoded)
            about.append(source(measured["made_by"]))
        columns = [[value for value in column if value is not None] for column in zip(*found.values(), strict=True)]
        found["mean"] = tuple(statistics.mean(column) if column else None for column in columns)
        found["standard deviation"] = tuple(statistics.stdev(column) if len(column) > 1 else None for column in columns)
        rows += [_row(name, seed, values) for seed, values in found.items()]
    told = (
        "Over tritonservers, all test images. The last column is that of one decoder of effort `standard`, on the test "
        "images or on those that training held out; the release's own audit stands in PRIVACY.md. An empty cell has "
        "not been measured."
    )
    return "\n".join(rows) + f"\n\n{told} {'; '.join(about)}."


def minus_baseline(accuracy_of_seeds: Mapping[str, Any], accuracy: Mapping[str, Any]) -> dict[str, list[float]]:
    """Points over the baseline of each coded release that has other seeds: its own, then theirs; arguments as above."""
    found: dict[str, list[float]] = {}
    for run in _runs(accuracy_of_seeds):
        name = _release(run)
        found.setdefault(name, [_points(accuracy[name])[1]]).append(_points(accuracy_of_seeds[run])[1])
    return found


def _runs(accuracy_of_seeds: Mapping[str, Any]) -> list[str]:
    """Coded runs from other seeds; those of masked shares have no rounds."""
    return [run for run, measured in accuracy_of_seeds.items() if "rounds" in measured]


def _release(run: str) -> str:
    """The release that a run repeats."""
    return run.rpartition("-seed-")[0]


def _points(entry: Mapping[str, Any]) -> tuple[float, float, float]:
    """Accuracy in percent, and its points over baseline and readout."""
    fused, baseline, readout = (100 * entry[key] for key in ("fused", "baseline", "linear_readouts"))
    return fused, fused - baseline, fused - readout


def _row(name: str, seed: str, values: tuple[float | None, ...]) -> str:
    sign = "" if seed == "standard deviation" else "+"
    shapes = (".2f", "%"), (f"{sign}.2f", ""), (f"{sign}.2f", ""), (f"{sign}.2f", " dB")
    shown = (
        "" if value is None else f"{value:{shape}}{unit}" for value, (shape, unit) in zip(values, shapes, strict=True)
    )
    return f"| {name} | {seed} | {' | '.join(shown)} |"
