"""CelebA (Liu et al., arXiv 1411.7766), aligned and cropped: 202,599 faces of 10,177 people, with 40 attributes.

An image is the middle square of a picture of 178 x 218 pixels, resized to `data.image_size`.

- `celeba-attributes`: training and test part of the official partition; the validation part is left out.
- `celeba-identity`: the classes are the people with at least `data.identity_images` images. The official partition has
  no person in two parts, so it cannot serve; instead, of each person's images in the order of their names, every fifth
  is a test image.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from privdfs_training.data.dataset import ImageData
from privdfs_training.data.folder import data_folder
from privdfs_training.data.pictures import centre_square, read_file
from privdfs_training.data.streamed import Pictures, StreamedDataSet, in_memory_if_small
from privdfs_training.errors import DataError

FOLDER, ATTRIBUTES = "img_align_celeba", "list_attr_celeba.txt"
PARTITION, IDENTITIES = "list_eval_partition.txt", "identity_CelebA.txt"
TRAIN, TEST = "0", "2"  # in the partition; 1 is for validation
EVERY = 5  # of a person's images, one is for the test
HOW_TO_GET = (
    "Take the aligned and cropped pictures and the annotations of CelebA from its authors, unpack them into one "
    f"folder ({FOLDER}/, {ATTRIBUTES}, {PARTITION}, {IDENTITIES}), and pass it with --data or $PRIVDFS_DATA."
)


def load_celeba_attributes(root: Path | None, *, size: int) -> ImageData:
    """Read CelebA with its 40 attributes.

    Args:
        root: The folder of the files; None means $PRIVDFS_DATA.
        size: Height and width of the images, in pixels.

    Returns:
        The set, with labels uint8 [images, 40]; in memory if it is small enough, else streamed.

    Raises:
        DataError: A file is missing, damaged or contradicts another.
    """
    folder = _folder(root)
    names, attributes = _attributes(folder / ATTRIBUTES)
    parts: dict[str, list[str]] = {TRAIN: [], TEST: []}
    for number, (file, part) in _pairs(folder / PARTITION):
        if part not in ("0", "1", "2"):
            raise DataError(f"{folder / PARTITION}, line {number}: part {part!r} is not 0, 1 or 2. {HOW_TO_GET}")
        if file not in attributes:
            raise DataError(f"{folder / PARTITION}, line {number}: {file} has no line in {ATTRIBUTES}. {HOW_TO_GET}")
        parts.setdefault(part, []).append(file)
    _refuse_missing(folder, PARTITION, parts[TRAIN] + parts[TEST])
    halves = []
    for part, what in ((TRAIN, "training"), (TEST, "test")):
        if not parts[part]:
            raise DataError(f"{folder / PARTITION} names no {what} images (part {part}). {HOW_TO_GET}")
        halves.append(_half(folder, parts[part], torch.stack([attributes[file] for file in parts[part]])))
    return _data("celeba-attributes", names, size, *halves)


def load_celeba_identity(root: Path | None, *, size: int, images: int) -> ImageData:
    """Read CelebA with people as classes.

    Args:
        root: The folder of the files; None means $PRIVDFS_DATA.
        size: Height and width of the images, in pixels.
        images: A person with fewer images than this is left out; at least 5.

    Returns:
        The set, with the people's numbers as class names; in memory if it is small enough, else streamed.

    Raises:
        DataError: A file is missing, damaged or contradicts another, or fewer than two people have enough images.
    """
    folder = _folder(root)
    people: dict[str, list[str]] = {}
    for number, (file, person) in _pairs(folder / IDENTITIES):
        if not person.isdecimal():
            raise DataError(
                f"{folder / IDENTITIES}, line {number}: {person!r} is not the number of a person. {HOW_TO_GET}"
            )
        people.setdefault(person, []).append(file)
    chosen = sorted((person for person, files in people.items() if len(files) >= images), key=int)
    if len(chosen) < 2:
        raise DataError(
            f"{folder / IDENTITIES}: {len(chosen)} of {len(people)} people have {images} images or more, and two are "
            "the least that can be told apart. Lower data.identity_images."
        )
    train, test = list[tuple[str, int]](), list[tuple[str, int]]()
    for label, person in enumerate(chosen):
        for place, file in enumerate(sorted(people[person])):
            (test if place % EVERY == EVERY - 1 else train).append((file, label))
    _refuse_missing(folder, IDENTITIES, [file for file, _ in train + test])
    # By file name, so that the first images are of many people.
    halves = (
        _half(folder, [file for file, _ in sorted(half)], torch.tensor([label for _, label in sorted(half)]))
        for half in (train, test)
    )
    return _data("celeba-identity", tuple(chosen), size, *halves)


def _data(name: str, classes: tuple[str, ...], size: int, train: Pictures, test: Pictures) -> ImageData:
    return in_memory_if_small(StreamedDataSet(name, classes, size, train, test, centre_square, centre_square))


def _half(folder: Path, files: Sequence[str], labels: Tensor) -> Pictures:
    def read(image: int) -> bytes:
        return read_file(folder / FOLDER / files[image], HOW_TO_GET)

    return Pictures(labels, read, lambda image: str(folder / FOLDER / files[image]))


def _folder(root: Path | None) -> Path:
    given = data_folder(root, HOW_TO_GET)
    folder = given / "celeba" if (given / "celeba").is_dir() else given
    if not (folder / FOLDER).is_dir():
        raise DataError(f"CelebA is not in {folder}: {FOLDER}/ is missing. {HOW_TO_GET}")
    return folder


def _attributes(path: Path) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The names of the attributes, and uint8 [attributes] of 0 and 1 for each picture."""
    lines = _lines(path)
    (_, promised), (_, names) = next(lines, (0, [])), next(lines, (0, []))
    found: dict[str, Tensor] = {}
    for number, (file, *values) in lines:
        if len(values) != len(names) or any(value not in ("1", "-1") for value in values):
            raise DataError(
                f"{path}, line {number}: {file} must have {len(names)} attributes of 1 or -1, it has {len(values)} "
                f"values. {HOW_TO_GET}"
            )
        found[file] = torch.tensor([value == "1" for value in values], dtype=torch.uint8)
    if not names or promised != [str(len(found))]:
        raise DataError(f"{path} is damaged: its first line does not give its {len(found)} pictures. {HOW_TO_GET}")
    return tuple(names), found


def _pairs(path: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    for number, words in _lines(path):
        if len(words) != 2:
            raise DataError(f"{path}, line {number}: a picture and one value are wanted. {HOW_TO_GET}")
        yield number, (words[0], words[1])


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"CelebA is not whole: {path} cannot be read. {HOW_TO_GET}") from error
    return ((number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _refuse_missing(folder: Path, listed: str, files: Sequence[str]) -> None:
    there = {path.name for path in (folder / FOLDER).iterdir()}
    missing = [file for file in files if file not in there]
    if missing:
        raise DataError(
            f"{folder / listed} names {len(missing)} pictures that are not in {folder / FOLDER}, the first of them "
            f"{missing[0]}. {HOW_TO_GET}"
        )
