"""What a stage's checkpoint holds, and whether it belongs to a run that would go on from it."""

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from privdfs._files import sha256_file
from privdfs_training import parallel
from privdfs_training.average import AVERAGE, MovingAverage
from privdfs_training.checkpoint import load_weights, optimizer_tensors, read_checkpoint, restore_optimizer
from privdfs_training.errors import CheckpointError
from privdfs_training.migration import migrated
from privdfs_training.run import Run
from privdfs_training.stage import Stage


def running_state(stage: Stage, optimizer: torch.optim.Optimizer, average: MovingAverage) -> dict[str, Tensor]:
    """What a stage needs to go on, beside the networks that it trains."""
    adversary = {} if stage.adversary is None else stage.adversary.tensors()
    return optimizer_tensors(optimizer) | adversary | average.tensors()


def restore(
    path: Path,
    stage: Stage,
    modules: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
) -> dict[str, Any]:
    """Put a stage's checkpoint in place, if there is one, and give its metadata."""
    if not path.exists():
        return {"step": 0, "finished": False}
    checkpoint = read_checkpoint(path)
    state = ("optimizer.", "adversary.", AVERAGE)
    weights = {name: value for name, value in checkpoint.tensors.items() if not name.startswith(state)}
    load_weights(modules, weights, path)
    if not checkpoint.about["finished"]:
        restore_optimizer(optimizer, checkpoint.tensors)
        if stage.adversary is not None:
            stage.adversary.restore(checkpoint.tensors, path)
        average.restore(checkpoint.tensors)
    return checkpoint.about


def check_checkpoints(todo: tuple[Stage, ...], run: Run) -> None:
    """Refuse checkpoints of another config, also those of later stages, before time is spent."""
    others = []
    for stage in todo:
        path = run.folder / f"{stage.name}.safetensors"
        if not parallel.same(path.exists()):
            message = f"only some of the processes see {path}. Let --out be one folder that all of them can reach."
            raise CheckpointError(message)
        if path.exists():
            theirs = migrated(read_checkpoint(path).about.get("made_by", {}))
            ours = json.loads(json.dumps(made_by(stage, run)))
            then, now = theirs.pop("files", {}), ours.pop("files", {})  # of older versions, nobody can say
            changed = [section for section in ours | theirs if theirs.get(section) != ours.get(section)]
            others += [f"{path} was made with other settings in: {', '.join(changed)}"] if changed else []
            replaced = [file for file, digest in now.items() if then.get(file, digest) != digest]
            others += [f"{path} was made with another {', '.join(replaced)}"] if replaced and not changed else []
    if others:
        files = "this file to train its stage" if len(others) == 1 else "these files to train their stages"
        message = f"{'; '.join(others)}. Give the run another name, or remove {files} again."
        raise CheckpointError(message)


def made_by(stage: Stage, run: Run) -> dict[str, Any]:
    """What decides a stage's weights: sections of the config and the files they name, the budgets up to its own."""
    everything = msgspec.to_builtins(run.config)
    # A section or a key whose every value is the default is not among the values.
    sections = {
        name: value
        for name in stage.sections
        if (value := functools.reduce(_value, name.split("."), everything)) is not None
    }
    budgets = everything["train"]
    earlier = itertools.takewhile(lambda name: name != stage.name, budgets)  # a config has them in their order
    precision = {} if run.compute.precision == "bfloat16" else {"precision": run.compute.precision}
    budget = {f"train.{name}": budgets[name] for name in earlier} | {"train": budgets[stage.name] | precision}
    named = [Path(section["checkpoint"]) for section in sections.values() if _value(section, "checkpoint")]
    files = {str(file): sha256_file(file) for file in named if file.exists()}
    return sections | budget | ({"files": files} if files else {})


def _value(section: Any, key: str) -> Any:  # noqa: ANN401  of a config
    return section.get(key) if isinstance(section, dict) else None
