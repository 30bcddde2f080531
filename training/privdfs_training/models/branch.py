"""One server's network: its share, put back in place, to logits."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.models.resnet import BasicBlock


class Branch(nn.Module):
    """A residual network on the feature's grid. It ends in a full layer, not in a mean, since position matters here."""

    def __init__(self, shape: tuple[int, int, int], *, width: int, blocks: int, classes: int) -> None:
        """Build the branch.

        Args:
            shape: Channels, height, width of the feature.
            width: Channels inside.
            blocks: Residual blocks.
            classes: Number of logits.
        """
        super().__init__()
        channels, height, grid_width = shape
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(BasicBlock(width, width, 1) for _ in range(blocks)))
        self.fc = nn.Linear(width * height * grid_width, classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Classify from one share.

        Args:
            feature: float [batch, channels, height, width], zero where another server or nobody owns.

        Returns:
            Logits, float [batch, classes].
        """
        feature = F.relu(self.bn1(self.conv1(feature)))
        return self.fc(torch.flatten(self.blocks(feature), 1))
