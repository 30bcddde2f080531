"""Checks that the folders of a release are complete, unchanged and of one release."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from privdfs._errors import BundleFormatError, BundleIntegrityError
from privdfs._files import read_manifest_bytes, refuse_unlisted, verify_files
from privdfs._format import BASELINE_FOLDER, CLIENT_FOLDER, MANIFEST_NAME, ClientManifest, ServerManifest, server_folder
from privdfs._manifest import decode_client_manifest, decode_server_manifest
from privdfs._signature import Trust, check_signature


@dataclass(frozen=True)
class Verified:
    """A folder that passed verification.

    Attributes:
        name: "client", "server-<i>" or "baseline".
        release: id of its release.
        files: number of files compared.
    """

    name: str
    release: str
    files: int


def verify(path: Path, *, trust: Trust | None = None) -> list[Verified]:
    """Verify a client folder, a server's folder, or a whole release (then also that all folders fit each other).

    Args:
        path: the folder.
        trust: keys, one of which must have signed each folder; None skips signatures.

    Raises:
        BundleError: a file is missing, changed or added, or the folders are of different releases.
    """
    if (path / MANIFEST_NAME).exists() or not (path / CLIENT_FOLDER).is_dir():
        return [_verify_folder(path, trust)]
    client = decode_client_manifest(read_manifest_bytes(path / CLIENT_FOLDER))
    found = [_verify_folder(path / CLIENT_FOLDER, trust)]
    for i in range(len(client.servers)):
        folder = path / server_folder(i)
        check_server(client, read_server_manifest(folder), i)
        found.append(_verify_folder(folder, trust))
    for folder in sorted(path.glob("server-*")):
        if folder.name not in {row.name for row in found}:
            raise BundleIntegrityError(
                f"{folder.name} is not one of the {len(client.servers)} servers of release {client.release}: remove it",
                folder.name,
            )
    if (path / BASELINE_FOLDER).is_dir():
        baseline = _verify_folder(path / BASELINE_FOLDER, trust)
        if baseline.release != client.release:
            raise BundleFormatError(_other_release(BASELINE_FOLDER, baseline.release, client.release))
        found.append(baseline)
    return found


def read_server_manifest(folder: Path) -> ServerManifest:
    """The manifest of a server's folder.

    Raises:
        BundleError: there is none, or it cannot be read.
    """
    return decode_server_manifest(read_manifest_bytes(folder))


def check_server(client: ClientManifest, server: ServerManifest, index: int) -> None:
    """Check that a server's folder is the one that a client's manifest speaks of.

    Raises:
        BundleFormatError: another release, another server, or another share length, scale, number of classes or
            family of partitions.
    """
    name = server_folder(index)
    if server.release != client.release:
        raise BundleFormatError(_other_release(name, server.release, client.release))
    if server.server != index:
        raise BundleFormatError(f"{name} holds server {server.server} of the release: put the folders back in order")
    spec = client.servers[index]
    theirs = (server.share_length, server.scale, server.classes, server.keys)
    if theirs != (spec.share_length, spec.scale, len(client.classes), client.keys):
        raise BundleFormatError(
            f"{name} and the client disagree on share length, scale, number of classes or keys: get the release again"
        )


def _verify_folder(folder: Path, trust: Trust | None) -> Verified:
    data = read_manifest_bytes(folder)
    if trust is not None:
        check_signature(folder, data, trust)
    manifest = _decode_any(data)
    verify_files(folder, manifest.files)
    refuse_unlisted(folder, manifest.files)
    name = CLIENT_FOLDER if isinstance(manifest, ClientManifest) else server_folder(manifest.server)
    return Verified(BASELINE_FOLDER if folder.name == BASELINE_FOLDER else name, manifest.release, len(manifest.files))


def _decode_any(data: bytes) -> ClientManifest | ServerManifest:
    """Client's or server's, told apart by the field that only a server's has."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = {}
    return decode_server_manifest(data) if "server" in fields else decode_client_manifest(data)


def _other_release(name: str, found: str, expected: str) -> str:
    return f"{name} is of release {found}, the client of {expected}: use the folders of one release only"
