"""Manifests, read and written. `_format` and `_coded_format` say what they hold.

- Reading is strict. An unknown format version is refused before anything else is looked at. So is an unknown field, a
  missing field, a value of another type, and a manifest that contradicts itself.
- Masked releases have format version 1, coded ones 2, which versions of privdfs that read masked ones alone refuse.
- `encode_manifest` writes only what reading accepts, and always the same bytes for the same content.
- A server's manifest says nothing about another server, the head or the fusion.
"""

from typing import Any, TypeVar

import msgspec

from privdfs._coded_format import (
    CODED_FORMAT_VERSION,
    CodedManifest,
    CodedServerManifest,
    branch_file,
    contradictions,
    relay_name,
)
from privdfs._errors import BundleFormatError, BundleVersionError
from privdfs._files import check_listed_path
from privdfs._format import (
    ENCODER_NAME,
    FORMAT_VERSION,
    FUSION_NAME,
    GOLDEN_NAME,
    ClientManifest,
    ServerManifest,
    largest_minority,
)
from privdfs.coding import MAX_SERVERS

#: What a client's folder may hold, and a server's.
AnyClientManifest = ClientManifest | CodedManifest
AnyServerManifest = ServerManifest | CodedServerManifest

_Manifest = TypeVar("_Manifest", ClientManifest, ServerManifest, CodedManifest, CodedServerManifest)


class _Versioned(msgspec.Struct):
    """The one field that is read before the rest."""

    format_version: Any = None


def encode_manifest(manifest: AnyClientManifest | AnyServerManifest) -> bytes:
    """Write a manifest as JSON (2-space indent, trailing newline).

    Raises:
        BundleFormatError: reading would refuse the manifest (it contradicts itself, holds NaN, …).
    """
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    if isinstance(manifest, (ClientManifest, CodedManifest)):
        read_client_manifest(data)
    else:
        read_server_manifest(data)
    return data


def read_client_manifest(data: bytes) -> AnyClientManifest:
    """Read `client/manifest.json` of either kind.

    Raises:
        BundleVersionError: this version of privdfs does not read the format version.
        BundleFormatError: not JSON, or a field is missing, unknown, of another type, or contradicts another.
    """
    return _decode_coded(data) if _version(data) == CODED_FORMAT_VERSION else _decode_masked(data)


def decode_client_manifest(data: bytes) -> ClientManifest:
    """Read `client/manifest.json` of a masked release, for what masked releases alone have.

    Raises:
        BundleVersionError: as for `read_client_manifest`.
        BundleFormatError: as there, or the release is coded.
    """
    manifest = read_client_manifest(data)
    if isinstance(manifest, CodedManifest):
        raise BundleFormatError(f"{manifest.release} is a coded release, and this is for masked ones")
    return manifest


def read_server_manifest(data: bytes) -> AnyServerManifest:
    """Read `server-<i>/manifest.json` of either kind.

    Raises:
        BundleVersionError: this version of privdfs does not read the format version.
        BundleFormatError: not JSON, or a field is missing, unknown or of another type.
    """
    if _version(data) != CODED_FORMAT_VERSION:
        return _decode_masked_server(data)
    manifest = _decode(data, CodedServerManifest)
    _require(
        (manifest.plans is not msgspec.UNSET) == (manifest.engine == "tensorrt"),
        "`plans` belong to the engine 'tensorrt', and to no other",
    )
    if manifest.plans is not msgspec.UNSET:
        _require(len(manifest.plans) == len(manifest.rounds), "`plans` must be as many as the rounds")
    for number in range(1, len(manifest.rounds) + 1):
        _require(branch_file(number) in manifest.files, f"`files` lacks {branch_file(number)}")
    return manifest


def decode_server_manifest(data: bytes) -> ServerManifest:
    """Read `server-<i>/manifest.json` of a masked release, for what masked releases alone have.

    Raises:
        BundleVersionError: as for `read_server_manifest`.
        BundleFormatError: as there, or the release is coded.
    """
    manifest = read_server_manifest(data)
    if isinstance(manifest, CodedServerManifest):
        raise BundleFormatError(f"{manifest.release} is a coded release, and this is for masked ones")
    return manifest


