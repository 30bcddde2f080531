"""ImageNet-1K (Russakovsky et al., arXiv 1409.0575), as folders of JPEG files or WebDataset shards; always streamed.

- `folder`: train/<class>/*.JPEG and val/<class>/*.JPEG, as public tools expect it; the folders name the
  classes.
- `shards`: tar files with `train` or `val` in their names, such as imagenet-train-000000.tar, with KEY.jpg beside
  KEY.cls (the label as text) or KEY.json (with the label as "label"). A file classes.txt beside them names the
  classes, one a line; without it there are 1,000, named by their numbers.

Training images are random resized crops; test images are the usual centre crop (224 of 256 pixels), whatever the size.
Any other pictures in one of these layouts serve as well.
"""

import os
from pathlib import Path
from typing import Literal

import torch

from privdfs_training.data.folder import data_folder
from privdfs_training.data.pictures import centre_crop, random_resized_crop, read_file
from privdfs_training.data.shards import read_shards
from privdfs_training.data.streamed import Pictures, StreamedDataSet
from privdfs_training.errors import DataError

ENDINGS = (".jpeg", ".jpg", ".png")
HOW_TO_GET = (
    "Get ImageNet-1K (ILSVRC2012) from image-net.org, sort the pictures of both halves into one folder per class "
    "(train/<class>/, val/<class>/), or pack them into WebDataset shards for data.layout = 'shards', and pass the "
    "folder that holds them with --data or $PRIVDFS_DATA."
)


def load_imagenet(root: Path | None, *, size: int, layout: Literal["folder", "shards"]) -> StreamedDataSet:
    """Find the pictures and their labels; none is decoded yet.

    Args:
        root: The folder of the files; None means $PRIVDFS_DATA.
        size: Height and width of the images, in pixels.
        layout: As the module describes them.

    Returns:
        The set.

    Raises:
        DataError: A folder or file is missing, empty or damaged, or a label does not fit.
    """
    folder = data_folder(root, HOW_TO_GET)
    if layout == "shards":
        classes, train, test = read_shards(folder, HOW_TO_GET)
    else:
        classes = _class_names(folder / "train")
        train, test = _half(folder / "train", classes), _half(folder / "val", classes)
    return StreamedDataSet("imagenet", classes, size, train, test, random_resized_crop, centre_crop)


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise DataError(f"ImageNet is not in {folder.parent}: {folder.name}/ cannot be read. {HOW_TO_GET}") from error
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} class folders, and two are the least. {HOW_TO_GET}")
    return tuple(names)


def _half(folder: Path, classes: tuple[str, ...]) -> Pictures:
    """The pictures of one half, class by class, each in the order of their names."""
    found = _class_names(folder)
    if found != classes:
        other = sorted(set(found) ^ set(classes))
        raise DataError(
            f"train/ and val/ in {folder.parent} have different classes; {len(other)} are in one of them only, such "
            f"as {other[0]}. {HOW_TO_GET}"
        )
    files, counts = list[str](), list[int]()
    for name in classes:
        inside = sorted(entry.name for entry in os.scandir(folder / name) if entry.name.lower().endswith(ENDINGS))
        if not inside:
            raise DataError(f"{folder / name} holds no {' or '.join(ENDINGS)} file. {HOW_TO_GET}")
        files += [f"{name}/{file}" for file in inside]
        counts.append(len(inside))
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return Pictures(
        labels, lambda image: read_file(folder / files[image], HOW_TO_GET), lambda image: str(folder / files[image])
    )
