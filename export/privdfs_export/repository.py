"""One server's folder of a release, read and written whole: manifest, Triton model, golden examples, ranges.

    manifest.json          what the folder is, and the SHA-256 of every other file
    golden.safetensors     some inputs of this server's graph, and its answers: float32 `logits`, or int8 residues
    ranges.safetensors     range of every activation that INT8 quantises, measured on real shares
    MODEL/config.pbtxt     and MODEL/1/model.onnx, model.py or model.plan, as `triton` writes them

Triton looks at folders only, so the files at the top do not disturb it. Golden examples are of this server's share
alone: the folder reveals nothing of another server.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from privdfs._coded_format import RESIDUES, CodedServerManifest, branch_model, numbered
from privdfs._files import read_manifest_bytes, read_verified, sha256_file
from privdfs._format import GOLDEN_NAME, MANIFEST_NAME, SHARE, PlanSpec, ServerManifest
from privdfs._manifest import AnyServerManifest, encode_manifest, read_server_manifest
from privdfs_export.errors import RepositoryError
from privdfs_export.triton import ONNX_NAME, VERSION, ModelSpec, write_model

RANGES_NAME = "ranges.safetensors"
_CONFIG_NAME = "config.pbtxt"
Tensors = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class StoredModel:
    """One model of a server's folder.

    Attributes:
        path: Of the server's folder.
        name: Of the model: `branch`, `branch-1` and so on in a coded release, or `baseline`.
        engine: What Triton runs it with.
        files: Of the whole folder.
        golden: Its golden inputs, and what it answers; None in older releases, which have none.
        plan: How its TensorRT plans were built; None where the manifest tells of none.
    """

    path: Path
    name: str
    engine: str
    files: Mapping[str, bytes]
    golden: Tensors | None
    plan: PlanSpec | None

    def __repr__(self) -> str:
        """Where it is, never its contents."""
        return f"StoredModel({str(self.path / self.name)!r})"

    @property
    def config(self) -> Any:
        """Its config.pbtxt, a `ModelConfig` of Triton."""
        from tritonclient.grpc import model_config_pb2

        text = self.files[f"{self.name}/{_CONFIG_NAME}"].decode("utf-8", errors="replace")
        try:
            return text_format.Parse(text, model_config_pb2.ModelConfig())  # pyright: ignore[reportAttributeAccessIssue]
        except text_format.ParseError as error:
            message = f"{self.path}: config.pbtxt is not a Triton configuration ({error}): get the release again."
            raise RepositoryError(message) from error

    @property
    def graph(self) -> bytes:
        """Its float32 ONNX graph."""
        return self.version_file(ONNX_NAME)

    def version_file(self, name: str) -> bytes:
        """A file of the model's one version.

        Args:
            name: Of the file.

        Returns:
            Its bytes.

        Raises:
            RepositoryError: The manifest does not list it.
        """
        path = f"{self.name}/{VERSION}/{name}"
        if path not in self.files:
            message = f"{self.path} has no {path}, which its engine {self.engine} needs: get the release again."
            raise RepositoryError(message)
        return self.files[path]


@dataclass(frozen=True)
class Repository:
    """One server's folder, checked: its manifest, and the bytes of the files that the manifest lists."""

    path: Path
    manifest: AnyServerManifest
    files: Mapping[str, bytes]

    def __repr__(self) -> str:
        """Its path, never its contents."""
        return f"Repository({str(self.path)!r})"

    @property
    def models(self) -> list[StoredModel]:
        """Its models: one, or in a coded release one for each round, in order."""
        names = [name.split("/")[0] for name in self.files if name.endswith(f"/{_CONFIG_NAME}")]
        manifest, golden = self.manifest, self.golden
        wanted = [names[0]] if names else [""]
        if isinstance(manifest, CodedServerManifest):
            wanted = [branch_model(number) for number in range(1, len(manifest.rounds) + 1)]
        if sorted(names) != sorted(wanted):
            message = f"{self.path} lists {len(names)} models, expected {len(wanted)}: get the release again, whole."
            raise RepositoryError(message)
        if isinstance(manifest, CodedServerManifest):
            examples = [_golden_of_round(self.path, golden, number) for number in range(1, len(wanted) + 1)]
        else:
            examples = [golden]
        return [
            StoredModel(self.path, name, manifest.engine, self.files, each, plan)
            for name, each, plan in zip(wanted, examples, self.plans or [None] * len(wanted), strict=True)
        ]

    @property
    def plans(self) -> list[PlanSpec]:
        """How the TensorRT plans of its models were built, in their order; empty where the manifest tells of none."""
        if isinstance(self.manifest, CodedServerManifest):
            return [] if self.manifest.plans is msgspec.UNSET else list(self.manifest.plans)
        return [] if self.manifest.plan is msgspec.UNSET else [self.manifest.plan]

    @property
    def model(self) -> StoredModel:
        """The one model of a masked release's server, or of the baseline."""
        models = self.models
        if len(models) != 1 or isinstance(self.manifest, CodedServerManifest):
            message = f"{self.path} is of a coded release, and this is for masked ones."
            raise RepositoryError(message)
        return models[0]

    @property
    def masked(self) -> ServerManifest:
        """Its manifest, of a masked release or of the baseline."""
        if isinstance(self.manifest, CodedServerManifest):
            message = f"{self.path} is of a coded release, and this is for masked ones."
            raise RepositoryError(message)
        return self.manifest

    @property
    def golden(self) -> Tensors | None:
        """All golden examples of the folder; None in older releases, which have none."""
        return self._tensors(GOLDEN_NAME)

    @property
    def ranges(self) -> dict[str, float] | None:
        """Ranges of activations by tensor; None in older releases, which have none."""
        tensors = self._tensors(RANGES_NAME)
        return None if tensors is None else {name: value.item() for name, value in tensors.items()}

    def _tensors(self, name: str) -> Tensors | None:
        data = self.files.get(name)
        return None if data is None else load_tensors(data)


