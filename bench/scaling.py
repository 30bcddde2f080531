"""`python bench/scaling.py`: what a call costs as the system grows, and what a server can carry.

One thing grows at a time, the rest is as in configs/fashion-resnet20.toml: the number of servers, images a call, pixels
of the image, bytes of a share, calls at once. Releases are made with random weights (`random_release.py`). PrivDFS and
the floor take turns at each point, so that a slow phase of the machine shows in both. All servers run on this machine,
so many servers also compete for its cores: `compute_ms`, what one request costs a server by its own clock, suffers
less from that than the call does.

Prints tables and writes bench/results/scaling.json and scaling.png; bench/figures.py puts the figures into
docs/SCALING.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from privdfs_bench.results import RESULTS, made_by, write_results
from privdfs_bench.script import run, start
from privdfs_bench.speed.scaling import BOUND_MS, CLASSES, CONFIG, CURVES, SEED, measure, summarise, tables
from privdfs_bench.speed.scaling_picture import draw


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="scaling", description="Measure what a call costs as the system grows.")
    parser.add_argument("--samples", type=int, default=300, metavar="N", help="calls at each point (default: 300)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="folder of scaling.json and scaling.png"
    )
    options = parser.parse_args(arguments)
    if options.samples < 1:
        parser.error("--samples must be at least 1")
    console = Console()

    def work() -> int:
        curves = measure(options.samples, console)
        about = made_by({"config": CONFIG.name, "samples": options.samples, "classes": CLASSES}, seed=SEED)
        results = {"made_by": about, **summarise(curves), "curves": curves}
        write_results(options.out / "scaling.json", results)
        draw(options.out / "scaling.png", results, CURVES)
        for table in tables(results):
            console.print(table)
        throughput = results["throughput"]["per_second"]
        told = "none" if throughput is None else f"{throughput:.0f}"
        console.print(f"\nmost calls a second with p99 within {BOUND_MS:g} ms: {told}", highlight=False)
        console.print(f"written to {options.out}/scaling.json and .png", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="nothing was written")


if __name__ == "__main__":
    start(main)
