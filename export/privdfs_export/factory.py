"""The option with which a caller names the code that makes a custom backbone. What a file names is never imported."""

import argparse


def add_factory(parser: argparse.ArgumentParser) -> None:
    """Add `--factory`.

    Args:
        parser: Of a command that opens a trained system.
    """
    parser.add_argument(
        "--factory",
        metavar="MODULE:FUNCTION",
        help="of a system with a custom backbone: your function that makes it; what the file names is never imported",
    )
