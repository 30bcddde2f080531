"""Prints Pillow's version and digests of what the SDK makes of known images: run under several versions of Pillow."""

import hashlib
import io
import json
import sys

import numpy as np
import PIL
from PIL import Image

from privdfs._format import ImageSpec
from privdfs._images import load_image

SIZES = ((40, 30), (30, 240), (240, 30), (9, 301), (301, 9), (100, 120), (64, 8), (8, 64), (10, 200), (200, 12))
MODES = ("RGB", "L", "RGBA", "LA", "P", "CMYK", "1")
SPECS = (ImageSpec(height=12, width=10, channels=3), ImageSpec(height=32, width=48, channels=1))


def pictures() -> list[tuple[str, Image.Image]]:
    """Noise in every shape, and a tall and a wide one in every mode."""
    chance = np.random.default_rng(7)
    made = [
        (f"{width}x{height}", Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)))
        for width, height in SIZES
    ]
    # Made without conversions of Pillow's, so that the inputs are the same in every version.
    for mode in MODES:
        for width, height in ((33, 250), (250, 33)):
            size = len(Image.new(mode, (width, height)).tobytes())
            image = Image.frombytes(mode, (width, height), chance.bytes(size))
            if mode == "P":
                image.putpalette(chance.bytes(768))
            made.append((f"{mode} {width}x{height}", image))
    return made


def digests() -> dict[str, str]:
    found = {}
    for name, image in pictures():
        whole = hashlib.sha256()
        for spec in SPECS:
            whole.update(load_image(image, spec).tobytes())
        if image.mode == "RGB":  # also as a file, which the decoders of that version read
            file = io.BytesIO()
            image.save(file, "PNG")
            whole.update(load_image(file, SPECS[0]).tobytes())
        found[name] = whole.hexdigest()[:16]
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"version": PIL.__version__, "digests": digests()}))
