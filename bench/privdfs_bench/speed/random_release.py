"""Releases with random weights, to measure their cost."""

from pathlib import Path

import numpy as np
import torch

from privdfs._format import Accuracy
from privdfs_bench.errors import BenchError
from privdfs_export.contents import build_graphs, client_manifest
from privdfs_export.writing import Sidecar, refuse_existing, write_release
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
        BenchError: the config has keys.
        Error: the folder exists or cannot be written, or the config does not fit the images.
    """
    refuse_existing(out)
    if config.keys is not None:
        raise BenchError(f"{config.name} has keys, of which there are no random releases: choose another config")
    system = random_system(config, image_shape, classes)
    built = build_graphs(system)
    servers = len(built.branches)
    client = client_manifest(
        system,
        built,
        release=f"{config.name}-random-{image_shape[1]}-{servers}-{system.masks.values}",
        config=config,
        classes=tuple(map(str, range(classes))),
        accuracy=Accuracy(data="random weights", images=1, baseline=0, fused=0, branches=(0.0,) * servers, subsets=()),
    )
    # The list of the client's files must name golden examples; drawn weights have nothing to replay.
    golden = {"none": np.zeros(1, np.uint8)}
    write_release(out, client, built, engine="python", golden=golden, sidecars=[Sidecar()] * (servers + 1))
