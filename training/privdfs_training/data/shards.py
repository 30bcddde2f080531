"""WebDataset shards: plain tar files in which the files of one sample share a key, the name up to its first dot.

All shards are indexed once, at the start: where each picture lies in its tar file, and its label. So a sample without a
label is found before any time is spent, an epoch's order is known in advance, and an epoch can be entered at any step.
An epoch takes the shards in random order and mixes their pictures as a shuffle buffer does, so that files are read
about one after the other.
"""

import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privdfs_training.data.streamed import Pictures
from privdfs_training.errors import DataError

CLASSES = "classes.txt"
PICTURE_ENDINGS = ("jpg", "jpeg", "png")
IMAGENET_CLASSES = 1000
AGAIN = "Get or make this shard again."
SHUFFLE_BUFFER = 16_384  # images; a picture is read at most so many places from where its shard has it


@dataclass(frozen=True)
class Sample:
    """One picture in a shard: where its bytes are, and its label."""

    offset: int
    size: int
    label: int


def read_shards(folder: Path, how_to_get: str) -> tuple[tuple[str, ...], Pictures, Pictures]:
    """Index all shards of a folder.

    Args:
        folder: Holds the tar files, and perhaps classes.txt.
        how_to_get: Ends the messages.

    Returns:
        Class names, the training half and the test half.

    Raises:
        DataError: There are none, one is damaged, or a sample lacks its picture or label or has one out of range.
    """
    classes = _class_names(folder / CLASSES)
    halves = []
    for part in ("train", "val"):
        paths = sorted(path for path in folder.glob("*.tar") if part in path.name)
        if not paths:
            raise DataError(f"{folder} has no shard with '{part}' in its name, as *{part}*.tar. {how_to_get}")
        halves.append(_half(paths, len(classes)))
    return classes, halves[0], halves[1]


def buffered_order(shard: NDArray[np.int64], seed: int, buffer: int) -> Tensor:
    """The order of an epoch: shards in random order, their images mixed within a window.

    Each image is moved back by a random number of places below `buffer`, which mixes as a shuffle buffer of that size
    does, but can be computed at once.

    Args:
        shard: int64 [images], the shard of each image, ascending.
        seed: Of the epoch.
        buffer: Images in the window.

    Returns:
        int64 [images].
    """
    random = np.random.default_rng(seed)
    turn = random.permutation(int(shard[-1]) + 1)
    in_turn = np.argsort(turn[shard], kind="stable")
    place = np.arange(len(shard)) + random.uniform(0, buffer, len(shard))
    return torch.from_numpy(in_turn[np.argsort(place, kind="stable")])


def _half(paths: list[Path], classes: int) -> Pictures:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        indexed = list(pool.map(_index, paths))
    for path, samples in zip(paths, indexed, strict=True):
        for sample in samples:
            if not 0 <= sample.label < classes:
                raise DataError(
                    f"{path} has label {sample.label}, but there are {classes} classes. Name all of them in {CLASSES} "
                    "beside the shards, one a line, or make the shards again."
                )
    shard = np.repeat(np.arange(len(paths)), [len(samples) for samples in indexed])
    offset, size, labels = np.array(
        [(sample.offset, sample.size, sample.label) for samples in indexed for sample in samples], np.int64
    ).T

    def read(image: int) -> bytes:
        path = paths[shard[image]]
        try:
            with path.open("rb") as file:
                file.seek(offset[image])
                return file.read(size[image])
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}. {AGAIN}") from error

    return Pictures(
        labels=torch.from_numpy(labels.copy()),
        read=read,
        where=lambda image: f"the picture at byte {offset[image]} of {paths[shard[image]]}",
        order=lambda _images, seed: buffered_order(shard, seed, SHUFFLE_BUFFER),
    )


def _index(path: Path) -> list[Sample]:
    """All samples of one shard, in its order."""
    pictures, labels = dict[str, tuple[int, int]](), dict[str, int]()
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                key, ending = f"{folder}/{name.partition('.')[0]}", name.partition(".")[2].lower()
                if ending in PICTURE_ENDINGS:
                    pictures[key] = member.offset_data, member.size
                elif ending == "cls" or (ending == "json" and key not in labels):
                    content = shard.extractfile(member)
                    label = None if content is None else _label(content.read(), ending)
                    if label is not None:
                        labels[key] = label
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path} is not a complete tar file: {error}. {AGAIN}") from error
    if pictures.keys() != labels.keys():
        key = min(pictures.keys() ^ labels.keys())
        lacks = "readable label (.cls or .json)" if key in pictures else f"picture (.{', .'.join(PICTURE_ENDINGS)})"
        raise DataError(f"{path}: key {key.lstrip('/')} has no {lacks}. {AGAIN}")
    if not pictures:
        raise DataError(f"{path} holds no samples. {AGAIN}")
    return [Sample(*place, labels[key]) for key, place in pictures.items()]


def _label(content: bytes, ending: str) -> int | None:
    try:
        value = int(content) if ending == "cls" else json.loads(content)
    except ValueError:
        return None
    if ending == "json":
        value = value.get("label") if isinstance(value, dict) else None
    return value if isinstance(value, int) else None


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return tuple(str(number) for number in range(IMAGENET_CLASSES))
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read. Make it a text file with the name of a class in each line.") from error
    if len(names) < 2:
        raise DataError(f"{path} names {len(names)} classes, and two are the least.")
    return names
