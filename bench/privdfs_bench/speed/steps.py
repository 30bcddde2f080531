"""How long training steps take on this processor."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from privdfs_bench.errors import BenchError
from privdfs_bench.results import ROOT
from privdfs_training.config import Config
from privdfs_training.data import DataSet, image_shape
from privdfs_training.loop import check
from privdfs_training.models.system import System
from privdfs_training.optimizer import build_optimizer
from privdfs_training.precision import autocast
from privdfs_training.reading import load_config
from privdfs_training.stage import Stage, trained_modules
from privdfs_training.stages import stages

CONFIGS = [ROOT / "configs" / "fashion-resnet20.toml", ROOT / "configs" / "cifar10-resnet20.toml"]
CLASSES, WARM_UP, SEED = 10, 3, 0


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time several ways in turn.

    Args:
        ways: what to time, by name.
        rounds: how often each.

    Returns:
        Median milliseconds of each, by name.
    """
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(WARM_UP + rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn >= WARM_UP:
                taken[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(times) for name, times in taken.items()}


def stage_step(stage: Stage, system: System, data: DataSet, precision: str) -> Callable[[], None]:
    """A whole step of a stage: loss, backward, optimiser.

    Args:
        stage: of a run.
        system: its networks.
        data: one batch of images.
        precision: of the run.

    Returns:
        What makes the step.
    """
    modules = trained_modules(system, stage)
    optimizer = build_optimizer(modules, stage.config)

    def step() -> None:
        modules.train()
        with autocast("cpu", precision):
            loss, _ = stage.loss(data.train_images, data.train_labels, 0.01)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def steps(config: Config, rounds: int) -> dict[str, Any]:
    """The stages of one config: a step of each, in turn.

    Args:
        config: a run on small images.
        rounds: how often each.

    Returns:
        One entry of the results.

    Raises:
        Error: the config does not fit its own images.
    """
    shape, batch = image_shape(config.data), config.train.masks.batch
    torch.manual_seed(SEED)
    images = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
    labels = torch.arange(batch) % CLASSES
    data = DataSet(config.data.name, tuple(map(str, range(CLASSES))), images, labels, images, labels)
    system = System(config, image_shape=shape, classes=CLASSES)
    system.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    baseline, masks, finetune, *_ = stages(config, system, data)
    for stage in (baseline, masks):
        stage.prepare()
    precision = config.train.precision
    ways = {stage.name: stage_step(stage, system, data, precision) for stage in (baseline, masks)}
    found = interleaved(ways, rounds)
    finetune.prepare()
    # The baseline once more: the int8 head comes later, and the machine may be another one by then.
    int8 = stage_step(finetune, system, data, precision)
    later = interleaved({"baseline": ways["baseline"], "finetune": int8}, rounds)
    return {
        "config": config.name,
        "batch": batch,
        "baseline_ms": round(found["baseline"], 1),
        "masks_ms": round(found["masks"], 1),
        "masks_ratio": round(found["masks"] / found["baseline"], 3),
        "finetune_ratio": round(later["finetune"] / later["baseline"], 3),
    }


def read_run(path: Path) -> Config:
    """A config whose steps can be timed, before time is spent.

    Args:
        path: its file.

    Returns:
        The config, with a head of its own where it takes a finished one: `masks` is a step that draws owners.

    Raises:
        Error: the config cannot be used, or is of images with attributes.
    """
    config = load_config(path)
    if config.data.task == "attributes":
        message = f"{path} is about attributes; steps are timed for images with one class"
        raise BenchError(message)
    config = msgspec.structs.replace(config, head=msgspec.structs.replace(config.head, checkpoint=None))
    check(config)
    return config
