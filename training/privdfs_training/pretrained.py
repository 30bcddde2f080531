"""Weights that somebody trained before: a backbone's, of torchvision, timm or this project, and a system's cut."""

from pathlib import Path
from typing import Any

from torch import nn

from privdfs_training.checkpoint import FORMAT, load_weights, read_checkpoint, read_tensors
from privdfs_training.errors import CheckpointError
from privdfs_training.models.custom import CustomBackbone
from privdfs_training.models.system import System

SHOWN = 5  # names of each kind in a message


def load_pretrained(backbone: nn.Module, path: Path) -> None:
    """Copy weights from a file into a backbone; every name and shape must fit.

    The buffers of the pixels' normalisation are this project's own: a file without them leaves them as they are, and
    `backbone.mean` and `backbone.std` say what its weights expect.

    Args:
        backbone: One of `models.backbone.build_backbone`.
        path: A safetensors file: the backbone's own names, as torchvision, timm or the user's own module have them, or
            `baseline.safetensors` or `system.safetensors` of a run.

    Raises:
        CheckpointError: The file is missing, damaged, or does not fit; the message lists what does and what does not.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") == FORMAT:
        _refuse_unfinished(path, read_checkpoint(path).about)
    prefix = "baseline."
    if any(name.startswith(prefix) for name in tensors):  # a file of this project, with other parts beside the backbone
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if isinstance(backbone, CustomBackbone) and "normalise.mean" not in tensors:  # as the user's own module names them
        tensors = {f"model.{name}": value for name, value in tensors.items()}
    expected = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    missing = [
        name for name in expected if name not in given and not name.startswith("normalise.") and not _is_count(name)
    ]
    left_over = [name for name in given if name not in expected]
    other = [
        f"{name} is {given[name]}, not {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    if missing or left_over or other:
        kinds = (("Missing", missing), ("Left over", left_over), ("Of another shape", other))
        fitting = sum(given.get(name) == shape for name, shape in expected.items())
        message = (
            f"{path} does not fit the backbone: {fitting} of its {len(given)} tensors do. "
            + "".join(f"{kind}: {_some(names)}. " for kind, names in kinds if names)
            + _advice(missing, left_over, other)
        )
        raise CheckpointError(message)
    backbone.load_state_dict(backbone.state_dict() | tensors)


def load_cut(system: System, path: Path) -> None:
    """Copy from a finished system what decides the shares: head, quantiser and masks.

    Args:
        system: The receiver; its head and masks are as after fine-tuning then.
        path: `system.safetensors` or `finetune.safetensors` of a run, keyed or not.

    Raises:
        CheckpointError: The file is missing, damaged, of a stage before fine-tuning or one that has not ended, or of
            another head, other masks or other levels.
    """
    cut = nn.ModuleDict({part: getattr(system, part) for part in ("head", "quantiser", "masks")})
    checkpoint = read_checkpoint(path)
    _refuse_unfinished(path, checkpoint.about)
    fitting = {name: value for name, value in checkpoint.tensors.items() if name.split(".")[0] in cut}
    load_weights(cut, fitting, path)
    if not (system.masks.on and system.head.input.on):
        message = f"{path} is of a stage before fine-tuning. Pass finetune.safetensors or system.safetensors."
        raise CheckpointError(message)
    masks = (checkpoint.about.get("config") or checkpoint.about["made_by"])["masks"]
    theirs = masks["values"], masks["levels"], masks.get("learned_levels", False)
    ours = system.masks.values, 2 * system.quantiser.largest + 1, system.quantiser.learned
    if theirs != ours:
        said = [
            f"{values} values of {levels} {'learned' if learned else 'fixed'} levels"
            for values, levels, learned in (theirs, ours)
        ]
        message = (
            f"{path} has {said[0]} for a server, the config {said[1]}. Set masks.values, levels and learned_levels to "
            "what made the file."
        )
        raise CheckpointError(message)


def _refuse_unfinished(path: Path, about: dict[str, Any]) -> None:
    """Refuse what a stage has written that still runs; finished systems do not say."""
    if not about.get("finished", True):
        raise CheckpointError(f"{path} is of a stage that has not ended. Finish that run first: its command goes on.")


def _is_count(name: str) -> bool:
    # How many batches a normalisation has seen. Nothing reads it, and torchvision's older files do not have it.
    return name.endswith("num_batches_tracked")


def _advice(missing: list[str], left_over: list[str], other: list[str]) -> str:
    classifier = ("fc.", "head.")
    if other and not missing and not left_over and all(name.startswith(classifier) for name in other):
        return "All but the classifier fits: the file was trained for another number of classes than the data set has."
    return "Set the keys beside it, in [backbone] or [teacher], to what made the file, or take another file."


def _some(names: list[str]) -> str:
    return "; ".join(names[:SHOWN]) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
