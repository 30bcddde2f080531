"""The shipped test images as tensors, and a bad reconstruction of them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image


def shipped_images() -> torch.Tensor:
    """The 20 shipped images by name, uint8 [20, 1, 28, 28]."""
    paths = sorted((Path(__file__).parents[2] / "examples" / "images").glob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])[:, None]


def shifted_and_pale(images: torch.Tensor) -> torch.Tensor:
    """A bad reconstruction that other programs can make too."""
    return 0.6 * torch.roll(images.float() / 255, (1, 2), (2, 3)) + 0.1
