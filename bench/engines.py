"""`python bench/engines.py [RELEASE …]`: every branch of releases through TensorRT-RTX, in every precision.

TensorRT-RTX builds without a GPU (`make tensorrt`), with the interface, ONNX parser and compiler front of TensorRT. Its
plans run in no tritonserver, and nothing runs here: this shows that branches become engines, how long that takes, and
what they weigh. What a precision computes is measured by ONNX Runtime on the same graph; BF16 it does not compute.
Rounds of coded releases are built in float32 and must give their golden residues exactly.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from privdfs._format import server_folder
from privdfs_bench.releases import is_coded, release_name, releases
from privdfs_bench.results import made_by, read_results, write_results
from privdfs_bench.script import release_parser, run, start
from privdfs_bench.speed.engines import measure, measure_rounds
from privdfs_export.precision import PRECISIONS
from privdfs_export.repository import read_repository
from privdfs_export.verify import server_folders


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = release_parser("engines", "Build every branch with TensorRT-RTX.")
    options = parser.parse_args(arguments)
    console = Console()

    def work() -> int:
        entries, coded = dict[str, Any](), dict[str, Any]()
        before = read_results(options.out)
        for release in releases(options.releases):
            name = release_name(release)
            if is_coded(release):
                coded[name] = _coded(release, name, console)
                continue
            columns = ("server", "precision", "seconds", "plan bytes", "weights", "off by", "same class")
            table, rows = Table(*columns, title=name), list[dict[str, Any]]()
            entries[name] = rows
            for folder in server_folders(release):
                for precision in PRECISIONS:
                    row = {"server": folder.name, **measure(read_repository(folder), precision)}
                    rows.append(row)
                    table.add_row(*("" if cell is None else str(cell) for cell in row.values()))
            console.print(table)
        results = {"made_by": made_by({"tensorrt": "RTX"}, seed=0), "releases": entries or before.get("releases", {})}
        if coded or "coded" in before:
            results["coded"] = {**before.get("coded", {}), **coded}
        write_results(options.out, results)
        console.print(f"written to {options.out}", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="nothing was written")


def _coded(release: Path, name: str, console: Console) -> list[dict[str, Any]]:
    """Every round of a coded release in float32, for one server: all run the same networks."""
    rows = measure_rounds(read_repository(release / server_folder(0)))
    table = Table(*rows[0], title=name)
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    return rows


if __name__ == "__main__":
    start(main)
