"""Started by torchrun in tests: trains as privdfs-train does; process 1 alone stops or fails: `stop|fail STEP …`."""

import signal
import sys

from torch import Tensor

from privdfs_training import loop, parallel
from privdfs_training.cli import main
from privdfs_training.errors import DataError

steps, how, last = 0, sys.argv[1], int(sys.argv[2])
crop_and_flip = loop.crop_and_flip


def end_at_last(*args: Tensor, **kwargs: int) -> Tensor:
    global steps  # noqa: PLW0603  the loop calls a plain function
    steps += 1
    if steps == last and parallel.rank() == 1:
        if how == "fail":
            message = "one picture cannot be read"
            raise DataError(message)
        signal.raise_signal(signal.SIGTERM)
    return crop_and_flip(*args, **kwargs)  # type: ignore[arg-type]


loop.crop_and_flip = end_at_last
sys.exit(main(sys.argv[3:]))
