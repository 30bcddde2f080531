"""A trained system to a release on disk: client bundle, one Triton model repository per server, and the baseline's.

Guarantees:

- Nothing is written before every graph agrees with torch on real images.
- The release appears whole, under its final name, or not at all (`writing`).
- A server's folder holds nothing of another server, nor of the head or the fusion.
- The release id is derived from the bytes of the graphs: two releases with one id answer alike. Nor do they state
  different accuracies: data on which the system does not reach what training measured are refused.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from privdfs._format import (
    ANSWERED,
    IMAGE,
    IMAGES,
    LOGITS,
    PARTITION,
    PROBABILITIES,
    SHARE,
    Accuracy,
    CalibrationError,
    ClientManifest,
    MaliciousAccuracy,
    PrecisionAccuracy,
    SubsetAccuracy,
    share_name,
)
from privdfs_export import calibration, evaluate, modules, parity
from privdfs_export.contents import Graphs, build_graphs, client_manifest
from privdfs_export.errors import ExportError
from privdfs_export.precision import Precision, measure_ranges, with_precision
from privdfs_export.triton import GraphEngine
from privdfs_export.writing import Sidecar, refuse_existing, write_release
from privdfs_training.checkpoint import TrainedSystem
from privdfs_training.data import ImageData, as_trained
from privdfs_training.models.system import System
from privdfs_training.stage import accuracy

GOLDEN_IMAGES = 8
PARITY_IMAGES = 512
CALIBRATION_IMAGES = 512
#: BF16 is not among them: ONNX Runtime does not compute it on a CPU.
MEASURED_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-fp16")
#: Data sets whose licence lets a release carry some of their images as golden examples (Fashion-MNIST: MIT).
MAY_BE_PASSED_ON = frozenset({"fashion-mnist"})


def export_release(
    trained: TrainedSystem,
    data: ImageData,
    out: Path,
    *,
    engine: GraphEngine,
    console: Console,
) -> ClientManifest:
    """Build a release.

    Args:
        trained: A finished system.
        data: The whole set it was trained on; its test images (of a streamed set, a sample of them) serve parity,
            accuracy and the golden examples.
        out: Folder of the release; must not exist.
        engine: What Triton runs the branches with.
        console: Where the steps are shown.

    Returns:
        The client's manifest.

    Raises:
        ParityError: A graph differs from torch; nothing was written.
        ExportError: The folder exists, cannot be written, the data are not those of the system, or its task cannot be
            released; nothing was written.
    """
    refuse_existing(out)
    _check_data(trained, data)
    console.print("graphs: encoder, branches, fusion, baseline")
    plain = build_graphs(trained.system)
    family = trained.system.family
    calibrated = calibration.calibrate(plain, data, trained.config, None if family is None else family.partitions)
    built = calibrated.graphs
    found = _examine(trained, plain, calibrated, data, console)
    client = client_manifest(
        trained.system,
        built,
        release=f"{trained.config.name}-{built.digest}",
        config=trained.config,
        classes=trained.classes,
        accuracy=found.accuracy,
    )
    write_release(
        out,
        client,
        built,
        engine=engine,
        golden=found.golden,
        sidecars=_sidecars(built, found),
    )
    reached = f"baseline {found.accuracy.baseline:.2%}, fused {found.accuracy.fused:.2%}"
    console.print(f"{client.release}: {reached}, written to {out}")
    return client


@dataclass(frozen=True, eq=False)
class Findings:
    """What is known of a release's graphs before they are written.

    Attributes:
        golden: The client's examples, by name.
        accuracy: As the manifest states it.
        ranges: Of the activations of every branch, and last of the baseline.
    """

    golden: Mapping[str, NDArray[np.generic]]
    accuracy: Accuracy
    ranges: Sequence[Mapping[str, float]]

    def __repr__(self) -> str:
        """No images."""
        return f"Findings({self.accuracy.fused:.2%})"


def _examine(
    trained: TrainedSystem, plain: Graphs, calibrated: calibration.Calibrated, data: ImageData, console: Console
) -> Findings:
    """Compare the graphs with torch, and measure them; `plain` are those without calibration."""
    system, on, built = trained.system, _test_images(trained.system, data), calibrated.graphs
    known = _test_images(system, as_trained(data, trained.config.data.held_out))  # what training measured on
    sampled = on.partitions is not None or len(on.labels) < data.test_size
    sample = len(known.labels) if sampled else None
    parity.check_data(data.name, _reached(system, known), trained.accuracy["fused"], sample)
    reached = _reached(system, on)
    console.print(f"parity with torch on {min(PARITY_IMAGES, len(on.images))} test images")
    examples = on.images if data.name in MAY_BE_PASSED_ON else drawn_images(GOLDEN_IMAGES, on.images.shape[1:])
    golden = _check_parity(trained, calibrated, np.concatenate([examples[:GOLDEN_IMAGES], on.images[:PARITY_IMAGES]]))
    console.print(f"accuracy of the exported files on {len(on.images)} test images")
    measured = _measured(built, on)
    parity.check_accuracy(measured.fused, reached)
    error = calibration.measure(plain, calibrated, on.images, on.labels, on.partitions)
    console.print(f"expected calibration error {error.before:.2%}, calibrated {error.after:.2%}")

    console.print(f"INT8 ranges on {CALIBRATION_IMAGES} training images, accuracy of {', '.join(MEASURED_PRECISIONS)}")
    samples = np.ascontiguousarray(data.sample("train", CALIBRATION_IMAGES)[0].permute(0, 2, 3, 1).numpy())
    ranges = _ranges(system, built, samples)
    precisions = _measured_precisions(built, ranges, on)
    console.print(", ".join(f"{name} {row.fused:.2%}" for name, row in precisions.items()))
    return Findings(golden, _accuracy(data, on, measured, precisions, error), ranges)


@dataclass(frozen=True, eq=False)
class MeasuredOn:
    """What a release is measured on.

    Attributes:
        images: uint8 [images, height, width, channels].
        labels: Of those, int64.
        partitions: Of a keyed release, the partition of each, int32: it is measured over its whole family.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    partitions: NDArray[np.int32] | None

    def __repr__(self) -> str:
        """No images."""
        return f"MeasuredOn({len(self.images)})"


