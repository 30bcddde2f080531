"""The networks of a coded run, and the finished system that exporters open."""

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from privdfs.coding import PRIMES, Integers, fewest_moduli
from privdfs_training.checkpoint import load_weights, read_checkpoint, write_checkpoint
from privdfs_training.coded.bounds import proven_bound
from privdfs_training.coded.config import CodedConfig, coded_config
from privdfs_training.coded.network import PolynomialRound, exact, to_levels
from privdfs_training.coded.rounds import IntegerNetwork, IntegerRound, Relay, Round, Shape
from privdfs_training.config import CompactHeadConfig, MaskConfig
from privdfs_training.data import ImageData
from privdfs_training.errors import CheckpointError, RangeError, TrainingConfigError
from privdfs_training.masks import OwnerMask
from privdfs_training.models.backbone import build_backbone
from privdfs_training.models.system import build_head
from privdfs_training.trusted import with_factory

#: How the values that are shared are chosen: as masked releases choose, for one server; levels play no part.
CHOICE = MaskConfig(servers=1, values=1, levels=3, temperature=(1.0, 0.1), settled=0.12)


class CodedSystem(nn.Module):
    """Baseline, head, rounds, and a linear readout of what is shared, which the device could compute alone.

    Attributes:
        mask: Which values of the feature are shared, where not all are: a mask for one server, whom all stand for.
    """

    def __init__(self, config: CodedConfig, *, image_shape: Shape, classes: int) -> None:
        """Build all networks with fresh weights.

        Args:
            config: The run.
            image_shape: Channels, height, width.
            classes: Number of classes.

        Raises:
            TrainingConfigError: The backbone does not have the head's split point, its patches do not fit the image,
                shapes of rounds do not fit each other, or the feature has fewer values than are to be shared.
        """
        super().__init__()
        channels, height, width = image_shape
        self.image_shape, self.classes = image_shape, classes
        self.baseline = build_backbone(config.backbone, image_shape, classes)
        if config.sharing.mirrored and isinstance(config.head, CompactHeadConfig):
            _check_halving(config.head, height, width)
        self.head = build_head(config.head, self.baseline, channels, mirrored=config.sharing.mirrored)
        with torch.no_grad():
            self.head.eval()
            shape = tuple(self.head(torch.zeros(1, channels, height, width, dtype=torch.uint8)).shape[1:])
        self.mask = _build_mask(config.sharing.values, shape, config.seed) if config.sharing.values else None
        self.readout = nn.Linear(math.prod(shape), classes)
        self.rounds = _build_rounds(config, shape, classes)

    def values(self, images: Tensor, *, temperature: float = 1.0, noise: float = 0.0) -> Tensor:
        """What the device shares in the first round.

        Args:
            images: uint8 [batch, channels, height, width].
            temperature: Of the mask, while it is not frozen.
            noise: Of the mask, while it is not frozen.

        Returns:
            Integers as float32 [batch, channels, h, w], zero where nothing is sent.
        """
        values = to_levels(self.head(images), self.polynomials[0].largest)
        return values if self.mask is None else values * self.mask(temperature, noise)

    def read(self, values: Tensor) -> Tensor:
        """What the device could say alone: the linear readout, whose gradient does not reach the head.

        Args:
            values: What `values` gave.

        Returns:
            Logits, float [batch, classes].
        """
        with torch.autocast(values.device.type, enabled=False):  # the same logits in a run and after it
            return self.readout(values.detach().flatten(1) / self.polynomials[0].largest)

    def answer(self, values: Tensor) -> Tensor:
        """The answer after all rounds: in training by floating point, in evaluation by exact integers.

        Args:
            values: What `values` gave.

        Returns:
            Logits, float32 [batch, classes].
        """
        if not self.rounds.training:  # as the loop sets it, which trains parts of a system
            *_, logits = self.run(values.detach().cpu().numpy().astype(np.int64))
            return torch.from_numpy(logits).to(values.device)
        shared = [values]
        *others, last = self.polynomials
        for current in others:
            shared.append(to_levels(current(shared), current.next_largest))
        return last(shared).flatten(1)

    @property
    def polynomials(self) -> list[PolynomialRound]:
        """The rounds, in order."""
        return [current for current in self.rounds if isinstance(current, PolynomialRound)]

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width], uint8, to logits, float32 [batch, classes]."""
        return self.answer(self.values(images))

    def plain(self) -> tuple[IntegerRound, ...]:
        """All rounds as servers and the device get them.

        Raises:
            RangeError: Results can grow so large that they would not be exact in float64.
        """
        return tuple(current.plain() for current in self.polynomials)

    def run(self, values: Integers) -> tuple[list[Integers], list[Integers], np.ndarray]:
        """All rounds in exact integers: as `rounds.run`, but faster.

        Args:
            values: [batch, channels, h, w].

        Returns:
            What is shared in each round, each round's results, and the logits.
        """
        device = self.readout.weight.device
        shared, results = [values], list[Integers]()
        for current in self.plain():
            results.append(exact(current.network, shared[-1], device))
            if isinstance(current.device, Relay):
                shared.append(current.device(results[-1], shared))
            else:
                return shared, results, current.device(results[-1])
        raise AssertionError


def _check_halving(head: CompactHeadConfig, height: int, width: int) -> None:
    """Refuse images whose rows a mirrored head cannot halve into positions that lie alike from both sides."""
    times = head.stem_stride * 2 ** (len(head.stages) - 1)
    if width % times or height < times:
        message = (
            f"sharing.mirrored needs images whose width the head can divide by {times}, and these have {height} x "
            f"{width} pixels: use fewer head.stages, head.stem_stride = 1, or other images"
        )
        raise TrainingConfigError(message)


def _build_rounds(config: CodedConfig, shape: Shape, classes: int) -> nn.ModuleList:
    rounds, planned = list[PolynomialRound](), config.rounds
    for index, each in enumerate(planned):
        try:
            current = PolynomialRound(
                each,
                shape,
                bits=config.sharing.bits,
                classes=classes,
                next_largest=planned[index + 1].levels // 2 if index + 1 < len(planned) else 0,
                skipped=planned[each.skip - 1].levels // 2 if each.skip else 0,
                mirrored=config.sharing.mirrored,
                linear=config.sharing.linear,
            )
        except TrainingConfigError as error:
            message = f"round {index + 1}: {error}"
            raise TrainingConfigError(message) from error
        rounds.append(current)
        if each.skip and rounds[each.skip - 1].inputs != current.outputs:
            message = (
                f"round {index + 1}: skip = {each.skip} adds values of {rounds[each.skip - 1].inputs}, and the results "
                f"are of {current.outputs}: channels, height and width must be the same"
            )
            raise TrainingConfigError(message)
        shape = current.outputs
    if shape != (classes, 1, 1):
        message = f"the last round gives {shape}, not one number for each class: let its output.over be 'all'"
        raise TrainingConfigError(message)
    return nn.ModuleList(rounds)


def moduli_for(network: IntegerNetwork, primes: int, *, number: int) -> tuple[int, tuple[int, ...]]:
    """Prove a round's range, and find the fewest primes for it.

    Args:
        network: The round's.
        primes: The most that it may need.
        number: Of the round, from 1; used in the message.

    Returns:
        What no result can exceed, and the primes.

    Raises:
        RangeError: It needs more primes; the message says how many, and what would help.
    """
    bound = proven_bound(network)
    moduli = fewest_moduli(bound)
    if moduli is None or len(moduli) > primes:
        message = (
            f"round {number}: results can reach 2^{math.log2(bound):.1f}, which needs "
            f"{f'more than all {len(PRIMES)}' if moduli is None else len(moduli)} primes, and sharing.primes allows "
            f"{primes}. Raise sharing.primes or loss.range, or use fewer levels, fewer bits or narrower hidden maps."
        )
        raise RangeError(message)
    return bound, moduli


def _build_mask(values: int, shape: Shape, seed: int) -> OwnerMask:
    elements = math.prod(shape)
    if values > elements:
        message = (
            f"sharing.values is {values}, but the feature has {elements} values ({' x '.join(map(str, shape))}). Lower "
            "it, or leave it out to share all."
        )
        raise TrainingConfigError(message)
    return OwnerMask(shape, msgspec.structs.replace(CHOICE, values=values), seed=seed)


def describe(system: CodedSystem, seen: list[int], primes: int) -> tuple[Round, ...]:
    """Describe a system's rounds, and prove their ranges.

    Args:
        system: Trained.
        seen: Largest magnitude of each round's results on some images.
        primes: The most that a round may need.

    Returns:
        A description of each.

    Raises:
        RangeError: A round needs more primes.
    """
    found = []
    sent = () if system.mask is None else tuple(system.mask.indices(0).tolist())
    for number, (current, largest) in enumerate(zip(system.plain(), seen, strict=True), 1):
        network, device = current.network, current.device
        bound, moduli = moduli_for(network, primes, number=number)
        found.append(
            Round(
                inputs=network.inputs,
                outputs=network.outputs,
                sent=sent if number == 1 else (),
                largest=network.largest,
                degree=network.degree,
                moduli=moduli,
                bound=bound,
                seen=largest,
                skip=device.skip if isinstance(device, Relay) else 0,
                shift=device.shift if isinstance(device, Relay) else 0,
                macs=sum(layer.macs for layer in network.maps),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class TrainedCodedSystem:
    """A finished coded system and what made it.

    Attributes:
        system: In evaluation mode.
        config: The run.
        classes: Class names, in label order.
        accuracy: On the test images, or those held out, at the end of training, fractions: "baseline", "coded" and
            "readout".
        rounds: Descriptions of its rounds.
    """

    system: CodedSystem
    config: CodedConfig
    classes: tuple[str, ...]
    accuracy: dict[str, float]
    rounds: tuple[Round, ...]


def save_coded(
    path: Path,
    system: CodedSystem,
    config: CodedConfig,
    data: ImageData,
    accuracy: dict[str, float],
    rounds: tuple[Round, ...],
) -> None:
    """Write a finished coded system.

    Args:
        path: Where.
        system: All stages done.
        config: What made it.
        data: What it was trained on; classes and image size are kept.
        accuracy: On the test images, or those held out, fractions.
        rounds: What `describe` gave.

    Raises:
        CheckpointError: The file cannot be written.
    """
    about = {
        "coded": msgspec.to_builtins(config),
        "classes": data.classes,
        "image_shape": data.image_shape,
        "accuracy": accuracy,
        "rounds": msgspec.to_builtins(rounds),
    }
    write_checkpoint(path, system.state_dict(), about)


def is_coded(path: Path) -> bool:
    """Whether a checkpoint holds a finished coded system.

    Args:
        path: `system.safetensors` of any run.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    return "coded" in read_checkpoint(path).about


def load_coded(path: Path, *, factory: str | None = None) -> TrainedCodedSystem:
    """Open a finished coded system.

    Args:
        path: `system.safetensors` of a coded run.
        factory: As for `checkpoint.load_system`.

    Returns:
        The system, in evaluation mode, and what made it.

    Raises:
        CheckpointError: The file is missing, damaged, not a finished coded system, or does not fit its own config;
            or its backbone is custom and `factory` is None.
        TrainingConfigError: This version cannot use the config that made it, or there is no such factory.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint.about
    if "coded" not in about:
        message = (
            f"{path} does not hold a finished coded system. Finish a run of a config with [sharing] kind = 'coded' by "
            "privdfs-train, then pass its system.safetensors."
        )
        raise CheckpointError(message)
    config = with_factory(coded_config(about["coded"], path), factory, path)
    classes = tuple(about["classes"])
    channels, height, width = about["image_shape"]
    system = CodedSystem(config, image_shape=(channels, height, width), classes=len(classes))
    load_weights(system, checkpoint.tensors, path)
    rounds = msgspec.convert(about["rounds"], tuple[Round, ...])
    return TrainedCodedSystem(system.eval(), config, classes, about["accuracy"], rounds)
