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


def mixup(images: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Blend the first images of a batch, each with the next one, in proportions drawn anew.

    Zhang et al., arXiv 1710.09412, section 1, with alpha = 1. What a blend shows has no label: ask a teacher, as Beyer
    et al. do (arXiv 2106.05237). Uses torch's global CPU generator, which the training loop seeds before every step.

    Args:
        images: uint8 [batch, channels, height, width], in random order.
        labels: Of any kind, [batch, …].
        share: How many are blended, in 0..1; the others stay, and are the last ones.

    Returns:
        uint8 [batch, channels, height, width], and the labels of those that stay.
    """
    count = round(share * len(images))
    if not count:
        return images, labels
    drawn = per_image(lambda total: torch.rand(total, 1, 1, 1), len(images))[:count].to(images.device)
    blends = drawn * images[:count] + (1 - drawn) * images.roll(-1, 0)[:count]
    return torch.cat([blends.round().to(images.dtype), images[count:]]), labels[count:]
