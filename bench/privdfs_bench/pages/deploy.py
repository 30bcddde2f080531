"""The figures of deploy/README.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from privdfs_bench.pages.marks import between, commands, named
from privdfs_bench.results import ROOT, read_results

DOCUMENT = ROOT / "deploy" / "README.md"


def figures(folder: Path) -> str:
    """Everything between the marks of deploy/README.md: what branches and rounds of every release come to.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    results = read_results(folder / "engines.json")
    if not results:
        return between("Not measured yet: `python bench/engines.py`.")
    releases = results["releases"]
    masked = {name: entry["branches"] for name, entry in releases.items() if "branches" in entry}
    coded = {name: entry["rounds"] for name, entry in releases.items() if "rounds" in entry}
    about = (
        "Built by TensorRT-RTX without a GPU, never run. ONNX Runtime computed the golden examples from the same "
        "graphs: logits are compared relative to the largest FP32 logit, residues one by one. "
        f"{commands(results)}"
    )
    return between(*([_branches(masked)] if masked else []), *([_rounds(coded)] if coded else []), about)


def _branches(releases: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The largest branch of each masked release in each precision."""
    rows = ["| release | precision | engines | seconds to build one | plan | weights | off by at most | same class |"]
    rows.append("| --- " * 8 + "|")
    for name, engines in releases.items():
        branches = [one for one in engines if one["server"] != "baseline"]
        graphs = {one["server"]: one["graph"] for one in branches}
        for precision in dict.fromkeys(one["precision"] for one in branches):
            found = [one for one in branches if one["precision"] == precision]
            off, same = ([one[key] for one in found] for key in ("difference", "agreement"))
            compared = "not computed by ONNX Runtime | " if None in off else f"{max(off):.2g} | {min(same):.0%}"
            rows.append(f"| {named(name, graphs)} | {precision} | {len(found)} | {_sizes(found)} | {compared} |")
    return "\n".join(rows)


def _rounds(releases: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Every round of each coded release, which all servers have alike."""
    rows = ["| coded release | round | precision | seconds to build | plan | weights | golden residues that differ |"]
    rows.append("| --- " * 7 + "|")
    for name, rounds in releases.items():
        graphs = {f"branch-{one['round']}": one["graph"] for one in rounds}
        rows += [
            f"| {named(name, graphs)} | {one['round']} | {one['precision']} | {_sizes([one])} "
            f"| {one['differing']:,} of {one['golden_residues']:,} |"
            for one in rounds
        ]
    return "\n".join(rows)


def _sizes(engines: Sequence[Mapping[str, Any]]) -> str:
    """Three cells: seconds, and the largest plan and weights."""
    seconds, plans, weights = ([one[key] for one in engines] for key in ("seconds", "plan_bytes", "weights_bytes"))
    spread = f"{seconds[0]:.2f}" if len(seconds) == 1 else f"{min(seconds):.2f} to {max(seconds):.2f}"
    return f"{spread} | {max(plans) / 1e3:,.0f} kB | {max(weights) / 1e3:,.0f} kB"
