"""What every loader returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DataSet:
    """Images and labels of one set, in memory.

    Attributes:
        name: As in the config.
        classes: Class names, in label order.
        train_images: uint8 [images, channels, height, width].
        train_labels: int64 [images].
        test_images: uint8 [images, channels, height, width].
        test_labels: int64 [images].
    """

    name: str
    classes: tuple[str, ...]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def __repr__(self) -> str:
        """Name and sizes, never pixels."""
        return f"DataSet({self.name!r}, {len(self.train_labels)} training and {len(self.test_labels)} test images)"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width