def _golden_of_round(path: Path, golden: Tensors | None, number: int) -> Tensors | None:
    """Of a coded server's golden examples those of one round, under the names of its tensors."""
    if golden is None:
        return None
    try:
        return {name: golden[numbered(name, number)] for name in (SHARE, RESIDUES)}
    except KeyError as error:
        message = f"{path}: {GOLDEN_NAME} has no examples of round {number}: get the release again."
        raise RepositoryError(message) from error


def read_repository(path: Path) -> Repository:
    """Read a server's folder, and check it against its manifest.

    Args:
        path: `server-<i>`, or `baseline`.

    Returns:
        The very bytes that were checked.

    Raises:
        privdfs.BundleError: A file is missing, changed, or the manifest cannot be read.
    """
    manifest = read_server_manifest(read_manifest_bytes(path))
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
    warm_up = {tensor.name: golden[tensor.name] for tensor in spec.inputs} if golden else None
    models = [Model(spec, graph, plans or {}, warm_up)]
    write_models(folder, manifest, models, golden=golden, ranges=ranges)


@dataclass(frozen=True)
class Model:
    """One model to be written.

    Attributes:
        spec: What Triton is told of it.
        graph: Its float32 ONNX graph, serialised.
        plans: Of the engine "tensorrt", the plans by file name.
        warm_up: Real inputs by name, for plans.
    """

    spec: ModelSpec
    graph: bytes
    plans: Mapping[str, bytes] = field(default_factory=dict)
    warm_up: Tensors | None = None

    def __repr__(self) -> str:
        """Its name, never its contents."""
        return f"Model({self.spec.name!r})"


def write_models(
    folder: Path,
    manifest: AnyServerManifest,
    models: Sequence[Model],
    *,
    golden: Tensors | None,
    ranges: Mapping[str, float] | None = None,
) -> None:
    """Write a server's folder with all its models; arguments as those of `write_repository`.

    Args:
        folder: `server-<i>`, or `baseline`; made when it is not there.
        manifest: Of the folder; its `engine` and `files` are filled in.
        models: All of one engine.
        golden: As they are kept.
        ranges: Of activations.

    Raises:
        OSError: It cannot be written.
    """
    written = [name for each in models for name in write_model(folder, each.spec, each.graph, each.plans, each.warm_up)]
    if golden is not None:
        (folder / GOLDEN_NAME).write_bytes(_saved(golden))
        written.append(GOLDEN_NAME)
    if ranges is not None:
        (folder / RANGES_NAME).write_bytes(
            _saved({name: np.array([value], np.float32) for name, value in ranges.items()})
        )
        written.append(RANGES_NAME)
    files = {name: sha256_file(folder / name) for name in written}
    filled = msgspec.structs.replace(manifest, engine=models[0].spec.engine, files=files)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(filled))


def _saved(tensors: Tensors) -> bytes:
    return save_tensors({name: np.ascontiguousarray(value) for name, value in tensors.items()})
