"""`privdfs-export CHECKPOINT --out DIR`: build a release of a finished training run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from privdfs import Error
from privdfs_export.release import export_release
from privdfs_training.checkpoint import load_system
from privdfs_training.data import load_data


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: Of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains.
    """
    parser = argparse.ArgumentParser(prog="privdfs-export", description="Build the release of a finished training run.")
    parser.add_argument("checkpoint", type=Path, help="system.safetensors of a run")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the release, such as model_repository/NAME; must not exist"
    )
    parser.add_argument(
        "--engine",
        choices=("python", "onnxruntime"),
        default="python",
        help="how Triton runs the branches: Python backend with ONNX Runtime (default), or ONNX Runtime backend",
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the data set; default $PRIVDFS_DATA, then where Debian installs it"
    )
    options = parser.parse_args(arguments)
    try:
        trained = load_system(options.checkpoint)
        data = load_data(trained.config.data, options.data)
        export_release(trained, data, options.out, engine=options.engine, console=Console())
    except Error as error:
        print(f"privdfs-export: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
