"""Data sets in their official layouts, small: real JPEG files, true annotation files, tar shards, CIFAR's records."""

import io
import json
import tarfile
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from tests.trained import write_data

CLASSES = 4


def jpeg(number: int, width: int, height: int) -> bytes:
    """Smooth colours that differ from number to number, so that JPEG keeps them almost as they are."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    planes = [across * (number * 37 % 200), down * (number * 91 % 200), (across + down) * (number * 53 % 120)]
    buffer = io.BytesIO()
    Image.fromarray(np.stack(planes, axis=2).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_cifar(folder: Path, *, classes: int, label_bytes: int, files: dict[str, int], names: str) -> dict[str, bytes]:
    """Files in the official layout with pixels that can be recognised; gives their bytes."""
    folder.mkdir(parents=True)
    (folder / names).write_text("\n".join(f"class{number}" for number in range(classes)) + "\n\n")
    written = {}
    for offset, (file, records) in enumerate(files.items()):
        content = b""
        for record in range(records):
            label = (record + offset) % classes
            planes = b"".join(bytes([(record + plane * 50 + offset) % 256]) * 1024 for plane in range(3))
            content += bytes([7] * (label_bytes - 1) + [label]) + planes
        (folder / file).write_bytes(content)
        written[file] = content
    return written


def write_celeba(folder: Path, *, people: int = CLASSES, each: int = 10, attributes: int = 40) -> Path:
    """Pictures in turn of each person, every fifth person for the test; the attributes spell the picture's number."""
    (folder / "img_align_celeba").mkdir(parents=True)
    files = [f"{number:06d}.jpg" for number in range(1, people * each + 1)]
    signs = ["  ".join("1" if number >> bit & 1 else "-1" for bit in range(attributes)) for number in range(len(files))]
    for number, file in enumerate(files):
        (folder / "img_align_celeba" / file).write_bytes(jpeg(number, 178, 218))
    names = " ".join(f"Attribute_{bit}" for bit in range(attributes))
    rows = [f"{file}  {sign}" for file, sign in zip(files, signs, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(files)), names + " ", *rows]) + "\n")
    identities = [f"{file} {1000 + number % people}" for number, file in enumerate(files)]
    (folder / "identity_CelebA.txt").write_text("\n".join(identities) + "\n")
    parts = [f"{file} {(0, 0, 0, 1, 2)[number % 5]}" for number, file in enumerate(files)]
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return folder


def write_folders(folder: Path, *, each: int = 10) -> Path:
    """ImageFolder: train/<class>/*.JPEG and half as many in val/<class>/."""
    for part, count in (("train", each), ("val", each // 2)):
        for label in range(CLASSES):
            inside = folder / part / f"n{label:08d}"
            inside.mkdir(parents=True)
            for number in range(count):
                picture = jpeg(label * each + number, 90 + 10 * label, 80)
                (inside / f"n{label:08d}_{number}.JPEG").write_bytes(picture)
    return folder


def write_shards(folder: Path, *, each: int = 10, label: Literal["cls", "json"] = "cls") -> Path:
    """WebDataset: four training shards and one for the test, and the names of the classes."""
    folder.mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"class {number}\n" for number in range(CLASSES)))
    for part, shards in (("train", 4), ("val", 1)):
        for shard in range(shards):
            with tarfile.open(folder / f"imagenet-{part}-{shard:06d}.tar", "w") as tar:
                for number in range(shard * each, (shard + 1) * each):
                    text = str(number % CLASSES) if label == "cls" else json.dumps({"label": number % CLASSES})
                    add(tar, f"{number:06d}.{label}", text.encode())
                    add(tar, f"{number:06d}.jpg", jpeg(number, 90, 80))
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size = len(content)
    tar.addfile(about, io.BytesIO(content))


def write_official(name: str, layout: str, folder: Path) -> Path:
    """Any data set of a config, by its name."""
    if name == "fashion-mnist":
        return write_data(folder, train_copies=2, test_copies=1)
    if name == "cifar10":
        files = {f"data_batch_{number}.bin": 4 for number in range(1, 6)} | {"test_batch.bin": 6}
        write_cifar(folder, classes=10, label_bytes=1, files=files, names="batches.meta.txt")
    elif name == "cifar100":
        write_cifar(
            folder, classes=100, label_bytes=2, files={"train.bin": 20, "test.bin": 6}, names="fine_label_names.txt"
        )
    elif name.startswith("celeba"):
        write_celeba(folder)
    elif layout == "shards":
        write_shards(folder)
    else:
        write_folders(folder)
    return folder
