"""Learned decoders: shares of a coalition to the image, trained from scratch on the frozen release.

The inverse network of He, Zhang and Lee (ACSAC 2019, section 4) in three forms: residual, with a full first layer; a
U-Net (Ronneberger et al., arXiv 1505.04597) behind that layer; and fully connected, which costs a twentieth and is as
strong where shares are few values. All know the masks in the strongest sense: they see the owned values alone, each in
its fixed place, and learn what every one of them means.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.attacks.metrics import ssim
from privdfs_training.errors import AttackError
from privdfs_training.parallel import CPU
from privdfs_training.precision import autocast

WARM_UP = 0.1
STATISTICS = 5000  # pairs that give the statistics of what is seen
LOOKED_EVERY = 50  # steps: a GPU has to be waited for whenever the loss is looked at
#: Of 1 - SSIM beside the mean squared error, which is near 0.03 where it is near 0.5.
SIMILARITY_WEIGHT = 0.1
Form = Literal["residual", "unet", "dense"]


@dataclass(frozen=True)
class DecoderBudget:
    """How much an attacker spends.

    Attributes:
        epochs: Passes over the pairs.
        batch: Pairs in a step.
        width: Channels of the decoder.
        blocks: Residual blocks at each resolution.
        learning_rate: Highest of AdamW's.
    """

    epochs: int
    batch: int = 256
    width: int = 64
    blocks: int = 2
    learning_rate: float = 2e-3


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, normalised first (He et al., arXiv 1603.05027)."""

    def __init__(self, channels: int) -> None:
        """Build one block.

        Args:
            channels: In and out.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[batch, channels, h, w] to the same shape, float."""
        return features + self.layers(features)


