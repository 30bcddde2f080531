"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in the official binary layout: colour images of 32 x 32 pixels.

A record is the label (CIFAR-100: coarse label, then fine label; the fine one is used), then the red, green and blue
planes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from privdfs_training.data.dataset import DataSet
from privdfs_training.data.folder import data_folder
from privdfs_training.errors import DataError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Files of one of the two sets.

    Attributes:
        name: As in the config.
        folder: As the official archive names it.
        train: Training files.
        test: Test file.
        names: File of class names, one per line.
        label_bytes: Before the pixels of a record; the last one is the label.
    """

    name: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int


CIFAR10 = Layout(
    name="cifar10",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    label_bytes=1,
)
CIFAR100 = Layout(
    name="cifar100",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    label_bytes=2,
)


def load_cifar10(root: Path | None) -> DataSet:
    """Read CIFAR-10.

    Args:
        root: Folder of the files, or the folder that holds `cifar-10-batches-bin`; None means $PRIVDFS_DATA.

    Returns:
        The set, with images as uint8 [images, 3, 32, 32].

    Raises:
        DataError: A file is missing, damaged or of another size.
    """
    return _load(CIFAR10, root)


def load_cifar100(root: Path | None) -> DataSet:
    """Read CIFAR-100, with its hundred fine classes.

    Args:
        root: Folder of the files, or the folder that holds `cifar-100-binary`; None means $PRIVDFS_DATA.

    Returns:
        The set, with images as uint8 [images, 3, 32, 32].

    Raises:
        DataError: A file is missing, damaged or of another size.
    """
    return _load(CIFAR100, root)


def _load(layout: Layout, root: Path | None) -> DataSet:
    given = data_folder(root, _how_to_get(layout))
    folder = given / layout.folder if (given / layout.folder).is_dir() else given
    names = folder / layout.names
    try:
        classes = tuple(names.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{layout.name} is not in {folder}: {names.name} cannot be read. {_how_to_get(layout)}"
        ) from error
    parts = [_read(folder / file, layout, len(classes)) for file in layout.train]
    test_images, test_labels = _read(folder / layout.test, layout, len(classes))
    return DataSet(
        name=layout.name,
        classes=classes,
        train_images=torch.cat([images for images, _ in parts]),
        train_labels=torch.cat([labels for _, labels in parts]),
        test_images=test_images,
        test_labels=test_labels,
    )


def _read(path: Path, layout: Layout, classes: int) -> tuple[Tensor, Tensor]:
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {_how_to_get(layout)}") from error
    record = layout.label_bytes + PIXELS
    if not len(raw) or len(raw) % record:
        raise DataError(
            f"{path} is damaged: {len(raw)} bytes do not divide into records of {record}. {_how_to_get(layout)}"
        )
    records = torch.from_numpy(raw.reshape(-1, record))
    labels = records[:, layout.label_bytes - 1].long()
    if int(labels.max()) >= classes:
        raise DataError(
            f"{path} has label {int(labels.max())}, but {layout.names} names {classes} classes. {_how_to_get(layout)}"
        )
    return records[:, layout.label_bytes :].reshape(-1, 3, 32, 32).contiguous(), labels


def _how_to_get(layout: Layout) -> str:
    return (
        f"Take the binary version of {layout.name.upper()} from its authors, unpack it, and pass the folder that holds "
        f"{layout.folder} with --data or $PRIVDFS_DATA."
    )
