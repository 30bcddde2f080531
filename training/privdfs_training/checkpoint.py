"""Checkpoints: one safetensors file, nothing pickled, replaced atomically.

A stage's file holds the networks that the stage trains and, until the stage ends, the optimiser's state, the moving
average of the weights and the step.
Its metadata holds the part of the config that made it, so that a stage is continued or reused only by the config it
belongs to. `system.safetensors` holds a finished system; it is what the exporter and the attacks open.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from privdfs_training.config import Config
from privdfs_training.data import ImageData
from privdfs_training.errors import CheckpointError
from privdfs_training.models.system import System
from privdfs_training.reading import config_from_dict
from privdfs_training.trusted import with_factory

FORMAT = "privdfs-training-1"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        tensors: By name.
        about: The metadata: plain JSON values.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def __repr__(self) -> str:
        """Counts, never values."""
        return f"Checkpoint({len(self.tensors)} tensors)"


def write_checkpoint(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write one file; the old one stays whole until the new one is.

    Args:
        path: Where.
        tensors: By name.
        about: Plain JSON values.

    Raises:
        CheckpointError: The file cannot be written, such as on a full disk.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial, metadata={"format": FORMAT, "about": json.dumps(about)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        message = (
            f"cannot write {path}: {error}. Free some disk space or choose another folder with --out; what was there "
            "is untouched."
        )
        raise CheckpointError(message) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read one file of this project.

    Args:
        path: What `write_checkpoint` wrote.

    Returns:
        Its tensors and metadata.

    Raises:
        CheckpointError: The file is missing, damaged, or not a checkpoint of this project.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        message = (
            f"{path} is of format {metadata.get('format', 'unknown')!r}, this version reads {FORMAT!r}. Train "
            "again, or use the version that wrote it."
        )
        raise CheckpointError(message)
    try:
        about = json.loads(metadata["about"])
    except (KeyError, ValueError) as error:
        message = f"{path} is damaged: its metadata cannot be read. Restore it, or remove it and train again."
        raise CheckpointError(message) from error
    return Checkpoint(tensors, about)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read any safetensors file, whoever wrote it.

    Args:
        path: The file.

    Returns:
        Its tensors by name, and its metadata.

    Raises:
        CheckpointError: The file is missing, damaged (NaN and infinity count as damage), or of another format.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder. Pass the safetensors file that lies in it.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        message = f"there is no checkpoint {path}. Train one with privdfs-train CONFIG."
        raise CheckpointError(message) from error
    except (OSError, SafetensorError) as error:
        message = (
            f"{path} is not a readable safetensors file: {error}. Restore it, or remove it and train again; weights "
            "that somebody pickled have to be saved with safetensors.torch.save_file first."
        )
        raise CheckpointError(message) from error
    # Nothing that is written has such values, so they are damage, which the format has no checksum to show.
    damaged = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        message = f"{path} is damaged: NaN or infinite values in {damaged[0]}{more}. Restore it, or make it again."
        raise CheckpointError(message)
    return tensors, metadata


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, flat.

    Args:
        optimizer: SGD or AdamW.

    Returns:
        Tensors named `optimizer.<parameter index>.<state name>`.
    """
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": value
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave.

    Args:
        optimizer: Fresh, over the same parameters in the same order.
        tensors: May hold other entries too.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:
                # A file has one memory format, and a fused optimiser wants its state in that of the parameter.
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)  # noqa: PLW2901
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_system(path: Path, system: System, config: Config, data: ImageData, accuracy: dict[str, float]) -> None:
    """Write a finished system.

    Args:
        path: Where.
        system: All stages done.
        config: What made it.
        data: What it was trained on; names, classes and image size are kept.
        accuracy: Measured on the test images, or those held out, fractions.

    Raises:
        CheckpointError: The file cannot be written.
    """
    about = {
        "config": msgspec.to_builtins(config),
        "classes": data.classes,
        "image_shape": data.image_shape,
        "accuracy": accuracy,
    }
    write_checkpoint(path, system.state_dict(), about)


@dataclass(frozen=True)
class TrainedSystem:
    """A finished system and what made it.

    Attributes:
        system: In evaluation mode.
        config: The run.
        classes: Class names, in label order.
        accuracy: Measured at the end of training on the test images, or those held out, fractions.
    """

    system: System
    config: Config
    classes: tuple[str, ...]
    accuracy: dict[str, float]


def load_system(path: Path, *, factory: str | None = None) -> TrainedSystem:
    """Open a finished system.

    Args:
        path: `system.safetensors` of a run.
        factory: Of a system with a custom backbone: "package.module:function", the code of yours that makes it. What
            the file names is never imported.

    Returns:
        The system, in evaluation mode, and what made it.

    Raises:
        CheckpointError: The file is missing, damaged, of a single stage or a rival, or does not fit its own config;
            or its backbone is custom and `factory` is None.
        TrainingConfigError: This version cannot use the config that made it, or there is no such factory.
    """
    checkpoint = read_checkpoint(path)
    if "config" not in checkpoint.about:
        kinds = {"rival": "a rival", "coded": "a coded system"}
        kind = next((name for key, name in kinds.items() if key in checkpoint.about), "one stage")
        message = (
            f"{path} holds {kind}, not a finished system of masked shares. Let privdfs-train finish it, and pass the "
            "system.safetensors that it writes at the end."
        )
        raise CheckpointError(message)
    config = with_factory(config_from_dict(checkpoint.about["config"], str(path)), factory, path)
    classes = tuple(checkpoint.about["classes"])
    channels, height, width = checkpoint.about["image_shape"]
    system = System(config, image_shape=(channels, height, width), classes=len(classes))
    load_weights(system, checkpoint.tensors, path)
    return TrainedSystem(system.eval(), config, classes, checkpoint.about["accuracy"])


def load_weights(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy weights into a module whose names and shapes must all fit.

    Args:
        module: The receiver.
        tensors: By parameter or buffer name.
        path: Where they come from; used in messages.

    Raises:
        CheckpointError: A name is missing or left over, or a shape differs; the message lists which.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    wrong = [
        f"{name} is {given.get(name, 'missing')}, not {shape}"
        for name, shape in wanted.items()
        if given.get(name) != shape
    ]
    wrong += [f"{name} is not known" for name in given if name not in wanted]
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        message = f"{path} does not fit this model: {shown}. Use the config that made it."
        raise CheckpointError(message)
    module.load_state_dict(tensors)
