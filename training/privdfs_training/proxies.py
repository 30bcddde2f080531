"""Proxy attackers: small networks that reconstruct images from shares while the head is trained. See adversary.py.

Each kind is a module that gives, for every image, the error of its reconstruction and the error it would make if it
knew the class alone. Both are trained to be small; their ratio tells what the shares add.
"""

import math

import torch
from torch import Tensor, nn

from privdfs_training.attacks.decoder import Decoder, ResidualBlock

FREQUENCIES = 8  # of the noise level's embedding
DENOISER_BLOCKS = 3


class DecoderProxy(nn.Module):
    """The attack's own decoder, which paints a correction of the class-mean image.

    A fresh one paints nothing, so its reconstruction is the floor, and it learns only what the shares add.
    """

    def __init__(self, seen: int, classes: int, image_shape: tuple[int, int, int], *, width: int) -> None:
        """Build a fresh one.

        Args:
            seen: Values that the proxy sees of one image.
            classes: Number of classes.
            image_shape: Channels, height, width.
            width: Channels inside.
        """
        super().__init__()
        self.decoder = Decoder((seen + classes,), image_shape, width=width, blocks=1)
        _start_at_zero(self.decoder.layers[-1])

    def forward(self, seen: Tensor, classes: Tensor, images: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct and compare.

        Args:
            seen: float [batch, seen].
            classes: Zeros and a one, float [batch, classes].
            images: float [batch, channels, height, width] in 0..1.
            means: The mean image of each image's class, same shape.

        Returns:
            Squared error of the reconstruction and of the class mean, mean over pixels, float32 [batch].
        """
        start = self.decoder.start(torch.cat([seen, classes], dim=1))
        # Without the decoder's last sigmoid: it would hardly let a correction through where the mean is black.
        correction = self.decoder.layers(start.contiguous(memory_format=torch.channels_last))
        return _error(means + correction.float(), images), _error(means, images)


class DiffusionProxy(nn.Module):
    """A small denoiser that is told the shares or, for the floor, the class alone.

    It is trained with the objective of Ho, Jain and Abbeel (arXiv 2006.11239, equation 14) for the prediction of the
    velocity, which is a weighting of the same error (Salimans and Ho, arXiv 2202.00512, section 4), at noise levels of
    the cosine schedule (Nichol and Dhariwal, arXiv 2102.09672). One network is both the conditional and the
    unconditional denoiser, as in classifier-free guidance (Ho and Salimans, arXiv 2207.12598). What it denoises is the
    image's difference from its class mean. It works at a quarter of the resolution, on patches, which keeps it cheap.
    """

    def __init__(self, seen: int, classes: int, image_shape: tuple[int, int, int], *, width: int) -> None:
        """Build a fresh one.

        Args:
            seen: Values that the proxy sees of one image.
            classes: Number of classes.
            image_shape: Channels, height, width.
            width: Channels inside.
        """
        super().__init__()
        channels, height, image_width = image_shape
        patch = next(size for size in (4, 2, 1) if not height % size and not image_width % size)
        grid = (width, height // patch, image_width // patch)
        self.known = nn.Sequential(
            nn.Linear(seen + classes + 2 * FREQUENCIES, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, math.prod(grid)),
            nn.Unflatten(1, grid),
        )
        self.noisy = nn.Conv2d(channels, width, patch, patch)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(DENOISER_BLOCKS)))
        self.velocity = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels * patch**2, 1), nn.PixelShuffle(patch)
        )
        _start_at_zero(self.velocity[-2])

    def forward(self, seen: Tensor, classes: Tensor, images: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """Denoise the same noisy images with and without the shares.

        Args:
            seen: float [batch, seen].
            classes: Zeros and a one, float [batch, classes].
            images: float [batch, channels, height, width] in 0..1.
            means: The mean image of each image's class, same shape.

        Returns:
            Squared error of the velocity with the shares and with the class alone, mean over pixels, float32 [batch].
            At one noise level it is proportional to that of the noise and to that of the one-step estimate of the
            image, so the ratio of the two is the same for all three.
        """
        residual = images - means
        residual = residual / residual.square().mean().sqrt().clamp(min=1e-4)
        level = torch.rand(len(images), device=images.device)
        angle = (level * (math.pi / 2))[:, None, None, None]
        noise = torch.randn_like(residual)
        noisy = angle.cos() * residual + angle.sin() * noise
        target = angle.cos() * noise - angle.sin() * residual
        # Both in one batch: the normalisations then see in training what they see when the term is taken.
        phase = level[:, None] * math.pi * torch.arange(FREQUENCIES, device=images.device)
        told = torch.cat([classes, phase.cos(), phase.sin()], dim=1)
        known = torch.cat([torch.cat([seen, told], dim=1), torch.cat([torch.zeros_like(seen), told], dim=1)])
        grid = self.known(known) + self.noisy(noisy).repeat(2, 1, 1, 1)
        velocity = self.velocity(self.blocks(grid.contiguous(memory_format=torch.channels_last)))
        with_shares, without = _error(velocity.float(), target.repeat(2, 1, 1, 1)).chunk(2)
        return with_shares, without


def _start_at_zero(convolution: nn.Module) -> None:
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)


def _error(guess: Tensor, truth: Tensor) -> Tensor:
    return (guess - truth).square().mean(dim=(1, 2, 3))
