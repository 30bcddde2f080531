"""What the benchmarks share: where things lie, where a result comes from, and result files."""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from privdfs import Bundle, ConfigError, Error, UserKey
from privdfs._manifest import decode_server_manifest, key_spec, read_manifest_bytes, read_verified
from privdfs_training import provenance

if TYPE_CHECKING:
    from privdfs_training.data import DataSet

ROOT = Path(__file__).resolve().parents[1]
RELEASES = ROOT / "model_repository"
RESULTS = ROOT / "bench" / "results"
IMAGES = ROOT / "examples" / "images"
EXIT_ERROR, EXIT_INTERRUPTED = 2, 130
#: Test images that the attack on the undefended split is scored on: its dense features take much memory.
UNDEFENDED_IMAGES = 1000
ENCODED_AT_ONCE = 1000
#: A list that holds numbers only, as `json` spreads it over many lines.
_NUMBERS = re.compile(r"\[\s+(-?[0-9][-+.0-9eE,\s]*?)\s+\]")


class BenchError(Error):
    """A benchmark cannot be run, or its results cannot be written, as asked."""


def release_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """The options of every benchmark that measures releases on their data set.

    Args:
        prog: name of the benchmark; its results go to bench/results/<prog>.json.
        description: for --help.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        "releases", nargs="*", type=Path, metavar="RELEASE", help="folders of releases (default: all of the project)"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the data set; default $PRIVDFS_DATA, then where Debian installs it"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS / f"{prog}.json", help="file to add to (default: bench/results/…)"
    )
    return parser


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


def release_data(bundle: Bundle, folder: Path | None) -> "DataSet":
    """The data set that a release was trained on; of a streamed set, the samples that fit in memory.

    Args:
        bundle: of the release.
        folder: of its files; None looks where the set is usually installed.

    Raises:
        ConfigError: the release names no known set, or the set has other classes or another image size.
        DataError: files are missing or damaged.
    """
    # Here, so that benchmarks without a data set start without torch.
    from privdfs_training.config import DataConfig
    from privdfs_training.data import in_memory, load_data

    try:
        config = msgspec.convert(bundle.manifest.made_by.config.get("data"), DataConfig)
    except msgspec.ValidationError as error:
        msg = f"the manifest of {bundle.release} names no known data set ({error}): export it with privdfs-export"
        raise ConfigError(msg) from error
    data, image = in_memory(load_data(config, folder)), bundle.manifest.image
    if data.classes != bundle.classes or data.image_shape != (image.channels, image.height, image.width):
        msg = f"{bundle.release} has other classes or image sizes than {config.name}: pass its own data with --data"
        raise ConfigError(msg)
    return data


def release_name(release: Path) -> str:
    """Name of a release in result files: that of its folder."""
    return release.resolve().name


def largest_minority(servers: int) -> int:
    """Servers that may put their shares together without being a majority; of two, one."""
    return max(1, (servers - 1) // 2)


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
    pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    if partition is None:
        partition = bundle.partition(user_key(bundle))
    parts = [
        bundle.encode(pixels[at : at + ENCODED_AT_ONCE], partition=partition)
        for at in range(0, len(pixels), ENCODED_AT_ONCE)
    ]
    return [torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)]


def user_key(bundle: Bundle) -> UserKey | None:
    """The key that a benchmark calls a keyed release with: any one, always the same; None for others."""
    return None if key_spec(bundle.manifest) is None else UserKey(bytes(16))


def made_by(config: Mapping[str, Any], *, seed: int, endpoint: str | None = None) -> dict[str, Any]:
    """Where a result comes from.

    Args:
        config: the benchmark's own settings.
        seed: of whatever the benchmark draws at random.
        endpoint: of a tritonserver that was measured, if one was; it is asked for its version.

    Returns:
        Command line, commit, config, seed, versions, machine and date.
    """
    return {
        "command": provenance.command_line(),
        "commit": provenance.git_commit(),
        "date": provenance.today(),
        "seed": seed,
        "config": dict(config),
        "versions": provenance.versions() | ({"tritonserver": _tritonserver_version(endpoint)} if endpoint else {}),
        "machine": provenance.machine(),
    }


def _tritonserver_version(endpoint: str) -> str:
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(endpoint, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
        metadata = client.get_server_metadata(as_json=True, client_timeout=10) or {}
    return str(metadata.get("version", "unknown"))


def merge_release(results: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Results with one release's entry added or replaced; those of other releases stay.

    Args:
        results: as read; {} for none.
        name: of the release.
        entry: its numbers and its own `made_by`, since other entries may come from other runs.

    Returns:
        The new results; `made_by` at the top is that of the latest entry.
    """
    others = {key: value for key, value in results.get("releases", {}).items() if key != name}
    together = dict(sorted({**others, name: dict(entry)}.items()))
    return {**results, "made_by": entry["made_by"], "releases": together}


def read_results(path: Path) -> dict[str, Any]:
    """A result file; {} when there is none yet.

    Raises:
        BenchError: it is not a result file.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not JSON ({error}): mend it or remove it"
        raise BenchError(msg) from error
    if not isinstance(found, dict) or not isinstance(found.get("releases", {}), dict):
        msg = f"{path} does not hold results of this benchmark: mend it or remove it"
        raise BenchError(msg)
    return found


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write a result file; the old one stays whole until the new one is.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(to_json(results), encoding="utf-8")
    partial.replace(path)


def to_json(results: Mapping[str, Any]) -> str:
    """Indented JSON in which a list of numbers takes one line; NaN and infinity are refused."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
