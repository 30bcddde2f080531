"""`python bench/engines.py [RELEASE …]`: every branch of releases through TensorRT-RTX, in every precision.

TensorRT-RTX builds without a GPU (`make tensorrt`), with the interface, ONNX parser and compiler front of TensorRT. Its
plans run in no tritonserver, and nothing runs here: this shows that branches become engines, how long that takes, and
what they weigh. What a precision computes is measured by ONNX Runtime on the same graph; BF16 it does not compute.
Rounds of coded releases are built in FP32 and in INT8, and must give their golden residues exactly.

A config in the place of a release is measured with random weights. Each release's rows say which command, commit and
versions gave them, and which graph each was built from; those of releases that are not measured stay.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from privdfs._format import server_folder
from privdfs_bench.releases import is_coded, release_name, releases
from privdfs_bench.results import made_by, merge_release, read_results, write_results
from privdfs_bench.script import release_parser, run, start
from privdfs_bench.speed.engines import measure, measure_rounds, tensorrt_rtx
from privdfs_bench.speed.latency import given
from privdfs_export.precision import PRECISIONS
from privdfs_export.repository import read_repository
from privdfs_export.verify import server_folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = release_parser(
        "engines",
        "Build the branches of masked releases and the rounds of coded ones with TensorRT-RTX. A config in place of a "
        "release is measured with random weights.",
    )
    options = parser.parse_args(arguments)
    console = Console()

    def work() -> int:
        read_results(options.out)  # a file that cannot be added to is an error now, not after minutes
        about = made_by({"tensorrt_rtx": tensorrt_rtx().__version__}, seed=0)
        for path in releases(options.releases):
            with given(path, console) as release:
                name, rows = release_name(release), _rows(release)
            entry = {"made_by": about, **rows}
            write_results(options.out, merge_release(read_results(options.out), name, entry))
            for found in rows.values():
                table = Table(*found[0], title=name)
                for row in found:
                    table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
                console.print(table)
        console.print(f"added to {options.out}", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="releases measured before are kept")


def _rows(release: Path) -> dict[str, list[dict[str, Any]]]:
    """`rounds` of a coded release, of one server since all run the same networks; `branches` of a masked one."""
    if is_coded(release):
        return {"rounds": measure_rounds(read_repository(release / server_folder(0)))}
    return {
        "branches": [
            {"server": folder.name, **measure(read_repository(folder), precision)}
            for folder in server_folders(release)
            for precision in PRECISIONS
        ]
    }


if __name__ == "__main__":
    start(main)
