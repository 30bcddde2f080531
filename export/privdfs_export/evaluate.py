"""Accuracy of exported graphs, as a device and the servers run them: ONNX Runtime on the bytes of the release."""

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from privdfs._format import ANSWERED, IMAGE, LOGITS, PARTITION, SHARE, largest_minority
from privdfs_export.sessions import BATCH, run_batched, session  # noqa: F401  whoever evaluates needs all three
from privdfs_training import liars

#: A constant lie is tried for so many classes at most, evenly spread over all.
CONSTANT_CLASSES = 20


@dataclass(frozen=True)
class ExportedAccuracy:
    """What the exported graphs reach on one set of images, as fractions.

    Attributes:
        baseline: The unprotected model.
        branches: Each branch's own logits.
        subsets: The fused answer, for every non-empty subset of servers that answer.
        malicious: The fused answer while servers lie, as `under_liars` gives it.
    """

    baseline: float
    branches: tuple[float, ...]
    subsets: Mapping[tuple[int, ...], float]
    malicious: Mapping[int, Mapping[str, float]]

    @property
    def fused(self) -> float:
        """All servers answer."""
        return self.subsets[tuple(range(len(self.branches)))]

    def missing(self, count: int) -> list[float]:
        """Accuracies of all subsets in which this many servers are silent.

        Args:
            count: Of silent servers.

        Returns:
            One fraction per subset.
        """
        return [accuracy for answered, accuracy in self.subsets.items() if len(answered) == len(self.branches) - count]


@dataclass(frozen=True)
class PrecisionRow:
    """What a release reaches with its branches in one precision, as fractions.

    Attributes:
        fused: All servers answer.
        branches: Each branch's own logits.
        agreement: Images whose fused class is that of float32 branches.
    """

    fused: float
    branches: tuple[float, ...]
    agreement: float


def server_answers(
    encoder: ort.InferenceSession,
    branches: Sequence[ort.InferenceSession],
    images: NDArray[np.uint8],
    partitions: NDArray[np.int32] | None = None,
) -> NDArray[np.float32]:
    """What the servers answer.

    Args:
        encoder: Images to shares.
        branches: One per server.
        images: uint8 [images, height, width, channels].
        partitions: Of a keyed release, int32 [images].

    Returns:
        Logits, float32 [images, servers, classes].
    """
    also = partition_input(partitions)
    shares = run_batched(encoder, {IMAGE: images, **also})
    answers = [run_batched(branch, {SHARE: share, **also})[0] for branch, share in zip(branches, shares, strict=True)]
    return np.stack(answers, axis=1).astype(np.float32)


def partition_input(partitions: NDArray[np.int32] | None) -> dict[str, NDArray[np.int32]]:
    """The further input that the graphs of a keyed release take.

    Args:
        partitions: int32 [images]; None for a release without keys.

    Returns:
        `partition` int32 [images, 1], or nothing.
    """
    return {} if partitions is None else {PARTITION: partitions[:, None]}


def fuse(fusion: ort.InferenceSession, answers: NDArray[np.float32], answered: Sequence[int]) -> NDArray[np.float32]:
    """Fused probabilities when only some servers answer.

    Args:
        fusion: Answers to probabilities.
        answers: float32 [images, servers, classes].
        answered: Indices of the servers that do.

    Returns:
        float32 [images, classes].
    """
    present = np.zeros(answers.shape[:2], bool)
    present[:, list(answered)] = True
    heard = np.where(present[:, :, None], answers, np.float32(0))
    return run_batched(fusion, {LOGITS: heard, ANSWERED: present})[0].astype(np.float32)


def fraction_right(scores: NDArray[np.generic], labels: NDArray[np.int64]) -> float:
    """Accuracy.

    Args:
        scores: [images, classes].
        labels: int64 [images].

    Returns:
        Fraction whose largest score is the label's.
    """
    return float((scores.argmax(axis=1) == labels).mean())


def under_liars(
    fusion: ort.InferenceSession, answers: NDArray[np.float32], labels: NDArray[np.int64]
) -> dict[int, dict[str, float]]:
    """Accuracy of the fused answer while a minority of the servers lies and all answer.

    Args:
        fusion: Answers to probabilities.
        answers: Honest logits, float32 [images, servers, classes].
        labels: int64 [images].

    Returns:
        For every number of liars from 1 to a minority, the accuracy under each kind of lie (`random`, `constant`,
        `flipped`, `runner_up`, `adversarial`), each the lowest over all coalitions of that size (and, for constant
        lies, over classes), and `worst`, the lowest of all.
    """
    honest, wanted, servers = torch.from_numpy(answers), torch.from_numpy(labels), answers.shape[1]

    def fuse_tensors(logits: Tensor, answered: Tensor) -> Tensor:
        (scores,) = run_batched(fusion, {LOGITS: logits.numpy(), ANSWERED: answered.numpy()})
        return torch.from_numpy(scores).log()  # a probability of zero becomes -inf, which compares as it should

    def right(heard: Tensor) -> float:
        return fraction_right(fuse(fusion, heard.numpy(), range(servers)), labels)

    found: dict[int, dict[str, float]] = {}
    for size in range(1, largest_minority(servers) + 1):
        rows = [
            _under(honest, wanted, members, right, functools.partial(liars.searched_lies, fuse_tensors))
            for members in itertools.combinations(range(servers), size)
        ]
        lowest = {kind: min(row[kind] for row in rows) for kind in rows[0]}
        found[size] = lowest | {"worst": min(lowest.values())}
    return found


