"""Started by torchrun in tests: trains as privdfs-train does, and process 1 alone is told to stop at its Nth step."""

import signal
import sys

from torch import Tensor

from privdfs_training import loop, parallel
from privdfs_training.cli import main

steps, last = 0, int(sys.argv[1])
crop_and_flip = loop.crop_and_flip


def stop_at_last(*args: Tensor, **kwargs: int) -> Tensor:
    global steps  # noqa: PLW0603  the loop calls a plain function
    steps += 1
    if steps == last and parallel.rank() == 1:
        signal.raise_signal(signal.SIGTERM)
    return crop_and_flip(*args, **kwargs)  # type: ignore[arg-type]


loop.crop_and_flip = stop_at_last
sys.exit(main(sys.argv[2:]))
