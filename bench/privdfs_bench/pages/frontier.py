"""The figures of docs/FRONTIER.md."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from privdfs._format import largest_coalition
from privdfs_bench.audit.frontier_picture import Point, draw, is_current, points
from privdfs_bench.pages import break_even
from privdfs_bench.pages.bars import bars_table, held_table, lied_to, point_of_release, point_of_run
from privdfs_bench.pages.coded_bars import coded_held_table
from privdfs_bench.pages.coded_privacy import masked_alone
from privdfs_bench.pages.coded_seeds import coded_seeds_table, minus_baseline
from privdfs_bench.pages.marks import between, source
from privdfs_bench.results import ROOT, read_results

DOCUMENT = ROOT / "docs" / "FRONTIER.md"
PICTURE = "frontier.png"
CODED_TOLD = (
    "Bold: missed. Where no seeds are named there is one. That a minority learns nothing is proven; the attack is a "
    "check of the code. What T + 1 servers reconstruct has no bar. An empty cell has not been measured."
)


def figures(folder: Path) -> str:
    """Everything between the marks of docs/FRONTIER.md: which bars hold together, the sweeps' runs, and other seeds.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    accuracy, privacy, sweeps, seeds, accuracy_of_seeds = (
        read_results(folder / f"{name}.json") for name in ("accuracy", "privacy", "frontier", "seeds", "seeds-accuracy")
    )
    everything, audited = accuracy.get("releases", {}), privacy.get("releases", {})
    accuracy, privacy = (masked_alone(one) if one else one for one in (accuracy, privacy))
    if not sweeps:
        return between("Not measured yet: `python bench/frontier.py`.")
    coded, others = sweeps.get("coded", []), accuracy_of_seeds.get("releases", {})
    floors = {name: floor["class_mean"] for name, floor in sweeps["floors"].items()}
    points = [point_of_run(run, floors[run["data"]]) for run in sweeps["runs"]]
    points += [
        point_of_release(name, entry, privacy["releases"][name])
        for name, entry in accuracy.get("releases", {}).items()
        if name in privacy.get("releases", {})
    ]
    return between(
        "## From which model on a call pays",
        break_even.table(folder, everything),
        "## Which bars the coded releases meet",
        coded_held_table(
            everything,
            audited,
            points,
            minus_baseline(others, everything),
        ),
        CODED_TOLD,
        "## A larger model",
        larger_table(read_results(folder / "larger.json").get("releases", {})),
        "## Which bars the masked releases meet",
        held_table(accuracy.get("releases", {}), privacy.get("releases", {})),
        "## Which bars hold together",
        bars_table(points),
        *(
            f"## Search for coded shares on {name}\n\n{search_table(coded, name)}"
            for name in sorted({run["data"] for run in coded})
        ),
        *(f"## Sweep on {name}\n\n{sweep_table(sweeps['runs'], name, floors[name])}" for name in sorted(floors)),
        "## Seeds",
        coded_seeds_table(seeds, others, everything),
        seeds_table(seeds, accuracy_of_seeds, accuracy, privacy)
        if seeds and accuracy_of_seeds
        else "Not measured yet: configs/seeds/fashion.toml.",
    )


def larger_table(measured: Mapping[str, Any]) -> str:
    """Markdown of coded systems whose unprotected model is too large to be checked in; releases of larger.json."""
    if not measured:
        return "Not measured yet: `privdfs-train configs/cifar10-resnet18-coded.toml`."
    told = "One seed, no audit. The release is not checked in: its unprotected model is too large."
    about = "; ".join(source(entry["made_by"]) for entry in measured.values())
    return f"{coded_held_table(measured, {}, (), {})}\n\n{told} {about}."


def draw_picture(folder: Path) -> None:
    """Draw the releases into frontier.png of a folder of result files."""
    draw(_shown(folder), folder / PICTURE)


def picture_is_current(folder: Path) -> bool:
    """Whether frontier.png shows what the result files beside it say."""
    return is_current(_shown(folder), folder / PICTURE)


def _shown(folder: Path) -> list[Point]:
    """The points of the picture."""
    accuracy, privacy = (read_results(folder / f"{name}.json") for name in ("accuracy", "privacy"))
    return points(accuracy.get("releases", {}), privacy.get("releases", {}))


def sweep_table(runs: Sequence[Mapping[str, Any]], data: str, floor: float) -> str:
    """Markdown table of the runs on one data set, with what each changes."""
    rows = [
        (
            "| run | changes | servers | bits a share | client compute | baseline | fused | one missing "
            "| linear readouts | 1 server | largest minority | all servers |"
        ),
        "| --- " * 12 + "|",
    ]
    for run in (run for run in runs if run["data"] == data):
        worst = run["worst"]
        leaks = [
            f"{worst[str(size)]['psnr'] - floor:+.2f} dB"
            for size in (1, largest_coalition(run["servers"]), run["servers"])
        ]
        rows.append(
            f"| {run['name'].partition('-')[2]} | {_change(run['change'])} | {run['servers']} "
            f"| {run['bits_per_share']:.1f} | 1/{run['baseline_macs'] / run['client_macs']:.1f} "
            f"| {run['baseline']:.2%} | {run['accuracy']:.2%} | {run['one_missing']:.2%} "
            f"| {run['linear_readouts']:.2%} | {' | '.join(leaks)} |"
        )
    commits = sorted({run["made_by"]["commit"][:10] for run in runs if run["data"] == data})
    return "\n".join(rows) + (
        f"\n\nLeakage above the class mean, {floor:.2f} dB. Commits {', '.join(commits)}; frontier.json has the "
        "command, date and versions of each run."
    )


