"""Training that signals stop, and that goes on from its checkpoints until it is done."""

import itertools
import signal
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
from torch import Tensor

from privdfs_training import loop
from privdfs_training.interruption import InterruptedTrainingError

Result = TypeVar("Result")


def until_done(
    run: Callable[[], Result], *stops: int, signals: Iterable[signal.Signals] = (signal.SIGINT,)
) -> tuple[Result, int]:
    """Call a run again and again, each time that a signal stopped it.

    Args:
        run: Trains, or goes on.
        stops: Steps before which a signal comes, counted from 1 over all stages and calls.
        signals: Which comes, in turn.

    Returns:
        What the run gave in the end, and how many steps it took in all.
    """
    steps, crop_and_flip = 0, loop.crop_and_flip
    sent = dict(zip(stops, itertools.cycle(signals), strict=False))

    def stop_now_and_then(images: Tensor, *, padding: int, flip: bool) -> Tensor:
        nonlocal steps
        steps += 1
        if steps in sent:
            signal.raise_signal(sent[steps])
        return crop_and_flip(images, padding=padding, flip=flip)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "crop_and_flip", stop_now_and_then)
        for _ in stops:
            with pytest.raises(InterruptedTrainingError):
                run()
        return run(), steps
