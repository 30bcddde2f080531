"""`privdfs-export calibrate RELEASE --out DIR`: a release again, with calibrated probabilities.

For releases that were exported without calibration; and, with `--like TWIN`, for those that learned from all training
images, so that none was left to calibrate with. The twin is a release of the same config but for `data.held_out`: its
map was fitted on images that it had not seen, and is as good for networks that were trained as it was. Where the config
names weights to start from, the twin names others, which must not have learned from those images either.

Encoder, branches and baseline stay byte for byte what they are, and so do all accuracies. The fusion changes, and with
it the id of the release: devices and servers need the new one together, and signatures and TensorRT plans have to be
made again.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from rich.console import Console
from safetensors.numpy import load as load_tensors

from privdfs._files import read_manifest_bytes, read_verified
from privdfs._format import (
    BASELINE_FOLDER,
    CLIENT_FOLDER,
    ENCODER_NAME,
    FUSION_NAME,
    GOLDEN_NAME,
    LOGITS,
    PROBABILITIES,
    ClientManifest,
    key_spec,
    server_folder,
)
from privdfs._manifest import decode_client_manifest
from privdfs._verify import verify
from privdfs_export import calibration, evaluate
from privdfs_export.contents import Graph, Graphs
from privdfs_export.errors import ExportError
from privdfs_export.repository import Repository, read_repository
from privdfs_export.writing import Sidecar, refuse_existing, write_release
from privdfs_training import provenance
from privdfs_training.config import Config
from privdfs_training.data import ImageData, load_data
from privdfs_training.reading import config_from_dict

DESCRIPTION = "Make a release again with calibrated probabilities."
#: Sections of a config that can name weights to start from.
_WITH_FILES = ("backbone", "head", "teacher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder of a whole release")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new release; must not exist")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="TWIN",
        help="take the map of this release: of the same config, trained with data.held_out",
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the data set; default $PRIVDFS_DATA, then where Debian installs it"
    )


def run(options: argparse.Namespace) -> None:
    """Calibrate, and print what came of it.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: The release cannot be calibrated; nothing was written.
    """
    console = Console()
    client = calibrate_release(options.release, options.data, options.out, like=options.like)
    error = client.accuracy.calibration
    if error is not msgspec.UNSET:
        told = f"{client.release}: expected calibration error {error.before:.2%}, calibrated {error.after:.2%}"
        console.print(f"{told}, written to {options.out}")


def calibrate_release(release: Path, folder: Path | None, out: Path, *, like: Path | None = None) -> ClientManifest:
    """Write a release again, its fusion calibrated.

    Args:
        release: Folder of a whole release.
        folder: Of the data set that it was trained on; None looks where the set is usually installed.
        out: Folder of the new release; must not exist.
        like: Folder of a twin, a release whose map is taken; None fits one.

    Returns:
        The new client manifest.

    Raises:
        privdfs.BundleError: A file of the release is not what its manifest says.
        privdfs.ExportError: The release is not whole, the data are not those of it, or it is calibrated already and no
            twin is given; or it held images out itself, or the twin is of another config or has no map that was
            fitted on images it had not seen.
    """
    refuse_existing(out)
    verify(release)
    client = decode_client_manifest(read_manifest_bytes(release / CLIENT_FOLDER))
    files = read_verified(release / CLIENT_FOLDER, client.files)
    names = [*(server_folder(server) for server in range(len(client.servers))), BASELINE_FOLDER]
    repositories = [read_repository(release / name) for name in names]
    engine = repositories[0].manifest.engine
    if engine == "tensorrt":
        raise ExportError(f"{release} has TensorRT plans. Calibrate the release that they were built from.")
    models = [Graph(onnx.load_from_string(repository.model.graph)) for repository in repositories]
    plain = Graphs(
        encoder=Graph(onnx.load_from_string(files[ENCODER_NAME])),
        branches=models[:-1],
        fusion=Graph(onnx.load_from_string(files[FUSION_NAME])),
        baseline=models[-1],
    )
    kept = {ENCODER_NAME: plain.encoder.data, FUSION_NAME: plain.fusion.data}
    if any(files[name] != data for name, data in kept.items()) or any(
        repository.model.graph != model.data for repository, model in zip(repositories, models, strict=True)
    ):
        raise ExportError(f"a graph of {release} would not stay what it is, byte for byte. Export the release again.")

    config = config_from_dict(client.made_by.config, f"the manifest of {client.release}")
    data, keys = _data(client, config, folder), key_spec(client)
    partitions = None if keys is None else keys.partitions
    if like is None:
        calibrated = calibration.calibrate(plain, data, config, partitions)
    else:
        plain, calibrated = _like(like, plain, client)
    pixels, labels = data.sample("test")
    images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    dealt = calibration.spread(len(images), partitions)
    error = calibration.measure(plain, calibrated, images, labels.numpy(), dealt)

    built, golden = calibrated.graphs, load_tensors(files[GOLDEN_NAME])
    golden[PROBABILITIES] = evaluate.fuse(built.fusion.session, golden[LOGITS], range(len(client.servers)))
    new = msgspec.structs.replace(
        client,
        release=f"{config.name}-{built.digest}",
        made_by=msgspec.structs.replace(
            client.made_by, command=f"{client.made_by.command} && {provenance.command_line()}"
        ),
        accuracy=msgspec.structs.replace(client.accuracy, calibration=error),
        macs=built.macs,
    )
    write_release(out, new, built, engine=engine, golden=golden, sidecars=[_sidecar(one) for one in repositories])
    return new


def _like(twin: Path, built: Graphs, client: ClientManifest) -> tuple[Graphs, calibration.Calibrated]:
    """The graphs without a map, and with the twin's."""
    theirs = decode_client_manifest(read_manifest_bytes(twin / CLIENT_FOLDER))
    mine, other = (
        config_from_dict(each.made_by.config, f"the manifest of {each.release}") for each in (client, theirs)
    )
    if mine.data.held_out >= calibration.FEWEST_HELD_OUT:
        message = f"{client.release} held out training images of its own. Export it again: its map is fitted on those."
        raise ExportError(message)
    if changed := _differences(mine, other):
        message = f"{twin} was trained with other settings in: {', '.join(changed)}. Take a twin of the same config."
        raise ExportError(message)
    fusion = onnx.load_from_string(read_verified(twin / CLIENT_FOLDER, theirs.files)[FUSION_NAME])
    slopes, error = calibration.slopes_of(fusion), theirs.accuracy.calibration
    held_out = other.data.held_out
    fitted = error is not msgspec.UNSET and error.fitted_on == calibration.fitted_on_held_out(held_out)
    if slopes is None or held_out < calibration.FEWEST_HELD_OUT or not fitted:
        message = (
            f"{twin} has no map that was fitted on images it had not seen. Train it with data.held_out = "
            f"{calibration.FEWEST_HELD_OUT} or more, and export it."
        )
        raise ExportError(message)
    with_map, without = (
        dataclasses.replace(built, fusion=Graph(calibration.with_slopes(built.fusion.model, given)))
        for given in (slopes, np.ones_like(slopes))
    )
    words = f"{held_out} training images, held out from a second training by the same config"
    return without, calibration.Calibrated(with_map, slopes, words)


