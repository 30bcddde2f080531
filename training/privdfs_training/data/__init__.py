"""Data sets: in memory as uint8 where they fit, else streamed.

`load_data` is the way in; a new set is a module and an entry of `LOADERS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, overload

import msgspec

from privdfs_training.config import DataConfig
from privdfs_training.data.celeba import load_celeba_attributes, load_celeba_identity
from privdfs_training.data.cifar import load_cifar10, load_cifar100
from privdfs_training.data.dataset import Batch, DataSet, ImageData, Split, Task, as_trained, in_memory
from privdfs_training.data.fashion import load_fashion_mnist
from privdfs_training.data.imagenet import load_imagenet

__all__ = [
    "Batch",
    "DataSet",
    "ImageData",
    "Split",
    "Task",
    "as_trained",
    "image_shape",
    "in_memory",
    "load_data",
]

LOADERS: dict[str, Callable[[Path | None, DataConfig], ImageData]] = {
    "fashion-mnist": lambda root, _: load_fashion_mnist(root),
    "cifar10": lambda root, _: load_cifar10(root),
    "cifar100": lambda root, _: load_cifar100(root),
    "celeba-attributes": lambda root, config: load_celeba_attributes(root, size=image_shape(config)[1]),
    "celeba-identity": lambda root, config: load_celeba_identity(
        root, size=image_shape(config)[1], images=config.identity_images or 30
    ),
    "imagenet": lambda root, config: load_imagenet(root, size=image_shape(config)[1], layout=config.layout),
}


def image_shape(config: DataConfig) -> tuple[int, int, int]:
    """Channels, height and width of a set's images, without reading them.

    Args:
        config: The data section of a config.

    Returns:
        What `ImageData.image_shape` of the loaded set is.
    """
    if config.name == "fashion-mnist":
        return 1, 28, 28
    usual = {"cifar10": 32, "cifar100": 32, "imagenet": 224}.get(config.name, 64)
    size = config.image_size or usual
    return 3, size, size


@overload
def load_data(wanted: Literal["fashion-mnist", "cifar10", "cifar100"], root: Path | None) -> DataSet: ...


@overload
def load_data(wanted: str | DataConfig, root: Path | None) -> ImageData: ...


def load_data(wanted: str | DataConfig, root: Path | None) -> ImageData:
    """Load one data set.

    Args:
        wanted: The data section of a config; or a key of `LOADERS`, for a set with every other key at its default.
        root: The folder that holds its files; None looks where the set is usually installed.

    Returns:
        Training and test images.

    Raises:
        DataError: Files are missing or damaged; the message says how to get them.
        TrainingConfigError: More images are to be held out than there are, or of a set that is not in memory.
    """
    config = msgspec.convert({"name": wanted, "flip": False}, DataConfig) if isinstance(wanted, str) else wanted
    data = LOADERS[config.name](root, config)
    return as_trained(data, config.held_out)
