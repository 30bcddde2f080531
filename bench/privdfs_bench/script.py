"""What the commands share: their options, their exit codes, and how an error or Ctrl-C ends them."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from privdfs import Error
from privdfs._command_line import signals_interrupt, whole_number
from privdfs_bench.results import RESULTS

__all__ = ["EXIT_ERROR", "add_data", "add_out", "add_threads", "release_parser", "run", "start", "whole_number"]

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def add_data(parser: argparse.ArgumentParser) -> None:
    """The option of every benchmark that needs images."""
    parser.add_argument(
        "--data", type=Path, help="folder of the data set; default $PRIVDFS_DATA, then where Debian installs it"
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option of every benchmark that adds to a result file."""
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"{parser.prog}.json",
        help=f"result file to add to (default: bench/results/{parser.prog}.json)",
    )


def add_threads(parser: argparse.ArgumentParser, default: str = "PyTorch's") -> None:
    """The option of every benchmark that trains or attacks."""
    parser.add_argument("--threads", type=whole_number(1, 1024), help=f"CPU threads (default: {default})")


def release_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The options of every benchmark that measures releases.

    Args:
        prog: Name of the benchmark; its results go to bench/results/<prog>.json.
        description: For --help.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        "releases", nargs="*", type=Path, metavar="RELEASE", help="folders of releases (default: all of the project)"
    )
    add_out(parser)
    return parser


def run(prog: str, work: Callable[[], int], *, stopped: str) -> int:
    """Run a command.

    Args:
        prog: Its name, with which errors begin.
        work: What it does; gives the exit code.
        stopped: What to say after Ctrl-C: what was kept, and how to go on.

    Returns:
        Exit code: that of the work, 2 after an error that its message explains, 130 after Ctrl-C.
    """
    try:
        return work()
    except KeyboardInterrupt:
        print(f"{prog}: stopped; {stopped}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return EXIT_ERROR


def start(main: Callable[[], int]) -> NoReturn:
    """End the process with the exit code of a command, which cleans up after SIGTERM and SIGHUP as after Ctrl-C."""
    with signals_interrupt():
        sys.exit(main())
