"""One server's folder of a release, read and written whole: manifest, Triton model, golden examples, ranges.

    manifest.json          what the folder is, and the SHA-256 of every other file
    golden.safetensors     some real inputs of this server's graph, and its float32 `logits`
    ranges.safetensors     range of every activation that INT8 quantises, measured on real shares
    MODEL/config.pbtxt     and MODEL/1/model.onnx, model.py or model.plan, as `triton` writes them

Triton looks at folders only, so the files at the top do not disturb it. Golden examples are of this server's share
alone: the folder reveals nothing of another server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from privdfs._files import read_manifest_bytes, read_verified, sha256_file
from privdfs._format import GOLDEN_NAME, MANIFEST_NAME, ServerManifest
from privdfs._manifest import decode_server_manifest, encode_manifest
from privdfs_export.errors import RepositoryError
from privdfs_export.triton import ONNX_NAME, VERSION, ModelSpec, write_model

RANGES_NAME = "ranges.safetensors"
_CONFIG_NAME = "config.pbtxt"
Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Repository:
    """One server's folder, checked: its manifest, and the bytes of the files that the manifest lists."""

    path: Path
    manifest: ServerManifest
    files: Mapping[str, bytes]

    def __repr__(self) -> str:
        """Its path, never its contents."""
        return f"Repository({str(self.path)!r})"

    @property
    def model(self) -> str:
        """Name of its one model: `branch`, or `baseline`."""
        names = [name.split("/")[0] for name in self.files if name.endswith(f"/{_CONFIG_NAME}")]
        if len(names) != 1:
            message = f"{self.path} lists {len(names)} models, expected one: get the release again, whole."
            raise RepositoryError(message)
        return names[0]

    @property
    def config(self) -> Any:
        """Its config.pbtxt, a `ModelConfig` of Triton."""
        from tritonclient.grpc import model_config_pb2

        text = self.files[f"{self.model}/{_CONFIG_NAME}"].decode("utf-8", errors="replace")
        try:
            return text_format.Parse(text, model_config_pb2.ModelConfig())  # pyright: ignore[reportAttributeAccessIssue]
        except text_format.ParseError as error:
            message = f"{self.path}: config.pbtxt is not a Triton configuration ({error}): get the release again."
            raise RepositoryError(message) from error

    @property
    def graph(self) -> bytes:
        """Its float32 ONNX graph."""
        return self.version_file(ONNX_NAME)

    @property
    def golden(self) -> Tensors | None:
        """Golden inputs by name, and `logits`; None in older releases, which have none."""
        return self._tensors(GOLDEN_NAME)

    @property
    def ranges(self) -> dict[str, float] | None:
        """Ranges of activations by tensor; None in older releases, which have none."""
        tensors = self._tensors(RANGES_NAME)
        return None if tensors is None else {name: value.item() for name, value in tensors.items()}

    def version_file(self, name: str) -> bytes:
        """A file of the model's one version.

        Args:
            name: Of the file.

        Returns:
            Its bytes.

        Raises:
            RepositoryError: The manifest does not list it.
        """
        path = f"{self.model}/{VERSION}/{name}"
        if path not in self.files:
            message = (
                f"{self.path} has no {path}, which its engine {self.manifest.engine} needs: get the release again."
            )
            raise RepositoryError(message)
        return self.files[path]

    def _tensors(self, name: str) -> Tensors | None:
        data = self.files.get(name)
        return None if data is None else load_tensors(data)


def read_repository(path: Path) -> Repository:
    """Read a server's folder, and check it against its manifest.

    Args:
        path: `server-<i>`, or `baseline`.

    Returns:
        The very bytes that were checked.

    Raises:
        privdfs.BundleError: A file is missing, changed, or the manifest cannot be read.
    """
    manifest = decode_server_manifest(read_manifest_bytes(path))
    return Repository(path, manifest, read_verified(path, manifest.files))


def write_repository(
    folder: Path,
    manifest: ServerManifest,
    spec: ModelSpec,
    graph: bytes,
    *,
    golden: Tensors | None,
    ranges: Mapping[str, float] | None,
    plans: Mapping[str, bytes] | None = None,
) -> None:
    """Write a server's folder.

    Args:
        folder: `server-<i>`, or `baseline`; made when it is not there.
        manifest: Of the folder; its `engine` and `files` are filled in.
        spec: Of the model.
        graph: Its float32 ONNX graph, serialised.
        golden: Inputs by name, and `logits`.
        ranges: Of activations.
        plans: Of the engine "tensorrt", the plans by file name.

    Raises:
        OSError: It cannot be written.
    """
    inputs = {tensor.name: golden[tensor.name] for tensor in spec.inputs} if golden else None
    written = write_model(folder, spec, graph, plans, inputs)
    if golden is not None:
        (folder / GOLDEN_NAME).write_bytes(_saved(golden))
        written.append(GOLDEN_NAME)
    if ranges is not None:
        (folder / RANGES_NAME).write_bytes(
            _saved({name: np.array([value], np.float32) for name, value in ranges.items()})
        )
        written.append(RANGES_NAME)
    files = {name: sha256_file(folder / name) for name in written}
    filled = msgspec.structs.replace(manifest, engine=spec.engine, files=files)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(filled))


def _saved(tensors: Tensors) -> bytes:
    return save_tensors({name: np.ascontiguousarray(value) for name, value in tensors.items()})
