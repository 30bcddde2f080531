"""How close a reconstruction is, per image. Images are float in 0..1."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Wang et al., IEEE TIP 2004, section III.B: an 11 x 11 Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03.
SSIM_WINDOW = 11
SSIM_DEVIATION = 1.5
SSIM_CONSTANTS = (0.01**2, 0.03**2)


@dataclass(frozen=True)
class Scores:
    """Scores of many reconstructions.

    Attributes:
        psnr: Mean over images of the peak signal-to-noise ratio of each, in dB.
        psnr_worst: Mean of the best-reconstructed twentieth of the images: the worst case for who is seen.
        ssim: Mean over images of the structural similarity of each.
    """

    psnr: float
    psnr_worst: float
    ssim: float


def score(reconstructed: Tensor, images: Tensor) -> Scores:
    """Score reconstructions.

    Args:
        reconstructed: float [images, channels, height, width] in 0..1.
        images: uint8 [images, channels, height, width].

    Returns:
        Means over the images.
    """
    pairs = zip(reconstructed.split(1000), images.split(1000), strict=True)
    values = [(psnr(guess, image.float() / 255), ssim(guess, image.float() / 255)) for guess, image in pairs]
    ratios, similarities = (torch.cat(column) for column in zip(*values, strict=True))
    best = ratios.topk(max(1, len(ratios) // 20)).values
    return Scores(psnr=float(ratios.mean()), psnr_worst=float(best.mean()), ssim=float(similarities.mean()))


def psnr(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image.

    Args:
        reconstructed: float [images, channels, height, width] in 0..1.
        images: The same.

    Returns:
        float [images], in dB; infinite where equal.
    """
    return -10 * torch.log10((reconstructed - images).square().mean(dim=(1, 2, 3)))


def ssim(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image.

    Args:
        reconstructed: float [images, channels, height, width] in 0..1; at least 11 pixels a side.
        images: The same.

    Returns:
        float [images], 1 where equal.
    """
    channels = images.shape[1]
    distance = torch.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    line = torch.exp(-(distance.float() ** 2) / (2 * SSIM_DEVIATION**2))
    window = torch.outer(line, line) / line.sum() ** 2
    kernel = window.expand(channels, 1, SSIM_WINDOW, SSIM_WINDOW)

    def blur(values: Tensor) -> Tensor:
        return F.conv2d(values, kernel, groups=channels)

    mean_x, mean_y = blur(reconstructed), blur(images)
    variance_x = blur(reconstructed**2) - mean_x**2
    variance_y = blur(images**2) - mean_y**2
    covariance = blur(reconstructed * images) - mean_x * mean_y
    c1, c2 = SSIM_CONSTANTS
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return similarity.mean(dim=(1, 2, 3))
