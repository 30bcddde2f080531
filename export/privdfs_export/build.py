"""`privdfs-export SYSTEM --out DIR`: the command that builds a release."""

import argparse
from pathlib import Path

from rich.console import Console

from privdfs_export.release import export_release
from privdfs_export.writing import refuse_existing
from privdfs_training.checkpoint import load_system
from privdfs_training.data import load_data

DESCRIPTION = "Build the release of a finished training run."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("checkpoint", type=Path, metavar="SYSTEM", help="system.safetensors of a run")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the release, such as model_repository/NAME; must not exist"
    )
    parser.add_argument(
        "--engine",
        choices=("python", "onnxruntime"),
        default="python",
        help="how Triton runs the branches: Python backend with ONNX Runtime (default), or ONNX Runtime backend; "
        "`privdfs-export plan` turns either into TensorRT plans",
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the data set; default $PRIVDFS_DATA, then where Debian installs it"
    )


def run(options: argparse.Namespace) -> None:
    """Build the release.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: It cannot be built; nothing was written.
    """
    refuse_existing(options.out)
    trained = load_system(options.checkpoint)
    data = load_data(trained.config.data, options.data)
    export_release(trained, data, options.out, engine=options.engine, console=Console())
