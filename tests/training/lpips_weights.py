"""Weights of LPIPS's shapes that any program can make again."""

import torch
from torch import Tensor

SHAPES = {
    "net.slice1.0": (64, 3, 11, 11),
    "net.slice2.3": (192, 64, 5, 5),
    "net.slice3.6": (384, 192, 3, 3),
    "net.slice4.8": (256, 384, 3, 3),
    "net.slice5.10": (256, 256, 3, 3),
}


def scattered(shape: tuple[int, ...], scale: float) -> Tensor:
    """Numbers between -scale and scale that any program can make again."""
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((((at + 1) * 12.9898).sin() * 43758.5453 % 1 - 0.5) * 2 * scale).float().reshape(shape)


def weights() -> dict[str, Tensor]:
    tensors = {}
    for layer, (name, shape) in enumerate(SHAPES.items()):
        tensors[f"{name}.weight"] = scattered(shape, (6 / (shape[1] * shape[2] * shape[3])) ** 0.5)
        tensors[f"{name}.bias"] = scattered(shape[:1], 0.1)
        tensors[f"lin{layer}.model.1.weight"] = scattered((1, shape[0], 1, 1), 1).abs()
    return tensors
