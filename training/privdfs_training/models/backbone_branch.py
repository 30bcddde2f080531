"""Branches made of the backbone's last layers: where the head left it, every server goes on with its own copy.

A compact head has no layer of the backbone; behind it the config says from which layer on the branches go.
The share's feature is widened to what the backbone has at the split point; a ViT's class token re-enters there.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.models.backbone import Backbone, blocks_before
from privdfs_training.models.custom import CustomBackbone
from privdfs_training.models.custom_cut import CustomBranch
from privdfs_training.models.resnet import ResNet
from privdfs_training.models.vit import VisionTransformer, embed


class ResNetBranch(nn.Module):
    """The remaining blocks and the classifier of a ResNet."""

    def __init__(self, backbone: ResNet, blocks: int, shape: tuple[int, int, int]) -> None:
        """Build the branch with the backbone's present weights.

        Args:
            backbone: The baseline; it is copied, not kept.
            blocks: How many of its blocks come before the branch.
            shape: Channels, height, width of the feature.
        """
        super().__init__()
        self._skipped = blocks
        width = backbone.channels_behind(blocks)
        self.conv1 = nn.Conv2d(shape[0], width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*copy.deepcopy(list(backbone.blocks().values())[blocks:]))
        self.fc = copy.deepcopy(backbone.fc)

    def start_from(self, backbone: ResNet) -> None:
        """Copy the weights of the remaining layers.

        Args:
            backbone: As the one that the branch was built from.
        """
        remaining = list(backbone.blocks().values())[self._skipped :]
        for mine, theirs in zip([*self.blocks, self.fc], [*remaining, backbone.fc], strict=True):
            mine.load_state_dict(theirs.state_dict())

    def forward(self, feature: Tensor) -> Tensor:
        """Classify from one share.

        Args:
            feature: float [batch, channels, height, width], zero where another server or nobody owns.

        Returns:
            Logits, float [batch, classes].
        """
        features = self.blocks(F.relu(self.bn1(self.conv1(feature))))
        return self.fc(features.mean(dim=(2, 3)))


class VitBranch(nn.Module):
    """The remaining blocks and the classifier of a ViT, with a class token and positions of its own."""

    def __init__(self, backbone: VisionTransformer, blocks: int, shape: tuple[int, int, int]) -> None:
        """Build the branch with the backbone's present weights.

        Args:
            backbone: The baseline; it is copied, not kept.
            blocks: How many of its blocks come before the branch.
            shape: Channels, height, width of the feature.
        """
        super().__init__()
        channels, self._height, self._width = shape
        self._skipped = blocks
        self.cls_token = nn.Parameter(torch.zeros_like(backbone.cls_token))
        self.pos_embed = nn.Parameter(torch.zeros(1, self._height * self._width + 1, backbone.width))
        self.widen = nn.Conv2d(channels, backbone.width, 1)
        self.blocks = nn.Sequential(*copy.deepcopy(list(backbone.blocks)[blocks:]))
        self.norm = copy.deepcopy(backbone.norm)
        self.head = copy.deepcopy(backbone.head)
        self.start_from(backbone)

    def start_from(self, backbone: VisionTransformer) -> None:
        """Copy the weights of the remaining layers, the class token and, averaged where the grid is coarser, positions.

        Args:
            backbone: As the one that the branch was built from.
        """
        mine, theirs = [*self.blocks, self.norm, self.head], [*backbone.blocks, backbone.norm, backbone.head]
        for part, source in zip(mine, theirs[self._skipped :], strict=True):
            part.load_state_dict(source.state_dict())
        with torch.no_grad():
            self.cls_token.copy_(backbone.cls_token)
            positions = backbone.pos_embed[:, 1:].transpose(1, 2).unflatten(2, backbone.grid)
            positions = F.adaptive_avg_pool2d(positions, (self._height, self._width)).flatten(2).transpose(1, 2)
            self.pos_embed.copy_(torch.cat([backbone.pos_embed[:, :1], positions], dim=1))

    def forward(self, feature: Tensor) -> Tensor:
        """Classify from one share.

        Args:
            feature: float [batch, channels, height, width], zero where another server or nobody owns.

        Returns:
            Logits, float [batch, classes].
        """
        tokens = self.blocks(embed(self.widen(feature), self.cls_token, self.pos_embed))
        return self.head(self.norm(tokens)[:, 0])


def backbone_branch(
    backbone: Backbone, split: str, shape: tuple[int, int, int], key: str
) -> ResNetBranch | VitBranch | CustomBranch:
    """Build the branch that has the backbone's layers behind a split point.

    Args:
        backbone: The baseline; it is copied, not kept.
        split: The last layer that the branch leaves out.
        shape: Channels, height, width of the feature.
        key: What the config calls the split point, for messages.

    Returns:
        A network from one share, put back in place, to logits.

    Raises:
        TrainingConfigError: The backbone has no such split point.
    """
    if isinstance(backbone, CustomBackbone):
        return CustomBranch(backbone, split, shape, key)
    blocks = blocks_before(backbone, split, key)
    if isinstance(backbone, ResNet):
        return ResNetBranch(backbone, blocks, shape)
    return VitBranch(backbone, blocks, shape)
