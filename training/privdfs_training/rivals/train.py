"""Training a rival: baseline; head, defence and branch together; for Shredder then noise on the frozen network."""

from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.config import StageConfig
from privdfs_training.data import ImageData
from privdfs_training.loop import run_stages
from privdfs_training.losses import distillation
from privdfs_training.models.system import start_from
from privdfs_training.parallel import Terms
from privdfs_training.rivals.config import RivalConfig
from privdfs_training.rivals.defences import Shredder
from privdfs_training.rivals.system import RivalSystem, save_rival
from privdfs_training.run import Run
from privdfs_training.stage import (
    CALIBRATION_IMAGES,
    EVALUATION_BATCH,
    Stage,
    accuracy,
    baseline_stage,
    teach,
    teacher_of,
)

SECTIONS = ("seed", "data", "backbone", "teacher", "head", "branch", "defence", "loss")
START_IMAGES = 1000  # whose features a defence sees before the split's first step


def train_rival(config: RivalConfig, data: ImageData, folder: Path, console: Console) -> Path:
    """Run all stages of a rival, continuing where an earlier call stopped.

    Args:
        config: The run.
        data: Its images.
        folder: For checkpoints and metrics.jsonl.
        console: Where progress is shown.

    Returns:
        The path of the finished rival, for `load_rival`.

    Raises:
        CheckpointError: A stage's checkpoint is damaged, of another config, or cannot be written.
        DataError: An image cannot be read.
        DivergenceError: The loss stopped being finite.
        InterruptedTrainingError: The user stopped the run; the same call continues it.
        TrainingConfigError: A batch is larger than the set.
    """
    torch.manual_seed(config.seed)
    system = RivalSystem(config, image_shape=data.image_shape, classes=len(data.classes))
    system.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result = run_stages(rival_stages(config, system, data), Run(config, system, data, folder, console))
    system.quantise(data.sample("train", CALIBRATION_IMAGES)[0])
    torch.manual_seed(config.seed)  # of the noise
    measured = accuracy(system, data.test_batches(EVALUATION_BATCH))
    console.print(f"as it is sent: {measured:.2%} of {data.test_size} test images")
    path = folder / "rival.safetensors"
    save_rival(path, system, config, data, {"baseline": result["baseline"], "rival": measured})
    return path


def rival_stages(config: RivalConfig, system: RivalSystem, data: ImageData) -> tuple[Stage, ...]:
    """The stages of a rival's run.

    Args:
        config: The run.
        system: Its networks.
        data: Its images.

    Returns:
        Baseline, split, and for Shredder noise.
    """
    finished = teacher_of(config, system.baseline, data)

    def classification(logits: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Terms]:
        teacher = teach(finished, images)
        answer = F.cross_entropy(logits.float(), labels, label_smoothing=config.loss.label_smoothing)
        taught = distillation(logits.float(), teacher, config.loss.distillation_temperature)
        terms: Terms = {"answer": answer.detach(), "distillation": taught.detach()}
        return answer + config.loss.distillation * taught, terms

    def prepare_split() -> None:
        images, labels = data.sample("train", START_IMAGES)
        system.head.normalise.fit(data.sample("train")[0])
        start_from(system.baseline, (system.head, system.branch))
        with torch.no_grad():
            system.defence.start(system.head.train()(images).float(), labels)

    def split_loss(images: Tensor, labels: Tensor, _progress: float) -> tuple[Tensor, Terms]:
        feature = system.head(images)
        sent = system.defence.send(feature)
        total, terms = classification(system.branch(sent), images, labels)
        term, values = system.defence.term(images, feature.float(), sent.float(), labels)
        return total + term, terms | values

    split = Stage(
        name="split",
        config=config.train.split,
        parts=("head", "defence", "branch"),
        sections=SECTIONS,
        prepare=prepare_split,
        loss=split_loss,
        classify=system,
    )
    baseline = baseline_stage(config, config.train.baseline, system.baseline, data, finished, config.loss)
    defence = system.defence
    if config.train.noise is None or not isinstance(defence, Shredder):
        return baseline, split
    return baseline, split, _noise_stage(config.train.noise, system, defence)


def _noise_stage(budget: StageConfig, system: RivalSystem, defence: Shredder) -> Stage:
    """Shredder's noise, learned on the frozen network."""

    def noise_loss(images: Tensor, labels: Tensor, _progress: float) -> tuple[Tensor, Terms]:
        for frozen in (system.head, system.branch):
            frozen.eval().requires_grad_(requires_grad=False)
        feature = system.head(images).float()
        answer = F.cross_entropy(system.branch(defence.send(feature)).float(), labels)
        push, values = defence.push(feature)
        return answer + push, {"answer": answer.detach(), **values}

    return Stage(
        name="noise",
        config=budget,
        parts=("defence",),
        sections=SECTIONS,
        prepare=defence.begin,
        loss=noise_loss,
        classify=system,
    )
