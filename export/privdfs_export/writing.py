"""A release on disk: the client's folder, one Triton model repository per server, and the baseline's.

It appears whole, under its final name, or not at all.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from privdfs._coded_format import CodedManifest
from privdfs._files import sha256_file
from privdfs._format import (
    BASELINE_FOLDER,
    BASELINE_MODEL,
    BRANCH_MODEL,
    CLIENT_FOLDER,
    FORMAT_VERSION,
    GOLDEN_NAME,
    MANIFEST_NAME,
    RELEASE_PARAMETER,
    SERVER_PARAMETER,
    ClientManifest,
    ServerManifest,
    baseline_signature,
    branch_signature,
    server_folder,
)
from privdfs._manifest import encode_manifest
from privdfs_export.contents import Graphs
from privdfs_export.errors import ExportError
from privdfs_export.repository import write_repository
from privdfs_export.triton import GraphEngine, ModelSpec

Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Sidecar:
    """What may lie beside a model: golden inputs with its float32 `logits`, and the ranges that INT8 needs."""

    golden: Tensors | None = None
    ranges: Mapping[str, float] | None = None

    def __repr__(self) -> str:
        """Names, never values."""
        return f"Sidecar({', '.join(self.golden or ())})"


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


def write_release(
    out: Path,
    client: ClientManifest,
    built: Graphs,
    *,
    engine: GraphEngine,
    golden: Tensors,
    sidecars: Sequence[Sidecar],
) -> None:
    """Write a release whole or not at all.

    Args:
        out: Its folder; must not exist.
        client: The client's manifest; its files are filled in.
        built: The graphs.
        engine: What Triton runs them with.
        golden: The client's examples, by name.
        sidecars: Of every server, and last of the baseline.

    Raises:
        ExportError: The folder exists or cannot be written; nothing was left behind.
    """
    with whole_release(out) as folder:
        write_client(folder / CLIENT_FOLDER, client, built.client_files, golden)
        for server, branch in enumerate(built.branches):
            write_server(folder / server_folder(server), client, server, branch.data, engine, sidecars[server])
        write_baseline(folder / BASELINE_FOLDER, client, built.baseline.data, engine, sidecars[-1])


@contextmanager
def whole_release(out: Path) -> Iterator[Path]:
    """A folder to write a release in, which gets its name when everything is written, and is removed otherwise.

    Args:
        out: Its name; must not exist.

    Yields:
        The folder, beside it.

    Raises:
        ExportError: The folder exists or cannot be written; nothing was left behind.
    """
    refuse_existing(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        message = f"cannot write in {out.parent}: {error.strerror}. Choose another folder with --out."
        raise ExportError(message) from error
    try:
        yield partial
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


def write_client(
    folder: Path, client: ClientManifest | CodedManifest, files: Mapping[str, bytes], golden: Tensors
) -> None:
    """Write what devices get.

    Args:
        folder: `client`; made.
        client: The manifest; its files are filled in.
        files: The graphs, by file name.
        golden: Examples, by name.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir()
    contents = {**files, GOLDEN_NAME: save_tensors(dict(golden))}  # pyright: ignore[reportArgumentType]
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    digests = {name: sha256_file(folder / name) for name in contents}
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(client, files=digests)))


def write_server(
    folder: Path, client: ClientManifest, server: int, branch: bytes, engine: GraphEngine, sidecar: Sidecar
) -> None:
    """Write the folder of one server.

    Args:
        folder: `server-<i>`; made when it is not there.
        client: The client's manifest.
        server: Index of the server.
        branch: Its graph, serialised ONNX.
        engine: What Triton runs it with.
        sidecar: What lies beside it.

    Raises:
        OSError: It cannot be written.
    """
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


def write_baseline(
    folder: Path, client: ClientManifest | CodedManifest, baseline: bytes, engine: GraphEngine, sidecar: Sidecar
) -> None:
    """Write the folder of the unprotected model, for comparison only; its arguments are those of `write_server`."""
    # To the one server that runs it, the "share" is the whole image.
    tensors = baseline_signature(client.image, len(client.classes))
    spec = ModelSpec(
        name=BASELINE_MODEL,
        engine=engine,
        inputs=tensors.inputs,
        output=tensors.outputs[0],
        max_batch=client.max_batch,
        parameters={RELEASE_PARAMETER: client.release},
    )
    manifest = _server_manifest(client, engine, server=0, length=int(np.prod(tensors.inputs[0].sizes)), scale=1.0)
    write_repository(folder, manifest, spec, baseline, golden=sidecar.golden, ranges=sidecar.ranges)


def _server_manifest(
    client: ClientManifest | CodedManifest, engine: GraphEngine, *, server: int, length: int, scale: float
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
