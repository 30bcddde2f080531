"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929; Tiny and Small: Touvron et al., 2012.12877, table 1).

Parameter names are timm's (`cls_token`, `pos_embed`, `patch_embed.proj`, `blocks.0.attn.qkv`, `head`), so that its
weights load.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.models.normalise import Normalise

SIZES = {"vit-tiny": (192, 3), "vit-small": (384, 6), "vit-base": (768, 12)}  # width and attention heads
EPSILON = 1e-6  # of the layer normalisations; timm's


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, linear: type[nn.Linear]) -> None:
        """Build it.

        Args:
            width: Of a token.
            heads: A divisor of the width.
            linear: Class of the projections.
        """
        super().__init__()
        self._heads = heads
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens, width] to the same, float."""
        # Plain integers, so that an exported graph computes no shapes at run time; the same for the scale.
        count, width = int(tokens.shape[1]), int(tokens.shape[2])
        size = width // self._heads
        parts = self.qkv(tokens).view(-1, count, 3, self._heads, size).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], scale=size**-0.5)
        return self.proj(mixed.transpose(1, 2).reshape(-1, count, width))


class Mlp(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, width: int, linear: type[nn.Linear]) -> None:
        """Build it.

        Args:
            width: Of a token.
            linear: Class of the layers.
        """
        super().__init__()
        self.fc1 = linear(width, 4 * width)
        self.fc2 = linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens, width] to the same, float."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Attention and a small network per token, each on normalised tokens and with a shortcut."""

    def __init__(self, width: int, heads: int, linear: type[nn.Linear] = nn.Linear) -> None:
        """Build one block.

        Args:
            width: Of a token.
            heads: Of the attention.
            linear: Class of all linear layers.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, heads, linear)
        self.norm2 = nn.LayerNorm(width, EPSILON)
        self.mlp = Mlp(width, linear)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, tokens, width] to the same, float."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class PatchEmbed(nn.Module):
    """One convolution that turns every patch into a token."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        """Build it.

        Args:
            channels: Of the image.
            width: Of a token.
            patch: Height and width of a patch, in pixels.
        """
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, channels, h, w] to [batch, width, h / patch, w / patch], float."""
        return self.proj(pixels)


class VisionTransformer(nn.Module):
    """The whole network, from pixels to logits."""

    def __init__(
        self, *, width: int, heads: int, depth: int, patch: int, image_shape: tuple[int, int, int], classes: int
    ) -> None:
        """Build the network.

        Args:
            width: Of a token.
            heads: Of the attention.
            depth: Number of blocks.
            patch: Height and width of a patch, in pixels.
            image_shape: Channels, height, width; both sides are multiples of the patch.
            classes: Number of logits.
        """
        super().__init__()
        channels, height, image_width = image_shape
        self.width, self.heads, self.grid = width, heads, (height // patch, image_width // patch)
        count = self.grid[0] * self.grid[1]
        self.normalise = Normalise(channels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, count + 1, width))
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.head = nn.Linear(width, classes)
        start(self)

    def forward(self, images: Tensor) -> Tensor:
        """Classify.

        Args:
            images: uint8 [batch, channels, height, width].

        Returns:
            Logits, float [batch, classes].
        """
        tokens = embed(self.patch_embed(self.normalise(images)), self.cls_token, self.pos_embed)
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def start(module: nn.Module) -> None:
    """Give fresh weights, as the papers do: normal with standard deviation 0.02, cut off; biases zero.

    Args:
        module: Its linear layers are started, and its position embedding and class token if it has them.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    for name, value in module.named_parameters():
        if name in ("pos_embed", "cls_token"):
            nn.init.trunc_normal_(value, std=0.02)


def embed(grid: Tensor, class_token: Tensor, positions: Tensor) -> Tensor:
    """Flatten a grid of tokens, put the class token first and add the positions.

    Args:
        grid: float [batch, width, h, w].
        class_token: float [1, 1, width].
        positions: float [1, 1 + h * w, width].

    Returns:
        float [batch, 1 + h * w, width].
    """
    tokens = grid.reshape(-1, int(grid.shape[1]), int(grid.shape[2]) * int(grid.shape[3])).transpose(1, 2)
    # The class token joins the positions, which do not depend on the batch, so an exported graph adds one constant.
    constant = torch.cat([class_token + positions[:, :1], positions[:, 1:]], dim=1)
    return F.pad(tokens, (0, 0, 1, 0)) + constant


def vit(name: str, *, patch: int, depth: int, image_shape: tuple[int, int, int], classes: int) -> VisionTransformer:
    """Build a vision transformer by its usual name.

    Args:
        name: "vit-tiny", "vit-small" or "vit-base".
        patch: Height and width of a patch, in pixels.
        depth: Number of blocks; 12 in the papers.
        image_shape: Channels, height, width.
        classes: Number of logits.

    Returns:
        The network with fresh weights.
    """
    width, heads = SIZES[name]
    return VisionTransformer(
        width=width, heads=heads, depth=depth, patch=patch, image_shape=image_shape, classes=classes
    )