def search_table(runs: Sequence[Mapping[str, Any]], data: str) -> str:
    """Markdown table of the coded runs on one data set, the best first, with what each changes."""
    found = sorted((run for run in runs if run["data"] == data), key=lambda run: -run["accuracy"])
    rows = [
        (
            "| run | changes | rounds | servers | bytes up and down | client compute | a server's MMAC | coded "
            "| linear readout | T + 1 servers |"
        ),
        "| --- " * 10 + "|",
    ]
    for run in found:
        change = {key: value for key, value in run["change"].items() if key != "rounds"}
        rows.append(
            f"| {run['name'].removeprefix('coded-').partition('-')[2]} | {_change(change)} "
            f"| {'; '.join(map(_round, run['made_by']['config']['run']['rounds']))} | {run['servers']} "
            f"| {(run['bytes_up'] + run['bytes_down']) / 1000:.1f} kB "
            f"| 1/{run['baseline_macs'] / run['client_macs']:.1f} | {run['server_macs'] / 1e6:.0f} "
            f"| {run['accuracy']:.2%} | {run['linear_readouts']:.2%} "
            f"| {run['decoded']['psnr'] - run['floor']['class_mean']:+.2f} dB |"
        )
    commits = sorted({run["made_by"]["commit"][:10] for run in found})
    held_out, floor = found[0]["held_out"], found[0]["floor"]["class_mean"]
    return "\n".join(rows) + (
        f"\n\nMeasured on {held_out:,} training images that no run learned from, though their teacher had; one seed, "
        "few epochs. *Rounds*: levels of what is shared, then the channels of each map. *T + 1 servers*: a decoder's "
        f"reconstruction above the class mean, {floor:.2f} dB. Commits {', '.join(commits)}."
    )


def _round(planned: Mapping[str, Any]) -> str:
    """A round's levels and widths, as `15: 512 → 16`; the last map of all gives the classes."""
    maps = [*planned.get("hidden", ()), planned["output"]]  # JSON leaves out what is as by default
    return f"{planned['levels']}: {' → '.join(str(each.get('outputs', 'classes')) for each in maps)}"


def _change(change: Mapping[str, Any], prefix: str = "") -> str:
    """What a run changes, as `masks.values = 4`; nothing for the reference."""
    return ", ".join(
        _change(value, f"{prefix}{key}.") if isinstance(value, Mapping) else f"`{prefix}{key} = {value}`"
        for key, value in change.items()
    )


def seeds_table(
    seeds: Mapping[str, Any],
    accuracy_of_seeds: Mapping[str, Any],
    accuracy: Mapping[str, Any],
    privacy: Mapping[str, Any],
) -> str:
    """Markdown table of trainings from several seeds, with mean and spread; the release is that of seed 0."""
    audit = privacy["releases"]["fashion-resnet20"]
    alike = {
        str(len(one["members"])): one["psnr"] for one in audit["coalitions"] if one["attack"] == "decoder"
    }  # the network of the other seeds' attack, on the coalitions chosen as theirs
    found = {"0, the release": _headlines(accuracy["releases"]["fashion-resnet20"], alike)}
    sources = []
    for run in seeds["runs"]:
        entry, reached = accuracy_of_seeds["releases"][run["name"]], run["worst"].items()
        found[str(run["made_by"]["seed"])] = _headlines(entry, {size: one["psnr"] for size, one in reached})
        sources += [source(run["made_by"]), source(entry["made_by"])]
    columns = list(zip(*found.values(), strict=True))
    found["mean"] = tuple(map(statistics.mean, columns))
    found["standard deviation"] = tuple(map(statistics.stdev, columns))
    head = "| seed | fused | one missing (worst) | simple lies | knows everything | linear readouts "
    rows = [f"{head}| 1 of 3 | 2 of 3 | 3 of 3 |", "| --- " * 9 + "|"]
    for name, values in found.items():
        shown = [f"{value:.2%}" for value in values[:5]] + [f"{value:.2f} dB" for value in values[5:]]
        rows.append(f"| {name} | {' | '.join(shown)} |")
    said = "Reconstruction by the residual decoder of effort `standard` alone; the release's by that of its own audit."
    return "\n".join(rows) + f"\n\n{said} {'; '.join(sources)}."


def _headlines(entry: Mapping[str, Any], psnr: Mapping[str, float]) -> tuple[float, ...]:
    """A row of the seeds' table: accuracies, and what a decoder reaches by the number of servers."""
    lies = (lied_to(entry) or ())[1:]  # of three servers, so one may lie
    told = tuple(psnr[size] for size in ("1", "2", "3"))
    return entry["fused"], entry["missing"]["1"]["worst"], *lies, entry["linear_readouts"], *told
