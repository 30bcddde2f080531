"""What bench/latency.py prints."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from privdfs_bench.speed.check import Bar, Compared
from privdfs_bench.speed.percentiles import PERCENTILES


def show(results: dict[str, Any], console: Console) -> None:
    """Print the tables of a run, and what they do not show."""
    said = f"ms, with {results['confidence']:.0%} intervals (?: needs more samples)"
    console.print(table(f"Latency of one call on loopback, {said}", results["systems"]))
    for name, network in results["networks"].items():
        console.print(table(f"\nLatency through the network {name}, {said}", network["systems"]))
        console.print(network_line(network), highlight=False)
    console.print(f"\n{summary(results)}\n", highlight=False)


def table(title: str, systems: dict[str, Any]) -> Table:
    """A line for each system, and one for its confidence intervals."""
    shown = Table(
        title=title,
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    shown.add_column("system", no_wrap=True)
    for name in (*PERCENTILES, "cpu", "bytes up"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, values in systems.items():
        last = (f"{values['cpu_ms']:.2f}", f"{values['bytes_up']:,}")
        shown.add_row(name, *(f"[bold]{values[f'{line}_ms']:.2f}[/]" for line in PERCENTILES), *last)
        shown.add_row("", *(f"[dim]{_interval(values[f'{line}_interval_ms'])}[/]" for line in PERCENTILES))
    return shown


def _interval(ends: Sequence[float | None]) -> str:
    return "..".join("?" if end is None else f"{end:.{2 if end < 10 else 1}f}" for end in ends)


def summary(results: dict[str, Any]) -> str:
    """What the table does not show, in a few lines."""
    stage, straggler, opened, cold = (results[name] for name in ("stages", "stragglers", "open_loop", "cold"))
    lines = [f"{name}: {value:.2f}" for name, value in results["ratios"].items()]
    parts = ("decode", "encode", "slowest_server", "fusion", "rest")
    lines.append(
        f"mean call {stage['mean_ms']:.2f} ms: " + ", ".join(f"{one} {stage[f'{one}_ms']:.2f}" for one in parts)
    )
    lines += [
        f"server {index}: wire {one['wire_ms']:.2f}, queue {one['queue_ms']:.2f}, compute {one['compute_ms']:.2f} ms; "
        f"the last to answer in {last:.0%} of the calls"
        for index, (one, last) in enumerate(zip(stage["servers"], straggler["slowest"], strict=True))
    ]
    excess = ", ".join(f"{name} {ms:+.2f}" for name, ms in straggler["slow_calls"]["excess_ms"].items())
    lines.append(
        f"waiting for the last server: {straggler['waited_ms']:.2f} ms beyond the median one; the slowest 1 % of the "
        f"calls take longer by: {excess} ms"
    )
    p99 = ", ".join(f"{name} {one['p50_ms']:.2f} / {one['p99_ms']:.2f}" for name, one in opened["systems"].items())
    lines.append(f"open loop, {opened['per_second']:.0f} arrivals a second, p50 / p99 ms: {p99}")
    if "crypten" in results:
        lines.append(f"CrypTen, {results['crypten']['parties']} parties: p50 {results['crypten']['p50_ms']:.0f} ms")
    lines += [
        f"cold start of {name}: import {one['import_ms']:.0f} + open {one['open_ms']:.0f} + first answer "
        f"{one['first_answer_ms']:.0f} = {one['total_ms']:.0f} ms; peak memory {one['peak_over_bare_mb']:.0f} MB over "
        "a bare interpreter"
        for name, one in cold.items()
        if name != "bare_peak_mb"
    ]
    return "\n".join(lines)


def bar_table(found: Sequence[Bar]) -> Table:
    """A line for each bar."""
    shown = Table("bar", title="Bars", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("limit", "measured", ""):
        shown.add_column(name, justify="right")
    for bar in found:
        measured = "not measured" if bar.measured is None else f"{bar.measured:.3g}"
        verdict = {None: "", True: "met", False: "[bold]missed[/]"}[bar.is_met]
        shown.add_row(bar.what, f"{'>=' if bar.at_least else '<='} {bar.limit:g}", measured, verdict)
    return shown


def check_table(compared: Sequence[Compared]) -> Table:
    """A line for each ratio that the record has too."""
    shown = Table("ratio", title="\nAgainst the record", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("record", "now", "limit", ""):
        shown.add_column(name, justify="right")
    for one in compared:
        values = (f"{value:.3f}" for value in (one.record, one.now, one.limit))
        shown.add_row(one.name, *values, "[bold]worse[/]" if one.is_worse else "")
    return shown


def network_line(network: dict[str, Any]) -> str:
    """What the proxy is by its own measurement, and what passed it."""
    measured = network["measured"]
    ratio = network["ratios"]["privdfs_p50_to_baseline_triton_p50"]
    up = ", ".join(f"{name} {sum(wire['up_by_server']):.0f}" for name, wire in network["bytes_on_the_wire"].items())
    return (
        f"set to {network['rtt_ms']:g} ms and {network['mbit']:g} Mbit/s, measured {measured['rtt_ms']:.1f} ms and "
        f"{measured['mbit']:.1f} Mbit/s{'' if measured['as_set'] else ' ([bold]not as set[/]: a busy machine?)'}\n"
        f"privdfs_p50_to_baseline_triton_p50: {ratio:.3f}\nbytes up on the wire, the protocol's own included: {up}"
    )
