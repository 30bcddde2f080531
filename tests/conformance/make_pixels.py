"""Files about images: encoded pictures to pixels, and resizing alone."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privdfs import ImageError
from privdfs._format import ImageSpec
from privdfs._images import load_image
from tests.conformance.form import VECTORS, tensor

IMAGES = VECTORS / "images"

PIXELS = (
    "Encoded pictures in `images` to pixels [height, width, channels] of a bundle's size, or the error. `browsers` "
    "says how a browser's decoder may differ: not at all (exact), by rounding (close), or it does not read it (none)."
)
RESIZE = (
    "Pixels to pixels of a bundle's size. Pixel (x, y, c) of the input, height x width x channels, is "
    "(x * 7 + y * 13 + c * 29 + x * y * (c + 1) + (x * x + 3 * y) % 11 * 17) % 256."
)

TARGETS = (ImageSpec(height=9, width=8, channels=3), ImageSpec(height=8, width=11, channels=1))
LARGER = (ImageSpec(height=28, width=28, channels=1), ImageSpec(height=32, width=32, channels=3))


def pixels() -> Iterable[dict[str, Any]]:
    for path in sorted(IMAGES.iterdir()):
        for spec in (*TARGETS, LARGER[0]) if path.name.startswith("photo") else TARGETS:
            told: dict[str, Any] = {
                "name": f"{path.name} to {spec.width} x {spec.height} x {spec.channels}",
                "section": _section(path.name),
                "file": f"images/{path.name}",
                "browsers": _browsers(path.name),
            }
            try:
                found = load_image(path.read_bytes(), spec)
            except ImageError as error:
                told |= {"height": spec.height, "width": spec.width, "channels": spec.channels}
                yield told | {"error": type(error).__name__}
                break
            yield told | {"pixels": tensor(found)}


def resize() -> Iterable[dict[str, Any]]:
    sizes = [
        (8, 8),
        (9, 8),
        (8, 9),
        (17, 301),
        (301, 17),
        (97, 61),
        (28, 28),
        (64, 48),
        (1023, 9),
        (500, 333),
        (900, 601),
    ]
    for width, height in sizes:
        for spec in (*TARGETS, *(LARGER if max(width, height) < 600 else ())):
            found = load_image(pattern(width, height, spec.channels), spec)
            yield {
                "name": f"{width} x {height} to {spec.width} x {spec.height} x {spec.channels}",
                "section": "3.4",
                "width": width,
                "height": height,
                "channels": spec.channels,
                "pixels": tensor(found),
            }
    for width, height in ((8, 9), (61, 97)):
        found = load_image(pattern(width, height, 3), TARGETS[1])
        yield {
            "name": f"{width} x {height} in colour to {TARGETS[1].width} x {TARGETS[1].height} in grey",
            "section": "3.3",
            "width": width,
            "height": height,
            "channels": 3,
            "pixels": tensor(found),
        }


def pattern(width: int, height: int, channels: int) -> NDArray[np.uint8]:
    """The pixels that the file's words describe."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    return ((x * 7 + y * 13 + c * 29 + x * y * (c + 1) + (x * x + 3 * y) % 11 * 17) % 256).astype(np.uint8)


def _section(name: str) -> str:
    if name.startswith("turned"):
        return "3.2"
    return "3.3" if name.startswith("colour") else "3.1"


def _browsers(name: str) -> str:
    if name.endswith((".tif", ".ppm")):
        return "none"
    close = ("colour-alpha", "colour-palette-alpha", "colour-16", "colour-cmyk", "damaged")
    return "close" if name.startswith(close) else "exact"
