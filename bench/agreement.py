"""How often a coded release answers as its unprotected model does, on photographs that training and export never saw.

    .venv/bin/python bench/agreement.py RELEASE --checkpoint SYSTEM --data OUT --held-out OUT/held-out

SYSTEM is system.safetensors of its run, OUT what `bench/photos.py` wrote. Over real tritonservers, one for each server
of the release: how often its class is the model's, and is among the model's five most probable; the same of the linear
readout, which the device could compute alone, and of floors that need no network. Adds to bench/results/agreement.json.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from privdfs_bench.agreement import measure, table
from privdfs_bench.releases import release_name, releases
from privdfs_bench.results import merge_release, read_results, write_results
from privdfs_bench.script import add_data, release_parser, run, start
from privdfs_export.factory import add_factory


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = release_parser("agreement", "Measure how often a coded release answers as its unprotected model does.")
    add_data(parser)
    parser.add_argument("--held-out", type=Path, required=True, help="folder of photographs, a folder for each class")
    parser.add_argument("--checkpoint", type=Path, required=True, help="system.safetensors of the release")
    add_factory(parser)
    options = parser.parse_args(arguments)
    console = Console()

    def work() -> int:
        found = releases(options.releases)
        if len(found) != 1:
            parser.error("--checkpoint belongs to one release: name that one")
        (release,) = found
        name, results = release_name(release), read_results(options.out)
        entry = measure(release, options, console)
        write_results(options.out, merge_release(results, name, entry))
        console.print(table({name: entry}))
        console.print(f"\nadded to {options.out}", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="nothing was written")


if __name__ == "__main__":
    start(main)
