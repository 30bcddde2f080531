"""Releases with random weights, to measure their cost."""

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import save as save_tensors

from privdfs._manifest import (
    ENCODER_NAME,
    FORMAT_VERSION,
    FUSION_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    Accuracy,
    ClientManifest,
    ImageSpec,
    Macs,
    MadeBy,
    ServerManifest,
    ServerSpec,
    encode_manifest,
    sha256_file,
)
from privdfs_bench.errors import BenchError
from privdfs_export import graphs
from privdfs_export.release import MAX_BATCH
from privdfs_export.repository import write_repository
from privdfs_export.triton import ModelSpec, TensorSpec
from privdfs_training import provenance
from privdfs_training.config import Config
from privdfs_training.models.system import System

CALIBRATION_IMAGES = 4


def random_system(config: Config, image_shape: tuple[int, int, int], classes: int) -> System:
    """The networks of a config as they are after training, with drawn weights.

    Args:
        config: of a run.
        image_shape: channels, height, width.
        classes: number of classes.

    Raises:
        TrainingConfigError: the config does not fit the images.
    """
    torch.manual_seed(config.seed)
    system = System(config, image_shape=image_shape, classes=classes)
    images = torch.randint(0, 256, (CALIBRATION_IMAGES, *image_shape), dtype=torch.uint8)
    system.baseline.normalise.fit(images)
    system.head.normalise.fit(images)
    system.start_from_baseline()
    system.eval()
    system.masks.freeze()
    system.head.calibrate(on=True)
    with torch.no_grad():
        system.head(images)
    system.head.calibrate(on=False)
    system.head.quantise()
    return system


def write_random_release(config: Config, image_shape: tuple[int, int, int], classes: int, out: Path) -> None:
    """Write a release.

    Args:
        config: of a run without keys.
        image_shape: channels, height, width.
        classes: number of classes.
        out: its folder; must not exist.

    Raises:
        BenchError: the folder exists, or the config has keys.
        Error: the config does not fit the images.
        OSError: it cannot be written.
    """
    if out.exists() or config.keys is not None:
        msg = (
            f"{out} exists already"
            if out.exists()
            else f"{config.name} has keys, of which there are no random releases"
        )
        raise BenchError(f"{msg}: choose another")
    system = random_system(config, image_shape, classes)
    branches = [graphs.branch_graph(system, server) for server in range(system.masks.servers)]
    encoder, fusion, baseline = graphs.encoder_graph(system), graphs.fusion_graph(system), graphs.baseline_graph(system)
    channels, height, width = image_shape
    made_by = MadeBy(
        command=provenance.command_line(),
        commit=provenance.git_commit(),
        date=provenance.today(),
        seed=config.seed,
        config=msgspec.to_builtins(config),
        versions=provenance.versions(),
    )
    levels = [2 * system.quantiser.limit(server) + 1 for server in range(len(branches))]
    client = ClientManifest(
        format_version=FORMAT_VERSION,
        release=f"{config.name}-random-{height}-{len(branches)}-{system.masks.values}",
        made_by=made_by,
        classes=tuple(map(str, range(classes))),
        image=ImageSpec(height=height, width=width, channels=channels),  # pyright: ignore[reportArgumentType]  1 or 3
        servers=tuple(
            ServerSpec(share_length=system.masks.values, levels=level, scale=system.quantiser.scale(server))
            for server, level in enumerate(levels)
        ),
        max_batch=MAX_BATCH,
        files={},
        accuracy=Accuracy(
            data="random weights", images=1, baseline=0, fused=0, branches=(0.0,) * len(branches), subsets=()
        ),
        macs=Macs(
            head=graphs.count_macs(encoder),
            fusion=graphs.count_macs(fusion),
            branch=graphs.count_macs(branches[0]),
            baseline=graphs.count_macs(baseline),
        ),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        partial = Path(folder) / out.name
        (partial / "client").mkdir(parents=True)
        _write_client(partial / "client", client, encoder.SerializeToString(), fusion.SerializeToString())
        for server, branch in enumerate(branches):
            share = TensorSpec("share", "int8", (system.masks.values,))
            _write_model(partial / f"server-{server}", client, server, "branch", share, branch.SerializeToString())
        image = TensorSpec("image", "uint8", (height, width, channels))
        _write_model(partial / "baseline", client, 0, "baseline", image, baseline.SerializeToString())
        partial.rename(out)


def _write_client(folder: Path, client: ClientManifest, encoder: bytes, fusion: bytes) -> None:
    golden = {"none": np.zeros(1, np.uint8)}  # the list of files must name it; drawn weights have nothing to replay
    contents = {ENCODER_NAME: encoder, FUSION_NAME: fusion, GOLDEN_NAME: save_tensors(golden)}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    files = {name: sha256_file(folder / name) for name in contents}
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(client, files=files)))


def _write_model(
    folder: Path, client: ClientManifest, server: int, model: str, source: TensorSpec, graph: bytes
) -> None:
    manifest = ServerManifest(
        format_version=FORMAT_VERSION,
        release=client.release,
        server=server,
        share_length=int(np.prod(source.shape)),
        scale=client.servers[server].scale,
        classes=len(client.classes),
        engine="python",
        files={},
        made_by=client.made_by,
    )
    parameters: dict[str, Any] = {"privdfs_release": client.release}
    if model == "branch":
        parameters["privdfs_server"] = str(server)
    answer = TensorSpec("logits", "float32", (len(client.classes),))
    spec = ModelSpec(model, "python", (source,), answer, client.max_batch, parameters)
    write_repository(folder, manifest, spec, graph, golden=None, ranges=None)
