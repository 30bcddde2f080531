"""From whatever an application calls an image to uint8 HWC of the bundle's size.

The steps, always in this order: open (only the formats below, only the first frame) -> refuse by size, before a pixel
is decoded -> apply the EXIF rotation -> 8 bits a channel -> composite transparency on white, as a page would show it ->
grey or RGB as the bundle says -> resize to the bundle's size (bilinear with antialiasing, aspect ratio not kept). An
array that already has the bundle's shape is passed through untouched.
"""

import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from privdfs._constants import MAX_ENCODED_BYTES, MAX_PIXELS, MIN_SIDE
from privdfs._errors import ImageError
from privdfs._given import shown
from privdfs._manifest import ImageSpec

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageLike: TypeAlias = "Image.Image | npt.NDArray[Any] | str | os.PathLike[str] | bytes | bytearray | memoryview"

#: The decoders that untrusted bytes may reach.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SIXTEEN_BIT = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_ACCEPTED = "pass a PIL image, a uint8 array (HW or HWC), a path, or the bytes of an image file"


def load_image(image: ImageLike, spec: ImageSpec) -> Pixels:
    """Bring one image to the bundle's size.

    Args:
        image: PIL image, uint8 array (HW, or HWC with 1, 3 or 4 channels), path, or the bytes of an image file.
        spec: the bundle's image size.

    Returns:
        uint8 [height, width, channels] of `spec`, C-contiguous.

    Raises:
        ImageError: it is no image, damaged, too small, too large, or of a type that would have to be guessed at.
    """
    if isinstance(image, np.ndarray):
        array: npt.NDArray[Any] = image
        _check_array(array)
        if array.shape == (spec.height, spec.width, spec.channels):
            return np.ascontiguousarray(array)
        return _convert(_from_array(array), spec)
    if isinstance(image, Image.Image):
        _check_size(image.size)
        return _decoded(lambda: _convert(image, spec))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _load_encoded(bytes(image), spec)
    if isinstance(image, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
        return _load_encoded(_read(Path(image)), spec)
    raise ImageError(f"a {type(image).__name__} is not an image: {_ACCEPTED}")


def load_images(images: Iterable[ImageLike], spec: ImageSpec) -> Pixels:
    """Bring several images to the bundle's size.

    Returns:
        uint8 [batch, height, width, channels], batch >= 1.

    Raises:
        ImageError: there is none, or one cannot be used (the message names its position).
    """
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)):
        raise ImageError("one image was given where several are expected: use predict(image), or pass a list of images")
    try:
        sequence = list(images)
    except TypeError as error:
        raise ImageError(
            f"a {type(images).__name__} is not a list of images: pass a list, each item as predict() takes it"
        ) from error
    if not sequence:
        raise ImageError("the batch is empty: pass at least one image")
    loaded: list[Pixels] = []
    for position, image in enumerate(sequence):
        try:
            loaded.append(load_image(image, spec))
        except ImageError as error:
            raise ImageError(f"image {position} of the batch: {error.message}") from error
    return np.stack(loaded)


def _check_array(array: npt.NDArray[Any]) -> None:
    if array.dtype != np.uint8:
        if np.issubdtype(array.dtype, np.floating) and array.size and not np.isfinite(array).all():
            msg = "the array holds NaN or infinite values: look for the fault upstream; images are uint8, 0 to 255"
        else:
            msg = f"the array is {array.dtype}, images are uint8: scale it to 0..255 and convert with .astype('uint8')"
        raise ImageError(msg)
    is_grey = array.ndim == 2
    if not is_grey and not (array.ndim == 3 and array.shape[2] in {1, 3, 4}):
        raise ImageError(
            f"an array of shape {array.shape} is not an image: pass HW, or HWC with 1, 3 or 4 channels "
            "(transpose CHW first; pass a batch to predict_batch)"
        )
    _check_size((array.shape[1], array.shape[0]))


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"the image is {width} x {height} pixels, smaller than {MIN_SIDE} on a side: pass a larger one"
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"the image is {width} x {height}, more than {MAX_PIXELS} pixels: crop it or scale it down first"
        )


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    """HW, HW1, HW3 or HW4 to L, L, RGB or RGBA."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ImageError(f"there is no image file at {shown(path)}: check the path")
        size = path.stat().st_size
        if size > MAX_ENCODED_BYTES:
            raise ImageError(_too_many_bytes(size))
        return path.read_bytes()
    except (OSError, ValueError) as error:  # it names the path, in the place of which an image may have been passed
        problem = type(error).__name__
    raise ImageError(f"{shown(path)} cannot be read ({problem}): check the path and its permissions")


def _too_many_bytes(size: int) -> str:
    return f"the image file has {size} bytes, more than {MAX_ENCODED_BYTES}: scale the image down first"


def _load_encoded(data: bytes, spec: ImageSpec) -> Pixels:
    if len(data) > MAX_ENCODED_BYTES:
        raise ImageError(_too_many_bytes(len(data)))
    opened = _open(data)
    _check_size(opened.size)
    return _decoded(lambda: _convert(opened, spec))


def _open(data: bytes) -> Image.Image:
    """Read the header of an image file.

    `Image.open` warns of, or refuses, large images by limits that are global to the process; the registered decoders
    are called directly, so that the limits of this package hold, and no other code's settings or warnings are involved.
    """
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        try:
            if factory is not None and (accept is None or accept(data[:16]) is True):
                opened: Image.Image = factory(io.BytesIO(data), "")
                return opened
        except Exception:  # noqa: BLE001, S112 - decoders raise anything on foreign bytes; the next format is tried
            continue
    raise ImageError(
        f"the bytes are not an image this package reads ({', '.join(FORMATS)}), or are damaged: {_ACCEPTED}"
    )


def _decoded(convert: Callable[[], Pixels]) -> Pixels:
    """Run a conversion that decodes pixels; whatever a decoder raises on damaged data becomes an ImageError."""
    try:
        return convert()
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"the image cannot be decoded ({type(error).__name__}): it is truncated or damaged; get the file again"
        ) from error


def _convert(image: Image.Image, spec: ImageSpec) -> Pixels:
    """Decoded image of any supported mode to uint8 HWC of the bundle's size."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _SIXTEEN_BIT:
        upright = Image.fromarray(_to_eight_bits(np.asarray(upright)))
    elif upright.mode in {"I", "F"}:
        raise ImageError(
            f"images of mode {upright.mode!r} have no fixed range of values: convert it to 8 bits a channel first"
        )
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    flat = upright.convert("L" if spec.channels == 1 else "RGB")
    if flat.size != (spec.width, spec.height):
        flat = flat.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    return np.reshape(np.asarray(flat, dtype=np.uint8), (spec.height, spec.width, spec.channels))


def _to_eight_bits(values: npt.NDArray[Any]) -> Pixels:
    """uint16 (either byte order) to uint8: 0..65535 becomes 0..255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
