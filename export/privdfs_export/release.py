"""A trained system to a release on disk: client bundle, one Triton model repository per server, and the baseline's.

Guarantees:

- Nothing is written before every graph agrees with torch on real images.
- The release appears whole, under its final name, or not at all.
- A server's folder holds nothing of another server, nor of the head or the fusion.
- The release id is derived from the bytes of the graphs: two releases with one id answer alike. Nor do they state
  different accuracies: data on which the system does not reach what training measured are refused.
"""

import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import save as save_tensors
from torch import Tensor
from torch.nn import functional as F

from privdfs._files import sha256_file
from privdfs._format import (
    ANSWERED,
    BASELINE_FOLDER,
    BASELINE_MODEL,
    BRANCH_MODEL,
    CLIENT_FOLDER,
    ENCODER_NAME,
    FORMAT_VERSION,
    FUSION_NAME,
    GOLDEN_NAME,
    IMAGE,
    IMAGES,
    LOGITS,
    MANIFEST_NAME,
    PARTITION,
    PROBABILITIES,
    RELEASE_PARAMETER,
    SERVER_PARAMETER,
    SHARE,
    Accuracy,
    ClientManifest,
    ImageSpec,
    KeySpec,
    Macs,
    MadeBy,
    MaliciousAccuracy,
    PrecisionAccuracy,
    ServerManifest,
    ServerSpec,
    SubsetAccuracy,
    baseline_signature,
    branch_signature,
    server_folder,
    share_name,
)
from privdfs._manifest import encode_manifest
from privdfs_export import evaluate, graphs, parity
from privdfs_export.errors import ExportError
from privdfs_export.precision import Precision, measure_ranges, with_precision
from privdfs_export.repository import write_repository
from privdfs_export.triton import GraphEngine, ModelSpec
from privdfs_training import provenance
from privdfs_training.checkpoint import TrainedSystem
from privdfs_training.data import ImageData
from privdfs_training.models.system import System
from privdfs_training.partitions import family_id
from privdfs_training.stages import accuracy

MAX_BATCH = 64
GOLDEN_IMAGES = 8
PARITY_IMAGES = 512
CALIBRATION_IMAGES = 512
#: BF16 is not among them: ONNX Runtime does not compute it on a CPU.
MEASURED_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-fp16")
#: Data sets whose licence lets a release carry some of their images as golden examples (Fashion-MNIST: MIT).
MAY_BE_PASSED_ON = frozenset({"fashion-mnist"})


