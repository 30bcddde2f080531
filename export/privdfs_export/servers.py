"""`privdfs-export servers RELEASE --servers N`: folders for more servers of a coded release."""

import argparse
from pathlib import Path

from privdfs_export.coded_writing import add_servers

DESCRIPTION = "Give a coded release folders for more servers. The release, its id and its clients stay as they are."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder of a coded release")
    parser.add_argument("--servers", type=int, required=True, metavar="N", help="how many servers it shall have")


def run(options: argparse.Namespace) -> None:
    """Write the folders.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: They cannot be written; the message says why.
    """
    for folder in add_servers(options.release, options.servers):
        print(f"{folder}: written; sign it if the others are signed")
