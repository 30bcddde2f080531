"""A diffusion prior: what images of a data set look like, as a network that takes noise from them.

A pixel diffusion model (Ho, Jain and Abbeel, arXiv 2006.11239) in continuous time: at time t, from 0 to 1, an image x
has become cos(pi t / 2) x + sin(pi t / 2) noise, the cosine schedule of Nichol and Dhariwal (arXiv 2102.09672). The
network predicts the velocity cos(pi t / 2) noise - sin(pi t / 2) x (Salimans and Ho, arXiv 2202.00512, section 4), from
which both image and noise follow at every time. It is small, and works on blocks of two by two pixels, so that one core
trains it for small images in half an hour.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.checkpoint import load_weights, read_checkpoint
from privdfs_training.errors import AttackError, CheckpointError

#: Pixels of a block's side; and the network halves height and width once more.
BLOCK, MULTIPLE = 2, 4
GROUPS = 8
TIME_WAVES, HIGHEST_WAVE = 32, 1000.0


class TimedBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the time scales and shifts what lies between them."""

    def __init__(self, channels: int, out: int, time: int) -> None:
        """Build one block.

        Args:
            channels: In.
            out: Out.
            time: Values of the embedded time.
        """
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, 1, 1))
        self.time = nn.Linear(time, 2 * out)
        self.norm = nn.GroupNorm(GROUPS, out)
        self.last = nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        nn.init.zeros_(self.last.weight)

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        """Features [batch, channels, h, w] and embedded times [batch, time] to [batch, out, h, w]."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        inside = self.norm(self.first(features)) * (1 + scale) + shift
        return self.shortcut(features) + self.last(F.silu(inside))


class Attention(nn.Module):
    """Self-attention over the places of a grid (Vaswani et al., arXiv 1706.03762), one head."""

    def __init__(self, channels: int) -> None:
        """Build it for features of so many channels."""
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.ask = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, h, w] to the same shape."""
        query, key, value = self.ask(self.norm(features)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        found = F.scaled_dot_product_attention(query, key, value)
        return features + self.out(found.transpose(1, 2).reshape(features.shape))


class Prior(nn.Module):
    """A U-Net that predicts the velocity of noisy images."""

    def __init__(self, image_shape: tuple[int, int, int], *, width: int, blocks: int) -> None:
        """Build the network, untrained.

        Args:
            image_shape: Channels, height, width.
            width: Channels at half the image's height; twice as many at a quarter of it. A multiple of 8.
            blocks: Residual blocks on every way, at each of the two.

        Raises:
            AttackError: The image cannot be halved twice.
        """
        super().__init__()
        channels, height, image_width = image_shape
        if height % MULTIPLE or image_width % MULTIPLE:
            raise AttackError(
                f"a diffusion prior takes images whose sides are multiples of {MULTIPLE}, not {height} x {image_width}:"
                " scale them"
            )
        self.image_shape = image_shape
        time, pixels = 4 * width, channels * BLOCK**2
        self.time = nn.Sequential(nn.Linear(2 * TIME_WAVES, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.start = nn.Conv2d(pixels, width, 3, 1, 1)
        self.down = nn.ModuleList(TimedBlock(width, width, time) for _ in range(blocks))
        self.halve = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.middle = nn.ModuleList(TimedBlock(2 * width, 2 * width, time) for _ in range(2 * blocks))
        self.attention = nn.ModuleList(Attention(2 * width) for _ in range(2))
        self.widen = nn.Conv2d(2 * width, width, 1)
        self.up = nn.ModuleList(TimedBlock(2 * width if not at else width, width, time) for at in range(blocks))
        self.end = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, pixels, 3, 1, 1))

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        """The velocity.

        Args:
            noisy: Float [batch, channels, height, width], of images in -1..1.
            times: Float [batch], 0..1.

        Returns:
            Float, as `noisy`.
        """
        waves = torch.exp(torch.linspace(0, math.log(HIGHEST_WAVE), TIME_WAVES, device=times.device))
        angles = times[:, None] * waves
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        features = F.pixel_unshuffle(noisy, BLOCK).contiguous(memory_format=torch.channels_last)
        features = self.start(features)
        for block in self.down:
            features = block(features, time)
        kept, features = features, self.halve(features)
        half = len(self.middle) // 2
        for at, block in enumerate(self.middle):
            features = block(features, time)
            if at + 1 in {half, 2 * half}:
                features = self.attention[at // half](features)
        features = torch.cat([F.interpolate(self.widen(features), kept.shape[2:]), kept], dim=1)
        for block in self.up:
            features = block(features, time)
        return F.pixel_shuffle(self.end(features), BLOCK)


def signal_and_noise(times: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the image, and how much noise, there is at some times.

    Args:
        times: Float [batch], 0..1.

    Returns:
        Two factors whose squares add up to one, each float [batch, 1, 1, 1].
    """
    angle = times[:, None, None, None] * (math.pi / 2)
    return angle.cos(), angle.sin()


def prior_loss(prior: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity at random times, one for every image, spread evenly over the batch.

    Args:
        prior: The network.
        images: uint8 [batch, channels, height, width].
        generator: Of times and noise.

    Returns:
        A scalar.
    """
    clean = images.float() / 127.5 - 1
    noise = torch.randn(clean.shape, generator=generator)
    spread = torch.arange(len(clean)) / len(clean)
    times = (torch.rand(1, generator=generator) + spread) % 1
    signal, sigma = signal_and_noise(times)
    return F.mse_loss(prior(signal * clean + sigma * noise, times).float(), signal * noise - sigma * clean)


def load_prior(path: Path, image_shape: tuple[int, int, int], data: str) -> Prior:
    """Open a trained prior.

    Args:
        path: What `train_prior` wrote.
        image_shape: Channels, height, width of the images that it is needed for.
        data: Name of their data set.

    Returns:
        In evaluation mode, without gradients of its weights.

    Raises:
        AttackError: There is no such file, or it is of images of another shape; the message says how to train one.
        CheckpointError: It is damaged, or its training is not finished.
    """
    how = f"train one with privdfs-train and a config like configs/priors/fashion-mnist.toml, with data.name = {data!r}"
    if not path.exists():
        raise AttackError(f"there is no diffusion prior {path}: {how}")
    checkpoint = read_checkpoint(path)
    about = checkpoint.about
    if "prior" not in about or not about.get("finished"):
        raise CheckpointError(f"{path} is not a finished diffusion prior: {how}")
    shape = tuple(about["image_shape"])
    if shape != tuple(image_shape):
        raise AttackError(f"{path} is of images of shape {shape}, not {tuple(image_shape)}: {how}")
    prior = Prior(image_shape, width=about["prior"]["width"], blocks=about["prior"]["blocks"])
    load_weights(prior, {name: value.float() for name, value in checkpoint.tensors.items()}, path)
    prior.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return prior.eval().requires_grad_(requires_grad=False)
