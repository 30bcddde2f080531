"""A folder of photographs cut in three: to train on, to choose a design by, and held out for one measurement.

The first two become WebDataset shards, which the trainer reads; unlike ImageNet's folders they need not have every
class in both halves. The held-out photographs stay files in a folder of their own, which neither training nor export is
given.
"""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from privdfs_bench.errors import BenchError

ENDINGS = (".jpeg", ".jpg", ".png")
HELD_OUT = "held-out"
HASH_SIDE = 8  # a hash has so many rows of so many bits
NEAR = 8  # two photographs whose hashes differ in so few of the 64 bits may show the same thing


@dataclass(frozen=True)
class Photo:
    """One photograph.

    Attributes:
        path: Its file.
        label: Number of its class: the place of its folder among all, in alphabetical order.
    """

    path: Path
    label: int


@dataclass(frozen=True)
class Parts:
    """The photographs of each part, none in two, and none to train on or choose by that is like a held-out one."""

    train: tuple[Photo, ...]
    validation: tuple[Photo, ...]
    held_out: tuple[Photo, ...]
    left_out: tuple[Photo, ...]


def find_photos(folder: Path) -> tuple[tuple[str, ...], list[Photo]]:
    """The photographs of a folder that has one folder for each class.

    Args:
        folder: Such as train/ of ImageNet.

    Returns:
        Class names in label order, and the photographs in the order of their classes and names.

    Raises:
        BenchError: There are no two classes, or a class has no photograph.
    """
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())) if folder.is_dir() else ()
    if len(classes) < 2:
        raise BenchError(f"{folder} has {len(classes)} folders of photographs, one for each class: pass two or more")
    photos = list[Photo]()
    for label, name in enumerate(classes):
        inside = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in ENDINGS)
        if not inside:
            raise BenchError(f"{folder / name} holds no {' or '.join(ENDINGS)} file: remove it, or put one in it")
        photos += [Photo(path, label) for path in inside]
    return classes, photos


def cut(photos: Sequence[Photo], validation: int, held_out: int, seed: int) -> Parts:
    """Cut photographs in three at random; those like a held-out one are left out.

    Args:
        photos: All.
        validation: How many to choose a design by, at most.
        held_out: How many are held out.
        seed: Of the draw.

    Returns:
        The parts.

    Raises:
        BenchError: There are too few.
    """
    if validation < 1 or held_out < 1 or validation + held_out >= len(photos):
        raise BenchError(
            f"{len(photos)} photographs cannot be cut into {validation} to choose by, {held_out} held out and others "
            "to train on: hold out fewer"
        )
    order = [photos[index] for index in np.random.default_rng(seed).permutation(len(photos))]
    kept, others = order[:held_out], order[held_out:]
    hashes = [_hashes(photo.path) for photo in kept]
    # A mirror image is as near: training mirrors photographs.
    taken = np.concatenate([np.stack([straight, mirrored]) for straight, mirrored in hashes])
    alike = [int((taken != _hashes(photo.path)[0]).sum(axis=1).min()) <= NEAR for photo in others]
    apart = [photo for photo, near in zip(others, alike, strict=True) if not near]
    left_out = [photo for photo, near in zip(others, alike, strict=True) if near]
    return Parts(tuple(apart[validation:]), tuple(apart[:validation]), tuple(kept), tuple(left_out))


def write_parts(parts: Parts, classes: Sequence[str], out: Path) -> None:
    """Write the parts: `classes.txt`, `photos-train.tar`, `photos-val.tar`, and the folder `held-out`.

    Args:
        parts: As `cut` gives them.
        classes: Names in label order.
        out: The folder; must not exist.

    Raises:
        BenchError: It exists.
    """
    if out.exists():
        raise BenchError(f"{out} exists: name a folder that does not")
    out.mkdir(parents=True)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    for name, part in (("train", parts.train), ("val", parts.validation)):
        with tarfile.open(out / f"photos-{name}.tar", "w") as shard:
            for number, photo in enumerate(part):
                _add(shard, f"{number:06d}{photo.path.suffix.lower()}", photo.path.read_bytes())
                _add(shard, f"{number:06d}.cls", str(photo.label).encode())
    for photo in parts.held_out:
        file = out / HELD_OUT / classes[photo.label] / photo.path.name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photo.path.read_bytes())


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def _hashes(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Difference hash of a photograph and of its mirror image, bool [64] each: is a pixel darker than its neighbour?"""
    with Image.open(path) as picture:
        small = picture.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(small).astype(np.int16)
    straight, mirrored = (np.diff(one, axis=1) > 0 for one in (grey, grey[:, ::-1]))
    return straight.ravel(), mirrored.ravel()
