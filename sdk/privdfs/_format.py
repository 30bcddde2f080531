"""The release format of masked shares, and every name and number that readers and writers of both kinds share.

A release is a folder. `client` holds the encoder, the fusion and golden examples; `server-<i>` holds the branch of one
server; `baseline` holds the unprotected model. Each has a `manifest.json`, and all carry the same release id. The SDK,
the exporter and the benchmarks take these names from here. `_coded_format` has what coded releases have instead.
`_manifest` reads and writes manifests, `_files` checks files against them.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

FORMAT_VERSION = 1

CLIENT_FOLDER = "client"
BASELINE_FOLDER = "baseline"

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
ENCODER_NAME = "encoder.onnx"
FUSION_NAME = "fusion.onnx"
GOLDEN_NAME = "golden.safetensors"

#: Names that Triton serves the models under.
BRANCH_MODEL = "branch"
BASELINE_MODEL = "baseline"
#: A branch's graph, in the folder of its server.
BRANCH_FILE = f"{BRANCH_MODEL}/1/model.onnx"

#: Tensors of the graphs and of requests; `share_name` names the encoder's outputs.
IMAGE = "image"
SHARE = "share"
PARTITION = "partition"
LOGITS = "logits"
ANSWERED = "answered"
PROBABILITIES = "probabilities"
#: The images among the client's golden examples; its other tensors have the names above.
IMAGES = "images"

#: Parameters in a model's configuration; the release check reads them.
RELEASE_PARAMETER = "privdfs_release"
SERVER_PARAMETER = "privdfs_server"

#: The most partitions of a keyed release; the encoder holds a table of them all.
MAX_PARTITIONS = 65536
#: What the int32 index of a partition takes on the wire.
PARTITION_BYTES = 4

Positive = Annotated[int, msgspec.Meta(ge=1)]
Index = Annotated[int, msgspec.Meta(ge=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
ReleaseId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
#: What Triton runs a server's models with.
Engine = Literal["python", "onnxruntime", "tensorrt"]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a manifest."""


class ImageSpec(Struct, frozen=True):
    """Size of the images that the encoder takes, in pixels; channels is 1 (grey) or 3 (RGB)."""

    height: Positive
    width: Positive
    channels: Literal[1, 3]


class ServerSpec(Struct, frozen=True):
    """What the client knows of one server: share length, levels per value (odd), and int8 step in feature units."""

    share_length: Positive
    levels: Annotated[int, msgspec.Meta(ge=3, le=255)]
    scale: PositiveFloat


class KeySpec(Struct, frozen=True):
    """The family of partitions of a keyed release: how many there are, and an id of exactly these (a digest)."""

    partitions: Annotated[int, msgspec.Meta(ge=2, le=MAX_PARTITIONS)]
    family: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]


class MadeBy(Struct, frozen=True):
    """Everything needed to make the release again."""

    command: str
    commit: str
    date: str
    seed: int
    config: dict[str, Any]
    versions: dict[str, str]


class SubsetAccuracy(Struct, frozen=True):
    """Accuracy of the fused answer when exactly these servers answer."""

    answered: tuple[Index, ...]
    accuracy: Fraction


class MaliciousAccuracy(Struct, frozen=True):
    """Accuracy of the fused answer when so many servers lie, by kind of lie, for the worst coalition of that size."""

    liars: Positive
    random: Fraction
    constant: Fraction
    flipped: Fraction
    runner_up: Fraction
    adversarial: Fraction


class PrecisionAccuracy(Struct, frozen=True):
    """Accuracy with the branches in one precision: fused, of each branch, and how often fused agrees with float32's."""

    precision: str
    fused: Fraction
    branches: tuple[Fraction, ...]
    agreement: Fraction


class CalibrationError(Struct, frozen=True):
    """Expected calibration error (15 bins, top label) of the fused answer of all servers, before and after calibration.

    `fitted_on` says which images the calibration was fitted on. The errors are those on the images of the accuracies.
    """

    before: Fraction
    after: Fraction
    fitted_on: str


class Accuracy(Struct, frozen=True):
    """Accuracies of the exported files, as fractions: baseline, fused, each branch, subsets of servers, under liars."""

    data: str
    images: Positive
    baseline: Fraction
    fused: Fraction
    branches: tuple[Fraction, ...]
    subsets: tuple[SubsetAccuracy, ...]
    malicious: tuple[MaliciousAccuracy, ...] = ()  # empty: not measured
    #: Of the graphs that TensorRT engines are built from, computed by ONNX Runtime. Left out where not measured.
    precisions: tuple[PrecisionAccuracy, ...] | msgspec.UnsetType = msgspec.UNSET
    #: Left out where the fusion was not calibrated.
    calibration: CalibrationError | msgspec.UnsetType = msgspec.UNSET


class Macs(Struct, frozen=True):
    """Multiply-accumulates per image, counted on the ONNX graphs (`branch` is that of one server)."""

    head: Index
    fusion: Index
    branch: Index
    baseline: Index


class Leakage(Struct, frozen=True):
    """What one attack by one coalition of servers reconstructs. PSNR and floor (the class mean's) in dB."""

    coalition: tuple[Index, ...]
    attack: str
    psnr: float
    ssim: float
    floor: float
    images: Positive
    date: str
    commit: str
    #: What the attacker spent: the name of an effort of bench/privacy.py.
    effort: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def above_floor(self) -> float:
        """PSNR above the class mean's, in dB."""
        return self.psnr - self.floor


