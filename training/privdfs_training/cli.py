"""`privdfs-train CONFIG`: run the stages of one config, or continue them."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from rich.console import Console

from privdfs._command_line import whole_number
from privdfs_training import parallel
from privdfs_training.attacks.prior_training import PriorConfig, prior_config, train_prior
from privdfs_training.coded.config import CodedConfig, coded_config
from privdfs_training.coded.train import check_coded, train_coded
from privdfs_training.config import Config, CustomConfig
from privdfs_training.data import ImageData, load_data
from privdfs_training.errors import TrainingConfigError, TrainingError
from privdfs_training.interruption import InterruptedTrainingError
from privdfs_training.loop import check, finished_weights, train
from privdfs_training.reading import load_config, read_toml
from privdfs_training.rivals.config import RivalConfig, rival_config
from privdfs_training.rivals.train import train_rival

AnyConfig: TypeAlias = Config | CodedConfig | RivalConfig | PriorConfig
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: Of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted and saved.
    """
    parser = argparse.ArgumentParser(
        prog="privdfs-train", description="Train the system of one TOML config, or continue it."
    )
    parser.add_argument("config", type=Path, help="a TOML file, such as configs/fashion-resnet20.toml")
    parser.add_argument(
        "--data", type=Path, help="folder of the data set; default $PRIVDFS_DATA, then where Debian installs it"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument(
        "--threads", type=whole_number(1, 1024), help="CPU threads; two single-thread runs beat one two-thread run"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    options = parser.parse_args(arguments)
    with parallel.process_group():
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    console = Console(quiet=parallel.rank() > 0)
    try:
        config = _read(options.config)
        alone = isinstance(config, RivalConfig | PriorConfig)
        if alone and (parallel.world() > 1 or options.device not in {None, "cpu"}):
            message = "rivals and priors train in one process, on the processor; leave out torchrun and --device"
            raise TrainingConfigError(message)
        device = parallel.CPU if alone else parallel.choose_device(options.device)
        if isinstance(config, Config):
            check(config)
        elif isinstance(config, CodedConfig):
            check_coded(config)
        elif isinstance(config, RivalConfig):
            finished_weights(config)
        data = load_data(config.data, options.data)  # what may take minutes comes after what may be wrong
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        folder = options.out / config.name
        console.print(f"{config.name}: {data!r}; everything goes to {folder}", soft_wrap=True)
        path = _train(config, data, folder, console, device)
    except InterruptedTrainingError:
        console.print("[yellow]stopped and saved; the same command continues[/]")
        parallel.leave_together()
        return EXIT_INTERRUPTED
    except TrainingError as error:
        process = f"process {parallel.rank()}: " if parallel.world() > 1 else ""
        print(f"privdfs-train: {process}{error}", file=sys.stderr)
        return 2
    console.print(f"finished: {path}{_following(config, path, options.data)}", soft_wrap=True)
    parallel.leave_together()
    return 0


def _following(config: AnyConfig, path: Path, data: Path | None) -> str:
    """The command that makes a release of a finished system."""
    if not isinstance(config, Config | CodedConfig):
        return ""
    factory = f" --factory {config.backbone.factory}" if isinstance(config.backbone, CustomConfig) else ""
    folder = "" if data is None else f" --data {shlex.quote(str(data))}"
    return f"\nnext: privdfs-export {shlex.quote(str(path))}{factory}{folder} --out model_repository/{config.name}"


def _read(path: Path) -> AnyConfig:
    """A config of any kind: the sections that it has say which."""
    raw = read_toml(path)
    if "defence" in raw:
        return rival_config(raw, path)
    if "prior" in raw:
        return prior_config(raw, path)
    if "sharing" in raw:
        return coded_config(raw, path)
    return load_config(path)


def _train(config: AnyConfig, data: ImageData, folder: Path, console: Console, device: torch.device) -> Path:
    """Run it; gives the path of what came out."""
    if isinstance(config, RivalConfig):
        return train_rival(config, data, folder, console)
    if isinstance(config, PriorConfig):
        return train_prior(config, data, folder, console)
    if isinstance(config, CodedConfig):
        return train_coded(config, data, folder, console, device=device)
    return train(config, data, folder, console, device=device)


if __name__ == "__main__":
    sys.exit(main())
