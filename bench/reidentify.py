"""`python bench/reidentify.py RELEASE… --faces FOLDER`: whether shares tell people apart.

FOLDER has the layout of the ORL (AT&T) database of faces: a folder for each person, photographs in it. Half of each
person's photographs are the attacker's gallery, with names; the others are sent, and the coalition says whose they are.
The release is used as it is: its head was made for other images, so the figures are about what so few values let
through, and not about an application that recognises faces.

Three attackers, each trained or set up from scratch on shares that the release's client makes of the gallery, moved and
mirrored many times over: the nearest share, a network that was trained to tell people by their shares, and a fully
connected decoder after which the picture is compared with the gallery's. Beside them stand guessing, and the same
comparison of the photographs themselves.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from privdfs_bench.audit.people import measure, table
from privdfs_bench.releases import is_coded, release_name, releases
from privdfs_bench.results import merge_release, read_results, write_results
from privdfs_bench.script import release_parser, run, start


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = release_parser("reidentify", "Measure whether shares tell people apart.")
    parser.add_argument("--faces", type=Path, required=True, metavar="FOLDER", help="a folder for each person")
    options = parser.parse_args(arguments)
    console = Console()

    def work() -> int:
        # What a minority has of a coded release says nothing of anybody.
        for release in [one for one in releases(options.releases) if options.releases or not is_coded(one)]:
            name, results = release_name(release), read_results(options.out)
            with Progress(console=console, transient=True) as progress:
                entry = measure(release, options.faces, progress)
            write_results(options.out, merge_release(results, name, entry))
            console.print(table(name, entry))
        console.print(f"\nin {options.out}", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="releases that were finished are kept")


if __name__ == "__main__":
    start(main)