def _under(
    honest: Tensor,
    labels: Tensor,
    members: Sequence[int],
    right: Callable[[Tensor], float],
    search: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> dict[str, float]:
    """Accuracy under each kind of lie of one coalition."""
    lying = torch.zeros(honest.shape[:2], dtype=torch.bool)
    lying[:, list(members)] = True
    classes = np.unique(np.linspace(0, honest.shape[2] - 1, CONSTANT_CLASSES).round().astype(int))
    constant = (liars.constant_lies(honest, lying, torch.full_like(labels, int(one))) for one in classes)
    return {
        "random": right(liars.random_lies(honest, lying, torch.Generator().manual_seed(0))),
        "constant": min(map(right, constant)),
        "flipped": right(liars.flipped_lies(honest, lying)),
        "runner_up": right(liars.runner_up_lies(honest, lying)),
        "adversarial": right(search(honest, lying, labels)),
    }


def measure(
    *,
    encoder: ort.InferenceSession,
    branches: Sequence[ort.InferenceSession],
    fusion: ort.InferenceSession,
    baseline: ort.InferenceSession,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    partitions: NDArray[np.int32] | None = None,
) -> ExportedAccuracy:
    """Accuracy of baseline, branches, every subset of servers, and under liars.

    Args:
        encoder: Images to shares.
        branches: One per server.
        fusion: Answers to probabilities.
        baseline: Images to logits.
        images: uint8 [images, height, width, channels].
        labels: int64 [images].
        partitions: Of a keyed release, int32 [images].

    Returns:
        The fractions.
    """
    answers = server_answers(encoder, branches, images, partitions)
    servers = range(len(branches))
    subsets = [answered for size in servers for answered in itertools.combinations(servers, size + 1)]
    return ExportedAccuracy(
        baseline=fraction_right(run_batched(baseline, {IMAGE: images})[0], labels),
        branches=tuple(fraction_right(answers[:, server], labels) for server in servers),
        subsets={answered: fraction_right(fuse(fusion, answers, answered), labels) for answered in subsets},
        malicious=under_liars(fusion, answers, labels),
    )


def measure_precisions(
    *,
    encoder: ort.InferenceSession,
    branches: Mapping[str, Sequence[ort.InferenceSession]],
    fusion: ort.InferenceSession,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    partitions: NDArray[np.int32] | None = None,
) -> dict[str, PrecisionRow]:
    """Accuracy with the branches in other precisions, all servers answering.

    Args:
        encoder: Images to shares.
        branches: By precision, one per server; "fp32" is among them.
        fusion: Answers to probabilities.
        images: uint8 [images, height, width, channels].
        labels: int64 [images].
        partitions: Of a keyed release, int32 [images].

    Returns:
        A row for each precision.
    """
    found: dict[str, PrecisionRow] = {}
    reference: NDArray[np.int64] | None = None
    for precision, row in sorted(branches.items(), key=lambda item: item[0] != "fp32"):
        answers = server_answers(encoder, row, images, partitions)
        scores = fuse(fusion, answers, range(len(row)))
        classes = scores.argmax(axis=1)
        reference = classes if reference is None else reference
        found[precision] = PrecisionRow(
            fused=fraction_right(scores, labels),
            branches=tuple(fraction_right(answers[:, server], labels) for server in range(len(row))),
            agreement=float((classes == reference).mean()),
        )
    return found


def measure_partitions(
    *,
    encoder: ort.InferenceSession,
    branches: Sequence[ort.InferenceSession],
    fusion: ort.InferenceSession,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    partitions: Iterable[int],
) -> dict[int, float]:
    """Fused accuracy of a keyed release under each of some partitions, all servers answering.

    Args:
        encoder: Images to shares.
        branches: One per server.
        fusion: Answers to probabilities.
        images: uint8 [images, height, width, channels].
        labels: int64 [images].
        partitions: Which.

    Returns:
        Fraction by partition.
    """
    found = {}
    for partition in partitions:
        everywhere = np.full(len(images), partition, np.int32)
        answers = server_answers(encoder, branches, images, everywhere)
        found[partition] = fraction_right(fuse(fusion, answers, range(len(branches))), labels)
    return found
