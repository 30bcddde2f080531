"""Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747): 60,000 + 10,000 grey images, 28 x 28, ten classes."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from privdfs_training.data.dataset import DataSet
from privdfs_training.data.folder import data_folder
from privdfs_training.errors import DataError

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
GZIP = b"\x1f\x8b"  # what its files begin with, whatever they are called
HOW_TO_GET = (
    "On Debian or Ubuntu: apt-get install dataset-fashion-mnist. Elsewhere: take the four *-ubyte.gz files of the "
    "repository zalandoresearch/fashion-mnist, and pass their folder with --data or $PRIVDFS_DATA."
)


def load_fashion_mnist(root: Path | None) -> DataSet:
    """Read the four idx files, gzipped as they are published or unpacked.

    Args:
        root: Folder of the files; None means $PRIVDFS_DATA, then the folder of Debian's package.

    Returns:
        The set, with images as uint8 [images, 1, 28, 28].

    Raises:
        DataError: A file is missing, damaged or of another size.
    """
    folder = data_folder(root, HOW_TO_GET, usual=DEBIAN_FOLDER)
    arrays = {split: _read_split(folder, split) for split in ("train", "t10k")}
    (train_images, train_labels), (test_images, test_labels) = arrays["train"], arrays["t10k"]
    return DataSet(
        name="fashion-mnist",
        classes=CLASSES,
        train_images=torch.from_numpy(train_images)[:, None],
        train_labels=torch.from_numpy(train_labels).long(),
        test_images=torch.from_numpy(test_images)[:, None],
        test_labels=torch.from_numpy(test_labels).long(),
    )


def _read_split(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images = _read_idx(folder, f"{split}-images", dimensions=3)
    labels = _read_idx(folder, f"{split}-labels", dimensions=1)
    if images.shape[1:] != (28, 28):
        message = f"{folder}: the {split} images are {images.shape[1:]}, Fashion-MNIST's (28, 28). {HOW_TO_GET}"
        raise DataError(message)
    if len(images) != len(labels):
        message = (
            f"{folder}: the {split} files hold {len(images)} images but {len(labels)} labels; get them again. "
            f"{HOW_TO_GET}"
        )
        raise DataError(message)
    if labels.max() >= len(CLASSES):
        message = (
            f"{folder}: the {split} labels go up to {labels.max()}, Fashion-MNIST has {len(CLASSES)} classes. "
            f"{HOW_TO_GET}"
        )
        raise DataError(message)
    return images, labels


def _read_idx(folder: Path, name: str, *, dimensions: int) -> NDArray[np.uint8]:
    # As it is published, unpacked, and as some tools name it when they unpack it.
    endings = (f"-idx{dimensions}-ubyte.gz", f"-idx{dimensions}-ubyte", f".idx{dimensions}-ubyte")
    found = [folder / (name + ending) for ending in endings if (folder / (name + ending)).exists()]
    if not found:
        message = f"Fashion-MNIST is not in {folder}: {name + endings[0]} is missing. {HOW_TO_GET}"
        raise DataError(message)
    path = found[0]
    # idx: two zero bytes, 0x08 for uint8, the number of dimensions, each dimension as big-endian int32, the values.
    try:
        raw = path.read_bytes()
        if raw.startswith(GZIP):
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path} cannot be read: {error}. {HOW_TO_GET}"
        raise DataError(message) from error
    start = 4 + 4 * dimensions
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, dimensions)):
        message = f"{path} is not an idx file of {dimensions} dimensions. {HOW_TO_GET}"
        raise DataError(message)
    shape = np.frombuffer(raw, ">i4", count=dimensions, offset=4)
    if len(raw) - start != int(np.prod(shape)) or min(shape) < 1:
        message = (
            f"{path} is damaged: {len(raw) - start} values where its header promises {int(np.prod(shape))}. "
            f"{HOW_TO_GET}"
        )
        raise DataError(message)
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy()
