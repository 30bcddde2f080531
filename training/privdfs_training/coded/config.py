"""The config of a coded run: as a masked one, with [sharing] and [[rounds]] instead of masks, branches and fusion."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from privdfs.coding import PRIMES
from privdfs_training.checks import (
    data_problems,
    loss_problems,
    network_problems,
    stage_problems,
    taught_problems,
    teacher_problems,
)
from privdfs_training.config import CompactHeadConfig, RunConfig, Section, TaughtLossConfig, TaughtStageConfig
from privdfs_training.errors import TrainingConfigError
from privdfs_training.migration import migrated
from privdfs_training.reading import refuse_unknown_keys

KIND = "coded"
#: Sections of masked runs, and why a coded one has none of them.
_FOREIGN = {
    "masks": "every server gets a share of every value, so no mask deals them out",
    "keys": "keys add nothing here: any minority learns nothing, whoever holds which share",
    "branch": "all servers run the same networks, those of [[rounds]]",
    "fusion": "answers are decoded exactly, not fused",
    "adversary": "a minority sees uniform noise, from which there is nothing to reconstruct",
}


Linear = Literal["learned", "hermite", "none"]


class SharingConfig(Section, frozen=True):
    """How features are coded, and what servers may compute on them."""

    kind: Literal["coded"]
    bits: int = 5  # of the servers' integer weights
    degree: int = 2  # the largest of a round; N servers of which T collude need N > degree * T
    primes: int = len(PRIMES)  # the most that a round's proven range may need
    values: int = 0  # of the head's feature that are shared at all; training chooses which. 0: all
    mirrored: bool = False  # kernels of head and rounds in pairs that mirror each other: mirror images get one answer
    linear: Linear = "learned"  # what stands beside each square: a learned term, one that begins as ReLU's has it, none
    annealed: float = 0.0  # share of the rounds stage in which squares take over from ReLUs; 0: squares from the start


class MapConfig(Section, frozen=True):
    """One linear map of a server's network."""

    outputs: int = 0  # channels out; over positions: positions out; 0 for the last map, which has one for each class
    over: Literal["window", "all", "positions"] = "window"  # convolution; everything at once; each channel alike
    kernel: int = 1  # window: height and width
    stride: int = 1  # window


class RoundConfig(Section, frozen=True):
    """One exchange with all servers: linear maps with a square after each but the last."""

    levels: int  # of each value that the device shares; odd, so that zero is one of them
    output: MapConfig  # the last map; what it gives returns to the device
    hidden: tuple[MapConfig, ...] = ()  # maps that a square follows; none: degree 1, two: degree 4
    pool: int = 1  # height and width of the windows that are summed before the last map
    skip: int = 0  # number of the round, from 1, whose values the device adds to this one's results; 0: none


class CodedLossConfig(TaughtLossConfig, frozen=True, kw_only=True):
    """Weights of the terms, beside the cross-entropy with weight one."""

    range: float = 0.0  # per bit of the range that sums of absolute weights prove, mean over outputs and rounds


class CodedStageConfig(TaughtStageConfig, frozen=True):
    """A stage that trains head and rounds."""

    taught_by: Literal["teacher", "baseline"] = "teacher"  # [teacher], which is the baseline where there is none


class CodedTrainConfig(Section, frozen=True):
    """The stages, in the order in which they run."""

    baseline: TaughtStageConfig
    rounds: CodedStageConfig  # head and rounds together
    finetune: CodedStageConfig  # the same with an int8 head
    precision: Literal["bfloat16", "float32"] = "bfloat16"  # of convolutions and products; weights are always float32


class CodedConfig(RunConfig, frozen=True):
    """A whole run of coded shares."""

    sharing: SharingConfig
    rounds: tuple[RoundConfig, ...]
    loss: CodedLossConfig
    train: CodedTrainConfig