class Standardise(nn.Module):
    """Give every value, or every channel of a dense feature, mean 0 and deviation 1 over the attacker's pairs."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, seen: tuple[int, ...]) -> None:
        """Start as the identity.

        Args:
            seen: Shape of what the attacker sees of one image.
        """
        super().__init__()
        shape = (seen[0], *(1 for _ in seen[1:]))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("deviation", torch.ones(shape))

    def fit(self, values: Tensor) -> None:
        """Measure [pairs, *seen]; a value that never changes stays as it is."""
        axes = [axis for axis in range(values.ndim) if axis != 1]
        some = values[:STATISTICS].float()
        self.mean.copy_(some.mean(dim=axes).view_as(self.mean))
        deviation = some.std(dim=axes).view_as(self.deviation)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """[batch, *seen] to the same shape, float."""
        return (values - self.mean) / self.deviation


class Decoder(nn.Module):
    """What an attacker sees to the image: residual blocks at doubling resolutions.

    Shares are vectors, and start from a full layer to a small grid. A dense feature, which is what a split with one
    server sends, keeps its grid: it starts from a 1x1 convolution, and is upsampled from there to the image's size.
    """

    def __init__(self, seen: tuple[int, ...], image_shape: tuple[int, int, int], *, width: int, blocks: int) -> None:
        """Build the decoder.

        Args:
            seen: Shape of what the attacker sees of one image: (values,), or (channels, height, width), at most as high
                and wide as the image.
            image_shape: Channels, height, width.
            width: Channels inside.
            blocks: Residual blocks at each resolution.
        """
        super().__init__()
        channels, height, image_width = image_shape
        self.standardise = Standardise(seen)
        self.start, grid = _start(seen, image_shape, width)
        layers: list[nn.Module] = [ResidualBlock(width) for _ in range(blocks)]
        while grid != (height, image_width):
            grid = (
                min(2 * grid[0], height),
                min(2 * grid[1], image_width),
            )  # a size of no power of two ends in between
            layers += [nn.Upsample(grid), *(ResidualBlock(width) for _ in range(blocks))]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, 1, 1))

    def forward(self, values: Tensor) -> Tensor:
        """Reconstruct.

        Args:
            values: float [batch, *seen].

        Returns:
            float [batch, channels, height, width], in 0..1.
        """
        start = self.start(self.standardise(values)).contiguous(memory_format=torch.channels_last)
        return torch.sigmoid(self.layers(start))


class UNetDecoder(nn.Module):
    """What an attacker sees, spread over the whole image, and a U-Net of two levels that refines it."""

    def __init__(self, seen: tuple[int, ...], image_shape: tuple[int, int, int], *, width: int, blocks: int) -> None:
        """Build the decoder; arguments as those of `Decoder`."""
        super().__init__()
        channels, *size = image_shape
        self.standardise = Standardise(seen)
        self.start, _ = _start(seen, image_shape, width)
        self.spread = nn.Upsample(tuple(size), mode="bilinear")
        widths = (width, 2 * width, 2 * width)
        self.down = nn.ModuleList(nn.Conv2d(widths[at], widths[at + 1], 3, 2, 1) for at in range(2))
        self.blocks_down = nn.ModuleList(_blocks(one, blocks) for one in widths)
        self.up = nn.ModuleList(nn.Conv2d(widths[at + 1] + widths[at], widths[at], 1) for at in range(2))
        self.blocks_up = nn.ModuleList(_blocks(one, blocks) for one in widths[:2])
        self.end = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, channels, 3, 1, 1))

    def forward(self, values: Tensor) -> Tensor:
        """As `Decoder.forward`."""
        start = self.start(self.standardise(values)).contiguous(memory_format=torch.channels_last)
        levels = [self.blocks_down[0](self.spread(start))]
        for down, blocks in zip(self.down, list(self.blocks_down)[1:], strict=True):
            levels.append(blocks(down(levels[-1])))
        features = levels.pop()
        for up, blocks in reversed(list(zip(self.up, self.blocks_up, strict=True))):
            wide = F.interpolate(features, levels[-1].shape[2:])
            features = blocks(up(torch.cat([wide, levels.pop()], dim=1)))
        return torch.sigmoid(self.end(features))


class DenseDecoder(nn.Module):
    """Three fully connected layers."""

    def __init__(self, seen: tuple[int, ...], image_shape: tuple[int, int, int], *, width: int, blocks: int) -> None:
        """Build the decoder; arguments as those of `Decoder`, with 16 hidden units for a channel."""
        super().__init__()
        hidden = 16 * width
        self.standardise = Standardise(seen)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(math.prod(seen), hidden), nn.ReLU()]
        for _ in range(blocks):
            layers += [nn.Linear(hidden, hidden), nn.ReLU()]
        self.layers = nn.Sequential(
            *layers, nn.Linear(hidden, math.prod(image_shape)), nn.Unflatten(1, tuple(image_shape))
        )

    def forward(self, values: Tensor) -> Tensor:
        """As `Decoder.forward`."""
        return torch.sigmoid(self.layers(self.standardise(values)))


FORMS: dict[Form, type[Decoder | UNetDecoder | DenseDecoder]] = {
    "residual": Decoder,
    "unet": UNetDecoder,
    "dense": DenseDecoder,
}


def squared_error(guess: Tensor, images: Tensor) -> Tensor:
    """Mean squared error, whose best guess is the mean of all images that fit."""
    return F.mse_loss(guess, images)


def squared_error_and_similarity(guess: Tensor, images: Tensor) -> Tensor:
    """Mean squared error and SSIM, for guesses that have structure where the mean has none."""
    return F.mse_loss(guess, images) + SIMILARITY_WEIGHT * (1 - ssim(guess, images).mean())


def train_decoder(  # noqa: PLR0913  each by its name
    shares: Tensor,
    images: Tensor,
    budget: DecoderBudget,
    *,
    seed: int,
    progress: Callable[[float, float], None],
    form: Form = "residual",
    loss_of: Callable[[Tensor, Tensor], Tensor] = squared_error,
    seconds: float = math.inf,
    device: torch.device = CPU,
    again: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """Train a decoder on pairs that the attacker made by running the public head on its own images.

    Args:
        shares: What the attacker sees, [pairs, *seen]: int8 [pairs, values], the coalition's shares side by side, or a
            dense float feature.
        images: uint8 [pairs, channels, height, width].
        budget: How much to spend. With fewer pairs than a batch, a batch is all of them.
        seed: Of weights and order.
        progress: Called after every step with the progress in 0..1 and the loss, that of a step shortly before.
        form: Of the network.
        loss_of: Of guesses and images, float in 0..1.
        seconds: Stop after so long; the learning rate then falls as the time does.
        device: Where the decoder is trained, and stays. All pairs are put there.
        again: As in `ServerView`; every step then learns from other shares of its images.

    Returns:
        The decoder, in evaluation mode.

    Raises:
        AttackError: There was no time for a single step.
    """
    torch.manual_seed(seed)
    channels, height, width = images.shape[1:]
    decoder = FORMS[form](tuple(shares.shape[1:]), (channels, height, width), width=budget.width, blocks=budget.blocks)
    decoder.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    shares, images = shares.to(device), images.to(device)
    decoder.standardise.fit(shares)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=budget.learning_rate, weight_decay=1e-4)
    batch = min(budget.batch, len(images))
    per_epoch = len(images) // batch
    steps, began, shown = per_epoch * budget.epochs, time.monotonic(), math.nan
    for step, chosen in enumerate(order(len(images), batch, budget.epochs, device)):
        done = max(step / steps, (time.monotonic() - began) / seconds)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = budget.learning_rate * min(done / WARM_UP, (1 - done) / (1 - WARM_UP))
        with autocast(device.type):
            guess = decoder((shares[chosen] if again is None else again(chosen).to(device)).float())
        loss = loss_of(guess.float(), images[chosen].float() / 255)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if not step % LOOKED_EVERY:
            shown = float(loss.detach())
        progress((step + 1) / steps, shown)
    else:
        step = steps
    if not step:
        raise AttackError(f"{seconds} seconds are too short for one step of a decoder: give it more")
    return decoder.eval()


def order(pairs: int, batch: int, epochs: int, device: torch.device) -> Iterator[Tensor]:
    """Say which pairs every step learns from: all once an epoch, in another order each, which no device changes.

    Args:
        pairs: How many there are.
        batch: Of a step.
        epochs: Passes over all.
        device: Where indices are wanted.

    Yields:
        Indices, int64 [batch].
    """
    for _ in range(epochs):
        yield from torch.randperm(pairs)[: pairs // batch * batch].to(device).split(batch)


def _start(seen: tuple[int, ...], image_shape: tuple[int, int, int], width: int) -> tuple[nn.Module, tuple[int, ...]]:
    """What turns [batch, *seen] into [batch, width, *grid], and the grid."""
    values, *dense = seen
    if dense:
        return nn.Conv2d(values, width, 1), tuple(dense)
    _, height, image_width = image_shape
    doublings = max(step for step in range(3) if not height % 2**step and not image_width % 2**step)
    grid = (height // 2**doublings, image_width // 2**doublings)
    start = nn.Sequential(
        nn.Linear(values, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, width * math.prod(grid)),
        nn.Unflatten(1, (width, *grid)),
    )
    return start, grid


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


def reconstruct(decoder: nn.Module, shares: Tensor) -> Tensor:
    """Run a decoder over many shares.

    Args:
        decoder: Trained.
        shares: [images, *seen], as in training; on any device.

    Returns:
        float32 [images, channels, height, width], in 0..1, on the processor.
    """
    device = next(decoder.parameters()).device
    with torch.inference_mode():
        return torch.cat([decoder(part.to(device).float()).cpu() for part in shares.split(1000)])
