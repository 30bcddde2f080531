"""Residual networks (He et al., arXiv 1512.03385) with torchvision's parameter names, so that its weights load.

CIFAR ResNets are section 4.2's: 6n + 2 layers in three stages of n basic blocks. ResNet-18, 34 and 50 are table 1's;
their stem is that of the paper ("imagenet": 7x7, stride 2, max-pool) or one for small images ("cifar": 3x3, neither).
Bottleneck blocks have their stride in the 3x3 convolution, as torchvision's.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.models.normalise import Normalise

Stem = Literal["cifar", "imagenet"]

WIDTH = 64  # of the first stage of ResNet-18, 34 and 50


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1  # channels out, relative to those inside

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build one block.

        Args:
            inputs: Channels in.
            outputs: Channels out.
            stride: Of the first convolution and of the shortcut.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def units(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """The convolutions of the main path with their normalisations, in order; a ReLU follows all but the last."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, h, w] to [batch, outputs, h / stride, w / stride], float."""
        shortcut = features if self.downsample is None else self.downsample(features)
        features = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(features)) + shortcut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 convolutions, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build one block.

        Args:
            inputs: Channels in.
            outputs: Channels out; a quarter of them inside.
            stride: Of the 3x3 convolution and of the shortcut.
        """
        super().__init__()
        inside = outputs // self.expansion
        self.conv1 = nn.Conv2d(inputs, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def units(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """As of `BasicBlock`."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, h, w] to [batch, outputs, h / stride, w / stride], float."""
        shortcut = features if self.downsample is None else self.downsample(features)
        features = F.relu(self.bn1(self.conv1(features)))
        features = F.relu(self.bn2(self.conv2(features)))
        return F.relu(self.bn3(self.conv3(features)) + shortcut)


class ResNet(nn.Module):
    """The whole network, from pixels to logits."""

    def __init__(
        self,
        *,
        block: type[BasicBlock | Bottleneck],
        blocks: tuple[int, ...],
        width: int,
        stem: Stem,
        channels: int,
        classes: int,
    ) -> None:
        """Build the network.

        Args:
            block: Kind of all blocks.
            blocks: Number of blocks in each stage; every stage but the first halves height and width.
            width: Channels of the stem and inside the first stage; every further stage has twice as many.
            stem: Of the paper, or for small images.
            channels: Of the image.
            classes: Number of logits.
        """
        super().__init__()
        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.normalise = Normalise(channels)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        inputs, outputs = width, width * block.expansion
        for stage, count in enumerate(blocks):
            layer = nn.Sequential()
            for index in range(count):
                layer.append(block(inputs, outputs, 2 if stage and not index else 1))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", layer)
            outputs *= 2
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock | Bottleneck):
                # Every block starts as the identity (Goyal et al., arXiv 1706.02677, section 5.1).
                nn.init.zeros_(module.units()[-1][1].weight)

    def blocks(self) -> dict[str, BasicBlock | Bottleneck]:
        """All blocks in order, by their names, such as "layer2.0"."""
        return {name: module for name, module in self.named_modules() if isinstance(module, BasicBlock | Bottleneck)}

    def channels_behind(self, blocks: int) -> int:
        """Channels of the feature behind the stem and so many blocks."""
        chosen = list(self.blocks().values())[:blocks]
        return chosen[-1].units()[-1][0].out_channels if chosen else self.conv1.out_channels

    def forward(self, images: Tensor) -> Tensor:
        """Classify.

        Args:
            images: uint8 [batch, channels, height, width].

        Returns:
            Logits, float [batch, classes].
        """
        features = self.normalise(images).contiguous(memory_format=torch.channels_last)
        features = self.maxpool(F.relu(self.bn1(self.conv1(features))))
        for block in self.blocks().values():
            features = block(features)
        return self.fc(features.mean(dim=(2, 3)))


def cifar_resnet(name: str, *, width: int, channels: int, classes: int) -> ResNet:
    """Build a CIFAR ResNet by its usual name.

    Args:
        name: "resnet" and the depth 6n + 2, such as "resnet20".
        width: Channels of the first stage.
        channels: Of the image.
        classes: Number of logits.

    Returns:
        The network with fresh weights.
    """
    blocks = (int(name.removeprefix("resnet")) - 2) // 6
    return ResNet(block=BasicBlock, blocks=(blocks,) * 3, width=width, stem="cifar", channels=channels, classes=classes)


def resnet(name: str, *, stem: Stem, channels: int, classes: int) -> ResNet:
    """Build one of the larger networks.

    Args:
        name: "resnet18", "resnet34" or "resnet50".
        stem: Of the paper, or for small images.
        channels: Of the image.
        classes: Number of logits.

    Returns:
        The network with fresh weights.
    """
    block = Bottleneck if name == "resnet50" else BasicBlock
    blocks = (2, 2, 2, 2) if name == "resnet18" else (3, 4, 6, 3)
    return ResNet(block=block, blocks=blocks, width=WIDTH, stem=stem, channels=channels, classes=classes)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