@dataclass(frozen=True)
class Graphs:
    """All graphs of a release, serialised ONNX."""

    encoder: bytes
    branches: tuple[bytes, ...]
    fusion: bytes
    baseline: bytes

    def __repr__(self) -> str:
        """Sizes, never weights."""
        return f"Graphs({len(self.branches)} branches)"


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
        data: The set it was trained on; its test images (of a streamed set, a sample of them) serve parity,
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
    if data.task == "attributes":
        message = (
            f"{data.name} has attributes, and a release answers with probabilities of classes, of which one is right. "
            "Export a system with classes, such as one trained on celeba-identity."
        )
        raise ExportError(message)
    if data.classes != trained.classes or data.image_shape != trained.system.image_shape:
        message = (
            f"the system was trained on other classes or another image size than {data.name}. Pass the data set of "
            "its config."
        )
        raise ExportError(message)
    pixels, numbers = data.sample("test")
    images, labels = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()), numbers.numpy()
    # A keyed release is measured over its whole family, image by image.
    partitions = _dealt(trained.system, len(images))
    batches = zip(pixels.split(evaluate.BATCH), numbers.split(evaluate.BATCH), strict=True)
    parts = itertools.repeat(None) if partitions is None else iter(partitions.split(evaluate.BATCH))
    reached = accuracy(lambda images: trained.system(images, next(parts)), batches)
    sampled = partitions is not None or len(labels) < data.test_size
    parity.check_data(data.name, reached, trained.accuracy["fused"], len(labels) if sampled else None)

    console.print("graphs: encoder, branches, fusion, baseline")
    system = trained.system
    models = [graphs.branch_graph(system, server) for server in range(system.masks.servers)]
    encoder, fusion, baseline = graphs.encoder_graph(system), graphs.fusion_graph(system), graphs.baseline_graph(system)
    macs = Macs(
        head=graphs.count_macs(encoder),
        fusion=graphs.count_macs(fusion),
        branch=graphs.count_macs(models[0]),
        baseline=graphs.count_macs(baseline),
    )
    built = Graphs(
        encoder=encoder.SerializeToString(),
        branches=tuple(model.SerializeToString() for model in models),
        fusion=fusion.SerializeToString(),
        baseline=baseline.SerializeToString(),
    )
    console.print(f"parity with torch on {min(PARITY_IMAGES, len(images))} test images")
    dealt = None if partitions is None else partitions.numpy()
    examples = images if data.name in MAY_BE_PASSED_ON else drawn_images(GOLDEN_IMAGES, images.shape[1:])
    tried = np.concatenate([examples[:GOLDEN_IMAGES], images[:PARITY_IMAGES]])
    golden = _check_parity(trained, built, tried)
    console.print(f"accuracy of the exported files on {len(images)} test images")
    measured = evaluate.measure(
        encoder=evaluate.session(built.encoder),
        branches=[evaluate.session(branch) for branch in built.branches],
        fusion=evaluate.session(built.fusion),
        baseline=evaluate.session(built.baseline),
        images=images,
        labels=labels,
        partitions=dealt,
    )
    parity.check_accuracy(measured.fused, reached)

    console.print(f"INT8 ranges on {CALIBRATION_IMAGES} training images, accuracy of {', '.join(MEASURED_PRECISIONS)}")
    calibration = np.ascontiguousarray(data.sample("train", CALIBRATION_IMAGES)[0].permute(0, 2, 3, 1).numpy())
    ranges = _ranges(system, built, calibration)
    precisions = evaluate.measure_precisions(
        encoder=evaluate.session(built.encoder),
        branches={
            name: [
                evaluate.session(with_precision(model, name, ranges[server]).SerializeToString())
                for server, model in enumerate(models)
            ]
            for name in MEASURED_PRECISIONS
        },
        fusion=evaluate.session(built.fusion),
        images=images,
        labels=labels,
        partitions=dealt,
    )

    console.print(", ".join(f"{name} {row.fused:.2%}" for name, row in precisions.items()))

    channels, height, width = system.image_shape
    quantiser = system.quantiser
    release = f"{trained.config.name}-{_digest(built)}"
    made_by = MadeBy(
        command=provenance.command_line(),
        commit=provenance.git_commit(),
        date=provenance.today(),
        seed=trained.config.seed,
        config=msgspec.to_builtins(trained.config),
        versions=provenance.versions(),
    )
    client = ClientManifest(
        format_version=FORMAT_VERSION,
        release=release,
        made_by=made_by,
        classes=trained.classes,
        image=ImageSpec(height=height, width=width, channels=channels),  # pyright: ignore[reportArgumentType]  1 or 3: checked when encoded
        servers=tuple(
            ServerSpec(
                share_length=system.masks.values,
                levels=2 * quantiser.limit(server) + 1,
                scale=quantiser.scale(server),
            )
            for server in range(system.masks.servers)
        ),
        max_batch=MAX_BATCH,
        files={},
        accuracy=Accuracy(
            data=f"{data.name}, test" + ("" if len(labels) == data.test_size else f", a sample of {data.test_size}"),
            images=len(labels),
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
        ),
        macs=macs,
        keys=msgspec.UNSET
        if system.family is None
        else KeySpec(partitions=system.family.partitions, family=family_id(system.family.tables(system.masks.owned))),
    )
    sidecars = [Sidecar(_golden_of_server(golden, server), ranges[server]) for server in range(system.masks.servers)]
    (answers,) = evaluate.run_batched(evaluate.session(built.baseline), {IMAGE: golden[IMAGES]})
    sidecars.append(Sidecar({IMAGE: golden[IMAGES], LOGITS: answers}, ranges[-1]))
    _write(out, client, built, golden, sidecars, engine)
    console.print(f"{release}: baseline {measured.baseline:.2%}, fused {measured.fused:.2%}, written to {out}")
    return client


