"""Sets of encoded pictures, decoded by threads while they are needed.

Threads, not processes: Pillow lets other threads run while it decodes and resizes.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privdfs_training.data.dataset import Batch, DataSet, ImageData, Split, Task, steps, task_of
from privdfs_training.data.pictures import BoxOf, decode

MEMORY_LIMIT = 4 * 2**30  # bytes of decoded images up to which a set is held in memory
SAMPLE_IMAGES = 4096  # what `sample` gives of one half unless it is asked for another number; 0.6 GB at 224 pixels
TEST_BATCH = 128  # images of a test batch at most: large images make large features
AHEAD = 2  # batches that are decoded while one is used


def shuffled(images: int, seed: int) -> Tensor:
    """The order of an epoch in which any image may stand anywhere.

    Args:
        images: Number of images.
        seed: Of the epoch.

    Returns:
        int64 [images].
    """
    return torch.randperm(images, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Pictures:
    """Where the encoded pictures of one half are.

    Attributes:
        labels: int64 [images], or uint8 [images, attributes] of 0 and 1.
        read: Number of an image to the bytes of its file; may raise DataError.
        where: Number of an image to the name of its file, for messages.
        order: Number of images and seed of an epoch to its order, int64 [images].
    """

    labels: Tensor
    read: Callable[[int], bytes]
    where: Callable[[int], str]
    order: Callable[[int, int], Tensor] = shuffled

    def __repr__(self) -> str:
        """Sizes, never labels."""
        return f"Pictures({len(self.labels)} images)"


@dataclass(frozen=True)
class StreamedDataSet:
    """Images that are decoded when they are needed.

    What is drawn for an image's crop depends on the epoch's seed and the image alone, so that the guarantees of
    `privdfs_training.data.dataset` hold.

    Attributes:
        name: As in the config.
        classes: Class names in label order, or attribute names in column order.
        size: Height and width of the images, in pixels.
        train: The training half.
        test: The test half.
        train_box: Which part of a picture is trained on.
        test_box: Which part is tested on, and what `sample` gives of either half.
    """

    name: str
    classes: tuple[str, ...]
    size: int
    train: Pictures
    test: Pictures
    train_box: BoxOf
    test_box: BoxOf

    def __repr__(self) -> str:
        """Name and sizes."""
        return f"StreamedDataSet({self.name!r}, {self.train_size} training and {self.test_size} test images)"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return 3, self.size, self.size

    @property
    def task(self) -> Task:
        """What the labels are."""
        return task_of(self.train.labels)

    @property
    def train_size(self) -> int:
        """Number of training images."""
        return len(self.train.labels)

    @property
    def test_size(self) -> int:
        """Number of test images."""
        return len(self.test.labels)

    def train_batches(self, seed: int, batch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """As `ImageData.train_batches`."""
        order = self.train.order(self.train_size, seed)
        return self._decoded(self.train, steps(order, batch, start=start, rank=rank, world=world), self.train_box, seed)

    def test_batches(self, batch: int) -> Iterator[Batch]:
        """As `ImageData.test_batches`."""
        return self._decoded(self.test, torch.arange(self.test_size).split(min(batch, TEST_BATCH)), self.test_box, 0)

    def sample(self, split: Split, count: int | None = None) -> Batch:
        """As `ImageData.sample`."""
        half = self.train if split == "train" else self.test
        images = len(half.labels)
        count = min(images, SAMPLE_IMAGES if count is None else count)
        chosen = torch.arange(count) * images // count
        pixels = torch.empty(count, *self.image_shape, dtype=torch.uint8)
        done = 0
        for part, _ in self._decoded(half, chosen.split(256), self.test_box, 0):
            pixels[done : done + len(part)] = part
            done += len(part)
        return pixels, half.labels[chosen]

    def _decoded(self, half: Pictures, parts: Iterable[Tensor], box: BoxOf, seed: int) -> Iterator[Batch]:
        def one(image: int) -> NDArray[np.uint8]:
            random = np.random.default_rng((seed, image))
            return decode(half.read(image), half.where(image), self.size, box, random)

        pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="privdfs-decode")
        waiting = deque[tuple[Tensor, list[Future[NDArray[np.uint8]]]]]()
        try:
            for part in parts:
                waiting.append((part, [pool.submit(one, image) for image in part.tolist()]))
                if len(waiting) > AHEAD:
                    yield _collected(half, *waiting.popleft())
            while waiting:
                yield _collected(half, *waiting.popleft())
        finally:  # also when the loop that asks stops early
            pool.shutdown(cancel_futures=True)


def in_memory_if_small(data: StreamedDataSet) -> ImageData:
    """Decode a whole set where its images take at most `MEMORY_LIMIT` bytes.

    Args:
        data: A set whose training and test images are prepared in the same way.

    Returns:
        The set in memory, or `data` itself.

    Raises:
        DataError: An image cannot be read.
    """
    if (data.train_size + data.test_size) * 3 * data.size**2 > MEMORY_LIMIT:
        return data
    train, test = data.sample("train", data.train_size), data.sample("test", data.test_size)
    return DataSet(data.name, data.classes, *train, *test)


def _collected(half: Pictures, part: Tensor, images: list[Future[NDArray[np.uint8]]]) -> Batch:
    pixels = torch.from_numpy(np.stack([image.result() for image in images]))
    return pixels.permute(0, 3, 1, 2).contiguous(), half.labels[part]
