"""`python bench/soak.py [RUN …]`: predictions over real tritonservers while things go wrong.

    masked-*, coded-*   two replicas of every party; every three seconds a process is killed or started again
    coded-liar-*        the same, while one of five parties lies
    partition-*         one party is silent for a while; with `wait="all"`, and with a quorum
    slow-*              one party is slow for a while; with `wait="all"`, and with a quorum
    full-queue-*        one party refuses what does not fit into its queue, under ten times the load
    overload-*          ten times the load for a minute
    straggler           what one late server costs with and without protection, on servers in this process

`*` is a wire, grpc or http. Every answer is compared with the right one for the servers that it names. Each run
replaces the one of its name in bench/results/soak.json; docs/BENCHMARKS.md says what the figures mean.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from privdfs_bench.releases import RELEASES
from privdfs_bench.results import RESULTS, made_by, read_results, write_results
from privdfs_bench.script import run, start, whole_number
from privdfs_bench.speed.soak import STEADY, soak
from privdfs_bench.speed.soak_table import bars, tables
from privdfs_bench.speed.straggler import straggler
from privdfs_bench.speed.trouble import TROUBLES, trouble

STRAGGLER = "straggler"
#: The straggler's release.
FIVE = "fashion-resnet20-n5"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    names = [*STEADY, *TROUBLES, STRAGGLER]
    parser = argparse.ArgumentParser(prog="soak", description="Predict while servers fail.")
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", choices=[[], *names], help=f"default: all: {', '.join(names)}"
    )
    parser.add_argument(
        "--predictions",
        type=whole_number(1, 10**9),
        default=100_000,
        metavar="N",
        help="of a run in which processes are killed (default: 100000)",
    )
    parser.add_argument(
        "--seconds",
        type=whole_number(1, 3600),
        default=20,
        metavar="S",
        help="of each phase of the other runs (default: 20)",
    )
    parser.add_argument(
        "--straggler-calls",
        type=whole_number(1, 10**9),
        default=1000,
        metavar="N",
        help="of each system (default: 1000)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args(arguments)
    console = Console()

    def work() -> int:
        for name in options.runs or names:
            with console.status(name):
                found = measured(name, options)
            kept = read_results(options.out).get("runs", {})
            write_results(options.out, {"runs": {**kept, name: found}})
            console.print(f"{name}: added to {options.out}", highlight=False, soft_wrap=True)
        runs = read_results(options.out)["runs"]
        for table in tables(runs):
            console.print(table)
        console.print(json.dumps(runs.get(STRAGGLER, {}).get("p99_to_healthy")), highlight=False)
        for line in bars(runs):
            console.print(line, highlight=False)
        return 0

    return run(parser.prog, work, stopped="the runs that ended are in the result file")


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run; its logs are kept after an error."""
    folder = Path(tempfile.mkdtemp(prefix="privdfs-soak-"))
    try:
        if name == STRAGGLER:
            found = straggler(RELEASES / FIVE, options.straggler_calls)
        elif name in STEADY:
            found = soak(STEADY[name], options.predictions, folder)
        else:
            found = trouble(TROUBLES[name], options.seconds, folder)
    except KeyboardInterrupt:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
    return {"made_by": made_by({}, seed=0), **found}


if __name__ == "__main__":
    start(main)
