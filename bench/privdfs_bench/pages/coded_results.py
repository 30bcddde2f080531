"""The figures of docs/RESULTS.md for coded releases: accuracy with silent and lying servers, and latency."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privdfs_bench.pages.coded_privacy import is_coded
from privdfs_bench.pages.marks import footnotes, named, source
from privdfs_bench.results import read_results
from privdfs_bench.speed.coded import RESULT_NAME, bars

NO_ACCURACY = "No coded release has been measured yet: `python bench/accuracy.py RELEASE`."
NO_LATENCY = "No coded release has been measured yet: `python bench/latency.py RELEASE`."
NO_SCALING = "No coded release has been measured yet: `python bench/scaling.py --coded RELEASE`."


def coded_accuracy_table(results: Mapping[str, Any]) -> str:
    """Markdown of all coded releases in accuracy.json: one table of releases, one of N, T, silent servers and liars."""
    found = {name: entry for name, entry in results["releases"].items() if is_coded(entry)}
    if not found:
        return NO_ACCURACY
    marks, notes = footnotes({**results, "releases": found}, "coded-accuracy")
    rows = [
        (
            "| release | rounds | degree | baseline | fused, over tritonservers | linear readout | calibration error "
            "| bytes up / down, each server | client / baseline MACs |"
        ),
        "| --- " * 9 + "|",
    ]
    cases = [
        "| release | servers | may collude | case | accuracy | images with another class | liar named |",
        "| --- " * 7 + "|",
    ]
    canaries = ["| release | a canary with so many exchanges | calls that end with the alarm |", "| --- " * 3 + "|"]
    for name, entry in found.items():
        rows.append(
            f"| {named(name, entry.get('graphs'))}{marks[name]} | {entry['rounds']} "
            f"| {', '.join(map(str, entry['degree']))} | {entry['baseline']:.2%} | **{entry['fused']:.2%}** "
            f"| {entry['linear_readouts']:.2%} | {entry['ece']:.2%} | {entry['bytes_up']:,} / {entry['bytes_down']:,} "
            f"| 1/{entry['baseline_macs'] / entry['client_macs']:.1f} |"
        )
        cases += [_case(name, row) for row in entry["settings"]]
        canaries += [f"| {name} | {row['rate']:.0%} | {row['detected']:.1%} |" for row in entry["canaries"]]
    images = " and ".join(f"{count:,}" for count in sorted({entry["images"] for entry in found.values()}))
    told = (
        f"{images} test images; the exported integers, one tritonserver per server. In the second table the "
        "servers run in one process; another class than that of the exported files. A liar knows everything and gives "
        "every class its neighbour's score; where nothing is to spare, its lie passes unseen."
    )
    about = (
        "One of three servers lies in every exchange, where decoding cannot see it. A lie that leaves the answer of a "
        "canary as it is goes unseen."
    )
    return "\n\n".join(("\n".join(rows), "\n".join(cases), told, "\n".join(canaries), about, notes))


def _case(name: str, row: Mapping[str, Any]) -> str:
    liar, images = row["images_with_liar_named"], row["images"]
    named_for = "" if liar is None else f"{liar:,} of {images:,}"
    return (
        f"| {name} | {row['servers']} | {row['colluding']} | {row['case']} | {row['accuracy']:.2%} "
        f"| {images - row['agreeing']:,} of {images:,} | {named_for} |"
    )


def coded_latency_table(folder: Path) -> str:
    """Markdown of all coded-latency.json below a folder: each release beside what it took turns with.

    Args:
        folder: Of the result files.
    """
    found = [read_results(path) for path in sorted(folder.rglob(RESULT_NAME))]
    if not found:
        return NO_LATENCY
    parts = []
    for results in found:
        head = ["system", "p50", "p99", "processor time of the device", "bytes up", "bytes down"]
        head += [f"p50 through {one['rtt_ms']:g} ms and {one['mbit']:g} Mbit/s" for one in results["networks"].values()]
        rows = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        for name, system in results["systems"].items():
            cells = [f"{system[f'{key}_ms']:.2f} ms" for key in ("p50", "p99", "cpu")]
            cells += [f"{system['bytes_up']:,}", f"{sum(system['bytes_down_by_server']):,}"]
            networks = [one["systems"].get(name) for one in results["networks"].values()]
            cells += ["" if one is None else f"{one['p50_ms']:.2f} ms" for one in networks]
            rows.append(f"| {name} | {' | '.join(cells)} |")
        spent, samples = results["device_ms"], results["systems"]["coded"]["samples"]
        measured = [(what, limit, value) for what, limit, value in bars(results) if value is not None]
        shown = named(results["release"], results.get("graphs"))
        parts += [
            f"### {shown}",
            "\n".join(rows),
            (
                f"{samples:,} calls each, interleaved, {results['servers']} servers, T = {results['colluding']}, "
                f"rounds: {results['rounds']}. On the device: head {spent['head']:.3f} ms, sharing "
                f"{spent['sharing']:.3f} ms, decoding and all that follows it {spent['decoding']:.3f} ms. "
                + "; ".join(f"{what}: {value:.3g} (bar {limit})" for what, limit, value in measured)
                + f". {source(results['made_by'])}."
            ),
        ]
    return "\n\n".join(parts)


def coded_scaling_table(results: Mapping[str, Any]) -> str:
    """Markdown of the coded releases in scaling.json."""
    if not results.get("coded"):
        return NO_SCALING
    rows = ["| release | servers | may collude | p50 | p99 | processor time of the device |", "| --- " * 6 + "|"]
    for name, entry in results["coded"].items():
        for point in entry["points"]:
            times = " | ".join(f"{point[key]:.2f} ms" for key in ("p50_ms", "p99_ms", "cpu_ms"))
            rows.append(f"| {name} | {point['servers']} | {point['colluding']} | {times} |")
    told = "; ".join(dict.fromkeys(source(entry["made_by"]) for entry in results["coded"].values()))
    return "\n".join(rows) + f"\n\nAll servers on one machine. {told}."
