"""The figures of deploy/README.md."""

from pathlib import Path

from privdfs_bench.pages.marks import between, named, source
from privdfs_bench.results import ROOT, read_results

DOCUMENT = ROOT / "deploy" / "README.md"


def figures(folder: Path) -> str:
    """Everything between the marks of deploy/README.md: what the branches of every release come to, by precision.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    results = read_results(folder / "engines.json")
    if not results:
        return between("Not measured yet: `python bench/engines.py`.")
    rows = ["| release | precision | engines | seconds to build one | plan | weights | off by at most | same class |"]
    rows.append("| --- " * 8 + "|")
    for name, engines in results["releases"].items():
        branches = [one for one in engines if one["server"] != "baseline"]
        graphs = {one["server"]: one["graph"] for one in branches if "graph" in one}
        for precision in dict.fromkeys(one["precision"] for one in branches):
            found = [one for one in branches if one["precision"] == precision]
            seconds, plans, weights, off, same = (
                [one[key] for one in found]
                for key in ("seconds", "plan_bytes", "weights_bytes", "difference", "agreement")
            )
            compared = "not computed by ONNX Runtime | " if None in off else f"{max(off):.2g} | {min(same):.0%}"
            rows.append(
                f"| {named(name, graphs)} | {precision} | {len(found)} | {min(seconds):.2f} to {max(seconds):.2f} "
                f"| {max(plans) / 1e3:,.0f} kB | {max(weights) / 1e3:,.0f} kB | {compared} |"
            )
    made_by = results["made_by"]
    about = (
        f"{source(made_by)}: built by TensorRT-RTX without a "
        "GPU, never run; compared with FP32 on the golden examples by ONNX Runtime, relative to the largest logit."
    )
    return between("\n".join(rows), about)
