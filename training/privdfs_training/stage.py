"""What a stage is, in runs of every kind: the first one, and helpers for others. `stages` has those of masked runs."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from privdfs_training import parallel
from privdfs_training.adversary import Adversary
from privdfs_training.augment import blended, crop_and_flip
from privdfs_training.config import RunConfig, StageConfig, TaughtLossConfig, TaughtStageConfig
from privdfs_training.data import Batch, DataSet, ImageData
from privdfs_training.errors import CheckpointError, TrainingConfigError
from privdfs_training.known import Known
from privdfs_training.losses import choices, distillation, labelled
from privdfs_training.models.backbone import Backbone, build_backbone
from privdfs_training.models.head import Head
from privdfs_training.pretrained import load_pretrained
from privdfs_training.replay import replayed

CALIBRATION_IMAGES = 2048
EVALUATION_BATCH = 1000
TEACHING_IMAGES = 64  # at once on a processor: what lies between two layers then stays in its cache
Loss = Callable[[Tensor, Tensor, float], tuple[Tensor, parallel.Terms]]
#: Of images uint8 [batch, channels, height, width], what finished networks give: float [batch, …].
Frozen = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: Also the name of its checkpoint.
        config: Budget and optimiser.
        parts: Attributes of the system that it trains and saves.
        sections: Sections of the config that its result depends on.
        prepare: Called once, before the first step of the stage, with the results of the stages before it in place.
        loss: Images uint8 [batch, channels, height, width], labels (int64 [batch], or uint8 [batch, attributes]) and
            the progress of the stage in 0..1 to the scalar to minimise and the values to report.
        classify: Images to logits, for the accuracy after each epoch.
        adversary: Proxies that `loss` trains by itself. They are saved while the stage lasts, and gone after it.
        networks: Those of its networks that `loss` calls once; on a GPU they may be recorded (replay.py).
        known: What `loss` asks of finished networks, where images come again; filled ahead on a processor.
        beside: Other ways to classify, by name, whose accuracy is reported beside that of `classify`.
    """

    name: str
    config: StageConfig
    parts: tuple[str, ...]
    sections: tuple[str, ...]
    prepare: Callable[[], None]
    loss: Loss
    classify: Callable[[Tensor], Tensor]
    adversary: Adversary | None = None
    networks: tuple[nn.Module, ...] = ()
    known: Known | None = None
    beside: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


def baseline_stage(
    config: RunConfig,
    budget: TaughtStageConfig,
    baseline: Backbone,
    data: ImageData,
    teacher: Backbone,
    weights: TaughtLossConfig,
) -> Stage:
    """The first stage of every run: the unprotected backbone.

    Args:
        config: The run.
        budget: Of the stage.
        baseline: The backbone; `baseline` of the system.
        data: Its images.
        teacher: What `teacher_of` gave.
        weights: Of the terms of the loss.

    Returns:
        The stage.
    """
    if config.backbone.mean:  # now, so that a wrong number of channels is refused before time is spent
        baseline.normalise.set(config.backbone.mean, config.backbone.std)
    taught = teacher is not baseline
    ask_teacher = teaching(config, budget, teacher, data) if taught else None

    def prepare() -> None:
        if not config.backbone.mean:
            baseline.normalise.fit(data.sample("train")[0])
        if config.backbone.checkpoint is not None:
            load_pretrained(baseline, Path(config.backbone.checkpoint))

    def loss(images: Tensor, labels: Tensor, _progress: float) -> tuple[Tensor, parallel.Terms]:
        images, labels = blended(images, labels, mixup=budget.mixup, cutmix=budget.cutmix)
        answers, terms = baseline(images).float(), parallel.Terms()
        total = labelled(answers, labels, weights.label_smoothing)
        if ask_teacher is not None:
            student, target = choices(answers, labels)[0], choices(ask_teacher(images), labels)[0]
            term = distillation(student, target, weights.distillation_temperature)
            total, terms["distillation"] = total + weights.distillation * term, term.detach()
        return total, terms

    return Stage(
        name="baseline",
        config=budget,
        parts=("baseline",),
        sections=("seed", "data", "backbone", *(("teacher", "loss") if taught else ())),
        prepare=prepare,
        loss=loss,
        classify=baseline,
        networks=(baseline,),
        known=known_of(ask_teacher),
    )


