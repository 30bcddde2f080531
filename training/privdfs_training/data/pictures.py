"""Encoded pictures to uint8 arrays. A box function says which part of a picture becomes the image."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from privdfs_training.errors import DataError

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the picture."""
BoxOf: TypeAlias = Callable[[int, int, np.random.Generator], Box]
"""Width and height of a picture, and where chance comes from, to a box."""

TEST_CROP = 224 / 256  # share of the short side that ImageNet's usual test crop keeps
AREA = (0.08, 1.0)  # of a random crop, as a share of the picture
RATIO = (3 / 4, 4 / 3)  # width by height of a random crop
ATTEMPTS = 10


def centre_square(width: int, height: int, _random: np.random.Generator) -> Box:
    """The largest square in the middle."""
    return _centre(width, height, min(width, height))


def centre_crop(width: int, height: int, _random: np.random.Generator) -> Box:
    """ImageNet's usual test crop: the middle 224 pixels of a picture whose short side was resized to 256."""
    return _centre(width, height, TEST_CROP * min(width, height))


def random_resized_crop(width: int, height: int, random: np.random.Generator) -> Box:
    """ImageNet's usual training crop: a random part of the area, at a random aspect ratio.

    Szegedy et al., arXiv 1409.4842, section 6, with the ranges that public training recipes agree on. A picture so
    narrow that no draw fits gives the largest part in its middle whose ratio is in range.

    Args:
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        random: Where chance comes from.

    Returns:
        The box, in whole pixels.
    """
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = (int(random.integers(0, room + 1)) for room in (width - wide, height - high))
            return left, top, left + wide, top + high
    wide, high = min(width, height * RATIO[1]), min(height, width / RATIO[0])
    left, top = (width - wide) / 2, (height - high) / 2
    return left, top, left + wide, top + high


def decode(content: bytes, where: str, size: int, box_of: BoxOf, random: np.random.Generator) -> NDArray[np.uint8]:
    """One encoded picture to an image.

    Args:
        content: Of the file: JPEG or PNG, grey and CMYK too.
        where: The file, for messages.
        size: Height and width of the image, in pixels.
        box_of: Which part of the picture to take; it is resized (bilinear, antialiased) in one go.
        random: Passed on to `box_of`.

    Returns:
        uint8 [size, size, 3].

    Raises:
        DataError: The bytes are not a complete picture.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
            colour = picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's decoders raise
        reason = "it is empty" if not content else str(error) if isinstance(error, OSError) else type(error).__name__
        # Pillow names the buffer it read from by its address, which helps nobody.
        reason = "it is neither JPEG nor PNG" if "cannot identify" in reason else reason
        raise DataError(
            f"{where} is not a complete picture: {reason}. Get this file again from where it came from."
        ) from error
    width, height = colour.size
    image = colour.resize((size, size), Image.Resampling.BILINEAR, box=box_of(width, height, random))
    return np.asarray(image)


def read_file(path: Path, how_to_get: str) -> bytes:
    """The content of a picture's file.

    Args:
        path: The file.
        how_to_get: Ends the message.

    Returns:
        Its bytes.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. {how_to_get}") from error


def _centre(width: int, height: int, side: float) -> Box:
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side
