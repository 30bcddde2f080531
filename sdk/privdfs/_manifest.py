"""Manifests, read and written. `_format` says what they hold.

- Reading is strict. An unknown format version is refused before anything else is looked at. So is an unknown field, a
  missing field, a value of another type, and a manifest that contradicts itself.
- `encode_manifest` writes only what reading accepts, and always the same bytes for the same content.
- A server's manifest says nothing about another server, the head or the fusion.
"""

from typing import Any, TypeVar

import msgspec

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

_Manifest = TypeVar("_Manifest", ClientManifest, ServerManifest)


class _Versioned(msgspec.Struct):
    """The one field that is read before the rest."""

    format_version: Any = None


def encode_manifest(manifest: ClientManifest | ServerManifest) -> bytes:
    """Write a manifest as JSON (2-space indent, trailing newline).

    Raises:
        BundleFormatError: reading would refuse the manifest (it contradicts itself, holds NaN, …).
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
            f"the manifest is not a {kind.__name__} of format {FORMAT_VERSION} ({_short(error)}): get the release again"
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
