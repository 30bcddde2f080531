"""The stages of a masked run: what each trains, and on which loss. loop.py runs them. A new stage is one more entry."""

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training import parallel
from privdfs_training.adversary import Adversary
from privdfs_training.config import Config, FusionStageConfig, MaskConfig, StageConfig
from privdfs_training.data import Batch, ImageData
from privdfs_training.liars import mixed_lies
from privdfs_training.losses import branches_alone, choices, decorrelation, random_answered, split_loss
from privdfs_training.masks import sparsity_and_overlap
from privdfs_training.models.system import Encoded, System, start_from
from privdfs_training.pretrained import load_cut
from privdfs_training.stage import Frozen, Stage, baseline_stage, frozen, head_to_int8, known_of, teach, teacher_of

SPLIT_PARTS = ("head", "quantiser", "masks", "branches", "fusion")


def stages(config: Config, system: System, data: ImageData) -> tuple[Stage, ...]:
    """The stages of a run, in order.

    Baseline, masks and branches, fine-tuning with frozen masks and an int8 head;
    where the config has `train.branches`, the branches alone; where it has `train.fusion`, the fusion alone.

    Args:
        config: The run.
        system: Its networks.
        data: Its images.

    Returns:
        Named baseline, masks, finetune, and perhaps branches and fusion.
    """
    split_parts = (*SPLIT_PARTS, "rate") if system.rate is not None else SPLIT_PARTS
    split_sections = (
        *("seed", "data", "backbone", "teacher", "head", "masks"),
        *("branch", "fusion", "loss", "adversary", "keys"),
    )

    if config.head.checkpoint is None:
        prepare_masks, prepare_finetune = partial(_start, system, data), partial(_to_int8, system, data)
    else:  # now, so that a file that does not fit is refused before time is spent
        load_cut(system, Path(config.head.checkpoint))
        prepare_masks, prepare_finetune = partial(start_from, system.baseline, system.branches), _nothing
    masks_adversary, finetune_adversary = _adversaries(config, system)
    teacher = teacher_of(config, system.baseline, data)
    masks_teacher, finetune_teacher = (
        _frozen(config, data, budget, partial(teach, teacher)) if config.loss.distillation else None
        for budget in (config.train.masks, config.train.finetune)
    )
    networks = (system.head, *system.branches)

    def joint_loss(
        ask_teacher: Frozen | None, adversary: Adversary | None, images: Tensor, labels: Tensor, progress: float
    ) -> tuple[Tensor, parallel.Terms]:
        target = None if ask_teacher is None else ask_teacher(images)
        temperature, noise = temperature_and_noise(config.masks, progress)
        encoded = system.encode(
            images, temperature=temperature, noise=noise, partitions=_partitions(system, len(images))
        )
        answers = system.answer(encoded.inputs).float()
        answered = random_answered(len(images), config.masks.servers, config.fusion.branch_dropout)
        answered = answered.to(images.device, non_blocking=True)
        fused = system.fusion(answers, answered)
        # A fusion without a correction says nothing below its floor, where most of what a teacher knows lies.
        student = fused if config.fusion.hidden else answers.mean(dim=1)
        total, terms = split_loss(fused, student, answers, labels, target, config.loss)
        if system.rate is not None:
            bits = system.rate(encoded.steps, encoded.masks, labels).mean()
            total, terms = total + config.loss.rate * bits, terms | {"rate": bits.detach()}
        if config.masks.learned_levels:
            bits = config.masks.values * system.quantiser.bits().mean()
            total, terms = total + config.loss.bits * bits, terms | {"bits": bits.detach()}
        price, prices = _cost_of_leaks(config, adversary, encoded, (images, labels), progress)
        return total + price, terms | prices | sparsity_and_overlap(encoded.masks)

    todo = [
        baseline_stage(config, config.train.baseline, system.baseline, data, teacher, config.loss),
        Stage(
            name="masks",
            config=config.train.masks,
            parts=split_parts,
            sections=split_sections,
            prepare=prepare_masks,
            loss=partial(joint_loss, masks_teacher, masks_adversary),
            classify=system,
            adversary=masks_adversary,
            networks=networks,
            known=known_of(masks_teacher),
        ),
        Stage(
            name="finetune",
            config=config.train.finetune,
            parts=split_parts,
            sections=split_sections,
            prepare=prepare_finetune,
            loss=partial(joint_loss, finetune_teacher, finetune_adversary),
            classify=system,
            adversary=finetune_adversary,
            networks=networks,
            known=known_of(finetune_teacher),
        ),
    ]
    if config.train.branches is not None:
        todo.append(_branches_stage(config, config.train.branches, system, data, split_sections))
    if config.train.fusion is not None:
        todo.append(_fusion_stage(config, config.train.fusion, system, data, split_sections))
    return tuple(todo)


def _nothing() -> None:
    """Prepare nothing: the stage goes on where the one before it ended."""


def _start(system: System, data: ImageData) -> None:
    """Give head and branches what they start from."""
    system.head.normalise.fit(data.sample("train")[0])
    system.start_from_baseline()


def _to_int8(system: System, data: ImageData) -> None:
    """Freeze the masks; compute the head in int8 from now on."""
    system.masks.freeze()
    head_to_int8(system.head, data, system.masks.logits.device)


