"""`python bench/branches.py [CONFIG …]`: how long training steps take on this processor, as ratios within one run.

First the branches of N servers, forward and backward: one after the other, against one grouped network
(`branch.together`). Then whole steps of the stages of each config, against its baseline's step. What is compared is
interleaved, step by step, since machines are noisy; a figure is the median. Images are random: time does not
depend on them. Finished networks are asked in every step, also where training asks them ahead. One thread, since that
is how runs are started here.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from _common import EXIT_ERROR, EXIT_INTERRUPTED, RESULTS, ROOT, BenchError, made_by, write_results
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from privdfs import Error
from privdfs._command_line import signals_interrupt, whole_number
from privdfs_training.config import Config, load_config
from privdfs_training.data import DataSet, image_shape
from privdfs_training.loop import build_optimizer, check
from privdfs_training.models.branch import Branch
from privdfs_training.models.grouped import grouped_answers
from privdfs_training.models.system import System
from privdfs_training.precision import autocast
from privdfs_training.stages import Stage, stages, trained_modules

CONFIGS = [ROOT / "configs" / "fashion-resnet20.toml", ROOT / "configs" / "cifar10-resnet20.toml"]
BATCH, GRID, BLOCKS, CLASSES = 128, 4, 2, 10
WARM_UP, SEED = 3, 0


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


def branches(servers: int, width: int, channels: int, precision: str, rounds: int) -> dict[str, Any]:
    """Forward and backward of all branches, both ways.

    Args:
        servers: number of branches.
        width: channels inside.
        channels: of the feature.
        precision: "bfloat16" or "float32".
        rounds: how often each way.

    Returns:
        One entry of the results.
    """
    torch.manual_seed(SEED)
    shape = (channels, GRID, GRID)
    networks = nn.ModuleList(Branch(shape, width=width, blocks=BLOCKS, classes=CLASSES) for _ in range(servers))
    networks.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    shares = torch.randn(BATCH, servers, *shape)

    def one_by_one() -> Tensor:
        return torch.stack([branch(shares[:, server]) for server, branch in enumerate(networks)], dim=1)

    def step(answers: Callable[[], Tensor]) -> None:
        networks.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = answers()
        logits.float().square().mean().backward()

    found = interleaved(
        {"loop": lambda: step(one_by_one), "grouped": lambda: step(lambda: grouped_answers(networks, shares))}, rounds
    )
    return {
        "servers": servers,
        "width": width,
        "channels": channels,
        "precision": precision,
        "loop_ms": round(found["loop"], 2),
        "grouped_ms": round(found["grouped"], 2),
        "ratio": round(found["grouped"] / found["loop"], 3),
    }


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="branches", description="Time training steps on this processor.")
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", help="of a run (default: two references)")
    parser.add_argument("--rounds", type=whole_number(1, 10**9), default=20, help="steps of each way (default: 20)")
    parser.add_argument("--servers", type=whole_number(2, 1000), nargs="+", default=[3, 5, 7], help="(default: 3 5 7)")
    parser.add_argument(
        "--widths", type=whole_number(1, 10**6), nargs="+", default=[32, 64], help="of a branch (default: 32 64)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "branches.json", help="(default: bench/results/…)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()
    try:
        runs = [read_run(path) for path in options.configs or CONFIGS]
        table = Table("servers", "width", "channels", "precision", "loop", "grouped", "grouped / loop")
        results: dict[str, Any] = {"branches": [], "steps": []}
        with console.status("branches"):
            for case in itertools.product(options.servers, options.widths, (8, 16), ("bfloat16", "float32")):
                found = branches(*case, options.rounds)
                results["branches"].append(found)
                table.add_row(*map(str, found.values()))
        console.print(table)
        table = Table("config", "batch", "baseline", "masks", "masks / baseline", "finetune / baseline")
        with console.status("steps"):
            for config in runs:
                found = steps(config, options.rounds)
                results["steps"].append(found)
                table.add_row(*map(str, found.values()))
        console.print(table)
        about = {"rounds": options.rounds, "batch": BATCH, "grid": GRID, "blocks": BLOCKS, "threads": 1}
        write_results(options.out, {"made_by": made_by(about, seed=SEED), **results})
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"branches: {error}", file=sys.stderr)
        return EXIT_ERROR
    console.print(f"written to {options.out}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    with signals_interrupt():
        sys.exit(main())
