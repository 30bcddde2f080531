"""Releases as the benchmarks see them: which there are, their data sets, graphs and shares."""

from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privdfs import Bundle, ConfigError, UserKey
from privdfs._coded_format import CodedManifest, branch_file, branch_model
from privdfs._files import read_manifest_bytes, read_verified
from privdfs._format import (
    BASELINE_FOLDER,
    BASELINE_MODEL,
    BRANCH_FILE,
    BRANCH_MODEL,
    CLIENT_FOLDER,
    ENCODER_NAME,
    FUSION_NAME,
    MANIFEST_NAME,
    ClientManifest,
    key_spec,
    server_folder,
)
from privdfs._format import bytes_up as manifest_bytes_up
from privdfs._manifest import AnyClientManifest, decode_server_manifest, read_client_manifest, read_server_manifest
from privdfs_bench.results import ROOT
from privdfs_training.config import DataConfig
from privdfs_training.data import DataSet, in_memory, load_data

RELEASES = ROOT / "model_repository"
ENCODED_AT_ONCE = 1000


def releases(given: list[Path]) -> list[Path]:
    """Folders of the releases to measure: those given, or else all in model_repository.

    Raises:
        ConfigError: none is given and there is none, or two have the same name.
    """
    found = given or sorted(path.parent.parent for path in RELEASES.glob("*/client/manifest.json"))
    if not found:
        msg = f"there is no release in {RELEASES}: train and export one, or name the folder of one"
        raise ConfigError(msg)
    names = [release_name(path) for path in found]
    if len(set(names)) < len(names):
        msg = "two of the releases have the same folder name, and would be one entry of the results: rename a folder"
        raise ConfigError(msg)
    return found


def release_data(bundle: Bundle, folder: Path | None) -> DataSet:
    """The data set that a release was trained on; of a streamed set, the samples that fit in memory.

    Args:
        bundle: of the release.
        folder: of its files; None looks where the set is usually installed.

    Raises:
        ConfigError: the release names no known set, or the set has other classes or another image size.
        DataError: files are missing or damaged.
    """
    return manifest_data(bundle.manifest, folder)


def manifest_data(manifest: AnyClientManifest, folder: Path | None) -> DataSet:
    """As `release_data`, of a release of either kind by its client's manifest."""
    try:
        config = msgspec.convert(manifest.made_by.config.get("data"), DataConfig)
    except msgspec.ValidationError as error:
        msg = f"the manifest of {manifest.release} names no known data set ({error}): export it with privdfs-export"
        raise ConfigError(msg) from error
    data, image = in_memory(load_data(config.whole(), folder)), manifest.image
    if data.classes != manifest.classes or data.image_shape != (image.channels, image.height, image.width):
        msg = f"{manifest.release} has other classes or image sizes than {config.name}: pass its own data with --data"
        raise ConfigError(msg)
    return data


def release_name(release: Path) -> str:
    """Name of a release in result files: that of its folder."""
    return release.resolve().name


def verified_graph(folder: Path, model: str) -> bytes:
    """The ONNX graph of a server's folder, checked against the folder's manifest.

    Raises:
        BundleError: the folder is missing or changed.
        ConfigError: it holds no such graph.
    """
    manifest = decode_server_manifest(read_manifest_bytes(folder))
    name = f"{model}/1/model.onnx"
    if name not in manifest.files:
        msg = f"{folder} has no {name}: measure a release of the engine 'python' or 'onnxruntime'"
        raise ConfigError(msg)
    return read_verified(folder, {name: manifest.files[name]})[name]


def graph_digests(release: Path) -> dict[str, str]:
    """Digests of the graphs of a release, by name: `encoder`, `fusion`, and for each branch its server's folder.

    Of a coded release `relay-1`, … too, and one `branch-1`, … for each round, which all servers have; `baseline`, what
    a release is compared with, where it holds that.

    Returns:
        16 hex digits of the SHA-256 of each.

    Raises:
        BundleError: a manifest cannot be read.
        ConfigError: a server has no graph.
    """
    client = read_client_manifest(read_manifest_bytes(release / CLIENT_FOLDER))
    coded = isinstance(client, CodedManifest)
    found = coded_digests(release, client) if coded else _masked_digests(release, client)
    return {name: short_digest(digest) for name, digest in (found | _baseline_digest(release)).items()}