def _branches_stage(
    config: Config, budget: StageConfig, system: System, data: ImageData, sections: tuple[str, ...]
) -> Stage:
    """Every branch for itself, on the shares of a head and masks that no longer change.

    Trained together with the fusion, branches divide the work, and each is worse alone; but what one of them can do
    alone is what counts while others are silent or lie.
    """
    inputs = _frozen(
        config,
        data,
        budget,
        lambda images: system.encode(images, partitions=_partitions(system, len(images))).inputs,
        draws=system.family is not None,
    )

    def loss(images: Tensor, labels: Tensor, _progress: float) -> tuple[Tensor, parallel.Terms]:
        answers = system.answer(inputs(images)).float()
        alone = branches_alone(answers, labels, config.loss.label_smoothing)
        return alone, {"alone": alone.detach()}

    return Stage(
        name="branches",
        config=budget,
        parts=("branches",),
        sections=sections,
        prepare=_nothing,
        loss=loss,
        classify=system,
        networks=tuple(system.branches),
        known=known_of(inputs),
    )


def _fusion_stage(
    config: Config, budget: FusionStageConfig, system: System, data: ImageData, sections: tuple[str, ...]
) -> Stage:
    """The fusion alone: honest servers, some of them silent, and a lying minority, both of all images.

    Apart from the branches, because those would learn to make up for liars and tell an honest fusion less, and because
    a fusion that still follows moving branches learns neither well.
    """
    ask = _frozen(
        config,
        data,
        budget,
        lambda images: system.answer(system.encode(images, partitions=_partitions(system, len(images))).inputs).float(),
        draws=system.family is not None,
    )

    def loss(images: Tensor, labels: Tensor, _progress: float) -> tuple[Tensor, parallel.Terms]:
        answers = ask(images)
        answered = random_answered(len(images), config.masks.servers, config.fusion.branch_dropout)
        answered = answered.to(images.device, non_blocking=True)
        honest = F.cross_entropy(*choices(system.fusion(answers, answered), labels))
        terms: parallel.Terms = {"fused": honest.detach()}
        if budget.malicious == 0:
            return honest, terms
        # Lies are drawn for the whole batch, so that several processes draw what one does.
        heard = mixed_lies(system.fusion, *map(parallel.gather, (answers, answered, labels)))
        lied_to = F.cross_entropy(system.fusion(parallel.part(heard), answered), labels)
        return honest + budget.malicious * lied_to, terms | {"malicious": lied_to.detach()}

    return Stage(
        name="fusion",
        config=budget,
        parts=("fusion",),
        sections=sections,
        prepare=_nothing,
        loss=loss,
        classify=system,
        known=known_of(ask),
    )


def _frozen(config: Config, data: ImageData, budget: StageConfig, compute: Frozen, *, draws: bool = False) -> Frozen:
    """`frozen` for a masked run."""
    record = not config.train.compile and config.keys is None
    return frozen(compute, data, budget, flip=config.data.flip, record=record, draws=draws)


def _partitions(system: System, images: int) -> Tensor | None:
    """Of a keyed system, a random partition for every image."""
    return None if system.family is None else parallel.per_image(system.family.draw, images)


def _cost_of_leaks(
    config: Config, adversary: Adversary | None, encoded: Encoded, batch: Batch, progress: float
) -> tuple[Tensor, parallel.Terms]:
    """The weighted cost of redundant shares and of what proxies reconstruct from them, and the values to report.

    Neither is a mean over images, so several processes take the whole batch.
    """
    price, terms = encoded.shares.new_zeros((), dtype=torch.float32), parallel.Terms()
    if config.loss.decorrelation:
        twice = decorrelation(parallel.gather(encoded.shares))
        price, terms = config.loss.decorrelation * twice, parallel.Terms(decorrelation=twice.detach())
    if adversary is not None:
        batch = (parallel.gather(batch[0]), parallel.gather(batch[1]))
        term, scores = adversary(parallel.gather(encoded.inputs), *batch, progress)
        price, terms = price + adversary.config.weight * term, terms | scores
    return price, terms


def temperature_and_noise(config: MaskConfig, progress: float) -> tuple[float, float]:
    """Of the draw of the masks. The noise shrinks with the temperature and then stops.

    Args:
        config: How it settles.
        progress: Of the stage, in 0..1.

    Returns:
        Both, for `OwnerMask`.
    """
    first, last = config.temperature
    settling = min(1.0, progress / config.settled)
    temperature = first * (last / first) ** settling
    return temperature, temperature if settling < 1 else 0.0


def _adversaries(config: Config, system: System) -> tuple[Adversary | None, Adversary | None]:
    """Fresh proxies for the two stages. Those of finetune start at once: until then it would forget what it learned."""
    if config.adversary is None:
        return None, None
    make = partial(
        Adversary,
        config.adversary,
        servers=config.masks.servers,
        # With keyed partitions a proxy is told the places too, as a server is.
        values=math.prod(system.masks.shape) * (1 if system.family is None else 2),
        image_shape=system.image_shape,
        classes=system.classes,
    )
    device = system.masks.owned.device
    return make(start=config.adversary.start).to(device), make(start=0.0).to(device)
