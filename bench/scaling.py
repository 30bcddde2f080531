"""`python bench/scaling.py`: what a call costs as the system grows, and what a server can carry.

One thing grows at a time, the rest is as in configs/fashion-resnet20.toml: the number of servers, images a call, pixels
of the image, bytes of a share, calls at once. Releases are made with random weights (`random_release.py`). PrivDFS and
the floor take turns at each point, so that a slow phase of the machine shows in both. All servers run on this machine,
so many servers also compete for its cores: `compute_ms`, what one request costs a server by its own clock, suffers
less from that than the call does.

Of a coded release (`--coded`) the number of servers grows alone; its points are added to the same file.

Prints tables and writes bench/results/scaling.json and scaling.png; bench/figures.py puts the figures into
docs/SCALING.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from privdfs_bench.releases import release_name
from privdfs_bench.results import RESULTS, made_by, read_results, write_results
from privdfs_bench.script import run, start
from privdfs_bench.speed.coded import coded_points
from privdfs_bench.speed.scaling import BOUND_MS, CLASSES, CONFIG, CURVES, SEED, measure, summarise, tables
from privdfs_bench.speed.scaling_picture import draw


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="scaling", description="Measure what a call costs as the system grows.")
    parser.add_argument("--samples", type=int, default=300, metavar="N", help="calls at each point (default: 300)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help="folder of scaling.json and scaling.png"
    )
    coded = "a coded release: what a call costs with 3, 4, 5 and 7 servers, and nothing else"
    parser.add_argument("--coded", type=Path, metavar="RELEASE", help=coded)
    options = parser.parse_args(arguments)
    if options.samples < 1:
        parser.error("--samples must be at least 1")
    console = Console()

    def work() -> int:
        if options.coded is not None:
            return measured_coded(options, console)
        curves = measure(options.samples, console)
        about = made_by({"config": CONFIG.name, "samples": options.samples, "classes": CLASSES}, seed=SEED)
        kept = {key: value for key, value in read_results(options.out / "scaling.json").items() if key == "coded"}
        results = {"made_by": about, **summarise(curves), "curves": curves, **kept}
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


def measured_coded(options: argparse.Namespace, console: Console) -> int:
    """Measure a coded release with more and more servers, and add it to the result file."""
    path = options.out / "scaling.json"
    results = read_results(path)
    name, points = release_name(options.coded), coded_points(options.coded, options.samples, console)
    about = made_by({"release": name, "samples": options.samples}, seed=SEED)
    results["coded"] = {**results.get("coded", {}), name: {"made_by": about, "points": points}}
    write_results(path, results)
    table = Table(title=f"{name}: a call with more servers", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for head in ("servers", "colluding", "p50", "p90", "p99", "cpu", "bytes up, each"):
        table.add_column(head, justify="right")
    for point in points:
        times = (f"{point[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms", "cpu_ms"))
        table.add_row(str(point["servers"]), str(point["colluding"]), *times, f"{point['bytes_up']:,}")
    console.print(table)
    console.print(f"added to {path}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    start(main)