def _masked_digests(release: Path, client: ClientManifest) -> dict[str, str]:
    """Whole SHA-256 of the graphs of a masked release, by name."""
    found = {"encoder": client.files[ENCODER_NAME], "fusion": client.files[FUSION_NAME]}
    for server in range(len(client.servers)):
        folder = release / server_folder(server)
        files = decode_server_manifest(read_manifest_bytes(folder)).files
        if BRANCH_FILE not in files:
            msg = f"{folder} has no {BRANCH_FILE}: measure a release of the engine 'python' or 'onnxruntime'"
            raise ConfigError(msg)
        found[server_folder(server)] = files[BRANCH_FILE]
    return found


def _baseline_digest(release: Path) -> dict[str, str]:
    """Whole SHA-256 of the unprotected model's graph, if a release has it."""
    folder, graph = release / BASELINE_FOLDER, f"{BASELINE_MODEL}/1/model.onnx"
    files = read_server_manifest(read_manifest_bytes(folder)).files if (folder / MANIFEST_NAME).exists() else {}
    return {"baseline": files[graph]} if graph in files else {}


def coded_digests(release: Path, client: CodedManifest) -> dict[str, str]:
    """Whole SHA-256 of the graphs of a coded release, by name: as `graph_digests`, whose errors it has."""
    found = {name.removesuffix(".onnx"): digest for name, digest in client.files.items() if name.endswith(".onnx")}
    folder = release / server_folder(0)
    files = read_server_manifest(read_manifest_bytes(folder)).files
    for number in range(1, len(client.rounds) + 1):
        if branch_file(number) not in files:
            msg = f"{folder} has no {branch_file(number)}: measure a release of the engine 'python' or 'onnxruntime'"
            raise ConfigError(msg)
        found[branch_model(number)] = files[branch_file(number)]
    return found


def is_coded(release: Path) -> bool:
    """Whether a folder holds a coded release; not where it holds none at all, which whoever opens it will say.

    Raises:
        BundleError: its manifest is damaged, or of another version.
    """
    if not (release / CLIENT_FOLDER / MANIFEST_NAME).exists():
        return False
    return isinstance(read_client_manifest(read_manifest_bytes(release / CLIENT_FOLDER)), CodedManifest)


def short_digest(digest: str) -> str:
    """As much of a SHA-256 as result files hold: graphs are told apart, and lines stay short."""
    return digest[:16]


def nhwc(images: Tensor) -> NDArray[np.uint8]:
    """Images as graphs and clients take them, uint8 [images, height, width, channels]."""
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def client_graphs(release: Path, bundle: Bundle) -> tuple[bytes, bytes]:
    """The device's two graphs as ONNX, encoder and fusion, checked against the manifest.

    Raises:
        BundleError: A file is missing or changed.
    """
    files = read_verified(release / CLIENT_FOLDER, bundle.manifest.files)
    return files[ENCODER_NAME], files[FUSION_NAME]


def branch_graphs(release: Path, bundle: Bundle) -> list[bytes]:
    """The branches of all servers as ONNX, checked as by `verified_graph`."""
    return [verified_graph(release / server_folder(server), BRANCH_MODEL) for server in range(bundle.n_servers)]


def partitions_of(bundle: Bundle) -> int | None:
    """How many partitions a keyed release has; None for others."""
    keys = key_spec(bundle.masked)
    return None if keys is None else keys.partitions


def bytes_up(bundle: Bundle) -> list[int]:
    """Bytes of one image's tensors, to each server."""
    return list(manifest_bytes_up(bundle.masked))


def shares_of(bundle: Bundle, images: Tensor, partition: int | None = None) -> list[Tensor]:
    """The shares of many images, as the device makes them.

    Args:
        bundle: of the release.
        images: uint8 [images, channels, height, width].
        partition: of a keyed release, the user's; None takes that of `user_key`.

    Returns:
        One int8 [images, values] per server; of a keyed release those of one user, since whoever looks at them knows
        the partition, as the servers do.
    """
    pixels = nhwc(images)
    if partition is None:
        partition = bundle.partition(user_key(bundle))
    parts = [
        bundle.encode(pixels[at : at + ENCODED_AT_ONCE], partition=partition)
        for at in range(0, len(pixels), ENCODED_AT_ONCE)
    ]
    return [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]


def user_key(bundle: Bundle) -> UserKey | None:
    """The key that a benchmark calls a keyed release with: any one, always the same; None for others."""
    return None if partitions_of(bundle) is None else UserKey(bytes(16))