@dataclass(frozen=True)
class Sidecar:
    """What lies beside a model: golden inputs with its float32 `logits`, and the ranges that INT8 needs."""

    golden: Mapping[str, NDArray[np.generic]]
    ranges: Mapping[str, float]

    def __repr__(self) -> str:
        """Names, never values."""
        return f"Sidecar({', '.join(self.golden)})"


def _ranges(system: System, built: Graphs, images: NDArray[np.uint8]) -> list[dict[str, float]]:
    """Ranges of the activations of every branch, and last of the baseline, on real shares and images."""
    partitions = _dealt(system, len(images))
    also = evaluate.partition_input(None if partitions is None else partitions.numpy())
    shares = evaluate.run_batched(evaluate.session(built.encoder), {IMAGE: images, **also})
    found = [
        measure_ranges(onnx.load_from_string(branch), {SHARE: share, **also})
        for branch, share in zip(built.branches, shares, strict=True)
    ]
    return [*found, measure_ranges(onnx.load_from_string(built.baseline), {IMAGE: images})]


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


def _check_parity(trained: TrainedSystem, built: Graphs, images: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
    """Compare every graph with torch, each on the same input; give the golden examples of the exported files."""
    system, pixels = trained.system, torch.from_numpy(images)
    servers = range(system.masks.servers)
    partitions = _dealt(system, len(images))
    also = evaluate.partition_input(None if partitions is None else partitions.numpy())
    also_torch = [torch.from_numpy(value) for value in also.values()]
    exported = evaluate.run_batched(evaluate.session(built.encoder), {IMAGE: images, **also})
    with torch.inference_mode():
        for server, share in enumerate(graphs.encoder_module(system)(pixels, *also_torch)):
            parity.check_shares(f"encoder, share_{server}", exported[server].astype(np.int8), share.numpy())
        answers = []
        for server in servers:
            branch = evaluate.session(built.branches[server])
            ours = evaluate.run_batched(branch, {SHARE: exported[server], **also})[0]
            share = torch.from_numpy(exported[server]).float() * system.quantiser.scale(server)
            theirs = graphs.branch_module(system, server)(share, *also_torch)
            parity.check_floats(f"branch {server}", ours.astype(np.float32), theirs.numpy())
            answers.append(ours.astype(np.float32))
        logits = np.stack(answers, axis=1)
        answered = np.random.default_rng(0).random(logits.shape[:2]) < 0.5
        answered[~answered.any(axis=1), 0] = True
        fusion = evaluate.session(built.fusion)
        ours = evaluate.run_batched(fusion, {LOGITS: logits, ANSWERED: answered})[0]
        theirs = graphs.FusionProbabilities(system)(torch.from_numpy(logits), torch.from_numpy(answered))
        parity.check_floats("fusion", ours.astype(np.float32), theirs.numpy())
        ours = evaluate.run_batched(evaluate.session(built.baseline), {IMAGE: images})[0]
        parity.check_floats("baseline", ours.astype(np.float32), graphs.BaselinePixels(system)(pixels).numpy())
    golden = {share_name(server): exported[server][:GOLDEN_IMAGES] for server in servers}
    golden |= {name: value[:GOLDEN_IMAGES] for name, value in also.items()}
    golden[IMAGES], golden[LOGITS] = images[:GOLDEN_IMAGES], logits[:GOLDEN_IMAGES]
    golden[PROBABILITIES] = evaluate.fuse(fusion, logits[:GOLDEN_IMAGES], servers)
    return golden


def _write(
    out: Path,
    client: ClientManifest,
    built: Graphs,
    golden: dict[str, NDArray[np.generic]],
    sidecars: Sequence[Sidecar],
    engine: GraphEngine,
) -> None:
    """Write the release whole or not at all."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        message = f"cannot write in {out.parent}: {error.strerror}. Choose another folder with --out."
        raise ExportError(message) from error
    try:
        _write_client(partial / CLIENT_FOLDER, client, built, golden)
        for server, branch in enumerate(built.branches):
            _write_server(partial / server_folder(server), client, server, branch, sidecars[server], engine)
        _write_baseline(partial / BASELINE_FOLDER, client, built.baseline, sidecars[-1], engine)
        partial.chmod(0o755)
        partial.rename(out)
    except OSError as error:
        message = (
            f"cannot write the release to {out}: {error.strerror}. Free some disk space or choose another folder; "
            "nothing was left behind."
        )
        raise ExportError(message) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_client(folder: Path, client: ClientManifest, built: Graphs, golden: dict[str, NDArray[np.generic]]) -> None:
    folder.mkdir()
    (folder / ENCODER_NAME).write_bytes(built.encoder)
    (folder / FUSION_NAME).write_bytes(built.fusion)
    (folder / GOLDEN_NAME).write_bytes(save_tensors(golden))  # pyright: ignore[reportArgumentType]
    files = {name: sha256_file(folder / name) for name in (ENCODER_NAME, FUSION_NAME, GOLDEN_NAME)}
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(client, files=files)))


def _write_server(
    folder: Path, client: ClientManifest, server: int, branch: bytes, sidecar: Sidecar, engine: GraphEngine
) -> None:
    about = client.servers[server]
    tensors = branch_signature(client, server)
    spec = ModelSpec(
        name=BRANCH_MODEL,
        engine=engine,
        inputs=tensors.inputs,
        output=tensors.outputs[0],
        max_batch=client.max_batch,
        parameters={RELEASE_PARAMETER: client.release, SERVER_PARAMETER: str(server)},
    )
    manifest = _server_manifest(client, engine, server=server, length=about.share_length, scale=about.scale)
    manifest = msgspec.structs.replace(manifest, keys=client.keys)
    write_repository(folder, manifest, spec, branch, golden=sidecar.golden, ranges=sidecar.ranges)


def _write_baseline(
    folder: Path, client: ClientManifest, baseline: bytes, sidecar: Sidecar, engine: GraphEngine
) -> None:
    # For comparison only: to the one server that runs it, the "share" is the whole image, unprotected.
    tensors = baseline_signature(client)
    spec = ModelSpec(
        name=BASELINE_MODEL,
        engine=engine,
        inputs=tensors.inputs,
        output=tensors.outputs[0],
        max_batch=client.max_batch,
        parameters={RELEASE_PARAMETER: client.release},
    )
    manifest = _server_manifest(client, engine, server=0, length=int(np.prod(tensors.inputs[0].shape)), scale=1.0)
    write_repository(folder, manifest, spec, baseline, golden=sidecar.golden, ranges=sidecar.ranges)


def _server_manifest(
    client: ClientManifest, engine: GraphEngine, *, server: int, length: int, scale: float
) -> ServerManifest:
    return ServerManifest(
        format_version=FORMAT_VERSION,
        release=client.release,
        server=server,
        share_length=length,
        scale=scale,
        classes=len(client.classes),
        engine=engine,
        files={},
        made_by=client.made_by,
    )


def _digest(built: Graphs) -> str:
    digest = hashlib.sha256()
    for graph in (built.encoder, *built.branches, built.fusion):
        digest.update(hashlib.sha256(graph).digest())
    return digest.hexdigest()[:12]


def refuse_existing(out: Path) -> None:
    """Refuse a place that is taken, or where nothing can be written, before minutes are spent.

    Args:
        out: Folder of a release that is to be made.

    Raises:
        ExportError: It exists, or its folder cannot be written to.
    """
    if out.exists():
        message = f"{out} exists already, and a release is never changed in place. Choose another folder with --out."
        raise ExportError(message)
    place = next(parent for parent in out.absolute().parents if parent.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise ExportError(f"cannot write in {place}. Choose another folder with --out.")
