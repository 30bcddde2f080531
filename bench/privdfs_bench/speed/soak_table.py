"""The tables of bench/soak.py, and its bars."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

#: Bars of every run in which processes are killed.
ANSWERED, NAMED_WITHIN, GROWTH_MB = 0.9999, 100, 5.0
#: Bars of the others: what p99 of a quorum stays below while a party is silent or takes 200 ms, p99 of the errors of a
#: server with too much to do, and after how long all is well again.
QUORUM_MS, ERRORS_MS, RECOVERED_S = 100.0, 50.0, 5.0


def tables(runs: Mapping[str, Any]) -> Iterator[Table]:
    """One of the runs in which processes are killed, one of those with phases."""
    steady = {name: run for name, run in runs.items() if "events" in run}
    shown = _table("Processes killed and started again", ("run", "calls", "answered", "wrong", "late", "killed"))
    for head in ("errors", "p50 ms", "p99 ms", "slowest ms", "growth MB", "liar named after"):
        shown.add_column(head, justify="right")
    for name, run in steady.items():
        cells = [name, run["calls"], f"{run['answered_share']:.4%}", run["wrong"], run["late"]]
        cells += [run["events"].get("killed", 0), sum(run["errors"].values()), run["p50_ms"], run["p99_ms"]]
        cells += [run["slowest_ms"], run["growth_after_warm_up"]["rss_mb"], run.get("named_after", "")]
        shown.add_row(*map(str, cells))
    yield shown
    shown = _table(
        "\nA trouble for a while", ("run", "phase", "calls", "answered", "wrong", "late", "p50 ms", "p99 ms")
    )
    for head in ("a second", "errors", "error p99 ms", "recovered after s"):
        shown.add_column(head, justify="right")
    for name, run in runs.items():
        for phase, found in run.get("phases", {}).items():
            cells = [name, phase, found["calls"], f"{found['answered_share']:.2%}", found["wrong"], found["late"]]
            cells += [found["p50_ms"], found["p99_ms"], found["per_second"], told(found["errors"])]
            cells += [found.get("error_p99_ms", ""), run["recovered_s"] if phase == "after" else ""]
            shown.add_row(*map(str, cells))
    yield shown


def told(errors: Mapping[str, int]) -> str:
    """Errors by their causes, and how many."""
    return "; ".join(f"{number} {kind.partition(': ')[2] or kind}" for kind, number in errors.items())


def bars(runs: Mapping[str, Any]) -> Iterator[str]:
    """Which bars each run misses, in words; one line for all that it meets."""
    for name, run in runs.items():
        if "calls" not in run or "wrong" not in run:
            continue
        missed = [f"{run[key]} {key}" for key in ("wrong", "late") if run[key]]
        if "events" in run:
            if run["answered_share"] < ANSWERED:
                missed.append(f"answered {run['answered_share']:.4%}, the bar is {ANSWERED:.2%}")
            grown = run["growth_after_warm_up"]
            # A connection more to every replica is no leak: they come and go with the servers.
            spare = {"threads": 0, "fds": run["servers"] * run["replicas"]}
            missed += [f"{key} grew by {grown[key]}" for key, most in spare.items() if grown[key] > most]
            if grown["rss_mb"] >= GROWTH_MB:
                missed.append(f"memory grew by {grown['rss_mb']} MB, the bar is {GROWTH_MB:g}")
            if "liar" in run and not 0 < (run["named_after"] or 0) <= NAMED_WITHIN:
                missed.append(f"the liar was named after {run['named_after']} calls, the bar is {NAMED_WITHIN}")
            if run.get("named_wrongly"):
                missed.append(f"an honest server was named {run['named_wrongly']} times")
        if "phases" in run:
            missed += _missed_in_trouble(run)
        yield f"{name}: {'; '.join(missed) or 'meets its bars'}"


def _missed_in_trouble(run: Mapping[str, Any]) -> Iterator[str]:
    """Which bars a run with phases misses. Who waits for all waits for the party in trouble: that is no fault."""
    phases, quorum = run["phases"], run["wait"] == "quorum"
    for phase in ("before", "during", "after") if quorum else ("before", "after"):
        if phases[phase]["answered_share"] < ANSWERED:
            yield f"answered {phases[phase]['answered_share']:.4%} {phase}, the bar is {ANSWERED:.2%}"
    during = phases["during"]
    if quorum and during["p99_ms"] >= QUORUM_MS:
        yield f"p99 of the quorum was {during['p99_ms']} ms during, the bar is {QUORUM_MS:g} ms"
    busy = "ServerBusyError" in " ".join(during["errors"])
    if busy and during["error_p99_ms"] > ERRORS_MS:
        yield f"p99 of errors was {during['error_p99_ms']} ms, the bar is {ERRORS_MS:g} ms"
    if run["recovered_s"] is None or run["recovered_s"] > RECOVERED_S:
        yield f"normal again after {run['recovered_s']} s, the bar is {RECOVERED_S:g} s"


def _table(title: str, heads: tuple[str, ...]) -> Table:
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for head in heads:
        shown.add_column(head, justify="left" if head in {"run", "phase"} else "right")
    return shown
