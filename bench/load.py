"""`python bench/load.py`: calls a second with 1 to 256 clients at once, and ten times the load for a minute.

Masked and coded releases over both wires, and the unprotected model on one tritonserver, all with the engines of the
checked-in releases, take turns at each number of clients until they are saturated. Every client is a device of its own;
all of them run on one event loop beside the servers, on the same cores. What each call costs the processor is told for
clients and servers apart, so that one sees where the time goes.

Prints tables and writes bench/results/load.json and load.png; bench/figures.py puts the figures into docs/SCALING.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from privdfs_bench.results import RESULTS, made_by, write_results
from privdfs_bench.script import run, start, whole_number
from privdfs_bench.speed.load import CLIENTS, measure
from privdfs_bench.speed.load_tables import draw, tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="load", description="Measure what more and more clients get.")
    number = whole_number(1, 3600)
    parser.add_argument("--seconds", type=number, default=8, metavar="S", help="of each point (default: 8)")
    parser.add_argument("--overload-seconds", type=number, default=60, metavar="S", help="(default: 60)")
    parser.add_argument(
        "--clients", type=whole_number(1, CLIENTS[-1]), default=CLIENTS[-1], metavar="N", help="at most (default: 256)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder of load.json and load.png")
    options = parser.parse_args(arguments)
    console = Console()

    def work() -> int:
        found = measure(options.seconds, options.overload_seconds, options.clients, console)
        about = made_by({"seconds": options.seconds, "overload_seconds": options.overload_seconds}, seed=0)
        results = {"made_by": about, **found}
        write_results(options.out / "load.json", results)
        draw(options.out / "load.png", results)
        for table in tables(results):
            console.print(table)
        console.print(f"written to {options.out}/load.json and .png", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="nothing was written")


if __name__ == "__main__":
    start(main)
