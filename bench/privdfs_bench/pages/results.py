"""The figures of docs/RESULTS.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from privdfs._files import read_manifest_bytes
from privdfs._format import CLIENT_FOLDER
from privdfs._manifest import read_client_manifest
from privdfs_bench.audit.effort import UNDEFENDED_IMAGES
from privdfs_bench.pages.agreement import agreement_table
from privdfs_bench.pages.bars import lied_to
from privdfs_bench.pages.coded_privacy import masked_alone
from privdfs_bench.pages.coded_results import coded_accuracy_table, coded_latency_table
from privdfs_bench.pages.marks import between, footnotes, named, source
from privdfs_bench.releases import releases
from privdfs_bench.results import ROOT, read_results

DOCUMENT = ROOT / "docs" / "RESULTS.md"


def accuracy_table(results: Mapping[str, Any]) -> str:
    """Markdown table of all masked releases in accuracy.json."""
    results = masked_alone(results)
    marks, notes = footnotes(results, "accuracy")
    rows = [
        (
            "| release | servers | baseline | fused, over tritonservers | one server missing (worst) "
            "| lying minority (simple lies; knows everything) | a branch alone | linear readouts | bytes up "
            "| client / baseline MACs |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in results["releases"].items():
        branches, shown = entry["branches"], named(name, entry.get("graphs"))
        rows.append(
            f"| {shown}{marks[name]} | {len(branches)} | {entry['baseline']:.2%} | **{entry['fused']:.2%}** "
            f"| {entry['missing']['1']['worst']:.2%} | {_lying(entry)} | {min(branches):.2%} to {max(branches):.2%} "
            f"| {_linear(entry)} | {entry['bytes_up']} | 1/{entry['baseline_macs'] / entry['client_macs']:.1f} |"
        )
    images = {entry["images"] for entry in results["releases"].values()}
    counted = " and ".join(f"{count:,}" for count in sorted(images))
    return (
        "\n".join(rows) + f"\n\n{counted} test images; exported int8 files, one real tritonserver per server."
        f"{_over_keys(results)}\n\n{notes}"
    )


def _over_keys(results: Mapping[str, Any]) -> str:
    """How far accuracy differs between users' keys, for each keyed release."""
    told = ""
    for name, entry in results["releases"].items():
        if "keys" in entry:
            keys = entry["keys"]
            told += (
                f" {name} under {keys['keys']} random users' keys: {keys['mean']:.2%} on average, {keys['min']:.2%} to "
                f"{keys['max']:.2%}."
            )
    return told


def _lying(entry: Mapping[str, Any]) -> str:
    """Accuracy under the largest lying minority: the worst simple lie, and liars who know everything."""
    lied = lied_to(entry)
    if lied is None:
        return "not measured"
    size, simple, adversarial = lied
    return f"{size} of {len(entry['branches'])}: {simple:.2%}; {adversarial:.2%}"


def _linear(entry: Mapping[str, Any]) -> str:
    return f"{entry['linear_readouts']:.2%}" if "linear_readouts" in entry else "not measured"


def calibration_table() -> str:
    """Markdown table of what the manifests of all releases state about their probabilities."""
    rows = ["| release | expected calibration error | before calibration |", "| --- | --- | --- |"]
    for path in releases([]):
        manifest = read_client_manifest(read_manifest_bytes(path / CLIENT_FOLDER))
        error = manifest.accuracy.calibration
        if error is not msgspec.UNSET:
            rows.append(f"| {manifest.release} | {error.after:.2%} | {error.before:.2%} |")
    return (
        "\n".join(rows)
        + "\n\nTop class, 15 bins, all servers answering, on the test images. Fitted on training images."
    )


