"""The manifests of a release: what they hold, how they are read and written, how files are checked against them.

A release has one `manifest.json` for the client and one for each server; all carry the same release id. Guarantees:

- Reading is strict: an unknown format version is refused before anything else is looked at, an unknown field, a missing
  field or a value of another type is refused, and so is a manifest that contradicts itself.
- `encode_manifest` writes only what reading accepts, always the same bytes for the same content.
- Paths in `files` are relative, in posix form, and cannot leave the folder of the manifest. Symbolic links are refused.
- A server's manifest says nothing about another server, nor about the head or the fusion.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from privdfs._errors import BundleFormatError, BundleIntegrityError, BundleVersionError
from privdfs._given import check_path, shown

FORMAT_VERSION = 1

MANIFEST_NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
ENCODER_NAME = "encoder.onnx"
FUSION_NAME = "fusion.onnx"
GOLDEN_NAME = "golden.safetensors"

#: Files that describe a folder and therefore cannot be listed in its manifest.
_UNLISTABLE = frozenset({MANIFEST_NAME, SIGNATURE_NAME})
#: A manifest is a few kilobytes; a file beyond this is not one, and is refused before it is parsed.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024

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


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a manifest."""


class ImageSpec(_Struct, frozen=True):
    """Size of the images that the encoder takes, in pixels; channels is 1 (grey) or 3 (RGB)."""

    height: Positive
    width: Positive
    channels: Literal[1, 3]


class ServerSpec(_Struct, frozen=True):
    """What the client knows of one server: share length, levels per value (odd), and int8 step in feature units."""

    share_length: Positive
    levels: Annotated[int, msgspec.Meta(ge=3, le=255)]
    scale: PositiveFloat


class KeySpec(_Struct, frozen=True):
    """The family of partitions of a keyed release: how many there are, and an id of exactly these (a digest)."""

    partitions: Annotated[int, msgspec.Meta(ge=2, le=MAX_PARTITIONS)]
    family: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]


class MadeBy(_Struct, frozen=True):
    """Everything needed to make the release again."""

    command: str
    commit: str
    date: str
    seed: int
    config: dict[str, Any]
    versions: dict[str, str]


class SubsetAccuracy(_Struct, frozen=True):
    """Accuracy of the fused answer when exactly these servers answer."""

    answered: tuple[Index, ...]
    accuracy: Fraction


class MaliciousAccuracy(_Struct, frozen=True):
    """Accuracy of the fused answer when so many servers lie, by kind of lie, for the worst coalition of that size."""

    liars: Positive
    random: Fraction
    constant: Fraction
    flipped: Fraction
    runner_up: Fraction
    adversarial: Fraction


class PrecisionAccuracy(_Struct, frozen=True):
    """Accuracy with the branches in one precision: fused, of each branch, and how often fused agrees with float32's."""

    precision: str
    fused: Fraction
    branches: tuple[Fraction, ...]
    agreement: Fraction


class Accuracy(_Struct, frozen=True):
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


class Macs(_Struct, frozen=True):
    """Multiply-accumulates per image, counted on the ONNX graphs (`branch` is that of one server)."""

    head: Index
    fusion: Index
    branch: Index
    baseline: Index


class Leakage(_Struct, frozen=True):
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


class ClientManifest(_Struct, frozen=True):
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


class PlanFile(_Struct, frozen=True):
    """One TensorRT plan: its file, where it was built, and its largest difference from ONNX Runtime on golden inputs.

    The difference is relative to the largest logit.
    """

    file: str
    gpu: str
    compute_capability: str
    difference: float


class PlanSpec(_Struct, frozen=True):
    """How the TensorRT plans of a server were built, on its operator's machine."""

    precision: str
    tensorrt: str
    hardware: str
    version_compatible: bool
    date: str
    plans: Annotated[tuple[PlanFile, ...], msgspec.Meta(min_length=1)]


