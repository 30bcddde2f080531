"""Floors: what an attacker reconstructs who knows nothing of the image, or only its class."""

import torch
from torch import Tensor

CHUNK = 5000  # images turned to float at a time


def mean_image(images: Tensor) -> Tensor:
    """The best guess, in the mean squared sense, without any information.

    Args:
        images: uint8 [images, channels, height, width].

    Returns:
        float32 [channels, height, width] in 0..1.
    """
    total = torch.zeros(images.shape[1:], dtype=torch.float64)
    for part in images.split(CHUNK):
        total += part.double().sum(dim=0)
    return (total / len(images) / 255).float()


def class_means(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The best guesses, in the mean squared sense, of one who knows the class, which every branch's answer reveals.

    Args:
        images: uint8 [images, channels, height, width].
        labels: int64 [images].
        classes: Number of classes; each has at least one image.

    Returns:
        float32 [classes, channels, height, width] in 0..1.
    """
    return torch.stack([mean_image(images[labels == label]) for label in range(classes)])
