"""LPIPS: how far apart two images look to a network that was trained on photographs (Zhang et al., arXiv 1801.03924).

Version 0.1 of the measure, on AlexNet. The weights are not part of the project: who has them gives their file, as the
package `lpips` holds them: `safetensors.torch.save_model(lpips.LPIPS(net="alex"), "lpips-alex.safetensors")`.
"""

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.checkpoint import read_tensors
from privdfs_training.errors import AttackError

#: AlexNet's convolutions (Krizhevsky, arXiv 1404.5997): slice and index in the file, kernel's side, stride, padding.
CONVOLUTIONS = ((1, 0, 11, 4, 2), (2, 3, 5, 1, 2), (3, 6, 3, 1, 1), (4, 8, 3, 1, 1), (5, 10, 3, 1, 1))
CHANNELS = (3, 64, 192, 384, 256, 256)
#: Before these the features are pooled, 3 x 3 with stride 2.
POOLED = frozenset({1, 2})
# Mean and deviation of the pixels, in -1..1.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
#: AlexNet's first layers leave nothing of less: smaller images are enlarged to it.
SMALLEST = 64
AT_ONCE = 100


@dataclass(frozen=True)
class Lpips:
    """The measure, with its weights.

    Attributes:
        tensors: By their names in the file.
        sha256: Of the file.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    sha256: str

    def __call__(self, reconstructed: Tensor, images: Tensor) -> Tensor:
        """How far reconstructions are from images.

        Args:
            reconstructed: Float [images, 1 or 3, height, width] in 0..1; under 64 pixels a side they are enlarged,
                bilinearly.
            images: The same.

        Returns:
            Float [images], 0 where equal.
        """
        pairs = zip(reconstructed.split(AT_ONCE), images.split(AT_ONCE), strict=True)
        return torch.cat([self._distance(guess, image) for guess, image in pairs])

    def _distance(self, guess: Tensor, image: Tensor) -> Tensor:
        total = torch.zeros(len(image))
        for layer, (one, other) in enumerate(zip(self._features(guess), self._features(image), strict=True)):
            apart = (F.normalize(one, eps=1e-10) - F.normalize(other, eps=1e-10)).square()
            total += F.conv2d(apart, self.tensors[_linear(layer)]).mean(dim=(1, 2, 3))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        """After each convolution's ReLU."""
        shift, scale = (torch.tensor(values)[None, :, None, None] for values in (SHIFT, SCALE))
        if min(images.shape[2:]) < SMALLEST:
            size = [round(side * SMALLEST / min(images.shape[2:])) for side in images.shape[2:]]
            images = F.interpolate(images, size, mode="bilinear")
        values = (2 * images.expand(-1, 3, -1, -1) - 1 - shift) / scale
        found: list[Tensor] = []
        for layer, (_, _, _, stride, padding) in enumerate(CONVOLUTIONS):
            if layer in POOLED:
                values = F.max_pool2d(values, 3, 2)
            weight, bias = (self.tensors[name] for name in _convolution(layer))
            values = F.relu(F.conv2d(values, weight, bias, stride, padding))
            found.append(values)
        return found


def load_lpips(path: Path) -> Lpips:
    """Open the measure's weights.

    Args:
        path: A safetensors file with the names of the package `lpips`, network "alex"; other tensors are ignored.

    Raises:
        AttackError: Tensors are missing or of another shape; the message says how to make the file.
        CheckpointError: The file is missing or damaged.
    """
    tensors, _ = read_tensors(path)
    expected: dict[str, tuple[int, ...]] = {}
    for layer, (channels, out) in enumerate(pairwise(CHANNELS)):
        side = CONVOLUTIONS[layer][2]
        weight, bias = _convolution(layer)
        expected |= {weight: (out, channels, side, side), bias: (out,), _linear(layer): (1, out, 1, 1)}
    wrong = [name for name, shape in expected.items() if name not in tensors or tensors[name].shape != shape]
    if wrong:
        raise AttackError(
            f"{path} is not LPIPS on AlexNet: {', '.join(wrong[:3])}{' and others' if len(wrong) > 3 else ''} missing "
            "or of another shape. Make it with the package lpips:"
            ' safetensors.torch.save_model(lpips.LPIPS(net="alex"), FILE)'
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Lpips({name: tensors[name].float() for name in expected}, digest)


def _convolution(layer: int) -> tuple[str, str]:
    piece, index, *_ = CONVOLUTIONS[layer]
    return f"net.slice{piece}.{index}.weight", f"net.slice{piece}.{index}.bias"


def _linear(layer: int) -> str:
    return f"lin{layer}.model.1.weight"
