"""What every loader returns: images in memory, or a set too large for that, behind one protocol.

Guarantees of `train_batches`, which exact continuation and distributed training rest on:

- The batches of an epoch depend on its seed and the batch size only: not on when, where or by how many threads they
  are made, nor on the batches before them.
- Step s of an epoch holds the same images in the same order for any `world`; rank r gets the r-th of its equal parts.
- Every image occurs at most once in an epoch; what does not fill the last batch is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from privdfs_training.errors import TrainingConfigError

Split: TypeAlias = Literal["train", "test"]
Task: TypeAlias = Literal["classes", "attributes"]
"""One class per image, or any number of yes-or-no attributes."""
Batch: TypeAlias = tuple[Tensor, Tensor]
"""Images uint8 [batch, channels, height, width] and labels int64 [batch], or uint8 [batch, attributes] of 0 and 1."""


class ImageData(Protocol):
    """One data set, as training, attacks and the exporter see it."""

    @property
    def name(self) -> str:
        """As in the config."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order, or attribute names in column order."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    @property
    def task(self) -> Task:
        """What the labels are."""
        ...

    @property
    def train_size(self) -> int:
        """Number of training images."""
        ...

    @property
    def test_size(self) -> int:
        """Number of test images."""
        ...

    def train_batches(self, seed: int, batch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """One epoch of training images, in random order.

        Args:
            seed: Of this epoch; another one for every epoch.
            batch: Images of a step, over all processes; a multiple of `world`.
            start: The first step to give, counted from 0: where an interrupted epoch continues.
            rank: Which part of every step to give.
            world: Number of parts, one for each process.

        Yields:
            The `batch / world` images and labels of each step.

        Raises:
            TrainingConfigError: `batch` cannot be cut into `world` equal parts.
            DataError: An image cannot be read.
        """
        ...

    def test_batches(self, batch: int) -> Iterator[Batch]:
        """All test images, in order.

        Args:
            batch: At most so many at once.

        Yields:
            Images and labels.

        Raises:
            DataError: An image cannot be read.
        """
        ...

    def sample(self, split: Split, count: int | None = None) -> Batch:
        """Some images of a split at once, always the same ones, as test images are prepared.

        Args:
            split: Which half.
            count: At most so many; None means as many as fit in memory.

        Returns:
            Images and labels: the first ones of a set in memory, evenly spread ones of a streamed set.

        Raises:
            DataError: An image cannot be read.
        """
        ...


@dataclass(frozen=True)
class DataSet:
    """Images and labels of one set, in memory.

    Attributes:
        name: As in the config.
        classes: Class names in label order, or attribute names in column order.
        train_images: uint8 [images, channels, height, width].
        train_labels: int64 [images], or uint8 [images, attributes] of 0 and 1.
        test_images: uint8 [images, channels, height, width].
        test_labels: As `train_labels`.
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def __repr__(self) -> str:
        """Name and sizes, never pixels."""
        return f"DataSet({self.name!r}, {self.train_size} training and {self.test_size} test images)"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    @property
    def task(self) -> Task:
        """What the labels are."""
        return task_of(self.train_labels)

    @property
    def train_size(self) -> int:
        """Number of training images."""
        return len(self.train_labels)

    @property
    def test_size(self) -> int:
        """Number of test images."""
        return len(self.test_labels)

    def train_batches(self, seed: int, batch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """As `ImageData.train_batches`."""
        order = torch.randperm(self.train_size, generator=torch.Generator().manual_seed(seed))
        for chosen in steps(order, batch, start=start, rank=rank, world=world):
            yield self.train_images[chosen], self.train_labels[chosen]

    def test_batches(self, batch: int) -> Iterator[Batch]:
        """As `ImageData.test_batches`."""
        yield from zip(self.test_images.split(batch), self.test_labels.split(batch), strict=True)

    def sample(self, split: Split, count: int | None = None) -> Batch:
        """As `ImageData.sample`."""
        if split == "train":
            return self.train_images[:count], self.train_labels[:count]
        return self.test_images[:count], self.test_labels[:count]


def task_of(labels: Tensor) -> Task:
    """What labels mean, by their shape.

    Args:
        labels: int64 [images], or uint8 [images, attributes] of 0 and 1.

    Returns:
        The task.
    """
    return "classes" if labels.ndim == 1 else "attributes"


def in_memory(data: ImageData) -> DataSet:
    """A set, or as much of it as fits in memory, for code that wants all images at once, such as the attacks.

    Args:
        data: Any set.

    Returns:
        The set itself if it is in memory already, else one of samples of its two halves.

    Raises:
        DataError: An image cannot be read.
    """
    return (
        data
        if isinstance(data, DataSet)
        else DataSet(data.name, data.classes, *data.sample("train"), *data.sample("test"))
    )


def as_trained(data: ImageData, held_out: int) -> ImageData:
    """A whole set as the run saw it that held out so many training images; 0: none."""
    return hold_out(data, held_out) if held_out else data


def hold_out(data: ImageData, count: int) -> DataSet:
    """The set whose last training images take the place of the test images, so that nothing is chosen by the latter.

    Args:
        data: A set in memory; its order is random.
        count: How many.

    Returns:
        The set without its test images.

    Raises:
        TrainingConfigError: There are not so many, or the set is not in memory.
    """
    if not isinstance(data, DataSet):
        message = f"data.held_out is for sets that fit in memory, and {data.name} is read as it is needed: remove it"
        raise TrainingConfigError(message)
    if count >= data.train_size:
        message = (
            f"data.held_out is {count}, and {data.name} has {data.train_size} training images: leave some to train on"
        )
        raise TrainingConfigError(message)
    return DataSet(
        name=data.name,
        classes=data.classes,
        train_images=data.train_images[:-count],
        train_labels=data.train_labels[:-count],
        test_images=data.train_images[-count:],
        test_labels=data.train_labels[-count:],
    )


def steps(order: Tensor, batch: int, *, start: int, rank: int, world: int) -> tuple[Tensor, ...]:
    """Cut the order of an epoch into one process's part of each step.

    Args:
        order: int64 [images].
        batch: As `ImageData.train_batches`.
        start: The same.
        rank: The same.
        world: The same.

    Returns:
        int64 [batch / world] for each step from `start` on.

    Raises:
        TrainingConfigError: `batch` cannot be cut into `world` equal parts.
    """
    if batch % world:
        message = (
            f"a batch of {batch} images cannot be cut into equal parts for {world} processes. Change train.*.batch."
        )
        raise TrainingConfigError(message)
    whole = order[: len(order) // batch * batch].reshape(-1, world, batch // world)
    return tuple(whole[start:, rank])
