"""Checks that the folders of a release are complete, unchanged and of one release."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from privdfs._coded_format import CodedManifest, CodedServerManifest, branch_file, server_round
from privdfs._errors import BundleFormatError, BundleIntegrityError
from privdfs._files import read_manifest_bytes, reading, refuse_unlisted, verify_files
from privdfs._format import BASELINE_FOLDER, CLIENT_FOLDER, MANIFEST_NAME, ClientManifest, ServerManifest, server_folder
from privdfs._manifest import AnyClientManifest, AnyServerManifest, read_client_manifest, read_server_manifest
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
        BundleError: a file is missing, changed, added, or cannot be read, or the folders are of different releases.
    """
    with reading(path):
        return _verify(path, trust)


def _verify(path: Path, trust: Trust | None) -> list[Verified]:
    if (path / MANIFEST_NAME).exists() or not (path / CLIENT_FOLDER).is_dir():
        return [_verify_folder(path, trust)]
    client = read_client_manifest(read_manifest_bytes(path / CLIENT_FOLDER))
    found = [_verify_folder(path / CLIENT_FOLDER, trust)]
    folders = server_folders(path, client)
    manifests = [server_manifest(folder) for folder in folders]
    for i, (folder, manifest) in enumerate(zip(folders, manifests, strict=True)):
        check_server(client, manifest, i)
        _check_networks(manifest, manifests[0], i)
        found.append(_verify_folder(folder, trust))
    for folder in sorted(path.glob("server-*")):
        if folder.name not in {row.name for row in found}:
            raise BundleIntegrityError(
                f"{folder.name} is not one of the {len(folders)} servers of release {client.release}: remove it",
                folder.name,
            )
    if (path / BASELINE_FOLDER).is_dir():
        baseline = _verify_folder(path / BASELINE_FOLDER, trust)
        if baseline.release != client.release:
            raise BundleFormatError(_other_release(BASELINE_FOLDER, baseline.release, client.release))
        found.append(baseline)
    return found


def server_folders(path: Path, client: AnyClientManifest) -> list[Path]:
    """Where the servers of a release lie, in order: a masked one's as many as its manifest has, a coded one's all.

    Raises:
        BundleIntegrityError: a coded release has no server's folder, or lacks one in their row.
    """
    if isinstance(client, ClientManifest):
        return [path / server_folder(index) for index in range(len(client.servers))]
    count = len(list(path.glob("server-*")))
    folders = [path / server_folder(index) for index in range(max(count, 1))]
    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise BundleIntegrityError(f"{path} has no {missing.name}: get the release again, whole", missing.name)
    return folders


def server_manifest(folder: Path) -> AnyServerManifest:
    """The manifest of a server's folder.

    Raises:
        BundleError: there is none, or it cannot be read.
    """
    return read_server_manifest(read_manifest_bytes(folder))


def check_server(client: AnyClientManifest, server: AnyServerManifest, index: int) -> None:
    """Check that a server's folder is the one that a client's manifest speaks of.

    Raises:
        BundleFormatError: another release, another server, another kind of shares, other rounds, or another share
            length, scale, number of classes or family of partitions.
    """
    name = server_folder(index)
    if server.release != client.release:
        raise BundleFormatError(_other_release(name, server.release, client.release))
    if server.server != index:
        raise BundleFormatError(f"{name} holds server {server.server} of the release: put the folders back in order")
    if isinstance(client, ClientManifest) and isinstance(server, ServerManifest):
        spec = client.servers[index]
        theirs = (server.share_length, server.scale, server.classes, server.keys)
        fits = theirs == (spec.share_length, spec.scale, len(client.classes), client.keys)
        what = "share length, scale, number of classes or keys"
    elif isinstance(client, CodedManifest) and isinstance(server, CodedServerManifest):
        fits, what = server.rounds == tuple(map(server_round, client.rounds)), "the rounds"
    else:
        fits, what = False, "whether shares are masked or coded"
    if not fits:
        raise BundleFormatError(f"{name} and the client disagree on {what}: get the release again")


def _check_networks(server: AnyServerManifest, first: AnyServerManifest, index: int) -> None:
    """Servers of a coded release run the same networks; answers of different ones would contradict each other."""
    if not isinstance(server, CodedServerManifest):
        return
    for number in range(1, len(server.rounds) + 1):
        name = branch_file(number)
        if server.files[name] != first.files[name]:
            raise BundleFormatError(
                f"{name} of {server_folder(index)} and of {server_folder(0)} differ, and all servers of a coded "
                "release run the same networks: get the release again"
            )


def _verify_folder(folder: Path, trust: Trust | None) -> Verified:
    data = read_manifest_bytes(folder)
    if trust is not None:
        check_signature(folder, data, trust)
    manifest = _decode_any(data)
    verify_files(folder, manifest.files)
    refuse_unlisted(folder, manifest.files)
    is_client = isinstance(manifest, (ClientManifest, CodedManifest))
    name = CLIENT_FOLDER if is_client else server_folder(manifest.server)
    return Verified(BASELINE_FOLDER if folder.name == BASELINE_FOLDER else name, manifest.release, len(manifest.files))


def _decode_any(data: bytes) -> AnyClientManifest | AnyServerManifest:
    """Client's or server's, told apart by the field that only a server's has."""
    try:
        fields = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = {}
    return read_server_manifest(data) if "server" in fields else read_client_manifest(data)


def _other_release(name: str, found: str, expected: str) -> str:
    return f"{name} is of release {found}, the client of {expected}: use the folders of one release only"
