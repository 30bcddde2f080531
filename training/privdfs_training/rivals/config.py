"""The config of a rival run: as a masked one, with [defence] in place of masks and fusion, and one branch."""

from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from privdfs_training.checks import data_problems, loss_problems, network_problems, stage_problems, teacher_problems
from privdfs_training.config import (
    BackboneConfig,
    BranchedConfig,
    CustomConfig,
    Section,
    StageConfig,
    TaughtLossConfig,
    TaughtStageConfig,
)
from privdfs_training.errors import TrainingConfigError
from privdfs_training.migration import migrated
from privdfs_training.reading import refuse_unknown_keys


class UndefendedConfig(Section, frozen=True, tag_field="kind", tag="none"):
    """No defence: a plain split."""


class NoPeekConfig(Section, frozen=True, tag_field="kind", tag="nopeek"):
    """Little distance correlation between image and feature."""

    weight: float  # of the distance correlation, beside the cross-entropy


class DiscoConfig(Section, frozen=True, tag_field="kind", tag="disco"):
    """Channels pruned image by image, by a network that plays against one that reconstructs."""

    ratio: float  # share of the feature's channels that are zeroed, rounded down
    weight: float  # of the adversary in the pruning network's loss, 0 to 1; the classification gets the rest
    width: int  # channels of the pruning network
    adversary_width: int  # channels of the reconstructing network


class ShredderConfig(Section, frozen=True, tag_field="kind", tag="shredder"):
    """Noise tensors learned on the finished network; one of them, by chance, is added to a feature."""

    tensors: int  # in the collection
    scale: float  # of the Laplace distribution that they start from, in feature units
    weight: float  # of the sum of the noise's magnitudes, which is maximised
    limit: float  # mean square of the noise over that of the feature from which on the noise is no longer pushed up


class ResSflConfig(Section, frozen=True, tag_field="kind", tag="ressfl"):
    """A bottleneck, which is `head.channels`, trained against an attacker that inverts it."""

    weight: float  # of the similarity that the attacker reaches, in the head's loss
    threshold: float  # structural similarity below which the head is no longer pushed
    attacker_width: int  # channels of the attacker
    attacker_blocks: int  # residual blocks of the attacker at each resolution


class CemConfig(Section, frozen=True, tag_field="kind", tag="cem"):
    """Gaussian noise on a feature whose spread within a class is kept small."""

    weight: float  # of the bound on the information about the image, in nats for one value of the feature
    noise: float  # standard deviation of the noise, in feature units, in training and in use
    components: int  # Gaussians of the mixture of each class
    momentum: float  # share of its old place that a component keeps when a batch moves it


Defence: TypeAlias = UndefendedConfig | NoPeekConfig | DiscoConfig | ShredderConfig | ResSflConfig | CemConfig


class RivalTrainConfig(Section, frozen=True):
    """The stages, in the order in which they run."""

    baseline: TaughtStageConfig
    split: StageConfig
    noise: StageConfig | None = None  # shredder alone has it: the network is frozen, and the noise is learned


class RivalConfig(BranchedConfig, frozen=True):
    """A whole run of a rival."""

    defence: Defence
    loss: TaughtLossConfig  # beside the defence's own terms; the same as ours
    train: RivalTrainConfig


def rival_config(raw: dict[str, Any], path: Path) -> RivalConfig:
    """Build and check the config of a rival run.

    Args:
        raw: Nested dictionaries, as TOML or a checkpoint give them.
        path: Where they come from; used in messages.

    Returns:
        The typed config.

    Raises:
        TrainingConfigError: An unknown or missing key, a value of the wrong type, or values that cannot work together.
    """
    refuse_unknown_keys(raw, RivalConfig, path)
    try:
        config = msgspec.convert(migrated(raw), RivalConfig)
    except msgspec.ValidationError as error:
        message = f"{path}: {error}"
        raise TrainingConfigError(message) from error
    for problem in (
        *data_problems(config.data),
        *network_problems(config),
        *teacher_problems(config, config.train.baseline, config.loss.distillation),
        *loss_problems(config.loss),
        *_backbone_problems(config.backbone, config.teacher),
        *_defence_problems(config.defence),
        *_stage_problems(config),
    ):
        message = f"{path}: {problem}"
        raise TrainingConfigError(message)
    return config


def _backbone_problems(backbone: BackboneConfig, teacher: BackboneConfig | None) -> list[str]:
    given = {"backbone": backbone, "teacher": teacher}
    return [
        f"{name}.name = 'custom' is not for rivals: they are compared by backbones that everybody has"
        for name, config in given.items()
        if isinstance(config, CustomConfig)
    ]


def _defence_problems(defence: Defence) -> list[str]:
    problems = []
    sizes = ("tensors", "width", "adversary_width", "attacker_width", "attacker_blocks", "components")
    for key, value in msgspec.structs.asdict(defence).items():
        if key in sizes and value < 1:
            problems.append(f"defence.{key} is {value}; it must be at least 1")
        if key == "ratio" and not 0 <= value < 1:
            problems.append(f"defence.ratio is {value}; it is a share of the channels below 1")
        if key == "momentum" and not 0 <= value < 1:
            problems.append(f"defence.momentum is {value}; it is a share below 1")
        if key in ("noise", "scale", "limit") and value <= 0:
            problems.append(f"defence.{key} is {value}; it must be above 0")
        if key == "weight" and value < 0:
            problems.append(f"defence.weight is {value}; a defence with a negative weight attacks itself")
    if isinstance(defence, DiscoConfig) and defence.weight > 1:
        problems.append(f"defence.weight is {defence.weight}; disco divides one between adversary and classification")
    return problems


def _stage_problems(config: RivalConfig) -> list[str]:
    problems = []
    if config.data.task == "attributes":
        problems.append(
            f"data.name = '{config.data.name}' is not for rivals: they put an image into one of several classes"
        )
    if config.head.checkpoint is not None:
        problems.append("head.checkpoint brings a head with masks, and a rival has none: remove it")
    noise = config.train.noise
    learns_noise = isinstance(config.defence, ShredderConfig)
    if learns_noise and noise is None:
        problems.append("shredder learns its noise in a stage of its own: add [train.noise]")
    if not learns_noise and noise is not None:
        problems.append("train.noise is for shredder alone: remove it")
    if noise is not None and noise.weight_decay:
        problems.append("train.noise.weight_decay would shrink the noise that is to be learned: set it to 0")
    for name in ("baseline", "split", "noise"):
        stage: StageConfig | None = getattr(config.train, name)
        if stage is not None:
            problems += stage_problems(f"train.{name}", stage, least_epochs=int(name != "baseline"))
    if config.train.baseline.epochs == 0 and config.backbone.checkpoint is None:
        problems.append(
            "train.baseline.epochs = 0 takes finished weights as they are: name them in backbone.checkpoint"
        )
    return problems
