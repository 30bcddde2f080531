"""The networks of a rival, and the frozen rival that an attack opens."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from privdfs_training.checkpoint import load_weights, read_checkpoint, write_checkpoint
from privdfs_training.data import ImageData
from privdfs_training.errors import CheckpointError
from privdfs_training.migration import migrated
from privdfs_training.models.backbone import build_backbone
from privdfs_training.models.system import build_branch, build_head
from privdfs_training.rivals.config import RivalConfig, rival_config
from privdfs_training.rivals.defences import build_defence
from privdfs_training.stage import EVALUATION_BATCH

INT8_LIMIT = 127


class RivalSystem(nn.Module):
    """Baseline, head, defence and one branch.

    Attributes:
        step: Feature units of one int8 step, float32 scalar; zero while the feature travels as it is.
    """

    step: Tensor

    def __init__(self, config: RivalConfig, *, image_shape: tuple[int, int, int], classes: int) -> None:
        """Build all networks with fresh weights.

        Args:
            config: The run.
            image_shape: Channels, height, width.
            classes: Number of classes.

        Raises:
            TrainingConfigError: The backbone does not have the head's split point, or its patches do not fit the image.
        """
        super().__init__()
        channels, height, width = image_shape
        self.baseline = build_backbone(config.backbone, image_shape, classes)
        self.head = build_head(config.head, self.baseline, channels)
        with torch.no_grad():
            self.head.eval()
            shape = tuple(self.head(torch.zeros(1, channels, height, width, dtype=torch.uint8)).shape[1:])
        self.feature_shape: tuple[int, int, int] = shape
        self.defence = build_defence(config.defence, shape, image_shape, classes)
        self.branch = build_branch(config, self.baseline, shape, classes)
        self.register_buffer("step", torch.zeros(()))

    def sent(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the server gets.

        Args:
            images: uint8 [batch, channels, height, width].
            generator: Of noise; None takes torch's own.

        Returns:
            [batch, channels, h, w]: int8 once `step` is set, else float.
        """
        feature = self.defence.send(self.head(images), generator)
        if not self.step:
            return feature
        return torch.round(feature.float() / self.step).clamp(-INT8_LIMIT, INT8_LIMIT).to(torch.int8)

    def forward(self, images: Tensor) -> Tensor:
        """Classify as in use.

        Args:
            images: uint8 [batch, channels, height, width].

        Returns:
            Logits, float [batch, classes].
        """
        received = self.sent(images)
        return self.branch(received * self.step if received.dtype == torch.int8 else received)

    def quantise(self, images: Tensor) -> None:
        """Choose the int8 step of a deterministic feature, after training; where noise is sent, nothing happens.

        Args:
            images: uint8 [images, channels, height, width]; the largest magnitude of their features is the largest
                int8 value.
        """
        if self.defence.noisy:
            return
        with torch.inference_mode():
            largest = max(float(self.sent(part).abs().amax()) for part in images.split(EVALUATION_BATCH))
        self.step.fill_(max(largest, torch.finfo(torch.float32).tiny * INT8_LIMIT) / INT8_LIMIT)


@dataclass(frozen=True)
class Rival:
    """A finished rival, frozen.

    Attributes:
        system: In evaluation mode.
        config: What made it.
        classes: Class names in label order.
        accuracy: On the test images, as fractions: "baseline" and "rival".
        bits: Of what travels for one image.
        client_macs: Multiply-accumulates for one image on the device: head and defence.
        server_macs: Of the branch.
        baseline_macs: Of the unprotected backbone.
    """

    system: RivalSystem
    config: RivalConfig
    classes: tuple[str, ...]
    accuracy: dict[str, float]
    bits: int
    client_macs: int
    server_macs: int
    baseline_macs: int

    def __repr__(self) -> str:
        """Name and kind, never weights."""
        return f"Rival({self.config.name!r}, {type(self.config.defence).__name__}, {self.bits} bits an image)"

    def feature(self, images: Tensor, *, seed: int) -> Tensor:
        """Exactly what the server receives.

        Args:
            images: uint8 [images, channels, height, width].
            seed: Of the noise, where the defence adds any.

        Returns:
            int8 [images, channels, h, w] where the feature is deterministic, else float32.
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            return torch.cat([self.system.sent(part, generator) for part in images.split(EVALUATION_BATCH)])


def save_rival(
    path: Path, system: RivalSystem, config: RivalConfig, data: ImageData, accuracy: dict[str, float]
) -> None:
    """Write a finished rival.

    Args:
        path: Where.
        system: All stages done, and quantised.
        config: What made it.
        data: What it was trained on; classes and image size are kept.
        accuracy: Measured on the test images, fractions.

    Raises:
        CheckpointError: The file cannot be written.
    """
    about = {
        "rival": msgspec.to_builtins(config),
        "classes": data.classes,
        "image_shape": data.image_shape,
        "accuracy": accuracy,
    }
    write_checkpoint(path, system.state_dict(), about)


def load_rival(path: Path) -> Rival:
    """Open a finished rival.

    Args:
        path: `rival.safetensors` of a run.

    Returns:
        The rival, frozen.

    Raises:
        CheckpointError: The file is missing, damaged, not a finished rival, or does not fit its own config.
        TrainingConfigError: The config in the file is not one of this version.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint.about
    if "rival" not in about:
        message = (
            f"{path} holds no finished rival. Train a config with a section [defence] by privdfs-train, then pass its "
            "rival.safetensors."
        )
        raise CheckpointError(message)
    config, classes = rival_config(migrated(about["rival"]), path), tuple(about["classes"])
    channels, height, width = about["image_shape"]
    system = RivalSystem(config, image_shape=(channels, height, width), classes=len(classes))
    load_weights(system, checkpoint.tensors, path)
    system.eval().requires_grad_(requires_grad=False)
    image = torch.zeros(1, channels, height, width, dtype=torch.uint8)
    sent = system.sent(image)
    return Rival(
        system=system,
        config=config,
        classes=classes,
        accuracy=about["accuracy"],
        bits=math.prod(sent.shape) * sent.element_size() * 8,
        client_macs=_macs(system.sent, image),
        server_macs=_macs(system.branch, sent.float()),
        baseline_macs=_macs(system.baseline, image),
    )


def _macs(network: Callable[[Tensor], Tensor], example: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products for one example; torch counts two operations each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example)
    return counter.get_total_flops() // 2