class ServerManifest(_Struct, frozen=True):
    """`server-<i>/manifest.json`, and the baseline's: what the operator of one server needs to know."""

    format_version: int
    release: ReleaseId
    server: Index
    share_length: Positive
    scale: PositiveFloat
    classes: Positive
    engine: Literal["python", "onnxruntime", "tensorrt"]
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


_Manifest = TypeVar("_Manifest", ClientManifest, ServerManifest)


class _Versioned(msgspec.Struct):
    """The one field that is read before the rest."""

    format_version: Any = None


def encode_manifest(manifest: ClientManifest | ServerManifest) -> bytes:
    """Write a manifest as JSON (2-space indent, trailing newline).

    Raises:
        BundleFormatError: the manifest would not be accepted when read back (it contradicts itself, holds NaN, …).
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    if isinstance(manifest, ClientManifest):
        decode_client_manifest(data)
    else:
        decode_server_manifest(data)
    return data


def decode_client_manifest(data: bytes) -> ClientManifest:
    """Read `client/manifest.json`.

    Raises:
        BundleVersionError: the format version is not the one this version of privdfs reads.
        BundleFormatError: not JSON, or a field is missing, unknown, of another type, or contradicts another.
    """
    manifest = _decode(data, ClientManifest)
    n_servers = len(manifest.servers)
    for name in (ENCODER_NAME, FUSION_NAME, GOLDEN_NAME):
        _require(name in manifest.files, f"`files` lacks {name}")
    for server in manifest.servers:
        _require(server.levels % 2 == 1, "`levels` must be odd, so that zero is one of them")
    _require(len(set(manifest.classes)) == len(manifest.classes), "`classes` has a name twice")
    _require(len(manifest.accuracy.branches) == n_servers, "`accuracy.branches` must have one value for each server")
    for row in manifest.accuracy.malicious:
        _require(2 * row.liars < n_servers, "`accuracy.malicious` has a number of liars that is no minority")
    for row in () if manifest.accuracy.precisions is msgspec.UNSET else manifest.accuracy.precisions:
        _require(len(row.branches) == n_servers, "`accuracy.precisions` must have one value for each server")
    groups = [s.answered for s in manifest.accuracy.subsets] + [row.coalition for row in manifest.leakage]
    for group in groups:
        _require(
            len(set(group)) == len(group) and all(i < n_servers for i in group),
            f"a subset or coalition names servers outside 0..{n_servers - 1}, or one twice",
        )
    return manifest


def decode_server_manifest(data: bytes) -> ServerManifest:
    """Read `server-<i>/manifest.json`.

    Raises:
        BundleVersionError: the format version is not the one this version of privdfs reads.
        BundleFormatError: not JSON, or a field is missing, unknown or of another type.
    """
    manifest = _decode(data, ServerManifest)
    _require(
        manifest.plan is msgspec.UNSET or manifest.engine == "tensorrt", "`plan` belongs to the engine 'tensorrt' alone"
    )
    return manifest


def read_manifest_bytes(folder: Path) -> bytes:
    """Read the bytes of `manifest.json` in a folder.

    Raises:
        BundleIntegrityError: there is none, or it is not an ordinary file.
        BundleFormatError: it is far too large to be a manifest.
    """
    path = check_path(folder, "the folder") / MANIFEST_NAME
    if os.path.islink(path) or not os.path.isfile(path):  # noqa: PTH113, PTH114 - those of pathlib raise
        raise BundleIntegrityError(
            f"there is no {MANIFEST_NAME} in {shown(folder)}: give the folder that the exporter wrote, whole",
            MANIFEST_NAME,
        )
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise BundleIntegrityError(
            f"{path} cannot be read ({type(error).__name__}): check its permissions and the disk", MANIFEST_NAME
        ) from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleFormatError(
            f"{path} is larger than {MAX_MANIFEST_BYTES} bytes and cannot be a manifest: get the release again"
        )
    return data


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check every listed file of a folder against its SHA-256.

    Args:
        folder: where the manifest lies.
        files: the manifest's `files`: relative posix path -> SHA-256 in hex.

    Raises:
        BundleIntegrityError: a file is missing, changed, a symbolic link, or its path leaves the folder.
    """
    for name, expected in files.items():
        _compare(name, expected, sha256_file(_locate(folder, name, expected)))


