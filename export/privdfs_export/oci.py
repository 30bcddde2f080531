"""`privdfs-export oci FOLDER --out LAYOUT`: one folder of a release as an OCI image, on disk.

What is written is an OCI image layout: any tool that speaks of those (`skopeo`, `crane`, `oras`) copies it to a
registry, and the digest that this command prints stays the same. A cluster then mounts the image by its digest.

- The folder is checked first, and the image holds the very bytes that were checked: what the manifest lists, the
  manifest, its signature.
- The same folder gives the same digest, whoever writes it and when. So the layer is not compressed (compressors differ
  from version to version, and weights hardly shrink), and files have neither dates nor owners.
- One image for each platform, since a node picks its own; all hold the same layer.
- The list of contents (`sbom`) lies beside the image and refers to it, as OCI 1.1 has it.
"""

import argparse
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privdfs_export.errors import ExportError
from privdfs_export.sbom import MEDIA_TYPE as SBOM_TYPE
from privdfs_export.sbom import folder_sbom
from privdfs_export.sealed import SealedFolder, read_sealed

DESCRIPTION = "Write one folder of a release as an OCI image layout; the same folder gives the same digest."
PLATFORMS = ("amd64", "arm64")
_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_EMPTY = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True)
class Blob:
    """Bytes of a layout, named by their digest, as descriptors refer to them."""

    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        """`sha256:` and the SHA-256 in hex."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def descriptor(self) -> dict[str, Any]:
        """How other blobs name it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="one folder of a release: server-<i> or client")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="LAYOUT", help="folder of the layout; must not exist"
    )


def run(options: argparse.Namespace) -> None:
    """Write the layout, and print its digest.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: The folder is not what its manifest says, or the layout cannot be written.
    """
    print(write_layout(options.folder, options.out))


def write_layout(folder: Path, out: Path) -> str:
    """Write one folder of a release as an OCI image layout.

    Args:
        folder: `server-<i>`, `client` or `baseline`.
        out: Folder of the layout; must not exist.

    Returns:
        Digest of the image, `sha256:…`: what a cluster is told.

    Raises:
        privdfs.BundleError: The folder is not what its manifest says.
        ExportError: The layout exists already or cannot be written; nothing was left behind.
    """
    if out.exists():
        message = f"{out} exists already: choose another folder with --out."
        raise ExportError(message)
    sealed = read_sealed(folder)
    image, blobs = _image(sealed)
    sbom, more = _sbom(sealed, image)
    name = {"org.opencontainers.image.ref.name": sealed.release}
    entries = [{**image.descriptor, "annotations": name}, {**sbom.descriptor, "artifactType": SBOM_TYPE}]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            place = staging / "blobs" / "sha256"
            place.mkdir(parents=True)
            for blob in (image, *blobs, sbom, *more):
                (place / blob.digest.removeprefix("sha256:")).write_bytes(blob.data)
            (staging / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
            (staging / "index.json").write_bytes(_json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}))
            staging.chmod(0o755)
            staging.rename(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        message = f"cannot write {out}: {error.strerror}. Free some disk space, or choose another folder with --out."
        raise ExportError(message) from error
    return image.digest


def _image(folder: SealedFolder) -> tuple[Blob, list[Blob]]:
    """The image of all platforms, and the blobs that it is made of."""
    layer = Blob(_LAYER, _tar(folder))
    blobs = [layer]
    manifests = []
    for platform in PLATFORMS:
        target = {"architecture": platform, "os": "linux"}
        config = Blob(_CONFIG, _json({**target, "rootfs": {"type": "layers", "diff_ids": [layer.digest]}}))
        manifest = Blob(_MANIFEST, _manifest(config, layer, annotations=_annotations(folder)))
        manifests.append({**manifest.descriptor, "platform": target})
        blobs += [config, manifest]
    about = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": manifests, "annotations": _annotations(folder)}
    return Blob(_INDEX, _json(about)), blobs


def _sbom(folder: SealedFolder, image: Blob) -> tuple[Blob, list[Blob]]:
    """The list of contents as an artefact that refers to the image, and the blobs that it is made of."""
    empty, listed = Blob(_EMPTY, b"{}"), Blob(SBOM_TYPE, folder_sbom(folder))
    return Blob(_MANIFEST, _manifest(empty, listed, artifactType=SBOM_TYPE, subject=image.descriptor)), [empty, listed]


def _manifest(config: Blob, layer: Blob, **more: object) -> bytes:
    fields = {"config": config.descriptor, "layers": [layer.descriptor], **more}
    return _json({"schemaVersion": 2, "mediaType": _MANIFEST, **fields})


def _annotations(folder: SealedFolder) -> dict[str, str]:
    """What a registry shows; of the part and its release, nothing of who wrote it."""
    return {
        "org.opencontainers.image.title": folder.name,
        "org.opencontainers.image.version": folder.release,
        "org.opencontainers.image.created": f"{folder.date}T00:00:00Z",
    }


def _tar(folder: SealedFolder) -> bytes:
    """The files and their folders, in the order of their names, readable by everyone."""
    folders = {str(parent) for name in folder.files for parent in Path(name).parents} - {"."}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted({*folders, *folder.files}):
            entry = tarfile.TarInfo(name)
            data = folder.files.get(name)
            if data is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(data), 0o644
                archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
