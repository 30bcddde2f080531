"""One folder of a release as a supply chain sees it: its name, its release, its date, the bytes of its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from privdfs._files import read_manifest_bytes, read_verified
from privdfs._format import CLIENT_FOLDER, MANIFEST_NAME, SIGNATURE_NAME, MadeBy
from privdfs._verify import verify
from privdfs_export.errors import ExportError


@dataclass(frozen=True)
class SealedFolder:
    """A folder that is what its manifest says.

    Attributes:
        name: "client", "server-<i>" or "baseline".
        release: Id of its release.
        date: When the release was made, in ISO format.
        files: Every file by its path, the manifest and its signature among them, in the order of their names.
    """

    name: str
    release: str
    date: str
    files: Mapping[str, bytes] = field(repr=False)


class _Listed(msgspec.Struct):
    files: dict[str, str]
    made_by: MadeBy


def read_sealed(folder: Path) -> SealedFolder:
    """Check one folder of a release and read it: what is given on are the very bytes that were checked.

    Args:
        folder: `client`, `server-<i>` or `baseline`.

    Returns:
        Its contents.

    Raises:
        privdfs.BundleError: It is not what its manifest says.
        ExportError: It is a whole release, which nobody but its maker should have.
    """
    if (folder / CLIENT_FOLDER).is_dir():
        message = (
            f"{folder} is a whole release, and each party gets its own folder alone: name one of them, such as "
            f"{folder / 'server-0'} or {folder / CLIENT_FOLDER}."
        )
        raise ExportError(message)
    (found,) = verify(folder)
    manifest = read_manifest_bytes(folder)
    listed = msgspec.json.decode(manifest, type=_Listed)
    files = {MANIFEST_NAME: manifest, **read_verified(folder, listed.files)}
    signature = folder / SIGNATURE_NAME
    if signature.is_file():
        files[SIGNATURE_NAME] = signature.read_bytes()
    return SealedFolder(found.name, found.release, listed.made_by.date, dict(sorted(files.items())))
