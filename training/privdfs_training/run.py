"""What the stages of one training have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from torch import nn

from privdfs_training.config import RunConfig
from privdfs_training.data import ImageData
from privdfs_training.parallel import CPU


@dataclass(frozen=True)
class Compute:
    """How a process computes.

    Attributes:
        device: Where the system is, and where batches go.
        precision: Of convolutions and products in training; where bfloat16 would be emulated, they are float32.
        replay: Whether networks are recorded and replayed (replay.py); one process on a GPU can.
    """

    device: torch.device = CPU
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    replay: bool = False


@dataclass(frozen=True)
class Run:
    """What the stages of one training have in common.

    Attributes:
        config: Its settings.
        system: Has the parts that the stages name.
        data: Images.
        folder: For checkpoints and metrics.jsonl.
        console: Where progress is shown.
        compute: Where and how.
    """

    config: RunConfig
    system: nn.Module
    data: ImageData
    folder: Path
    console: Console
    compute: Compute = Compute()
