"""The table of a coded system with a larger unprotected model, in docs/FRONTIER.md: too large to be checked in."""

from collections.abc import Mapping
from typing import Any

from privdfs_bench.pages.marks import source


def larger_table(measured: Mapping[str, Any]) -> str:
    """Markdown table of the releases of larger.json.

    Args:
        measured: What `bench/accuracy.py FOLDER --out bench/results/larger.json` wrote.
    """
    releases = measured.get("releases", {})
    if not releases:
        return "Not measured yet: `privdfs-train configs/cifar10-resnet18-coded.toml`."
    rows = [
        (
            "| config | baseline | coded | minus baseline, at least -1.0 | minus linear readout, at least +5.0 "
            "| device compute / baseline, at most 1/20 | bytes up and down, 3 servers, at most 64 kB |"
        ),
        "| --- " * 7 + "|",
    ]
    about = []
    for name, entry in releases.items():
        fused, baseline, readout = (100 * entry[key] for key in ("fused", "baseline", "linear_readouts"))
        travelling = 3 * (entry["bytes_up"] + entry["bytes_down"]) / 1000
        rows.append(
            f"| {name} ({entry['backbone']}) | {baseline:.2f}% | {fused:.2f}% | {fused - baseline:+.2f} "
            f"| {fused - readout:+.2f} | 1/{entry['baseline_macs'] / entry['client_macs']:.1f} | {travelling:.1f} kB |"
        )
        about.append(source(entry["made_by"]))
    told = (
        "Over tritonservers, all test images; one seed. The release is not checked in, because its baseline alone has "
        "45 MB."
    )
    return "\n".join(rows) + f"\n\n{told} {'; '.join(about)}."