def _decode_coded(data: bytes) -> CodedManifest:
    manifest = _decode(data, CodedManifest)
    relays = [relay_name(number) for number in range(1, len(manifest.rounds))]
    for name in (ENCODER_NAME, *relays, FUSION_NAME, GOLDEN_NAME):
        _require(name in manifest.files, f"`files` lacks {name}")
    _require(len(set(manifest.classes)) == len(manifest.classes), "`classes` has a name twice")
    for row in manifest.leakage:
        members = set(row.coalition)
        _require(
            bool(members) and len(members) == len(row.coalition) and max(members) < MAX_SERVERS,
            f"a coalition is empty, names a server twice, or one outside 0..{MAX_SERVERS - 1}",
        )
    for problem in contradictions(manifest):
        _require(False, problem)
    return manifest


def _decode_masked(data: bytes) -> ClientManifest:
    manifest = _decode(data, ClientManifest)
    n_servers = len(manifest.servers)
    for name in (ENCODER_NAME, FUSION_NAME, GOLDEN_NAME):
        _require(name in manifest.files, f"`files` lacks {name}")
    for server in manifest.servers:
        _require(server.levels % 2 == 1, "`levels` must be odd, so that zero is one of them")
    _require(len(set(manifest.classes)) == len(manifest.classes), "`classes` has a name twice")
    _require(len(manifest.accuracy.branches) == n_servers, "`accuracy.branches` must have one value for each server")
    for row in manifest.accuracy.malicious:
        _require(
            row.liars <= largest_minority(n_servers), "`accuracy.malicious` has a row whose liars are not a minority"
        )
    for row in () if manifest.accuracy.precisions is msgspec.UNSET else manifest.accuracy.precisions:
        _require(len(row.branches) == n_servers, "`accuracy.precisions` must have one value for each server")
    groups = [s.answered for s in manifest.accuracy.subsets] + [row.coalition for row in manifest.leakage]
    for group in groups:
        _require(
            len(set(group)) == len(group) and all(i < n_servers for i in group),
            f"a subset or coalition names servers outside 0..{n_servers - 1}, or one twice",
        )
    return manifest


def _decode_masked_server(data: bytes) -> ServerManifest:
    manifest = _decode(data, ServerManifest)
    _require(
        manifest.plan is msgspec.UNSET or manifest.engine == "tensorrt", "`plan` belongs to the engine 'tensorrt' alone"
    )
    return manifest


def _version(data: bytes) -> int:
    """The format version, one of those that this version of privdfs reads."""
    try:
        version = msgspec.json.decode(data, type=_Versioned).format_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleFormatError(
            f"the manifest is not a JSON object ({_short(error)}): get the release again"
        ) from error
    # `True == 1`, so the type is compared too.
    if type(version) is not int or not FORMAT_VERSION <= version <= CODED_FORMAT_VERSION:
        found = version if isinstance(version, (int, str)) else type(version).__name__
        raise BundleVersionError(
            f"the manifest has format version {str(found)[:40]!r}, this version of privdfs reads {FORMAT_VERSION} and "
            f"{CODED_FORMAT_VERSION}: install the privdfs that fits the release, or get a release that fits",
            found,
            CODED_FORMAT_VERSION,
        )
    return version


def _decode(data: bytes, kind: type[_Manifest]) -> _Manifest:
    """Strict types, then the checks common to all kinds."""
    try:
        manifest = msgspec.json.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleFormatError(
            f"the manifest is not a {kind.__name__} ({_short(error)}): get the release again"
        ) from error
    for name in manifest.files:
        check_listed_path(name)
    return manifest


def _short(error: Exception) -> str:
    """First line of a parser's message, which names fields and offsets."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _require(condition: bool, problem: str) -> None:  # noqa: FBT001 - an assertion, read as one
    if not condition:
        raise BundleFormatError(f"the manifest contradicts itself: {problem}; get the release again")
