"""How often a release is right, on all test images of its data set, measured on the product itself.

    .venv/bin/python bench/accuracy.py [RELEASE …] [--checkpoint runs/NAME/system.safetensors]

For every release: the unprotected baseline, the fused answer over real tritonservers through the SDK (`fused`), the
same from the exported files and, with a checkpoint, in torch; whether local mode and tritonservers agree on every
prediction; each branch alone; every number of missing servers; every minority of lying servers, by kind of lie, the
worst coalition of each size; linear readouts in the place of the branches; for a keyed release, 100 keys. For a coded
release: several numbers of servers, with as many silent ones as may be and with a liar who knows everything; canaries
that expose one where decoding does not. Prints a table, and adds to bench/results/accuracy.json.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from privdfs_bench.accuracy import measure, table
from privdfs_bench.coded_accuracy import measure_coded
from privdfs_bench.releases import is_coded, release_name, releases
from privdfs_bench.results import merge_release, read_results, write_results
from privdfs_bench.script import add_data, release_parser, run, start
from privdfs_export.factory import add_factory


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = release_parser("accuracy", "Measure the accuracy of releases.")
    add_data(parser)
    parser.add_argument("--checkpoint", type=Path, help="system.safetensors of the one release, to measure torch too")
    add_factory(parser)
    parser.add_argument("--agreement", type=int, metavar="N", help="images of local mode (default: all)")
    options = parser.parse_args(arguments)
    if options.agreement is not None and options.agreement < 1:
        parser.error("--agreement must be at least 1")
    if options.factory is not None and options.checkpoint is None:
        parser.error("--factory makes the backbone of --checkpoint: give both, or neither")
    console = Console()

    def work() -> int:
        found, entries = releases(options.releases), {}
        if options.checkpoint is not None and len(found) != 1:
            parser.error("--checkpoint belongs to one release: name that one")
        read_results(options.out)  # a file that cannot be added to is an error now, not after minutes
        for release in found:
            name = release_name(release)
            if is_coded(release):
                if options.checkpoint is not None:
                    parser.error("--checkpoint is for masked releases: export compares a coded one with torch")
                entries[name] = measure_coded(release, options, console)
            else:
                entries[name] = measure(release, options, console)
            write_results(options.out, merge_release(read_results(options.out), name, entries[name]))
        console.print(table(entries))
        console.print(f"\nadded to {options.out}", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="releases measured before are kept")


if __name__ == "__main__":
    start(main)