def read_verified(folder: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """Read every listed file once and check the very bytes that are returned, so that no later change can slip in.

    Raises:
        BundleIntegrityError: as for `verify_files`.
    """
    contents: dict[str, bytes] = {}
    for name, expected in files.items():
        data = _locate(folder, name, expected).read_bytes()
        check_digest(name, expected, data)
        contents[name] = data
    return contents


def check_digest(name: str, expected: str, data: bytes) -> None:
    """Check the bytes of a listed file.

    Raises:
        BundleIntegrityError: they are not those that the manifest lists.
    """
    _compare(name, expected, hashlib.sha256(data).hexdigest())


def refuse_unlisted(folder: Path, files: Mapping[str, str]) -> None:
    """Check that a folder holds nothing that its manifest does not list.

    Triton serves whatever lies in a model repository (a folder `2/` beside `1/` is a newer version of the model), so
    a server's folder with an added file is as changed as one with an altered file.

    Raises:
        BundleIntegrityError: there is an unlisted file.
    """
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files and name not in _UNLISTABLE:
            raise BundleIntegrityError(
                f"{name} is not listed in the manifest of {folder}: delete it, or get the release again", name
            )


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, symbolic links among them, in a stable order; links are not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _locate(folder: Path, name: str, expected: str) -> Path:
    """Path of a listed file, which is an ordinary file inside the folder."""
    _require_safe(name)
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            raise BundleIntegrityError(
                f"{name} is a symbolic link, which releases never contain: get the release again", name, expected
            )
    if not path.is_file():
        raise BundleIntegrityError(f"{name} is missing from {folder}: get the release again, whole", name, expected)
    return path


def _compare(name: str, expected: str, actual: str) -> None:
    if actual != expected:
        raise BundleIntegrityError(
            f"{name} is not the file that the manifest lists (SHA-256 {actual}, expected {expected}): "
            "it was changed or belongs to another release; get the release again",
            name,
            expected,
            actual,
        )


def _require_safe(name: str) -> None:
    """Refuse a path that is not relative, not in plain posix form, or leaves the folder."""
    path = PurePosixPath(name)
    plain = path.as_posix() == name and not path.is_absolute() and "\\" not in name and ":" not in name
    if not plain or ".." in path.parts or name in {"", "."} or "\0" in name or name in _UNLISTABLE:
        raise BundleIntegrityError(
            f"the manifest lists {name!r}, which is not a plain path inside its folder: get the release again", name
        )


def _decode(data: bytes, kind: type[_Manifest]) -> _Manifest:
    """Version first, then strict types, then the checks common to both kinds."""
    try:
        version = msgspec.json.decode(data, type=_Versioned).format_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleFormatError(
            f"the manifest is not a JSON object ({_short(error)}): get the release again"
        ) from error
    # `True == 1`, so the type is compared too.
    if type(version) is not int or version != FORMAT_VERSION:
        found = version if isinstance(version, (int, str)) else type(version).__name__
        raise BundleVersionError(
            f"the manifest has format version {str(found)[:40]!r}, this version of privdfs reads {FORMAT_VERSION}: "
            "install the privdfs that fits the release, or get a release that fits",
            found,
            FORMAT_VERSION,
        )
    try:
        manifest = msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleFormatError(
            f"the manifest is no {kind.__name__} of format {FORMAT_VERSION} ({_short(error)}): get the release again"
        ) from error
    for name in manifest.files:
        _require_safe(name)
    return manifest


def _short(error: Exception) -> str:
    """First line of a parser's message, which names fields and offsets."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _require(condition: bool, problem: str) -> None:  # noqa: FBT001 - an assertion, read as one
    if not condition:
        raise BundleFormatError(f"the manifest contradicts itself: {problem}; get the release again")