class ClientManifest(Struct, frozen=True):
    """`client/manifest.json`: what an edge device needs to know of a release."""

    format_version: int
    release: ReleaseId
    made_by: MadeBy
    classes: Annotated[tuple[str, ...], msgspec.Meta(min_length=2)]
    image: ImageSpec
    servers: Annotated[tuple[ServerSpec, ...], msgspec.Meta(min_length=1)]
    max_batch: Positive
    files: dict[str, Sha256]
    accuracy: Accuracy
    macs: Macs
    leakage: tuple[Leakage, ...] = ()
    #: Left out of the file where a release has one partition for everybody, as those of older versions have.
    keys: KeySpec | msgspec.UnsetType = msgspec.UNSET


class PlanFile(Struct, frozen=True):
    """One TensorRT plan: its file, where it was built, and its largest difference from ONNX Runtime on golden inputs.

    The difference is relative to the largest logit; of a coded round, how many residues differ, which is none.
    """

    file: str
    gpu: str
    compute_capability: str
    difference: float


class PlanSpec(Struct, frozen=True):
    """How the TensorRT plans of a server were built, on its operator's machine."""

    precision: str
    tensorrt: str
    hardware: str
    version_compatible: bool
    date: str
    plans: Annotated[tuple[PlanFile, ...], msgspec.Meta(min_length=1)]


class ServerManifest(Struct, frozen=True):
    """`server-<i>/manifest.json`, and the baseline's: what the operator of one server needs to know."""

    format_version: int
    release: ReleaseId
    server: Index
    share_length: Positive
    scale: PositiveFloat
    classes: Positive
    engine: Engine
    files: dict[str, Sha256]
    made_by: MadeBy
    keys: KeySpec | msgspec.UnsetType = msgspec.UNSET
    #: Of the engine "tensorrt" alone.
    plan: PlanSpec | msgspec.UnsetType = msgspec.UNSET


def bytes_up(manifest: ClientManifest) -> list[int]:
    """Bytes of tensors that each server gets for one image: its share, and in a keyed release the partition."""
    partition = 0 if key_spec(manifest) is None else PARTITION_BYTES
    return [server.share_length + partition for server in manifest.servers]


def accuracy_of(manifest: ClientManifest, answered: Sequence[int]) -> float | None:
    """Accuracy that the manifest states for the fused answer of exactly these servers; None where it states none."""
    if len(answered) == len(manifest.servers):
        return manifest.accuracy.fused
    rows = [row.accuracy for row in manifest.accuracy.subsets if sorted(row.answered) == sorted(answered)]
    return rows[0] if rows else None


def key_spec(manifest: ClientManifest | ServerManifest) -> KeySpec | None:
    """The family of partitions; None where a release has one partition for everybody."""
    return None if manifest.keys is msgspec.UNSET else manifest.keys


def server_folder(server: int) -> str:
    """Folder of one server in a release."""
    return f"server-{server}"


def share_name(server: int) -> str:
    """Name of one server's share among the encoder's outputs and the golden examples."""
    return f"share_{server}"


def largest_minority(servers: int) -> int:
    """Members of the largest minority of the servers, floor((N-1)/2); zero of one or two servers."""
    return (servers - 1) // 2


def largest_coalition(servers: int) -> int:
    """Members of the largest coalition that a release is meant to withstand.

    The largest minority; where no minority has a member, one server alone.
    """
    return max(1, largest_minority(servers))


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output.

    Attributes:
        name: of the tensor.
        dtype: its element type.
        shape: axes of fixed length, and the names of those whose length a call decides; without the batch.
        batched: whether the batch is its first axis.
    """

    name: str
    dtype: Literal["uint8", "int8", "int32", "float32", "bool"]
    shape: tuple[int | str, ...]
    batched: bool = True

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the axes that have a fixed one."""
        return tuple(axis for axis in self.shape if isinstance(axis, int))


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph, in their order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def encoder_signature(manifest: ClientManifest) -> Signature:
    """Of the encoder: an image to one share for each server."""
    shares = [TensorSpec(share_name(i), "int8", (spec.share_length,)) for i, spec in enumerate(manifest.servers)]
    return Signature((image_tensor(manifest.image), *_partition(manifest)), tuple(shares))


def branch_signature(manifest: ClientManifest, server: int) -> Signature:
    """Of one server's branch: its share to logits."""
    share = TensorSpec(SHARE, "int8", (manifest.servers[server].share_length,))
    return Signature((share, *_partition(manifest)), (_logits(len(manifest.classes)),))


def fusion_signature(manifest: ClientManifest) -> Signature:
    """Of the fusion: all logits, and who answered, to probabilities."""
    servers, classes = len(manifest.servers), len(manifest.classes)
    inputs = TensorSpec(LOGITS, "float32", (servers, classes)), TensorSpec(ANSWERED, "bool", (servers,))
    return Signature(inputs, (TensorSpec(PROBABILITIES, "float32", (classes,)),))


def baseline_signature(image: ImageSpec, classes: int) -> Signature:
    """Of the unprotected model: an image to logits."""
    return Signature((image_tensor(image),), (_logits(classes),))


def image_tensor(image: ImageSpec) -> TensorSpec:
    """The image that a graph takes."""
    return TensorSpec(IMAGE, "uint8", (image.height, image.width, image.channels))


def _partition(manifest: ClientManifest) -> list[TensorSpec]:
    """What encoder and branches of a keyed release also take: the partition of every image."""
    return [] if key_spec(manifest) is None else [TensorSpec(PARTITION, "int32", (1,))]


def _logits(classes: int) -> TensorSpec:
    """The one output of a branch and of the baseline."""
    return TensorSpec(LOGITS, "float32", (classes,))