def latency_table(results: Mapping[str, Any]) -> str:
    """Markdown table of latency.json."""
    networks = results.get("networks", {})
    head = ["system", "p50", "p90", "p99", "p99.9", "processor time of the device", "bytes up"]
    head += [f"p50 through {one['rtt_ms']:g} ms and {one['mbit']:g} Mbit/s" for one in networks.values()]
    rows = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, system in results["systems"].items():
        cells = [_ms(system.get(f"{key}_ms")) for key in ("p50", "p90", "p99", "p99.9", "cpu")]
        cells.append(f"{system['bytes_up']:,}")
        cells += [_ms(one["systems"].get(name, {}).get("p50_ms")) for one in networks.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    made_by = results["made_by"]
    samples = next(iter(results["systems"].values()))["samples"]
    return (
        "\n".join(rows) + f"\n\n{samples:,} calls each, interleaved, on loopback, {made_by['machine']['cores']} cores "
        f"({made_by['machine']['processor']}), release {named(results['release'], results.get('graphs'))}.[^latency] "
        f"Machines like this one are noisy: compare within the table.\n\n[^latency]: {source(made_by)}."
    )


def _ms(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} ms"


def privacy_table(results: Mapping[str, Any]) -> str:
    """Markdown table of privacy.json: the worst coalition of each size, between the floors and the undefended split.

    Of masked releases; of coded ones, what a minority learns needs no table, and PRIVACY.md has the rest.
    """
    results = masked_alone(results)
    marks, notes = footnotes(results, "privacy")
    graphs = {name: entry.get("graphs") for name, entry in results["releases"].items()}
    heads = [f"{named(name, graphs[name])}{mark}" for name, mark in marks.items()]
    rows = ["| attacker | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    entries = list(results["releases"].values())

    def row(label: str, values: list[str]) -> None:
        rows.append(f"| {label} | " + " | ".join(values) + " |")

    row("floor: no shares (mean image)", [f"{entry['floor']['mean_image']:.2f} dB" for entry in entries])
    row("floor: the class alone (class mean)", [f"{entry['floor']['class_mean']:.2f} dB" for entry in entries])
    for size in sorted({size for entry in entries for size in entry["worst"]}, key=int):
        found = [entry["worst"].get(size) for entry in entries]
        shown = [f"{one['psnr']:.2f} dB, SSIM {one['ssim']:.3f}" if one else "" for one in found]
        row(f"{size} server{'s' * (size != '1')}, worst coalition", shown)
    row("undefended split, its strongest attack", [_undefended(entry) for entry in entries])
    row("test images; effort", [f"{_most_images(entry):,}; {entry['effort']}" for entry in entries])
    most = min(max(map(_most_images, entries)), UNDEFENDED_IMAGES)
    return (
        "\n".join(rows)
        + "\n\nMean PSNR per image; the strongest of several attacks on each coalition on the bytes that "
        "the bundle makes, knowing the masks (undefended split: the baseline's feature after its first convolution, at "
        f"most {most:,} images).\n\n{notes}"
    )


def _most_images(entry: Mapping[str, Any]) -> int:
    """Test images of the attacks that met the most."""
    return max(one["images"] for one in entry["coalitions"])


def _undefended(entry: Mapping[str, Any]) -> str:
    attack, psnr = max(entry["undefended"].items(), key=lambda item: item[1])
    return f"{psnr:.2f} dB ({attack})"


def figures(folder: Path) -> str:
    """Everything between the marks of docs/RESULTS.md: accuracy, privacy and latency.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    accuracy, privacy, latency = (read_results(folder / f"{name}.json") for name in ("accuracy", "privacy", "latency"))
    tables = {
        "Accuracy": accuracy_table(accuracy),
        "Accuracy of coded releases": coded_accuracy_table(accuracy),
        "Agreement with a model from outside": agreement_table(read_results(folder / "agreement.json")),
        "Calibration": calibration_table(),
        "Privacy": privacy_table(privacy),
        "Latency": latency_table(latency),
        "Latency of coded releases": coded_latency_table(folder),
    }
    return between(*(f"## {name}\n\n{table}" for name, table in tables.items()))
