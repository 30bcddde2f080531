"""Training a diffusion prior from a config with a section `[prior]`: `privdfs-train configs/priors/….toml`."""

import math
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from torch import Tensor

from privdfs_training.attacks.prior import GROUPS, Prior, prior_loss
from privdfs_training.augment import crop_and_flip
from privdfs_training.checkpoint import (
    load_weights,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    write_checkpoint,
)
from privdfs_training.checks import data_problems, stage_problems
from privdfs_training.config import DataConfig, Section, StageConfig
from privdfs_training.data import ImageData
from privdfs_training.errors import CheckpointError, DivergenceError, TrainingConfigError
from privdfs_training.interruption import InterruptedTrainingError, stop_on_signal
from privdfs_training.loop import progress_bar
from privdfs_training.optimizer import build_optimizer, schedule
from privdfs_training.precision import autocast
from privdfs_training.reading import refuse_unknown_keys

SAVED_EVERY = 500  # steps, a minute or two
SMOOTHED = 0.99  # of the loss that is shown


class PriorNetworkConfig(Section, frozen=True):
    """The network."""

    width: int  # channels at half the image's height, a multiple of 8
    blocks: int  # residual blocks on every way


class PriorConfig(Section, frozen=True):
    """A whole run."""

    name: str  # of the run, and of its folder
    seed: int
    data: DataConfig
    prior: PriorNetworkConfig
    train: StageConfig


def prior_config(raw: dict[str, Any], path: Path) -> PriorConfig:
    """Build and check the config of a prior's run.

    Args:
        raw: Nested dictionaries, as TOML gives them.
        path: Where they come from; used in messages.

    Returns:
        The typed config.

    Raises:
        TrainingConfigError: An unknown or missing key, a value of the wrong type, or one that cannot work.
    """
    refuse_unknown_keys(raw, PriorConfig, path, "")
    try:
        config = msgspec.convert(raw, PriorConfig)
    except msgspec.ValidationError as error:
        message = f"{path}: {error}"
        raise TrainingConfigError(message) from error
    problems = [*data_problems(config.data), *stage_problems("train", config.train)]
    unused = [key for key in ("clip", "average") if getattr(config.train, key)]
    problems += [f"train.{key} is not for a prior: remove it" for key in unused]
    if config.prior.width < 1 or config.prior.width % GROUPS:
        problems.append(f"prior.width is {config.prior.width}; it must be a multiple of {GROUPS}")
    if config.prior.blocks < 1:
        problems.append(f"prior.blocks is {config.prior.blocks}; it must be at least 1")
    for problem in problems:
        message = f"{path}: {problem}"
        raise TrainingConfigError(message)
    return config


def train_prior(config: PriorConfig, data: ImageData, folder: Path, console: Console) -> Path:
    """Train a prior, or continue it; every step seeds torch, so an interrupted run is the run that was not.

    Args:
        config: The run.
        data: Its images; the training half is used.
        folder: For the checkpoint.
        console: Where progress is shown.

    Returns:
        The path of the finished prior, float16, for `load_prior`.

    Raises:
        AttackError: Images whose sides are not multiples of 4.
        CheckpointError: The checkpoint is damaged, of another config, or cannot be written.
        DivergenceError: The loss stopped being finite.
        InterruptedTrainingError: The user stopped the run; the same call continues it.
        TrainingConfigError: A batch is larger than the set.
    """
    if config.train.batch > data.train_size:
        message = f"train.batch is {config.train.batch}, but {data.name} has {data.train_size} training images"
        raise TrainingConfigError(message)
    path = folder / "prior.safetensors"
    torch.manual_seed(config.seed)
    prior = Prior(data.image_shape, width=config.prior.width, blocks=config.prior.blocks)
    prior.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = build_optimizer(prior, config.train)
    made_by = msgspec.to_builtins(config)
    step = _restore(path, prior, optimizer, made_by)
    if step is None:
        return path
    per_epoch = data.train_size // config.train.batch
    steps = per_epoch * config.train.epochs
    about = {"prior": made_by["prior"], "image_shape": data.image_shape, "made_by": made_by}

    def save(*, finished: bool) -> None:
        tensors = {name: value.half() for name, value in prior.state_dict().items()}
        if not finished:
            tensors = prior.state_dict() | optimizer_tensors(optimizer)
        write_checkpoint(path, tensors, about | {"step": step, "finished": finished})

    shown = math.nan
    with stop_on_signal() as stop, progress_bar(console) as progress:
        bar = progress.add_task(config.name, total=steps, completed=step, note="")
        while step < steps:
            epoch = step // per_epoch
            batches = data.train_batches(config.seed + epoch, config.train.batch, start=step % per_epoch)
            for images, _ in batches:
                for group in optimizer.param_groups:
                    group["lr"] = config.train.learning_rate * schedule(step / steps)
                value = _step(config, prior, optimizer, images, step)
                step += 1
                shown = value if math.isnan(shown) else SMOOTHED * shown + (1 - SMOOTHED) * value
                progress.update(bar, completed=step, note=f"epoch {epoch + 1}/{config.train.epochs} loss {shown:.4f}")
                if stop.wanted or step % SAVED_EVERY == 0:
                    save(finished=False)
                if stop.wanted:
                    raise InterruptedTrainingError
            console.print(f"epoch {epoch + 1}/{config.train.epochs}: loss {shown:.4f}")
    save(finished=True)
    return path


def _restore(path: Path, prior: Prior, optimizer: torch.optim.Optimizer, made_by: dict[str, Any]) -> int | None:
    """Put a checkpoint in place, if there is one, and give its step; None when the run is finished."""
    if not path.exists():
        return 0
    checkpoint = read_checkpoint(path)
    if checkpoint.about.get("made_by") != made_by:
        message = f"{path} was made with another config. Give the run another name, or remove the file."
        raise CheckpointError(message)
    if checkpoint.about["finished"]:
        return None
    weights = {name: value for name, value in checkpoint.tensors.items() if not name.startswith("optimizer.")}
    load_weights(prior, weights, path)
    restore_optimizer(optimizer, checkpoint.tensors)
    return int(checkpoint.about["step"])


def _step(config: PriorConfig, prior: Prior, optimizer: torch.optim.Optimizer, images: Tensor, step: int) -> float:
    """One step of the optimiser; its loss."""
    torch.manual_seed(step)  # of mirroring
    generator = torch.Generator().manual_seed((config.seed << 32) + step)
    pixels = crop_and_flip(images, padding=config.train.crop_padding, flip=config.data.flip)
    with autocast("cpu"):
        loss = prior_loss(prior, pixels, generator)
    value = float(loss.detach())
    if not math.isfinite(value):
        message = f"the loss of {config.name} is {value} at step {step}. Lower train.learning_rate."
        raise DivergenceError(message)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return value
