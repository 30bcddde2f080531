"""Training a coded run: baseline; head and rounds together; the same with an int8 head."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from privdfs.coding import fewest_moduli
from privdfs_training import parallel
from privdfs_training.augment import blended
from privdfs_training.coded.bounds import interval_bound
from privdfs_training.coded.config import CodedConfig, CodedStageConfig
from privdfs_training.coded.system import CHOICE, CodedSystem, describe, moduli_for, save_coded
from privdfs_training.data import ImageData, image_shape
from privdfs_training.errors import RangeError, TrainingConfigError
from privdfs_training.loop import finished_weights, on_device, run_stages
from privdfs_training.losses import distillation, labelled
from privdfs_training.models.system import start_from
from privdfs_training.parallel import CPU, Terms
from privdfs_training.run import Compute, Run
from privdfs_training.stage import (
    EVALUATION_BATCH,
    Frozen,
    Stage,
    accuracy,
    baseline_stage,
    head_to_int8,
    known_of,
    teacher_of,
    teaching,
)
from privdfs_training.stages import temperature_and_noise

PARTS = ("head", "rounds", "readout")
# Not the limits on degree and primes: a finished run stays what it is when they are raised.
SECTIONS = (
    *("seed", "data", "backbone", "teacher", "head"),
    *("sharing.bits", "sharing.values", "sharing.mirrored", "sharing.linear", "sharing.annealed", "rounds", "loss"),
)
SEEN_IMAGES = 5000  # training images on which the largest results are looked for


def check_coded(config: CodedConfig) -> None:
    """Refuse networks that do not fit together, and finished weights that are not there, before images are read.

    Args:
        config: The run.

    Raises:
        CheckpointError: A file that the config names is missing or damaged.
        TrainingConfigError: As `CodedSystem`; or already random weights can have results that need more primes than
            are allowed.
    """
    finished_weights(config)
    torch.manual_seed(config.seed)
    system = CodedSystem(config, image_shape=image_shape(config.data), classes=2)
    try:
        for number, current in enumerate(system.plain(), 1):
            # Eigenvalues take time, and are not needed where sums of absolute weights prove enough.
            easy = fewest_moduli(interval_bound(current.network))
            if easy is None or len(easy) > config.sharing.primes:
                moduli_for(current.network, config.sharing.primes, number=number)
    except RangeError as error:
        message = f"already before training, {error}"
        raise TrainingConfigError(message) from error


def train_coded(
    config: CodedConfig, data: ImageData, folder: Path, console: Console, *, device: torch.device = CPU
) -> Path:
    """Run all stages of a coded run, continuing where an earlier call stopped.

    Args:
        config: The run.
        data: Its images.
        folder: For checkpoints and metrics.jsonl.
        console: Where progress is shown.
        device: Where this process computes.

    Returns:
        The path of the finished system, for `load_coded`.

    Raises:
        CheckpointError: A stage's checkpoint is damaged, of another config, or cannot be written.
        DataError: An image cannot be read.
        DivergenceError: The loss stopped being finite.
        InterruptedTrainingError: The user stopped the run; the same call continues it.
        RangeError: The trained rounds need more primes than are allowed; every stage's checkpoint is kept.
        TrainingConfigError: A batch is larger than the set or cannot be divided among the processes.
    """
    torch.manual_seed(config.seed)
    system = CodedSystem(config, image_shape=data.image_shape, classes=len(data.classes))
    system.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parallel.synchronise(system)
    compute = Compute(device, config.train.precision, replay=device.type == "cuda" and parallel.world() == 1)
    result = run_stages(coded_stages(config, system, data), Run(config, system, data, folder, console, compute))
    rounds = describe(system, _seen(system, data, device), config.sharing.primes)
    for number, each in enumerate(rounds, 1):
        console.print(
            f"round {number}: degree {each.degree}, {np.prod(each.inputs)} values up to {each.largest}, "
            f"{np.prod(each.outputs)} results up to 2^{np.log2(each.bound):.1f} (seen: 2^{np.log2(each.seen):.1f}), "
            f"{len(each.moduli)} primes",
            soft_wrap=True,
        )
    readout = accuracy(on_device(device, _readout_of(system)), data.test_batches(EVALUATION_BATCH))
    console.print(f"linear readout: {readout:.2%} of {data.test_size} images")
    path = folder / "system.safetensors"
    measured = {"baseline": result["baseline"], "coded": result["finetune"], "readout": readout}
    parallel.first_only(lambda: save_coded(path, system, config, data, measured, rounds))
    return path


def coded_stages(config: CodedConfig, system: CodedSystem, data: ImageData) -> tuple[Stage, ...]:
    """The stages of a coded run, in order.

    Args:
        config: The run.
        system: Its networks.
        data: Its images.

    Returns:
        Baseline, rounds and finetune.
    """
    device = system.readout.weight.device
    finished = teacher_of(config, system.baseline, data)

    def start() -> None:
        system.head.normalise.fit(data.sample("train")[0])
        start_from(system.baseline, (system.head,))

    def finish() -> None:
        if system.mask is not None:
            system.mask.freeze()
        head_to_int8(system.head, data, device)

    def stage(name: str, prepare: Callable[[], None], annealed: float) -> Stage:
        budget: CodedStageConfig = getattr(config.train, name)
        network = finished if budget.taught_by == "teacher" else system.baseline
        teacher = teaching(config, budget, network, data) if config.loss.distillation else None
        return Stage(
            name=name,
            config=budget,
            parts=PARTS if system.mask is None else (*PARTS, "mask"),
            sections=SECTIONS,
            prepare=prepare,
            loss=partial(_loss, config, system, teacher, annealed, budget),
            classify=system,
            networks=(system.head,),
            known=known_of(teacher),
            beside={"readout": _readout_of(system)},
        )

    return (
        baseline_stage(config, config.train.baseline, system.baseline, data, finished, config.loss),
        stage("rounds", start, config.sharing.annealed),
        stage("finetune", finish, 0.0),
    )


def _loss(
    config: CodedConfig,
    system: CodedSystem,
    ask_teacher: Frozen | None,
    annealed: float,
    budget: CodedStageConfig,
    images: Tensor,
    labels: Tensor,
    progress: float,
) -> tuple[Tensor, Terms]:
    """The loss of rounds and readout, and its terms; a share of the images is blended first."""
    images, labels = blended(images, labels, mixup=budget.mixup, cutmix=budget.cutmix)
    teacher = None if ask_teacher is None else ask_teacher(images)
    for current in system.polynomials:
        current.progress = min(1.0, progress / annealed) if annealed else 1.0
    temperature, noise = temperature_and_noise(CHOICE, progress)
    values = system.values(images, temperature=temperature, noise=noise)
    total, terms = torch.zeros((), device=images.device), Terms()
    # The readout learns on the same losses beside the rounds; its gradient ends at the values.
    for name, logits in (("coded", system.answer(values)), ("readout", system.read(values))):
        answer = labelled(logits.float(), labels, config.loss.label_smoothing)
        total, terms[name] = total + answer, answer.detach()
        if teacher is not None:
            taught = distillation(logits.float(), teacher, config.loss.distillation_temperature)
            total, terms[f"{name}_distillation"] = total + config.loss.distillation * taught, taught.detach()
    if config.loss.range:
        bits = torch.stack([current.range_bits() for current in system.polynomials]).mean()
        total, terms["range"] = total + config.loss.range * bits, bits.detach()
    return total, terms


def _readout_of(system: CodedSystem) -> Callable[[Tensor], Tensor]:
    """Images to the linear readout's logits."""
    return lambda images: system.read(system.values(images))


@torch.inference_mode()
def _seen(system: CodedSystem, data: ImageData, device: torch.device) -> list[int]:
    """Largest magnitude of each round's results on some training images."""
    largest = [1] * len(system.rounds)
    for images in data.sample("train", SEEN_IMAGES)[0].split(EVALUATION_BATCH):
        values = system.values(images.to(device)).cpu().numpy().astype(np.int64)
        _, results, _ = system.run(values)
        largest = [max(most, int(np.abs(found).max())) for most, found in zip(largest, results, strict=True)]
    return largest
