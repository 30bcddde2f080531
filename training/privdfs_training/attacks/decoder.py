"""A learned decoder: shares of a coalition to the image, trained from scratch on the frozen release.

The inverse network of He, Zhang and Lee (ACSAC 2019, section 4), made residual and given a full first layer. It knows
the masks in the strongest sense: it sees the owned values alone, each in its fixed place, and learns what every one of
them means.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WARM_UP = 0.1


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
        if len(seen) == 1:
            doublings = max(step for step in range(3) if not height % 2**step and not image_width % 2**step)
            grid = (height // 2**doublings, image_width // 2**doublings)
            hidden, values = 4 * width, seen[0]
            self.start = nn.Sequential(
                nn.Linear(values, hidden),
                nn.ReLU(),
                nn.Linear(hidden, width * math.prod(grid)),
                nn.Unflatten(1, (width, *grid)),
            )
        else:
            grid = seen[1:]
            self.start = nn.Conv2d(seen[0], width, 1)
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
        return torch.sigmoid(self.layers(self.start(values).contiguous(memory_format=torch.channels_last)))


def train_decoder(
    shares: Tensor, images: Tensor, budget: DecoderBudget, *, seed: int, progress: Callable[[float, float], None]
) -> Decoder:
    """Train a decoder on pairs that the attacker made by running the public head on its own images.

    Args:
        shares: What the attacker sees, [pairs, *seen]: int8 [pairs, values], the coalition's shares side by side, or a
            dense float feature.
        images: uint8 [pairs, channels, height, width].
        budget: How much to spend.
        seed: Of weights and order.
        progress: Called after every step with the progress in 0..1 and the loss.

    Returns:
        The decoder, in evaluation mode.
    """
    torch.manual_seed(seed)
    channels, height, width = images.shape[1:]
    decoder = Decoder(tuple(shares.shape[1:]), (channels, height, width), width=budget.width, blocks=budget.blocks)
    decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=budget.learning_rate, weight_decay=1e-4)
    per_epoch = len(images) // budget.batch
    steps = per_epoch * budget.epochs
    for epoch in range(budget.epochs):
        order = torch.randperm(len(images))[: per_epoch * budget.batch].split(budget.batch)
        for index, chosen in enumerate(order):
            step = epoch * per_epoch + index
            rate = min(step / (WARM_UP * steps), (1 - step / steps) / (1 - WARM_UP))
            for group in optimizer.param_groups:
                group["lr"] = budget.learning_rate * rate
            with torch.autocast("cpu", dtype=torch.bfloat16):
                guess = decoder(shares[chosen].float())
            loss = F.mse_loss(guess.float(), images[chosen].float() / 255)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            progress((step + 1) / steps, float(loss.detach()))
    return decoder.eval()


def reconstruct(decoder: Decoder, shares: Tensor) -> Tensor:
    """Run a decoder over many shares.

    Args:
        decoder: Trained.
        shares: [images, *seen], as in training.

    Returns:
        float32 [images, channels, height, width], in 0..1.
    """
    with torch.inference_mode():
        return torch.cat([decoder(part.float()) for part in shares.split(1000)])
