"""Data sets, whole in memory as uint8. `load_data` is the way in; a new set is a module and an entry of `LOADERS`."""

from collections.abc import Callable
from pathlib import Path

from privdfs_training.data.cifar import load_cifar10, load_cifar100
from privdfs_training.data.dataset import Batch, DataSet, ImageData, Split, in_memory
from privdfs_training.data.fashion import load_fashion_mnist

__all__ = ["Batch", "DataSet", "ImageData", "Split", "in_memory", "load_data"]

LOADERS: dict[str, Callable[[Path | None], DataSet]] = {
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}


def load_data(name: str, root: Path | None) -> DataSet:
    """Load one data set.

    Args:
        name: A key of `LOADERS`.
        root: The folder that holds its files; None looks where the set is usually installed.

    Returns:
        Training and test images.

    Raises:
        DataError: Files are missing or damaged; the message says how to get them.
    """
    return LOADERS[name](root)