def _differences(ours: Config, theirs: Config) -> list[str]:
    """Sections in which two configs differ, but for what says who a run is and which images it saw.

    Weights that a run starts from have seen images too. So a twin of a run that names a file has to name another one;
    whether those weights have seen the images that the twin held out, no manifest says.
    """
    mine, other = (_compared(config) for config in (ours, theirs))
    my_files, other_files = (_files(config) for config in (ours, theirs))
    shared = {section for section, file in my_files.items() if file and file == other_files[section]}
    return sorted({name for name in mine | other if mine.get(name) != other.get(name)} | shared)


def _files(config: Config) -> dict[str, str | None]:
    """Which files with weights a config names, by section."""
    return {section: getattr(getattr(config, section), "checkpoint", None) for section in _WITH_FILES}


def _compared(config: Config) -> dict[str, Any]:
    """A config without name, seed, the number of images held out, and the names of files with weights."""
    plain = msgspec.to_builtins(config)
    plain["data"].pop("held_out", None)
    for section in _WITH_FILES:
        if section in plain and "checkpoint" in plain[section]:
            plain[section]["checkpoint"] = ""
    return {name: value for name, value in plain.items() if name not in {"name", "seed"}}


def _sidecar(repository: Repository) -> Sidecar:
    """What lies beside a model, as it is."""
    return Sidecar(repository.golden, repository.ranges)


def _data(client: ClientManifest, config: Config, folder: Path | None) -> ImageData:
    """The data set that a release was trained on."""
    data, image = load_data(config.data.whole(), folder), client.image
    if data.classes != client.classes or data.image_shape != (image.channels, image.height, image.width):
        message = f"{client.release} has other classes or another image size than {data.name}. Pass its own data."
        raise ExportError(message)
    return data
