"""Floors: what an attacker without shares reconstructs, who may know the class of the image, or the answer."""

import torch
from torch import Tensor

CHUNK = 5000  # images turned to float at a time
AT_ONCE = 500  # images compared with all known ones at a time


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
    """The best guesses, in the mean squared sense, of an attacker who knows the class, as every branch's answer tells.

    Args:
        images: uint8 [images, channels, height, width].
        labels: int64 [images].
        classes: Number of classes; each has at least one image.

    Returns:
        float32 [classes, channels, height, width] in 0..1.
    """
    return torch.stack([mean_image(images[labels == label]) for label in range(classes)])


def nearest_by_answer(answers: Tensor, answers_test: Tensor) -> Tensor:
    """For every image the known image whose answer is nearest: a guess that looks real, from the answer alone.

    A real image differs from another one by more than the mean of their class does, so this floor has a low PSNR and
    a face. It stands for generative attackers, which are judged by the same measure.

    Args:
        answers: Class probabilities of the images that the attacker has, float [known, classes].
        answers_test: Of the images it wants, float [images, classes].

    Returns:
        Indices of the known images, int64 [images].
    """
    return torch.cat([torch.cdist(part, answers).argmin(dim=1) for part in answers_test.split(AT_ONCE)])
