"""`privdfs-export SYSTEM --out DIR`: the command that builds a release."""

import argparse
from pathlib import Path

from rich.console import Console

from privdfs_export.coded_release import export_coded
from privdfs_export.coded_writing import check_servers
from privdfs_export.errors import ExportError
from privdfs_export.factory import add_factory
from privdfs_export.release import export_release
from privdfs_export.writing import refuse_existing
from privdfs_training.checkpoint import load_system
from privdfs_training.coded.system import is_coded, load_coded
from privdfs_training.data import load_data

#: Folders of a coded release: enough for T = 2, or for one liar and T = 1.
DEFAULT_SERVERS = 5

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
        "--servers",
        type=int,
        metavar="N",
        help=f"of a coded system: how many servers get a folder (default {DEFAULT_SERVERS}); clients choose how many "
        "they use",
    )
    add_factory(parser)
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
    console = Console()
    if is_coded(options.checkpoint):
        servers = DEFAULT_SERVERS if options.servers is None else options.servers
        check_servers(servers)
        coded = load_coded(options.checkpoint, factory=options.factory)
        check_servers(servers, max(each.degree for each in coded.rounds))
        data = load_data(coded.config.data.whole(), options.data)
        export_coded(coded, data, options.out, engine=options.engine, servers=servers, console=console)
        return
    trained = load_system(options.checkpoint, factory=options.factory)
    if options.servers is not None:
        message = (
            f"{options.checkpoint} is a system of masked shares, trained for {trained.system.masks.servers} servers: "
            "leave out --servers."
        )
        raise ExportError(message)
    data = load_data(trained.config.data.whole(), options.data)
    export_release(trained, data, options.out, engine=options.engine, console=console)
