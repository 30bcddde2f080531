"""The tables of load.json and soak.json in docs/SCALING.md: what many clients get, and what is answered in trouble."""

from collections.abc import Mapping
from typing import Any

from privdfs_bench.pages.marks import source

NO_LOAD = "Not measured yet: `python bench/load.py`."
NO_SOAK = "Not measured yet: `python bench/soak.py`."


def load_table(results: Mapping[str, Any]) -> str:
    """Markdown of load.json: throughput within the bound, what a call costs there, and ten times the load."""
    if not results:
        return NO_LOAD
    heads = (
        "system",
        "clients",
        "calls a second",
        "to unprotected",
        "a party to it",
        "p50",
        "p99",
        "clients' processor",
        "servers'",
    )
    more = ("in queues", "computing", "ten times the load: errors", "normal again after")
    lines = [f"| {' | '.join((*heads, *more))} |", f"|{' --- |' * len((*heads, *more))}"]
    for name, system in results["systems"].items():
        point, ratio = system["best"], results["to_unprotected"].get(name)
        if point is None:
            lines.append(
                f"| {system['what']} | no number of clients keeps to the bound |{' |' * (len(heads + more) - 2)}"
            )
            continue
        costs = (point[key] for key in ("clients_cpu_ms", "servers_cpu_ms", "queue_ms", "compute_ms"))
        cells = [
            system["what"],
            point["clients"],
            f"{point['per_second']:.0f}",
            "" if ratio is None else f"{ratio:.2f}",
        ]
        cells += [f"{party:.2f}" if (party := results["party_to_unprotected"].get(name)) else ""]
        cells += [f"{point['p50_ms']:.1f} ms", f"{point['p99_ms']:.1f} ms", *(f"{cost:.2f} ms" for cost in costs)]
        during, recovered = system["overload"]["phases"]["during"], system["overload"]["recovered_s"]
        failed = f", the slowest within {during['error_p99_ms']:.0f} ms (p99)" if "error_p99_ms" in during else ""
        cells += [f"{sum(during['errors'].values())} of {during['calls']:,} calls{failed}"]
        cells += ["not within the phase" if recovered is None else f"{recovered:g} s"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    cores = results["made_by"]["machine"]["cores"]
    told = (
        f"Most calls a second with p99 within {results['bound_ms']:g} ms, clients and servers on {cores} cores; "
        "processor, queue and compute: milliseconds a call, all servers together. *A party to it*: calls that one "
        "party can answer, with a machine of its own, for each call of the unprotected server, by their processor time."
    )
    return "\n\n".join((told, "\n".join(lines), f"{source(results['made_by'])}."))


def soak_tables(results: Mapping[str, Any]) -> str:
    """Markdown of soak.json: runs in which processes are killed, and those with a trouble for a while."""
    runs = results.get("runs", {})
    steady = {name: run for name, run in runs.items() if "events" in run}
    phased = {name: run for name, run in runs.items() if "phases" in run}
    if not steady and not phased:
        return NO_SOAK
    parts: list[str] = []
    if steady:
        lines = ["| run | calls | answered | wrong | late | killed | p50 | p99 | slowest | growth | liar named after |"]
        lines.append(f"|{' --- |' * 11}")
        for name, run in steady.items():
            grown = run["growth_after_warm_up"]
            told = f"{grown['rss_mb']:g} MB, {grown['threads']:g} threads, {grown['fds']:g} descriptors"
            cells = [name, f"{run['calls']:,}", f"{run['answered_share']:.4%}", run["wrong"], run["late"]]
            cells += [run["events"].get("killed", 0), f"{run['p50_ms']:.1f} ms", f"{run['p99_ms']:.1f} ms"]
            cells += [f"{run['slowest_ms']:.0f} ms", told, _named(run)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        parts.append("\n".join(lines))
    if phased:
        lines = [
            "| run | answered before, during, after | p99 before, during, after | errors, p99 | normal again after |"
        ]
        lines.append(f"|{' --- |' * 5}")
        for name, run in phased.items():
            rows = run["phases"].values()
            during, recovered = run["phases"]["during"], run["recovered_s"]
            errors = f"{sum(during['errors'].values())}"
            errors += f", {during['error_p99_ms']:.0f} ms" if "error_p99_ms" in during else ""
            cells = [name, ", ".join(f"{row['answered']:,} of {row['calls']:,}" for row in rows)]
            cells += [", ".join(f"{row['p99_ms']:.0f}" for row in rows) + " ms", errors]
            cells += ["not within the phase" if recovered is None else f"{recovered:g} s"]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    sources = dict.fromkeys(source(run["made_by"]) for run in (steady | phased).values())
    return "\n\n".join((*parts, "; ".join(sources) + "."))


def _named(run: Mapping[str, Any]) -> str:
    if "liar" not in run:
        return ""
    return "never" if run["named_after"] is None else f"{run['named_after']} calls"
