"""A tiny system, really trained and really exported, on shifted copies of the shipped test images.

The data set is written in the true format of Fashion-MNIST (gzipped idx files), so that the loader is the real one too.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from privdfs_export.release import export_release
from privdfs_training.checkpoint import load_system
from privdfs_training.config import Config
from privdfs_training.data import load_data
from privdfs_training.data.fashion import CLASSES
from privdfs_training.loop import train
from privdfs_training.reading import config_from_dict

IMAGES = Path(__file__).parents[1] / "examples" / "images"
QUIET = Console(quiet=True)


def shifted_images(copies: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The 20 shipped images, each moved by up to three pixels: uint8 [20 * copies, 28, 28] and labels uint8."""
    labels: dict[str, str] = json.loads((IMAGES / "labels.json").read_text())
    generator = np.random.default_rng(seed)
    images, numbers = [], []
    for name, label in labels.items():
        pixels = np.asarray(Image.open(IMAGES / name))
        for _ in range(copies):
            down, right = generator.integers(-3, 4, 2)
            images.append(np.roll(pixels, (down, right), (0, 1)))
            numbers.append(CLASSES.index(label))
    order = generator.permutation(len(images))
    return np.stack(images)[order], np.array(numbers, np.uint8)[order]


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    header = bytes((0, 0, 8, values.ndim)) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))


def write_data(folder: Path, *, train_copies: int = 26, test_copies: int = 50) -> Path:
    folder.mkdir(parents=True)
    for split, copies, seed in (("train", train_copies, 1), ("t10k", test_copies, 2)):
        images, labels = shifted_images(copies, seed)
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
    return folder


#: A last stage, for `tiny_values()["train"]["fusion"]`.
FUSION_STAGE: dict[str, Any] = {
    "epochs": 1,
    "batch": 64,
    "optimizer": "adamw",
    "learning_rate": 5e-3,
    "weight_decay": 0.01,
    "crop_padding": 0,
    "malicious": 1.0,
}
#: The stage before it, for `tiny_values()["train"]["branches"]`.
BRANCHES_STAGE: dict[str, Any] = {key: value for key, value in FUSION_STAGE.items() if key != "malicious"}


def tiny_values(servers: int = 3) -> dict[str, Any]:
    """A config that trains in seconds."""
    stage = {
        "epochs": 2,
        "batch": 64,
        "optimizer": "adamw",
        "learning_rate": 5e-3,
        "weight_decay": 0.01,
        "crop_padding": 1,
    }
    return {
        "name": f"tiny-{servers}",
        "seed": 3,
        "data": {"name": "fashion-mnist", "flip": False},
        "backbone": {"name": "resnet8", "width": 8},
        "head": {"kind": "compact", "stem": 8, "stages": [[16, 2], [24, 1]], "channels": 4},
        "masks": {"servers": servers, "values": 12, "levels": 5, "temperature": [1.0, 0.1], "settled": 0.5},
        "branch": {"kind": "residual", "width": 16, "blocks": 1},
        "fusion": {"hidden": 16, "branch_dropout": 0.2},
        "loss": {
            "auxiliary": 0.5,
            "distillation": 0.5,
            "distillation_temperature": 4.0,
            "label_smoothing": 0.0,
        },
        "train": {"baseline": stage, "masks": stage | {"epochs": 4}, "finetune": stage | {"epochs": 1}},
    }


def write_toml(path: Path, values: dict[str, Any]) -> Path:
    """A config as a file, one inline table a section."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(inline, value)) + "]"
        return json.dumps(value)

    path.write_text("".join(f"{key} = {inline(value)}\n" for key, value in values.items()))
    return path


def tiny_config(servers: int = 3, partitions: int | None = None) -> Config:
    keys = {} if partitions is None else {"name": f"tiny-keyed-{servers}", "keys": {"partitions": partitions}}
    return config_from_dict(tiny_values(servers) | keys, "tests")


def train_and_export(folder: Path, data_folder: Path, servers: int, partitions: int | None = None) -> Path:
    """Train and export a tiny system; gives the folder of the release."""
    data = load_data("fashion-mnist", data_folder)
    system = train(tiny_config(servers, partitions), data, folder / "run", QUIET)
    out = folder / "release"
    export_release(load_system(system), data, out, engine="python", console=QUIET)
    return out
