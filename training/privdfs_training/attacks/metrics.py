"""How close a reconstruction is, per image. Images are float in 0..1."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Wang et al., IEEE TIP 2004, section III.B: an 11 x 11 Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03.
SSIM_WINDOW = 11
SSIM_DEVIATION = 1.5
SSIM_CONSTANTS = (0.01**2, 0.03**2)
# Wang, Simoncelli and Bovik, Asilomar 2003, section 3.2: the weight of each scale, the finest first.
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Images of this size and more have a whole window at the coarsest scale.
MS_SSIM_SIZE = SSIM_WINDOW * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
AT_ONCE = 1000
RESAMPLES, RESAMPLED_AT_ONCE = 1000, 50


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


@dataclass(frozen=True)
class PerImage:
    """Scores of every image.

    Attributes:
        psnr: float [images], in dB.
        ssim: float [images].
        ms_ssim: float [images]; None for images under 176 pixels, which have no five scales.
    """

    psnr: Tensor
    ssim: Tensor
    ms_ssim: Tensor | None

    def __repr__(self) -> str:
        """Sizes, never values."""
        return f"PerImage({len(self.psnr)} images)"

    def summary(self) -> Scores:
        """Means over the images."""
        best = self.psnr.topk(max(1, len(self.psnr) // 20)).values
        return Scores(psnr=float(self.psnr.mean()), psnr_worst=float(best.mean()), ssim=float(self.ssim.mean()))


def compare(reconstructed: Tensor, images: Tensor) -> PerImage:
    """Score every reconstruction.

    Args:
        reconstructed: float [images, channels, height, width] in 0..1.
        images: uint8 [images, channels, height, width].

    Returns:
        One score of each kind per image.
    """
    large = min(images.shape[2:]) >= MS_SSIM_SIZE
    columns: tuple[list[Tensor], ...] = ([], [], [])
    for guess, image in zip(reconstructed.split(AT_ONCE), images.split(AT_ONCE), strict=True):
        wanted = image.float() / 255
        columns[0].append(psnr(guess, wanted))
        columns[1].append(ssim(guess, wanted))
        if large:
            columns[2].append(ms_ssim(guess, wanted))
    scores = [torch.cat(column) if column else None for column in columns]
    return PerImage(*scores)  # pyright: ignore[reportArgumentType]  the first two are never empty


def score(reconstructed: Tensor, images: Tensor) -> Scores:
    """Score reconstructions.

    Args:
        reconstructed: float [images, channels, height, width] in 0..1.
        images: uint8 [images, channels, height, width].

    Returns:
        Means over the images.
    """
    return compare(reconstructed, images).summary()


def mean_interval(values: Tensor, *, seed: int, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over images (Efron and Tibshirani 1993, section 13.3).

    Args:
        values: float [images].
        seed: Of the resampling.
        confidence: Of the interval.

    Returns:
        Its ends. They cover the choice of images, not that of seeds or attacks.
    """
    generator = torch.Generator().manual_seed(seed)
    means = []
    for _ in range(RESAMPLES // RESAMPLED_AT_ONCE):
        chosen = torch.randint(len(values), (RESAMPLED_AT_ONCE, len(values)), generator=generator)
        means.append(values.double()[chosen].mean(dim=1))
    outside = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([outside, 1 - outside], dtype=torch.float64)).tolist()
    return low, high


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
    luminance, structure = _similarities(reconstructed, images)
    return (luminance * structure).mean(dim=(1, 2, 3))


def ms_ssim(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Multi-scale structural similarity of each image: structure at five scales, luminance at the coarsest.

    Args:
        reconstructed: float [images, channels, height, width] in 0..1; at least 176 pixels a side.
        images: The same.

    Returns:
        float [images], 1 where equal. A scale of negative similarity counts as none.
    """
    result = torch.ones(len(images))
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            reconstructed, images = F.avg_pool2d(reconstructed, 2), F.avg_pool2d(images, 2)
        luminance, structure = _similarities(reconstructed, images)
        coarsest = scale == len(MS_SSIM_WEIGHTS) - 1
        similarity = luminance * structure if coarsest else structure
        result = result * similarity.mean(dim=(1, 2, 3)).clamp(min=0) ** weight
    return result


def _similarities(reconstructed: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of SSIM in every whole window, float [images, channels, height - 10, width - 10]."""
    channels = images.shape[1]
    distance = torch.arange(SSIM_WINDOW, device=images.device) - SSIM_WINDOW // 2
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
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2) / (variance_x + variance_y + c2)
