"""`python bench/engines.py [RELEASE …]`: every branch of releases through TensorRT-RTX, in every precision.

TensorRT-RTX builds without a GPU (`make tensorrt`), with the interface, ONNX parser and compiler front of TensorRT. Its
plans run in no tritonserver, and nothing runs here: this shows that branches become engines, how long that takes, and
what they weigh. What a precision computes is measured by ONNX Runtime on the same graph; BF16 it does not compute.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import EXIT_ERROR, EXIT_INTERRUPTED, RESULTS, BenchError, made_by, release_name, releases, write_results
from rich.console import Console
from rich.table import Table

from privdfs import Error
from privdfs._command_line import signals_interrupt
from privdfs_export.engine import BuildOptions, build_engine
from privdfs_export.precision import PRECISIONS, Precision, with_precision
from privdfs_export.repository import Repository, read_repository
from privdfs_export.sessions import session
from privdfs_export.verify import relative_difference, server_folders


def measure(repository: Repository, precision: Precision) -> dict[str, Any]:
    """Build one branch in one precision.

    Args:
        repository: of a server, with golden examples and ranges.
        precision: wanted.

    Returns:
        One entry of the results: seconds, bytes of plan and weights, and against the float32 graph on the golden
        examples the largest difference, relative to the largest logit, and the fraction of equal classes.

    Raises:
        BenchError: TensorRT-RTX, or the golden examples, are missing.
        EngineError: it cannot be built.
    """
    try:
        rtx = importlib.import_module("tensorrt_rtx_bindings")
    except ImportError as error:
        msg = "TensorRT-RTX is not installed: run `make tensorrt`"
        raise BenchError(msg) from error
    golden = repository.golden
    if golden is None:
        msg = f"{repository.path} has no golden examples: export the release again with this version"
        raise BenchError(msg)
    graph = with_precision(onnx.load_from_string(repository.graph), precision, repository.ranges)
    plan = build_engine(graph, BuildOptions(repository.config.max_batch_size), rtx)
    found: dict[str, Any] = {
        "precision": precision,
        "seconds": round(plan.seconds, 2),
        "plan_bytes": len(plan.data),
        "weights_bytes": plan.weights,
        "difference": None,
        "agreement": None,
    }
    if precision != "bf16":
        inputs = {name: values for name, values in golden.items() if name != "logits"}
        answers = np.asarray(session(graph.SerializeToString()).run(None, inputs)[0])
        found["difference"] = float(f"{relative_difference(answers, golden['logits']):.2e}")
        found["agreement"] = float((answers.argmax(1) == golden["logits"].argmax(1)).mean())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="engines", description="Build every branch with TensorRT-RTX.")
    parser.add_argument("releases", nargs="*", type=Path, metavar="RELEASE", help="(default: all of the project)")
    parser.add_argument("--out", type=Path, default=RESULTS / "engines.json", help="(default: bench/results/…)")
    options = parser.parse_args(arguments)
    console = Console()
    try:
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
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"engines: {error}", file=sys.stderr)
        return EXIT_ERROR
    console.print(f"written to {options.out}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    with signals_interrupt():
        sys.exit(main())
