"""What the commands of this project share: numbers within limits, and signals that let them clean up."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from privdfs._given import shown


def whole_number(smallest: int, largest: int) -> Callable[[str], int]:
    """A `type=` for argparse: a whole number within limits, or an error that names them."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not smallest <= number <= largest:
            raise argparse.ArgumentTypeError(f"expected a whole number from {smallest} to {largest}")
        return number

    return read


def stopping_signals() -> list[signal.Signals]:
    """Ctrl-C, SIGTERM, and SIGHUP of a closed terminal, unless `nohup` or its like has switched that off."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


@contextmanager
def signals_interrupt() -> Generator[None, None, None]:
    """Inside it every stopping signal raises KeyboardInterrupt, so that what was begun is cleaned up.

    A shell starts background jobs with SIGINT ignored; it counts all the same.
    """
    previous = {number: signal.signal(number, signal.default_int_handler) for number in stopping_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def explain(program: str, error: OSError) -> int:
    """Say which file cannot be used; a reader of the output that has seen enough, as `head` has, needs no words.

    Returns:
        The exit code.
    """
    if error.filename is not None:
        named = shown(os.fsdecode(error.filename))
        sys.stderr.write(f"{program}: {named} cannot be used ({error.strerror}): check its permissions and the disk\n")
        return 2
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush does not fail too
    if not isinstance(error, BrokenPipeError):
        sys.stderr.write(f"{program}: the output cannot be written ({error.strerror}): check where it goes\n")
    return 2
