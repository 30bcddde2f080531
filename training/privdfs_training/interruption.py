"""Stopping a training on a signal, between two steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from privdfs._command_line import stopping_signals


@dataclass
class StopRequest:
    """Set by a signal to stop. The loop looks at it between steps, so that a checkpoint is never of half a step."""

    wanted: bool = False


class InterruptedTrainingError(Exception):
    """The run was stopped by the user; everything is saved."""


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Inside it, Ctrl-C, SIGTERM and SIGHUP (a closed terminal) only set what it gives."""
    stop = StopRequest()

    def request(number: int, _frame: object) -> None:
        stop.wanted = True
        if number == signal.SIGHUP:
            _leave_closed_terminal()

    previous = {number: signal.signal(number, request) for number in stopping_signals()}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_closed_terminal() -> None:
    """Let what is still said go nowhere: writing to a terminal that is gone is an error, which would end the run."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
