"""The system of one release: baseline, head, masks, branches and fusion."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privdfs_training.config import (
    BackboneHeadConfig,
    BranchedConfig,
    Config,
    HeadConfig,
    PixelsHeadConfig,
    ResidualBranchConfig,
)
from privdfs_training.masks import OwnerMask
from privdfs_training.models.backbone import Backbone, build_backbone
from privdfs_training.models.backbone_branch import ResNetBranch, VitBranch, backbone_branch
from privdfs_training.models.backbone_head import BackboneHead
from privdfs_training.models.branch import Branch
from privdfs_training.models.custom_cut import CustomBranch
from privdfs_training.models.fusion import AttributeFusion, Fusion
from privdfs_training.models.head import CompactHead, Head, PixelHead
from privdfs_training.partitions import PartitionFamily
from privdfs_training.quantise import ShareQuantiser
from privdfs_training.rate import ClassRate


@dataclass(frozen=True)
class Encoded:
    """What the client makes of a batch of images.

    Attributes:
        steps: Values before rounding, in each server's quantisation steps, float [batch, servers, channels, h, w].
        masks: Zeros and ones, float [servers, channels, h, w]; with keyed partitions [batch, servers, channels, h, w].
        shares: What each server gets, put back in place: quantised, zero where it owns nothing, float
            [batch, servers, channels, h, w].
    """

    steps: Tensor
    masks: Tensor
    shares: Tensor

    @property
    def inputs(self) -> Tensor:
        """What the branches take, float [batch, servers, C, h, w]: the shares.

        With keyed partitions also, as further channels, where each server's elements are: with few levels most values
        are zero, and then a zero alone does not say whether the server got it.
        """
        if self.masks.ndim < self.shares.ndim:
            return self.shares
        return torch.cat([self.shares, self.masks.to(self.shares)], dim=2)

    def __repr__(self) -> str:
        """Sizes, never values."""
        return f"Encoded({self.shares.shape[0]} images, {self.shares.shape[1]} servers)"


class System(nn.Module):
    """All networks of one config."""

    def __init__(self, config: Config, *, image_shape: tuple[int, int, int], classes: int) -> None:
        """Build all networks with fresh weights.

        Args:
            config: The run.
            image_shape: Channels, height, width.
            classes: Number of classes, or of attributes.

        Raises:
            TrainingConfigError: The masks want more elements than the feature has, the backbone does not have the
                head's split point, or its patches do not fit the image.
        """
        super().__init__()
        channels, height, width = image_shape
        self.image_shape, self.classes = image_shape, classes
        self.baseline = build_backbone(config.backbone, image_shape, classes)
        self.head = build_head(config.head, self.baseline, channels)
        with torch.no_grad():
            self.head.eval()
            shape = tuple(self.head(torch.zeros(1, channels, height, width, dtype=torch.uint8)).shape[1:])
        servers = config.masks.servers
        self.quantiser = ShareQuantiser(config.masks.levels, servers=servers, learned=config.masks.learned_levels)
        self.masks = OwnerMask(shape, config.masks, seed=config.seed)
        self.family = (
            None
            if config.keys is None
            else PartitionFamily(
                partitions=config.keys.partitions,
                units=self.masks.logits.shape[1],
                per_unit=math.prod(shape) // self.masks.logits.shape[1],
                values=config.masks.values,
                seed=config.seed,
            )
        )
        self.rate = (
            ClassRate(classes=classes, servers=servers, elements=math.prod(shape), levels=config.masks.levels)
            if config.loss.rate
            else None
        )
        # With keyed partitions the branches are told which elements they have: `Encoded.inputs`.
        branch_shape = shape if self.family is None else (2 * shape[0], *shape[1:])
        self.branches = nn.ModuleList(
            build_branch(config, self.baseline, branch_shape, classes) for _ in range(servers)
        )
        self.fusion = (
            AttributeFusion(servers=servers, hidden=config.fusion.hidden)
            if config.data.task == "attributes"
            else Fusion(servers=servers, classes=classes, hidden=config.fusion.hidden)
        )

    def start_from_baseline(self) -> None:
        """Copy the baseline's weights to what is made of the backbone's layers: head, branches, both or neither."""
        start_from(self.baseline, (self.head, *self.branches))

    def encode(
        self, images: Tensor, *, temperature: float = 1.0, noise: float = 0.0, partitions: Tensor | None = None
    ) -> Encoded:
        """What the client sends.

        Args:
            images: uint8 [batch, channels, height, width].
            temperature: Of the masks, while they are not frozen.
            noise: Of the masks, while they are not frozen.
            partitions: Of a keyed system, for every image, int64 [batch]; spread evenly over the family when None.

        Returns:
            The shares, and what made them.
        """
        steps, masks = self.quantiser.steps(self.head(images)), self.masks(temperature, noise)
        if self.family is not None:
            masks = self.family(masks, self.family.spread(len(images)) if partitions is None else partitions)
        return Encoded(steps, masks, self.quantiser(steps) * masks)

    def answer(self, shares: Tensor) -> Tensor:
        """Every server's answer.

        Args:
            shares: float [batch, servers, C, h, w], as `Encoded.inputs`.

        Returns:
            Logits, float [batch, servers, classes].
        """
        return torch.stack([branch(shares[:, server]) for server, branch in enumerate(self.branches)], dim=1)

    def forward(self, images: Tensor, partitions: Tensor | None = None) -> Tensor:
        """Fused answer of all servers.

        Args:
            images: uint8 [batch, channels, height, width].
            partitions: As for `encode`.

        Returns:
            Logits, float [batch, classes].
        """
        logits = self.answer(self.encode(images, partitions=partitions).inputs)
        return self.fusion(logits.float(), torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device))


def start_from(baseline: Backbone, modules: Iterable[nn.Module]) -> None:
    """Copy a baseline's weights to those modules that are made of its layers.

    Args:
        baseline: What they were built from.
        modules: Heads and branches of any kind.
    """
    for module in modules:
        if isinstance(module, BackboneHead | ResNetBranch | VitBranch | CustomBranch):
            module.start_from(baseline)  # pyright: ignore[reportArgumentType]  built from this very baseline


def build_head(config: HeadConfig, baseline: Backbone, image_channels: int, *, mirrored: bool = False) -> Head:
    """The head of a run.

    Args:
        config: Its section.
        baseline: Whose first layers a head of kind "backbone" takes.
        image_channels: Of the image.
        mirrored: Of a compact head: whether its kernels are mirrored pairs.

    Returns:
        The head, with fresh weights or the baseline's.

    Raises:
        TrainingConfigError: The backbone does not have the split point.
    """
    if isinstance(config, BackboneHeadConfig):
        return BackboneHead(baseline, config.split, channels=config.channels, stride=config.stride)
    if isinstance(config, PixelsHeadConfig):
        return PixelHead(image_channels)
    return CompactHead(
        image_channels=image_channels,
        stem=config.stem,
        stages=config.stages,
        channels=config.channels,
        stem_stride=config.stem_stride,
        mirrored=mirrored,
    )


def build_branch(config: BranchedConfig, baseline: Backbone, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """One branch of a run.

    Args:
        config: The run.
        baseline: Whose last layers a branch of kind "backbone" takes.
        shape: Channels, height, width of the feature.
        classes: Number of classes.

    Returns:
        The branch, with fresh weights or the baseline's.
    """
    branch, head = config.branch, config.head
    if isinstance(branch, ResidualBranchConfig):
        return Branch(shape, width=branch.width, blocks=branch.blocks, classes=classes)
    if isinstance(head, BackboneHeadConfig):
        return backbone_branch(baseline, head.split, shape, "head.split")
    return backbone_branch(baseline, branch.split or "", shape, "branch.split")
