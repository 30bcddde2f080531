"""Pixels to network input. It is part of every network that sees an image, so that exported graphs take plain uint8."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from privdfs_training.errors import TrainingConfigError


class Normalise(nn.Module):
    """Subtract the mean and divide by the standard deviation of the training pixels, per channel.

    Both are buffers, set once by `fit` or `set` and saved with the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        """Start as the identity on pixels in 0..255.

        Args:
            channels: Of the image.
        """
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))

    def fit(self, images: Tensor) -> None:
        """Take mean and standard deviation from images.

        Args:
            images: uint8 [images, channels, height, width].
        """
        for channel in range(images.shape[1]):
            # Counting levels is exact and needs no float copy of the data set.
            counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
            levels = torch.arange(256, dtype=torch.float64)
            mean = (counts * levels).sum() / counts.sum()
            variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
            self.mean[0, channel, 0, 0] = mean
            self.std[0, channel, 0, 0] = variance.sqrt().clamp(min=1.0)

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Use the mean and deviation that given weights expect.

        Args:
            mean: Of pixels in 0..1, for every channel.
            std: Likewise.

        Raises:
            TrainingConfigError: The images have another number of channels.
        """
        channels = self.mean.shape[1]
        if len(mean) != channels:
            message = f"backbone.mean has {len(mean)} values, but the images {channels} channels: give one for each"
            raise TrainingConfigError(message)
        self.mean.copy_(255 * torch.tensor(mean).view_as(self.mean))
        self.std.copy_(255 * torch.tensor(std).view_as(self.std))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise.

        Args:
            images: uint8 [batch, channels, height, width].

        Returns:
            float32 [batch, channels, height, width].
        """
        return (images.float() - self.mean) / self.std
