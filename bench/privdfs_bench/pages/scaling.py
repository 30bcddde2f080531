"""The figures of docs/SCALING.md."""

import math
from pathlib import Path

from privdfs_bench.pages.availability import load_table, soak_tables
from privdfs_bench.pages.coded_results import coded_scaling_table
from privdfs_bench.pages.marks import BEGIN, END, source
from privdfs_bench.results import ROOT, read_results

DOCUMENT = ROOT / "docs" / "SCALING.md"  #: What the queueing estimate is made for.
LOADS, SERVERS, DEVICES, EVERY_S = (0.3, 0.5, 0.7, 0.9), 3, 10**6, 60


def figures(folder: Path) -> str:
    """Everything between the marks of docs/SCALING.md: the fitted curves, and the queueing estimate made of them.

    Args:
        folder: of the result files.

    Returns:
        Markdown.
    """
    results = read_results(folder / "scaling.json")
    if not results:
        return f"{BEGIN}\n\nNot measured yet: `python bench/scaling.py`.\n\n{END}"
    growth = ["| what grows | measured at | p50 of a call | for each further one | explained |", "| --- " * 5 + "|"]
    for name, points in results["curves"].items():
        line = results["growth"][name]
        sizes = ", ".join(f"{point['size']:,}" for point in points)
        times = ", ".join(f"{point['privdfs']['p50_ms']:.2f}" for point in points)
        growth.append(f"| {name} | {sizes} | {times} ms | {line['slope_ms']:.3g} ms | {line['explained']:.0%} |")
    service, most = results["service"], results["throughput"]
    loads = ["| utilisation | mean wait | 99 % of calls wait at most, of three servers | instances a party |"]
    loads.append("| --- " * 4 + "|")
    for load in LOADS:
        mean, tail, instances = queueing(service["one_ms"], load)
        loads.append(f"| {load:.0%} | {mean:.2f} ms | {tail:.1f} ms | {instances} |")
    per_second = "none measured" if most["per_second"] is None else f"{most['per_second']:.0f}"
    told = (
        f"Most calls a second with p99 within {most['bound_ms']:g} ms, all on one machine: {per_second}. "
        f"One request costs a server {service['one_ms']:.3f} ms; a batch of b {service['base_ms']:.3f} + "
        f"{service['image_ms']:.3g} b ms. The estimate for {DEVICES:,} devices with one image every {EVERY_S} seconds, "
        f"with the instances like the measured one that each party needs:"
    )
    made_by = results["made_by"]
    cores = made_by["machine"]["cores"]
    about = f"{source(made_by)}, {cores} cores."
    coded = ("### Coded releases with more servers", coded_scaling_table(results))
    parts = ("\n".join(growth), told, "\n".join(loads), about, *coded, *under_load(folder))
    return "\n\n".join((BEGIN, *parts, END))


def under_load(folder: Path) -> tuple[str, ...]:
    """What many clients get, and what is answered while things fail."""
    load = load_table(read_results(folder / "load.json"))
    soak = soak_tables(read_results(folder / "soak.json"))
    return "### More and more clients", load, "### While things fail", soak


def queueing(service_ms: float, load: float) -> tuple[float, float, int]:
    """The estimate of docs/SCALING.md.

    Args:
        service_ms: what one request costs an instance, S.
        load: utilisation, between 0 and 1, r.

    Returns:
        Mean wait of a request in ms, M/D/1; what 99 % of the calls to `SERVERS` such servers wait at most, M/M/1; and
        the instances that a party needs for `DEVICES` devices with one image every `EVERY_S` seconds.
    """
    mean = load * service_ms / (2 * (1 - load))
    tail = service_ms / (1 - load) * max(0.0, math.log(100 * SERVERS * load))
    return mean, tail, math.ceil(DEVICES * service_ms / 1e3 / (EVERY_S * load))
