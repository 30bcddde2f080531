"""All backbones by name, and the points at which one can be cut into a head and branches."""

from privdfs_training.config import BackboneConfig, CustomConfig, ImageNetResNetConfig, VitConfig
from privdfs_training.errors import TrainingConfigError
from privdfs_training.models.custom import CustomBackbone, custom_backbone
from privdfs_training.models.resnet import ResNet, cifar_resnet, resnet
from privdfs_training.models.vit import VisionTransformer, vit

NamedBackbone = ResNet | VisionTransformer
Backbone = NamedBackbone | CustomBackbone


def build_backbone(config: BackboneConfig, image_shape: tuple[int, int, int], classes: int) -> Backbone:
    """Build a backbone with fresh weights.

    Args:
        config: Name and size.
        image_shape: Channels, height, width.
        classes: Number of logits.

    Returns:
        A network from uint8 images [batch, channels, height, width] to logits [batch, classes].

    Raises:
        TrainingConfigError: The patches do not divide the image, or a model of the user's own cannot be used.
    """
    channels, height, width = image_shape
    if isinstance(config, CustomConfig):
        return custom_backbone(config, image_shape, classes)
    if isinstance(config, VitConfig):
        if height % config.patch or width % config.patch:
            message = (
                f"backbone.patch is {config.patch}, but images have {height} x {width} pixels. Take a patch that "
                "divides both."
            )
            raise TrainingConfigError(message)
        return vit(config.name, patch=config.patch, depth=config.depth, image_shape=image_shape, classes=classes)
    if isinstance(config, ImageNetResNetConfig):
        return resnet(config.name, stem=config.stem, channels=channels, classes=classes)
    return cifar_resnet(config.name, width=config.width, channels=channels, classes=classes)


def split_points(backbone: NamedBackbone) -> tuple[str, ...]:
    """Where a backbone can be cut: names of its layers in order; a cut is behind the named layer.

    Args:
        backbone: What `build_backbone` gave.

    Returns:
        For a ResNet "stem", "layer1.0", "layer1.1", …; for a ViT "patch_embed", "blocks.0", ….
    """
    if isinstance(backbone, ResNet):
        return ("stem", *backbone.blocks())
    return ("patch_embed", *(f"blocks.{index}" for index in range(len(backbone.blocks))))


def blocks_before(backbone: NamedBackbone, split: str, key: str) -> int:
    """How many blocks lie before a split point.

    Args:
        backbone: What is cut.
        split: One of `split_points`.
        key: What the config calls the split point, for messages.

    Returns:
        0 for the stem or the patches alone.

    Raises:
        TrainingConfigError: There is no such point; the message lists those that exist.
    """
    points = split_points(backbone)
    if split not in points:
        message = f"{key} is {split!r}, which this backbone does not have. Its split points: {', '.join(points)}."
        raise TrainingConfigError(message)
    return points.index(split)
