"""Sweeps: TOML files that say which small trainings are compared."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from privdfs_bench.errors import BenchError
from privdfs_bench.results import ROOT
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.coded.config import CodedConfig, coded_config
from privdfs_training.config import Config
from privdfs_training.errors import TrainingConfigError
from privdfs_training.reading import config_from_dict, read_toml

SWEEPS = ROOT / "configs" / "frontier"


@dataclass(frozen=True)
class Run:
    """One point to be.

    Attributes:
        name: in the result file: that of the sweep's file, and its own.
        change: what it changes in the common config.
        config: all of it.
    """

    name: str
    change: dict[str, Any]
    config: Config | CodedConfig


@dataclass(frozen=True)
class Sweep:
    """Runs to compare with one another.

    Attributes:
        name: that of the file.
        runs: in the order of the file.
        attack: what every attacker spends.
    """

    name: str
    runs: list[Run]
    attack: DecoderBudget


def read_sweep(path: Path) -> Sweep:
    """Read a sweep.

    Args:
        path: TOML with `base` (a config, from the file's folder), `common` (changes for all), `attack`, and `runs`.

    Raises:
        TrainingConfigError: the file, or the config of one of its runs, cannot be used.
    """
    raw = read_toml(path)
    unknown = raw.keys() - {"base", "common", "attack", "runs"}
    if unknown or not {"base", "attack", "runs"} <= raw.keys():
        message = (
            f"{path} needs base, attack and runs, may have common, and knows no {', '.join(sorted(unknown)) or 'other'}"
        )
        raise TrainingConfigError(message)
    common = _changed(read_toml(path.parent / raw["base"]), raw.get("common", {}))
    runs = []
    for name, change in raw["runs"].items():
        full = f"{path.stem}-{name}"
        runs.append(Run(full, change, _config(_changed(common, {"name": full} | change), f"{path}, run {name}")))
    _refuse_choice_by_test_images(runs, path)
    return Sweep(path.stem, runs, _attack_budget(raw["attack"], path))


def _config(values: dict[str, Any], where: str) -> Config | CodedConfig:
    """The config of a run of either kind, if what is measured here is for it."""
    if "sharing" in values:
        return coded_config(values, where)
    config = config_from_dict(values, where)
    if config.keys is not None or config.data.task == "attributes":
        message = f"{where}: what is measured here is for images with one class, cut without keys"
        raise TrainingConfigError(message)
    return config


def _refuse_choice_by_test_images(runs: Sequence[Run], path: Path) -> None:
    """Coded runs that differ by more than their seeds are compared to choose one."""
    for run in runs:
        if isinstance(run.config, CodedConfig) and not run.config.data.held_out and run.change.keys() - {"seed"}:
            message = (
                f"{path}, run {run.name}: data.held_out is missing. Runs are compared to choose one, which the test "
                "images must not decide: hold out training images"
            )
            raise TrainingConfigError(message)


def chosen(sweep: Sweep, only: str | None) -> list[Run]:
    """The runs of a sweep, or the one of a name, with or without that of the sweep's file.

    Raises:
        BenchError: There is no such run.
    """
    wanted = [run for run in sweep.runs if only in {None, run.name, run.name.removeprefix(f"{sweep.name}-")}]
    if not wanted:
        known = ", ".join(run.name for run in sweep.runs)
        raise BenchError(f"the sweep has no run '{only}'; it has {known}")
    return wanted


def _attack_budget(values: dict[str, Any], path: Path) -> DecoderBudget:
    known = {field.name for field in fields(DecoderBudget)}
    try:
        budget = msgspec.convert(values, DecoderBudget)
    except msgspec.ValidationError as error:
        message = f"{path}: attack: {error}"
        raise TrainingConfigError(message) from error
    if values.keys() - known:  # which msgspec lets pass in a dataclass
        message = (
            f"{path}: attack knows no {', '.join(sorted(values.keys() - known))}; it has {', '.join(sorted(known))}"
        )
        raise TrainingConfigError(message)
    if min(budget.epochs, budget.batch, budget.width, budget.blocks) < 1 or budget.learning_rate <= 0:
        message = f"{path}: attack: every number must be above 0"
        raise TrainingConfigError(message)
    return budget


def _changed(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries with some values replaced; a section with another `name` or `kind` starts afresh."""
    result = copy.deepcopy(dict(values))
    for key, value in change.items():
        before = result.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and not {"name", "kind"} & value.keys():
            result[key] = _changed(before, value)
        else:
            result[key] = copy.deepcopy(value)
    return result