def _check_data(trained: TrainedSystem, data: ImageData) -> None:
    """Refuse data that the system was not trained on, and tasks that cannot be released."""
    if data.task == "attributes":
        message = (
            f"{data.name} has attributes, and a release answers with probabilities of classes, of which one is right. "
            "Export a system with classes, such as one trained on celeba-identity."
        )
        raise ExportError(message)
    check_same_data(data, trained.classes, trained.system.image_shape)


def check_same_data(data: ImageData, classes: tuple[str, ...], image_shape: tuple[int, int, int]) -> None:
    """Refuse data that a system was not trained on.

    Args:
        data: That it is to be measured on.
        classes: Of the system.
        image_shape: Of the system: channels, height, width.

    Raises:
        ExportError: They have other classes, or images of another size.
    """
    if data.classes != classes or data.image_shape != image_shape:
        message = (
            f"the system was trained on other classes or another image size than {data.name}. Pass the data set of "
            "its config."
        )
        raise ExportError(message)


def _test_images(system: System, data: ImageData) -> MeasuredOn:
    """The test images of a data set; of a streamed set, a sample of them."""
    pixels, labels = data.sample("test")
    partitions = _dealt(system, len(pixels))
    images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    return MeasuredOn(images, labels.numpy(), None if partitions is None else partitions.numpy())


