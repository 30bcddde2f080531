"""CIFAR ResNets (He et al., arXiv 1512.03385, section 4.2): 6n + 2 layers in three stages of n basic blocks.

Parameter names follow torchvision's ResNet (`conv1`, `bn1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `fc`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.models.normalise import Normalise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

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
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """[batch, inputs, h, w] to [batch, outputs, h / stride, w / stride], float."""
        shortcut = features if self.downsample is None else self.downsample(features)
        features = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(features)) + shortcut)


class CifarResNet(nn.Module):
    """The whole network, from pixels to logits."""

    def __init__(self, *, depth: int, width: int, channels: int, classes: int) -> None:
        """Build the network.

        Args:
            depth: 6n + 2.
            width: Channels of the first stage.
            channels: Of the image.
            classes: Number of logits.
        """
        super().__init__()
        blocks = (depth - 2) // 6
        self.normalise = Normalise(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(
                module, BasicBlock
            ):  # every block starts as the identity (Goyal et al., arXiv 1706.02677, section 5.1)
                nn.init.zeros_(module.bn2.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Classify.

        Args:
            images: uint8 [batch, channels, height, width].

        Returns:
            Logits, float [batch, classes].
        """
        features = self.normalise(images).contiguous(memory_format=torch.channels_last)
        features = F.relu(self.bn1(self.conv1(features)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(features.mean(dim=(2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def cifar_resnet(name: str, *, width: int, channels: int, classes: int) -> CifarResNet:
    """Build a CIFAR ResNet by its usual name.

    Args:
        name: "resnet" and the depth, such as "resnet20".
        width: Channels of the first stage.
        channels: Of the image.
        classes: Number of logits.

    Returns:
        The network with fresh weights.
    """
    return CifarResNet(depth=int(name.removeprefix("resnet")), width=width, channels=channels, classes=classes)
