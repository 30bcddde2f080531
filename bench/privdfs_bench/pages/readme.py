"""The figures of README.md: one row for each of a few releases; RESULTS.md has all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privdfs_bench.pages.bars import point_of_release
from privdfs_bench.pages.coded_privacy import is_coded
from privdfs_bench.pages.marks import between, named
from privdfs_bench.results import ROOT, read_results

DOCUMENT = ROOT / "README.md"
#: Both kinds of shares on both data sets.
SHOWN = ("cifar10-resnet20", "cifar10-coded", "fashion-resnet20", "fashion-coded", "fashion-coded-r1")


def figures(folder: Path) -> str:
    """Everything between the marks of README.md: what some releases reach, in a line each.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    accuracy, privacy = (read_results(folder / f"{name}.json")["releases"] for name in ("accuracy", "privacy"))
    rows = [
        "| release | servers | baseline | PrivDFS | leakage of the largest minority | bytes up | device's compute |",
        "| --- " * 7 + "|",
    ]
    for name in SHOWN:
        if name not in accuracy:
            continue
        entry = accuracy[name]
        leakage = "not measured"
        shown = named(name, entry.get("graphs"))
        if is_coded(entry):
            rows.append(_coded_row(shown, entry))
            continue
        if name in privacy:
            leakage = f"{point_of_release(name, entry, privacy[name])['above']:+.2f} dB"
        rows.append(
            f"| {shown} | {len(entry['branches'])} | {entry['baseline']:.2%} | **{entry['fused']:.2%}** | {leakage} "
            f"| {entry['bytes_up']} | 1/{entry['baseline_macs'] / entry['client_macs']:.1f} |"
        )
    return between("\n".join(rows))


def _coded_row(shown: str, entry: Mapping[str, Any]) -> str:
    """Of a coded release: servers are chosen with the client, and a minority learns nothing."""
    fewest = max(entry["degree"]) + 1
    return (
        f"| {shown} | {fewest} or more | {entry['baseline']:.2%} | **{entry['fused']:.2%}** | none, proven "
        f"| {entry['bytes_up']:,} a server | 1/{entry['baseline_macs'] / entry['client_macs']:.1f} |"
    )
