"""Augmentation of whole batches on the device where they live."""

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_and_flip(images: Tensor, *, padding: int, flip: bool) -> Tensor:
    """Cut a random window out of every zero-padded image, and mirror half of them.

    Uses torch's global generator, which the training loop seeds before every step.

    Args:
        images: uint8 [batch, channels, height, width].
        padding: Zeros added on each side before the crop, in pixels.
        flip: Whether to mirror each image left to right with probability one half.

    Returns:
        uint8 [batch, channels, height, width].
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top = torch.randint(0, 2 * padding + 1, (batch, 1))
    left = torch.randint(0, 2 * padding + 1, (batch, 1))
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(batch, width)
    if flip:
        columns = torch.where(torch.rand(batch, 1) < 0.5, columns.flip(1), columns)
    columns = left + columns
    return padded[
        torch.arange(batch)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
