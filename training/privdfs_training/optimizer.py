"""Optimisers, and how the learning rate moves."""

from typing import Any

import torch
from torch import nn

from privdfs_training.config import StageConfig
from privdfs_training.errors import TrainingConfigError

WARM_UP = 0.2  # share of the steps in which the learning rate rises; it falls to zero in the rest


def schedule(progress: float) -> float:
    """The learning rate at a progress in 0..1, as a share of the highest."""
    return min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def build_optimizer(modules: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """The optimiser of a stage, fresh.

    Args:
        modules: What it trains.
        config: Of the stage.

    Returns:
        SGD with Nesterov momentum, or AdamW.

    Raises:
        TrainingConfigError: The stage has epochs, and nothing to train.
    """
    if config.epochs and not any(value.requires_grad for value in modules.parameters()):
        message = (
            "a stage has epochs, and no weight that it trains may change: let some parameters of backbone.factory's "
            "module require gradients, or set the stage's epochs to 0"
        )
        raise TrainingConfigError(message)
    # Weight decay on matrices and kernels only: decaying gains, biases, mask preferences and probabilities would move
    # what they mean.
    kept = ("logits", "table")
    decayed = [value for name, value in modules.named_parameters() if value.ndim > 1 and not name.endswith(kept)]
    others = [value for name, value in modules.named_parameters() if value.ndim <= 1 or name.endswith(kept)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = any(value.is_cuda for value in modules.parameters())  # on a GPU, one kernel in place of one a tensor
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