def coded_config(raw: dict[str, Any], path: Path | str) -> CodedConfig:
    """Build and check the config of a coded run.

    Args:
        raw: Nested dictionaries, as TOML or a checkpoint give them.
        path: Where they come from; used in messages.

    Returns:
        The typed config.

    Raises:
        TrainingConfigError: An unknown or missing key, a value of the wrong type, or values that cannot work together.
    """
    path = Path(path)
    for section, reason in _FOREIGN.items():
        if section in raw:
            message = f"{path}: a coded run has no [{section}]: {reason}. Remove it."
            raise TrainingConfigError(message)
    sharing = raw.get("sharing")
    kind = sharing.get("kind") if isinstance(sharing, dict) else None
    if kind != KIND:
        message = (
            f"{path}: sharing.kind is {kind!r}. There is '{KIND}'; for masked shares leave out [sharing] and describe "
            "[masks]."
        )
        raise TrainingConfigError(message)
    refuse_unknown_keys(raw, CodedConfig, path)
    try:
        config = msgspec.convert(migrated(raw), CodedConfig)
    except msgspec.ValidationError as error:
        message = f"{path}: {error}"
        raise TrainingConfigError(message) from error
    for problem in (
        *data_problems(config.data),
        *network_problems(config),
        *teacher_problems(config, config.train.baseline, config.loss.distillation),
        *loss_problems(config.loss),
        *_sharing_problems(config.sharing),
        *_rounds_problems(config),
        *(_mirror_problems(config) if config.sharing.mirrored and config.rounds else ()),
        *_stage_problems(config),
    ):
        message = f"{path}: {problem}"
        raise TrainingConfigError(message)
    return config


def _sharing_problems(sharing: SharingConfig) -> list[str]:
    checks = (
        (
            not 2 <= sharing.bits <= 8,
            f"sharing.bits is {sharing.bits}; weights have 2 to 8 bits, and 4 to 6 are usual",
        ),
        (
            sharing.degree not in (1, 2, 4),
            f"sharing.degree is {sharing.degree}; it is 1 (linear rounds), 2 (one square) or 4 (a square of a square)",
        ),
        (
            not 1 <= sharing.primes <= len(PRIMES),
            f"sharing.primes is {sharing.primes}; there are {len(PRIMES)} primes whose residues fit int8",
        ),
        (sharing.values < 0, f"sharing.values is {sharing.values}; it is a number of the feature's values, 0 for all"),
        (
            not 0 <= sharing.annealed <= 1,
            f"sharing.annealed is {sharing.annealed}; it is a share of the stage, from 0 to 1",
        ),
    )
    return [problem for wrong, problem in checks if wrong]


def _rounds_problems(config: CodedConfig) -> list[str]:
    if not config.rounds:
        return ["there is no [[rounds]]; a coded run has at least one"]
    problems = list[str]()
    if config.sharing.linear != "learned" and not any(planned.hidden for planned in config.rounds):
        problems.append(f"sharing.linear = '{config.sharing.linear}' is for squares, and no round has one: remove it")
    for number, planned in enumerate(config.rounds, 1):
        problems += [f"round {number}: {problem}" for problem in _round_problems(planned, number, config)]
    return problems