def teacher_of(config: RunConfig, baseline: Backbone, data: ImageData) -> Backbone:
    """The network from which the others learn.

    Args:
        config: The run.
        baseline: The backbone; `baseline` of the system, on the device where it computes.
        data: Its images.

    Returns:
        The network of `config.teacher`, finished, on the same device; without that section the baseline.

    Raises:
        CheckpointError: The weights are missing, damaged, or of another network.
        TrainingConfigError: The network does not fit the images.
    """
    planned = config.teacher
    if planned is None:
        return baseline
    try:
        teacher = build_backbone(planned, data.image_shape, len(data.classes))
        if planned.mean:
            teacher.normalise.set(planned.mean, planned.std)
        else:
            teacher.normalise.fit(data.sample("train")[0])
        load_pretrained(teacher, Path(planned.checkpoint or ""))  # checks.py refuses a teacher without weights
    except (CheckpointError, TrainingConfigError) as error:  # of a backbone, as all networks of this kind are called
        raise type(error)(f"[teacher]: {error}") from error
    device = next(baseline.parameters()).device
    teacher.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teacher.requires_grad_(requires_grad=False)


@torch.no_grad()
def teach(teacher: Backbone, images: Tensor) -> Tensor:
    """What a finished network answers, for others to learn from.

    Args:
        teacher: The network; its statistics stay as they are from now on.
        images: uint8 [batch, channels, height, width].

    Returns:
        Logits, float32 [batch, classes], without a gradient.
    """
    teacher.eval()
    parts = images.split(TEACHING_IMAGES if images.is_cpu else len(images))
    return torch.cat([teacher(part).float() for part in parts])


def teaching(config: RunConfig, budget: TaughtStageConfig, teacher: Backbone, data: ImageData) -> Frozen:
    """What a stage asks its teacher: of images as they are after blending, through a window of its own if it has one.

    Args:
        config: The run.
        budget: Of the stage.
        teacher: A finished network.
        data: The images.

    Returns:
        Images to logits, float [batch, classes].
    """
    padding, flip = budget.teacher_crop_padding, config.data.flip
    ask = frozen(partial(teach, teacher), data, budget, flip=flip, draws=budget.unlabelled + padding > 0)
    return (lambda images: ask(crop_and_flip(images, padding=padding, flip=flip))) if padding else ask


def head_to_int8(head: Head, data: ImageData, device: torch.device) -> None:
    """Measure the ranges of a head's activations, and compute in int8 from now on.

    Args:
        head: Trained in floating point.
        data: Its images.
        device: Where the head is.
    """
    head.eval()
    head.calibrate(on=True)
    with torch.no_grad():
        for images in data.sample("train", CALIBRATION_IMAGES)[0].split(256):
            head(images.to(device))
    head.calibrate(on=False)
    head.quantise()


def frozen(
    compute: Frozen, data: ImageData, budget: StageConfig, *, flip: bool, record: bool = True, draws: bool = False
) -> Frozen:
    """A function of images whose networks are finished, for one stage: no gradient, recorded or known where it can be.

    Recorded where one process computes on a GPU (replay.py), known where its images come again (known.py). Not known
    where partitions, blends or windows are drawn, anew in every step.

    Args:
        compute: Images to float [batch, …].
        data: Where they come from.
        budget: Of the stage.
        flip: Whether training mirrors half of them.
        record: Whether it may be recorded.
        draws: Whether partitions, blends or windows are drawn.

    Returns:
        The same function, made faster.
    """
    asked = replayed(compute) if record and parallel.world() == 1 else torch.no_grad()(compute)
    # Each process fills a table of all images, and is asked about its part of them in an epoch.
    passes = (1 + flip) * parallel.world()
    if draws or budget.crop_padding or not isinstance(data, DataSet) or budget.epochs <= passes:
        return asked
    return Known(asked, data.train_images, mirrored=flip)


def known_of(asked: Frozen | None) -> Known | None:
    """What `frozen` gave, if its answers can be computed ahead.

    Args:
        asked: What `frozen` gave, or None.

    Returns:
        The same function, or None.
    """
    return asked if isinstance(asked, Known) else None


def accuracy(classify: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> float:
    """Fraction of images whose largest logit is the label's; for attributes, the mean of their accuracies.

    Several processes share the work.

    Args:
        classify: Images to logits.
        batches: Images and labels, as `ImageData.test_batches` gives them; at least one.

    Returns:
        In 0..1.
    """
    correct = total = 0
    with torch.inference_mode():
        for images, labels in itertools.islice(batches, parallel.rank(), None, parallel.world()):
            logits, wanted = choices(classify(images), labels)
            correct += int((logits.argmax(1) == wanted).sum())
            total += len(wanted)
    counts = parallel.mean({"correct": correct, "total": total})
    return counts["correct"] / counts["total"]


def trained_modules(system: nn.Module, stage: Stage) -> nn.ModuleDict:
    """The parts of the system that a stage trains.

    Args:
        system: All networks.
        stage: One of `stages`.

    Returns:
        The modules by name.
    """
    return nn.ModuleDict({part: getattr(system, part) for part in stage.parts})
