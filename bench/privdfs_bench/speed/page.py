"""The page that bench/latency.py writes: every table and picture of a run, in one file that needs no other."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from privdfs_bench.html import document, picture, table
from privdfs_bench.speed.check import bars
from privdfs_bench.speed.percentiles import PERCENTILES

DISTRIBUTIONS, STAGES, PAGE_NAME = "latency.png", "latency-stages.png", "latency.html"


def write_page(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write the page of a run from its results and the pictures beside it.

    Args:
        folder: Of the pictures, and of the page.
        results: Of the run.

    Returns:
        The page's path.

    Raises:
        OSError: A picture is missing, or the page cannot be written.
    """
    curves = folder / "scaling.png"  # of bench/scaling.py, where it has run
    pictures = [folder / DISTRIBUTIONS, folder / STAGES, *filter(Path.exists, [curves])]
    shown = folder / PAGE_NAME
    shown.write_text(page(results, pictures), encoding="utf-8")
    return shown


def page(results: Mapping[str, Any], pictures: Sequence[Path]) -> str:
    """The whole page.

    Args:
        results: of one run.
        pictures: PNG files, embedded in this order.

    Returns:
        HTML.

    Raises:
        OSError: a picture cannot be read.
    """
    return document(
        f"Latency of {results['release']}",
        [
            "<h2>Bars</h2>",
            _bars(results),
            "<h2>One call on loopback</h2>",
            _systems(results["systems"], results["confidence"]),
            *(_network(name, network, results["confidence"]) for name, network in results["networks"].items()),
            "<h2>Where the time goes</h2>",
            _stages(results),
            "<h2>Open loop</h2>",
            _open_loop(results["open_loop"]),
            "<h2>Cold start</h2>",
            _cold(results["cold"]),
            *(picture(path) for path in pictures),
        ],
        results["made_by"],
    )


def _bars(results: Mapping[str, Any]) -> str:
    rows = []
    for bar in bars(results):
        shown = "not measured" if bar.measured is None else f"{bar.measured:.3g}"
        verdict = {None: "", True: '<span class="met">met</span>', False: '<span class="missed">missed</span>'}
        limit = f"{'≥' if bar.at_least else '≤'} {bar.limit:g}"
        rows.append((escape(bar.what), limit, shown, verdict[bar.is_met]))
    return table(("", "bar", "measured", ""), rows)


def _systems(systems: Mapping[str, Any], confidence: float) -> str:
    rows = []
    for name, values in systems.items():
        times = [f"{values[f'{line}_ms']:.2f}<br><small>{_interval(values, line)}</small>" for line in PERCENTILES]
        cells = (f"{values['cpu_ms']:.2f}", f"{values['bytes_up']:,}", f"{values['samples']:,}")
        rows.append((f"{escape(name)}<br><small>{escape(values['what'])}</small>", *times, *cells))
    note = f"<p><small>Milliseconds of one call, with {confidence:.0%} intervals; ? needs more samples.</small></p>"
    return table(("system", *PERCENTILES, "cpu ms", "bytes up", "calls"), rows) + note


def _interval(values: Mapping[str, Any], line: str) -> str:
    return "..".join("?" if end is None else f"{end:.2f}" for end in values[f"{line}_interval_ms"])


def _network(name: str, network: Mapping[str, Any], confidence: float) -> str:
    measured = network["measured"]
    as_set = "" if measured["as_set"] else " <b class=missed>(not as set)</b>"
    ratio = network["ratios"]["privdfs_p50_to_baseline_triton_p50"]
    wire = table(
        ("bytes on the wire, the protocol's own included", "up, by server", "down, by server"),
        (
            (escape(system), *(", ".join(f"{count:.0f}" for count in bytes_[way]) for way in bytes_))
            for system, bytes_ in network["bytes_on_the_wire"].items()
        ),
    )
    return (
        f"<h2>One call through the network {escape(name)}</h2>"
        f"<p>Round trip {network['rtt_ms']:g} ms, {network['mbit']:g} Mbit/s; measured {measured['rtt_ms']:.2f} ms, "
        f"{measured['mbit']:.2f} Mbit/s{as_set}. PrivDFS p50 / unprotected p50: {ratio:.3f}.</p>"
        + _systems(network["systems"], confidence)
        + wire
    )


def _stages(results: Mapping[str, Any]) -> str:
    stages, stragglers = results["stages"], results["stragglers"]
    device = ("decode_ms", "encode_ms", "slowest_server_ms", "fusion_ms", "rest_ms", "mean_ms")
    server = ("wire_ms", "queue_ms", "compute_ms", "mean_ms")
    slow = stragglers["slow_calls"]
    excess = ", ".join(f"{name} {ms:+.2f} ms" for name, ms in slow["excess_ms"].items())
    return (
        table(device, [[f"{stages[name]:.3f}" for name in device]])
        + table(
            ("server", *server, "last to answer", "last in slow calls"),
            (
                (str(index), *(f"{one[name]:.3f}" for name in server), f"{last:.1%}", f"{last_slow:.1%}")
                for index, (one, last, last_slow) in enumerate(
                    zip(stages["servers"], stragglers["slowest"], slow["slowest"], strict=True)
                )
            ),
        )
        + f"<p>A call waits {stragglers['waited_ms']:.3f} ms for its last server beyond the median one. The slowest "
        f"1 % of the calls take longer by: {excess}.</p>"
    )


def _open_loop(opened: Mapping[str, Any]) -> str:
    rows = [
        (escape(name), *(f"{one[f'{line}_ms']:.2f}" for line in PERCENTILES)) for name, one in opened["systems"].items()
    ]
    return f"<p>{opened['per_second']:g} arrivals a second, {opened['calls']} calls each.</p>" + table(
        ("system", *PERCENTILES), rows
    )


def _cold(cold: Mapping[str, Any]) -> str:
    head = ("import_ms", "open_ms", "first_answer_ms", "total_ms", "peak_over_bare_mb")
    return table(
        ("", *head), ((name, *(f"{cold[name][one]:g}" for one in head)) for name in cold if name != "bare_peak_mb")
    )