def _reached(system: System, on: MeasuredOn) -> float:
    """Accuracy in torch."""
    pixels = torch.from_numpy(on.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(on.labels)
    batches = zip(pixels.split(evaluate.BATCH), labels.split(evaluate.BATCH), strict=True)
    partitions = None if on.partitions is None else torch.from_numpy(on.partitions)
    parts = itertools.repeat(None) if partitions is None else iter(partitions.split(evaluate.BATCH))
    return accuracy(lambda images: system(images, next(parts)), batches)


def _measured(built: Graphs, on: MeasuredOn) -> evaluate.ExportedAccuracy:
    """Accuracies of the exported graphs."""
    return evaluate.measure(
        encoder=built.encoder.session,
        branches=[branch.session for branch in built.branches],
        fusion=built.fusion.session,
        baseline=built.baseline.session,
        images=on.images,
        labels=on.labels,
        partitions=on.partitions,
    )


def _measured_precisions(
    built: Graphs, ranges: Sequence[Mapping[str, float]], on: MeasuredOn
) -> dict[str, evaluate.PrecisionRow]:
    """What branches of other precisions answer, on the same encoder and fusion."""
    return evaluate.measure_precisions(
        encoder=built.encoder.session,
        branches={
            name: [
                evaluate.session(with_precision(branch.model, name, ranges[server]).SerializeToString())
                for server, branch in enumerate(built.branches)
            ]
            for name in MEASURED_PRECISIONS
        },
        fusion=built.fusion.session,
        images=on.images,
        labels=on.labels,
        partitions=on.partitions,
    )


def _accuracy(
    data: ImageData,
    on: MeasuredOn,
    measured: evaluate.ExportedAccuracy,
    precisions: Mapping[str, evaluate.PrecisionRow],
    error: CalibrationError,
) -> Accuracy:
    """As the manifest states it."""
    return Accuracy(
        data=f"{data.name}, test" + ("" if len(on.labels) == data.test_size else f", a sample of {data.test_size}"),
        images=len(on.labels),
        baseline=measured.baseline,
        fused=measured.fused,
        branches=measured.branches,
        subsets=tuple(
            SubsetAccuracy(answered=answered, accuracy=value) for answered, value in measured.subsets.items()
        ),
        malicious=tuple(
            MaliciousAccuracy(liars=liars, **{kind: value for kind, value in row.items() if kind != "worst"})
            for liars, row in measured.malicious.items()
        ),
        precisions=tuple(
            PrecisionAccuracy(precision=name, fused=row.fused, branches=row.branches, agreement=row.agreement)
            for name, row in precisions.items()
        ),
        calibration=error,
    )


def _sidecars(built: Graphs, found: Findings) -> list[Sidecar]:
    """What lies beside every branch, and last beside the baseline."""
    (answers,) = evaluate.run_batched(built.baseline.session, {IMAGE: found.golden[IMAGES]})
    servers = range(len(built.branches))
    return [
        *(Sidecar(_golden_of_server(found.golden, server), found.ranges[server]) for server in servers),
        Sidecar({IMAGE: found.golden[IMAGES], LOGITS: answers}, found.ranges[-1]),
    ]


def _ranges(system: System, built: Graphs, images: NDArray[np.uint8]) -> list[dict[str, float]]:
    """Ranges of the activations of every branch, and last of the baseline, on real shares and images."""
    partitions = _dealt(system, len(images))
    also = evaluate.partition_input(None if partitions is None else partitions.numpy())
    shares = evaluate.run_batched(built.encoder.session, {IMAGE: images, **also})
    found = [
        measure_ranges(branch.model, {SHARE: share, **also})
        for branch, share in zip(built.branches, shares, strict=True)
    ]
    return [*found, measure_ranges(built.baseline.model, {IMAGE: images})]


def _golden_of_server(golden: Mapping[str, NDArray[np.generic]], server: int) -> dict[str, NDArray[np.generic]]:
    """Of the client's golden examples what belongs to one server."""
    partition = {PARTITION: golden[PARTITION]} if PARTITION in golden else {}
    return {SHARE: golden[share_name(server)], **partition, LOGITS: golden[LOGITS][:, server]}


def drawn_images(count: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Blurred noise, always the same: examples for releases whose data set may not be passed on.

    Args:
        count: Number of images.
        shape: Height, width, channels.

    Returns:
        uint8 [count, height, width, channels].
    """
    coarse = torch.rand(count, shape[2], 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, shape[:2], mode="bicubic", align_corners=False).clamp(0, 1)
    return np.ascontiguousarray((255 * smooth).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _dealt(system: System, count: int) -> Tensor | None:
    """Of a keyed system, the partition of each of some images, int32 [count]: the whole family in turn."""
    return None if system.family is None else system.family.spread(count).to(torch.int32)


def _check_parity(
    trained: TrainedSystem, calibrated: calibration.Calibrated, images: NDArray[np.uint8]
) -> dict[str, NDArray[np.generic]]:
    """Compare every graph with torch, each on the same input; give the golden examples of the exported files."""
    system, pixels, built = trained.system, torch.from_numpy(images), calibrated.graphs
    servers = range(system.masks.servers)
    partitions = _dealt(system, len(images))
    also = evaluate.partition_input(None if partitions is None else partitions.numpy())
    also_torch = [torch.from_numpy(value) for value in also.values()]
    exported = evaluate.run_batched(built.encoder.session, {IMAGE: images, **also})
    with torch.inference_mode():
        for server, share in enumerate(modules.encoder_module(system)(pixels, *also_torch)):
            parity.check_shares(f"encoder, share_{server}", exported[server].astype(np.int8), share.numpy())
        answers = []
        for server in servers:
            branch = built.branches[server].session
            ours = evaluate.run_batched(branch, {SHARE: exported[server], **also})[0]
            share = torch.from_numpy(exported[server]).float() * system.quantiser.scale(server)
            theirs = modules.branch_module(system, server)(share, *also_torch)
            parity.check_floats(f"branch {server}", ours.astype(np.float32), theirs.numpy())
            answers.append(ours.astype(np.float32))
        logits = np.stack(answers, axis=1)
        answered = np.random.default_rng(0).random(logits.shape[:2]) < 0.5
        answered[~answered.any(axis=1), 0] = True
        fusion = built.fusion.session
        ours = evaluate.run_batched(fusion, {LOGITS: logits, ANSWERED: answered})[0]
        heard = torch.from_numpy(answered)
        fused = modules.FusionProbabilities(system)(torch.from_numpy(logits), heard)
        theirs = calibration.mapped(fused, heard, calibrated.slopes)
        parity.check_floats("fusion", ours.astype(np.float32), theirs.numpy())
        ours = evaluate.run_batched(built.baseline.session, {IMAGE: images})[0]
        parity.check_floats("baseline", ours.astype(np.float32), modules.BaselinePixels(system)(pixels).numpy())
    golden = {share_name(server): exported[server][:GOLDEN_IMAGES] for server in servers}
    golden |= {name: value[:GOLDEN_IMAGES] for name, value in also.items()}
    golden[IMAGES], golden[LOGITS] = images[:GOLDEN_IMAGES], logits[:GOLDEN_IMAGES]
    golden[PROBABILITIES] = evaluate.fuse(fusion, logits[:GOLDEN_IMAGES], servers)
    return golden
