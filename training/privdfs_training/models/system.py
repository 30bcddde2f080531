"""The system of one release: baseline, head, masks, branches and fusion."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privdfs_training.config import Config
from privdfs_training.masks import OwnerMask
from privdfs_training.models.branch import Branch
from privdfs_training.models.fusion import Fusion
from privdfs_training.models.head import CompactHead
from privdfs_training.models.resnet import cifar_resnet
from privdfs_training.quantise import ShareQuantiser
from privdfs_training.rate import ClassRate


@dataclass(frozen=True)
class Encoded:
    """What the client makes of a batch of images.

    Attributes:
        steps: Values before rounding, in each server's quantisation steps, float [batch, servers, channels, h, w].
        masks: Zeros and ones, float [servers, channels, h, w].
        shares: What each server gets, put back in place: quantised, zero where it owns nothing, float
            [batch, servers, channels, h, w].
    """

    steps: Tensor
    masks: Tensor
    shares: Tensor

    def __repr__(self) -> str:
        """Sizes, never values."""
        return f"Encoded({len(self.shares)} images, {len(self.masks)} servers)"


class System(nn.Module):
    """All networks of one config."""

    def __init__(self, config: Config, *, image_shape: tuple[int, int, int], classes: int) -> None:
        """Build all networks with fresh weights.

        Args:
            config: The run.
            image_shape: Channels, height, width.
            classes: Number of classes.

        Raises:
            TrainingConfigError: The masks want more elements than the feature has.
        """
        super().__init__()
        channels, height, width = image_shape
        self.image_shape, self.classes = image_shape, classes
        self.baseline = cifar_resnet(
            config.backbone.name, width=config.backbone.width, channels=channels, classes=classes
        )
        self.head = CompactHead(
            image_channels=channels,
            stem=config.head.stem,
            stages=config.head.stages,
            channels=config.head.channels,
            stem_stride=config.head.stem_stride,
        )
        with torch.no_grad():
            self.head.eval()
            shape = tuple(self.head(torch.zeros(1, channels, height, width, dtype=torch.uint8)).shape[1:])
        servers = config.masks.servers
        self.quantiser = ShareQuantiser(config.masks.levels, servers=servers, learned=config.masks.learned_levels)
        self.masks = OwnerMask(shape, config.masks, seed=config.seed)
        self.rate = (
            ClassRate(classes=classes, servers=servers, elements=math.prod(shape), levels=config.masks.levels)
            if config.loss.rate
            else None
        )
        self.branches = nn.ModuleList(
            Branch(shape, width=config.branch.width, blocks=config.branch.blocks, classes=classes)
            for _ in range(servers)
        )
        self.fusion = Fusion(servers=servers, classes=classes, hidden=config.fusion.hidden)

    def encode(self, images: Tensor, *, temperature: float = 1.0, noise: float = 0.0) -> Encoded:
        """What the client sends.

        Args:
            images: uint8 [batch, channels, height, width].
            temperature: Of the masks, while they are not frozen.
            noise: Of the masks, while they are not frozen.

        Returns:
            The shares, and what made them.
        """
        steps, masks = self.quantiser.steps(self.head(images)), self.masks(temperature, noise)
        return Encoded(steps, masks, self.quantiser(steps) * masks)

    def answer(self, shares: Tensor) -> Tensor:
        """Every server's answer.

        Args:
            shares: float [batch, servers, channels, h, w], as `Encoded.shares`.

        Returns:
            Logits, float [batch, servers, classes].
        """
        return torch.stack([branch(shares[:, server]) for server, branch in enumerate(self.branches)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Fused answer of all servers.

        Args:
            images: uint8 [batch, channels, height, width].

        Returns:
            Logits, float [batch, classes].
        """
        logits = self.answer(self.encode(images).shares)
        return self.fusion(logits.float(), torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device))
