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


def blended(images: Tensor, labels: Tensor, *, mixup: float = 0.0, cutmix: float = 0.0) -> tuple[Tensor, Tensor]:
    """Blend the first images of a batch, each with the next one, and paste a rectangle of the next one into others.

    Blends have proportions drawn evenly (Zhang et al., arXiv 1710.09412, section 1, with alpha = 1), and rectangles
    have areas and centres drawn evenly (Yun et al., arXiv 1905.04899, section 3.1). What either shows has no label: ask
    a teacher (Beyer et al., arXiv 2106.05237). Uses torch's global CPU generator, which the training loop seeds before
    every step.

    Args:
        images: uint8 [batch, channels, height, width], in random order.
        labels: Of any kind, [batch, …].
        mixup: How many are blended, in 0..1: the first ones.
        cutmix: How many get a rectangle, in 0..1: those after them. The others stay.

    Returns:
        uint8 [batch, channels, height, width], and the labels of those that stay.
    """
    batch = len(images)
    first, last = round(mixup * batch), round((mixup + cutmix) * batch)
    if not last:
        return images, labels
    others, parts = images.roll(-1, 0), list[Tensor]()
    if first:  # nothing is drawn for what does not happen
        drawn = per_image(lambda count: torch.rand(count, 1, 1, 1), batch)[:first].to(images.device)
        parts.append((drawn * images[:first] + (1 - drawn) * others[:first]).round().to(images.dtype))
    if last > first:
        drawn = per_image(lambda count: torch.rand(count, 3), batch)[first:last].to(images.device)
        parts.append(_pasted(images[first:last], others[first:last], drawn))
    return torch.cat([*parts, images[last:]]), labels[last:]


def _pasted(images: Tensor, others: Tensor, drawn: Tensor) -> Tensor:
    """Images with a rectangle of the others: area and centre drawn, [batch, 3] in 0..1; it may reach over an edge."""
    side = drawn[:, :1].sqrt()
    rows, columns = (
        _within(centre, side, size) for centre, size in zip(drawn[:, 1:].split(1, 1), images.shape[2:], strict=True)
    )
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], others, images)


def _within(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """Which of the positions lie in stretches around centres, all in shares of the size: bool [batch, size]."""
    length = (side * size).round()
    start = (centre * size).floor() - (length / 2).floor()
    positions = torch.arange(size, device=centre.device)
    return (positions >= start) & (positions < start + length)
