"""The system of one release: baseline, head, masks, branches and fusion."""

import torch
from torch import Tensor, nn

from privdfs_training.config import Config
from privdfs_training.masks import OwnerMask
from privdfs_training.models.branch import Branch
from privdfs_training.models.fusion import Fusion
from privdfs_training.models.head import CompactHead
from privdfs_training.models.resnet import cifar_resnet
from privdfs_training.quantise import ShareQuantiser


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
            image_channels=channels, stem=config.head.stem, stages=config.head.stages, channels=config.head.channels
        )
        with torch.no_grad():
            self.head.eval()
            shape = tuple(self.head(torch.zeros(1, channels, height, width, dtype=torch.uint8)).shape[1:])
        self.quantiser = ShareQuantiser(config.masks.levels)
        self.masks = OwnerMask(shape, servers=config.masks.servers, values=config.masks.values)
        self.branches = nn.ModuleList(
            Branch(shape, width=config.branch.width, blocks=config.branch.blocks, classes=classes)
            for _ in range(config.masks.servers)
        )
        self.fusion = Fusion(servers=config.masks.servers, classes=classes, hidden=config.fusion.hidden)

    def answer(self, images: Tensor, *, temperature: float = 1.0, noise: float = 0.0) -> Tensor:
        """Every server's answer.

        Args:
            images: uint8 [batch, channels, height, width].
            temperature: Of the masks, while they are not frozen.
            noise: Of the masks, while they are not frozen.

        Returns:
            Logits, float [batch, servers, classes].
        """
        feature, masks = self.quantiser(self.head(images)), self.masks(temperature, noise)
        answers = [branch(feature * mask) for branch, mask in zip(self.branches, masks, strict=True)]
        return torch.stack(answers, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Fused answer of all servers.

        Args:
            images: uint8 [batch, channels, height, width].

        Returns:
            Logits, float [batch, classes].
        """
        logits = self.answer(images)
        return self.fusion(logits.float(), torch.ones(logits.shape[:2], dtype=torch.bool))
