"""Releases with random weights, to measure their cost."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from privdfs._coded_format import CodedAccuracy
from privdfs._format import IMAGE, LOGITS, Accuracy
from privdfs_bench.errors import BenchError
from privdfs_export.coded_contents import build_coded_graphs, coded_manifest
from privdfs_export.coded_release import client_examples, server_examples
from privdfs_export.coded_writing import write_coded_release
from privdfs_export.contents import build_graphs, client_manifest
from privdfs_export.release import drawn_images
from privdfs_export.sessions import run_batched
from privdfs_export.writing import Sidecar, refuse_existing, write_release
from privdfs_training.coded.config import CodedConfig, coded_config
from privdfs_training.coded.system import CodedSystem, TrainedCodedSystem, describe
from privdfs_training.config import Config
from privdfs_training.models.head import Head
from privdfs_training.models.system import System, start_from
from privdfs_training.reading import load_config, read_toml

CALIBRATION_IMAGES = 4
DATA = "random weights"
#: Folders of a coded release, and its golden examples.
CODED_SERVERS, EXAMPLES = 3, 2


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
    images = _images(CALIBRATION_IMAGES, image_shape)
    system.baseline.normalise.fit(images)
    system.head.normalise.fit(images)
    system.start_from_baseline()
    system.eval()
    system.masks.freeze()
    _to_int8(system.head, images)
    return system


def random_coded_system(config: CodedConfig, image_shape: tuple[int, int, int], classes: int) -> TrainedCodedSystem:
    """As `random_system`, of a coded run; its rounds have the statistics of random images.

    Args:
        config: of a run.
        image_shape: channels, height, width.
        classes: number of classes.

    Raises:
        RangeError: a round needs more primes than the config allows.
        TrainingConfigError: the config does not fit the images.
    """
    torch.manual_seed(config.seed)
    system = CodedSystem(config, image_shape=image_shape, classes=classes)
    images = _images(CALIBRATION_IMAGES, image_shape)
    system.baseline.normalise.fit(images)
    system.head.normalise.fit(images)
    start_from(system.baseline, (system.head,))
    for module in system.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics are those of what passes, and not of what they started with
    with torch.no_grad():
        system.train()(images)
    system.eval()
    if system.mask is not None:
        system.mask.freeze()
    _to_int8(system.head, images)
    with torch.no_grad():
        _, results, _ = system.run(system.values(images).numpy().astype(np.int64))
    seen = [max(1, int(np.abs(result).max())) for result in results]
    return TrainedCodedSystem(
        system=system,
        config=config,
        classes=_names(classes),
        accuracy={"baseline": 0.0, "coded": 0.0, "readout": 0.0},
        rounds=describe(system, seen, config.sharing.primes),
    )


def write_random(path: Path, image_shape: tuple[int, int, int], classes: int, out: Path) -> None:
    """Write the release of a config of either kind.

    Args:
        path: of the config.
        image_shape: channels, height, width.
        classes: number of classes.
        out: its folder; must not exist.

    Raises:
        BenchError: the config has keys.
        Error: the config does not load or does not fit the images, a round needs too many primes, or the folder exists
            or cannot be written.
    """
    raw = read_toml(path)
    if "sharing" in raw:
        write_random_coded_release(coded_config(raw, path), image_shape, classes, out)
    else:
        write_random_release(load_config(path), image_shape, classes, out)


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
        classes=_names(classes),
        accuracy=Accuracy(data=DATA, images=1, baseline=0, fused=0, branches=(0.0,) * servers, subsets=()),
    )
    # The list of the client's files must name golden examples; drawn weights have nothing to replay.
    golden = {"none": np.zeros(1, np.uint8)}
    write_release(out, client, built, engine="python", golden=golden, sidecars=[Sidecar()] * (servers + 1))


def write_random_coded_release(config: CodedConfig, image_shape: tuple[int, int, int], classes: int, out: Path) -> None:
    """Write a coded release; what it computes means nothing, but is exact, so it has golden examples.

    Args:
        config: of a run.
        image_shape: channels, height, width.
        classes: number of classes.
        out: its folder; must not exist.

    Raises:
        Error: the folder exists or cannot be written, the config does not fit the images, or a round needs too many
            primes.
    """
    refuse_existing(out)
    trained = random_coded_system(config, image_shape, classes)
    built = build_coded_graphs(trained, temperature=1.0)
    accuracy = CodedAccuracy(data=DATA, images=1, baseline=0, fused=0, readout=0)
    client = coded_manifest(trained, built, seen=[each.seen for each in trained.rounds], accuracy=accuracy)
    channels, height, width = image_shape
    images = drawn_images(EXAMPLES, (height, width, channels))
    (logits,) = run_batched(built.baseline.session, {IMAGE: images})
    write_coded_release(
        out,
        client,
        built,
        engine="python",
        servers=CODED_SERVERS,
        golden=client_examples(built, client.rounds, images),
        server_golden=server_examples(built, client.rounds),
        baseline=Sidecar({IMAGE: images, LOGITS: logits}),
    )


def _images(count: int, image_shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(0, 256, (count, *image_shape), dtype=torch.uint8)


def _names(classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(classes)))


def _to_int8(head: Head, images: Tensor) -> None:
    """Measure the ranges of a head's activations, and compute in int8 from now on."""
    head.calibrate(on=True)
    with torch.no_grad():
        head(images)
    head.calibrate(on=False)
    head.quantise()
