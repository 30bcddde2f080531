"""`python bench/engines.py [RELEASE …]`: every branch of releases through TensorRT-RTX, in every precision.

TensorRT-RTX builds without a GPU (`make tensorrt`), with the interface, ONNX parser and compiler front of TensorRT. Its
plans run in no tritonserver, and nothing runs here: this shows that branches become engines, how long that takes, and
what they weigh. What a precision computes is measured by ONNX Runtime on the same graph; BF16 it does not compute.
"""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from privdfs_bench.releases import release_name, releases
from privdfs_bench.results import made_by, write_results
from privdfs_bench.script import release_parser, run, start
from privdfs_bench.speed.engines import measure
from privdfs_export.precision import PRECISIONS
from privdfs_export.repository import read_repository
from privdfs_export.verify import server_folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = release_parser("engines", "Build every branch with TensorRT-RTX.")
    options = parser.parse_args(arguments)
    console = Console()

    def work() -> int:
        entries: dict[str, Any] = {}
        for release in releases(options.releases):
            name = release_name(release)
            columns = ("server", "precision", "seconds", "plan bytes", "weights", "off by", "same class")
            table, rows = Table(*columns, title=name), list[dict[str, Any]]()
            entries[name] = rows
            for folder in server_folders(release):
                for precision in PRECISIONS:
                    row = {"server": folder.name, **measure(read_repository(folder), precision)}
                    rows.append(row)
                    table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
            console.print(table)
        write_results(options.out, {"made_by": made_by({"tensorrt": "RTX"}, seed=0), "releases": entries})
        console.print(f"written to {options.out}", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="nothing was written")


if __name__ == "__main__":
    start(main)