def _round_problems(planned: RoundConfig, number: int, config: CodedConfig) -> list[str]:
    last, degree, allowed = number == len(config.rounds), 2 ** len(planned.hidden), config.sharing.degree
    maps = (*planned.hidden, planned.output)
    checks = (
        (
            degree > allowed,
            (
                f"{len(planned.hidden)} squares in a row make degree {degree}, and sharing.degree allows {allowed}: "
                "degree D needs more than D T servers where T collude. Use another round, or raise sharing.degree"
            ),
        ),
        (
            not 3 <= planned.levels <= 255 or planned.levels % 2 == 0,
            f"levels is {planned.levels}; it must be odd, from 3 to 255, so that zero is a level and int8 holds it",
        ),
        (planned.pool < 1, f"pool is {planned.pool}; it is the height and width of a window, 1 for none"),
        (
            not 0 <= planned.skip <= number,
            f"skip is {planned.skip}; it is the number of this round or of an earlier one, or 0 for none",
        ),
        (last and planned.skip > 0, "skip has no place in the last round, whose results are the logits"),
        (
            last and planned.output.outputs > 0,
            "output.outputs is the number of classes in the last round: leave it out",
        ),
        (
            last and (planned.output.over == "positions" or planned.output.kernel > 1),
            "output.over must be 'all' in the last round: its results are one number for each class",
        ),
        (
            not last and planned.output.outputs < 1,
            "output.outputs is missing: how many channels return to the device",
        ),
        *(((given.outputs < 1), "every hidden map needs outputs, at least 1") for given in planned.hidden),
        *(
            (
                min(given.kernel, given.stride) < 1 or (given.kernel % 2 == 0 and given.kernel != given.stride),
                f"kernel {given.kernel} with stride {given.stride}: a kernel is odd, or as large as its stride",
            )
            for given in maps
        ),
        *(
            (
                given.over != "window" and (given.kernel != 1 or given.stride != 1),
                f"kernel and stride are for over = 'window', not for '{given.over}'",
            )
            for given in maps
        ),
    )
    return [problem for wrong, problem in checks if wrong]


def _mirror_problems(config: CodedConfig) -> list[str]:
    if not isinstance(config.head, CompactHeadConfig):
        return ["sharing.mirrored is for head.kind = 'compact', whose kernels training makes"]
    problems = (
        [] if config.data.flip else ["sharing.mirrored is for images that a mirror leaves in their class: data.flip"]
    )
    if config.sharing.values:
        problems.append("sharing.mirrored needs all values of the feature: leave out sharing.values")
    *maps, last = [each for planned in config.rounds for each in (*planned.hidden, planned.output)]
    stages = [channels for channels, _ in config.head.stages]
    odd = [n for n in (config.head.stem, *stages, config.head.channels, *(each.outputs for each in maps)) if n % 2]
    if odd:
        problems.append(
            f"sharing.mirrored needs an even number of channels in head and rounds, not {odd[0]}: half of them mirror "
            "the others"
        )
    if any(each.over != "window" for each in maps) or last.over != "all":
        problems.append("sharing.mirrored is for maps over windows, and a last map over 'all'")
    return problems


def _stage_problems(config: CodedConfig) -> list[str]:
    problems = []
    if config.data.task == "attributes":
        problems.append(
            f"data.name = '{config.data.name}' is not for coded runs yet: they put an image into one of several classes"
        )
    if config.head.checkpoint is not None:
        problems.append("head.checkpoint brings a head with masks, and a coded run has none: remove it")
    problems += stage_problems("train.baseline", config.train.baseline, least_epochs=0)
    rounds, finetune = config.train.rounds, config.train.finetune
    for name, stage in (("rounds", rounds), ("finetune", finetune)):
        problems += stage_problems(f"train.{name}", stage) + _teaching_problems(f"train.{name}", stage, config)
    if config.teacher and not config.train.baseline.epochs and {rounds.taught_by, finetune.taught_by} == {"baseline"}:
        problems.append("[teacher] teaches no stage: let one be taught_by = 'teacher', or remove [teacher]")
    if config.train.baseline.epochs == 0 and config.backbone.checkpoint is None:
        problems.append(
            "train.baseline.epochs = 0 takes finished weights as they are: name them in backbone.checkpoint"
        )
    return problems


def _teaching_problems(name: str, stage: CodedStageConfig, config: CodedConfig) -> list[str]:
    distilled = config.loss.distillation > 0
    problems = taught_problems(name, stage, taught=distilled)
    if stage.taught_by == "baseline" and not config.teacher:
        problems.append(f"{name}.taught_by chooses between [teacher] and the baseline; without [teacher], remove it")
    return problems
