"""The arithmetic of docs/PROTOCOL.md as a stranger would write it down: no Pillow, plain integers."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: Bits behind the point of a weight.
BITS = 22


def resized(pixels: NDArray[np.uint8], width: int, height: int, channels: int) -> NDArray[np.uint8]:
    """Pixels [h, w, 1 or 3] to [height, width, channels]: grey first, then horizontally, then vertically."""
    if channels == 1 and pixels.shape[2] == 3:
        red, green, blue = (pixels[:, :, [i]].astype(np.int64) for i in range(3))
        pixels = ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).astype(np.uint8)
    if pixels.shape[1] != width:
        pixels = _along(pixels.transpose(1, 0, 2), width).transpose(1, 0, 2)
    if pixels.shape[0] != height:
        pixels = _along(pixels, height)
    return pixels


def _along(lines: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Along the first axis."""
    made = np.empty((size, *lines.shape[1:]), np.uint8)
    for place, (first, weights) in enumerate(_weights(len(lines), size)):
        total = np.full(lines.shape[1:], 1 << (BITS - 1), np.int64)
        for offset, weight in enumerate(weights):
            total += weight * lines[first + offset].astype(np.int64)
        made[place] = np.clip(total >> BITS, 0, 255)
    return made


def _weights(before: int, after: int) -> Sequence[tuple[int, list[int]]]:
    """For each place, the first input that counts and the weights from there on."""
    scale = before / after
    reach = max(scale, 1.0)
    rows: list[tuple[int, list[int]]] = []
    for place in range(after):
        centre = (place + 0.5) * scale
        first = max(0, math.trunc(centre - reach + 0.5))
        end = min(before, math.trunc(centre + reach + 0.5))
        shares = [max(0.0, 1.0 - abs((each - centre + 0.5) * (1.0 / reach))) for each in range(first, end)]
        total = sum(shares)
        rows.append((first, [math.trunc(0.5 + share / total * (1 << BITS)) for share in shares]))
    return rows
