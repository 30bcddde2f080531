"""Augmentation of whole batches on the device where they live."""

import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.parallel import per_image


def crop_and_flip(images: Tensor, *, padding: int, flip: bool) -> Tensor:
    """Cut a random window out of every zero-padded image, and mirror half of them.

    Uses torch's global CPU generator, which the training loop seeds before every step.

    Args:
        images: uint8 [batch, channels, height, width].
        padding: Zeros added on each side before the crop, in pixels.
        flip: Whether to mirror each image left to right with probability one half.

    Returns:
        uint8 [batch, channels, height, width].
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top = per_image(lambda count: torch.randint(0, 2 * padding + 1, (count, 1)), batch)
    left = per_image(lambda count: torch.randint(0, 2 * padding + 1, (count, 1)), batch)
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(batch, width)
    if flip:
        columns = torch.where(per_image(lambda count: torch.rand(count, 1), batch) < 0.5, columns.flip(1), columns)
    columns = left + columns
    rows, columns = rows.to(images.device), columns.to(images.device)
    return padded[
        torch.arange(batch, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
