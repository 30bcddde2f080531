"""Turns whatever an application passes as an image into uint8 HWC of the bundle's size.

The steps, always in this order: open (only the formats of `_pillow.py`, only the first frame; of a PIL image the frame
that it stands at) -> refuse by size, before a pixel is decoded -> make it upright (EXIF, XMP) -> 8 bits a channel ->
composite transparency on white, as a page would show it -> grey or RGB as the bundle says -> resize to the bundle's
size (bilinear with antialiasing, horizontal first, aspect ratio not kept). An array that already has the bundle's shape
is passed through untouched.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from privdfs._constants import MAX_ENCODED_BYTES, MAX_PIXELS, MIN_SIDE
from privdfs._errors import ImageError
from privdfs._format import ImageSpec
from privdfs._given import shown
from privdfs._pillow import FORMATS, lock_of, open_image, resize, upright, upright_copy

Pixels: TypeAlias = npt.NDArray[np.uint8]
ImageLike: TypeAlias = (
    "Image.Image | npt.NDArray[Any] | str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]"
)

_SIXTEEN_BIT = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_ACCEPTED = "pass a PIL image, a uint8 array (HW or HWC), a path, an open binary file, or the bytes of an image file"
_CHANNELS = frozenset({1, 3, 4})
_BLOCK_BYTES = 1024 * 1024


def load_image(image: ImageLike, spec: ImageSpec) -> Pixels:
    """Bring one image to the bundle's size.

    Args:
        image: PIL image, uint8 array (HW, or HWC with 1, 3 or 4 channels), path, open binary file, or the bytes of an
            image file.
        spec: the bundle's image size.

    Returns:
        uint8 [height, width, channels] of `spec`, C-contiguous.

    Raises:
        ImageError: it is not an image, damaged, too small, too large, or its meaning is ambiguous.
    """
    if isinstance(image, np.ndarray):
        array: npt.NDArray[Any] = image
        if hasattr(array, "filled"):  # of numpy.ma, which takes milliseconds to import
            raise ImageError("a masked array still holds the pixels that it masks: pass array.filled(0), or array.data")
        _check_array(array)
        if array.shape == (spec.height, spec.width, spec.channels):
            return np.ascontiguousarray(array)
        return _convert(_from_array(array), spec)
    if isinstance(image, Image.Image):
        _check_size(image.size)
        return _convert(upright_copy(image), spec)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _load_encoded(bytes(image), spec)
    if isinstance(image, (str, os.PathLike)):
        return _load_encoded(_read_path(os.fsdecode(image)), spec)
    if hasattr(image, "read"):
        return _load_encoded(_read_file(image), spec)
    raise ImageError(f"a {type(image).__name__} is not an image: {_ACCEPTED}")


def load_images(images: Iterable[ImageLike], spec: ImageSpec) -> Pixels:
    """Bring several images to the bundle's size.

    Args:
        images: each as `load_image` takes it; or one uint8 array, NHWC or NHW.
        spec: the bundle's image size.

    Returns:
        uint8 [batch, height, width, channels], batch >= 1.

    Raises:
        ImageError: there is none, or one cannot be used (the message names its position).
    """
    is_one = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)) or hasattr(
        images, "read"
    )
    if is_one:
        raise ImageError("one image was given where several are expected: use predict(image), or pass a list of images")
    if isinstance(images, np.ndarray):
        _check_batch(cast("npt.NDArray[Any]", images), spec)
    try:
        sequence = list(cast("Iterable[ImageLike]", images))
    except TypeError as error:
        name = type(cast("object", images)).__name__
        raise ImageError(f"a {name} is not a list of images: pass a list, each item as predict() takes it") from error
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
            msg = "the array holds NaN or infinite values: check the code that made it; images are uint8, 0 to 255"
        else:
            msg = f"the array is {array.dtype}, images are uint8: scale it to 0..255 and convert with .astype('uint8')"
        raise ImageError(msg)
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in _CHANNELS):
        raise ImageError(
            f"an array of shape {array.shape} is not an image: pass HW, or HWC with 1, 3 or 4 channels"
            f"{_looks_like(array.shape)}"
        )
    _check_size((array.shape[1], array.shape[0]))


def _check_batch(array: npt.NDArray[Any], spec: ImageSpec) -> None:
    """Refuse an array that is not NHWC or NHW before it is taken apart along the wrong axis."""
    shape = array.shape
    is_batch = (array.ndim == 4 and shape[3] in _CHANNELS) or (array.ndim == 3 and not _is_one_image(shape, spec))
    if array.ndim and array.shape[0] and not is_batch:
        hint = _looks_like(shape) or ", or a list of images"
        raise ImageError(f"an array of shape {shape} is not a batch of images: pass NHWC or NHW{hint}")


def _is_one_image(shape: tuple[int, ...], spec: ImageSpec) -> bool:
    """Whether three axes look like HWC or CHW, not NHW; grey images of the bundle's size are a batch."""
    if shape[2] < MIN_SIDE:
        return shape[2] in _CHANNELS
    return shape[0] in {3, 4} and not (spec.channels == 1 and shape[1:] == (spec.height, spec.width))


def _looks_like(shape: tuple[int, ...]) -> str:
    """A guess at what a wrong shape means, and how to fix it; empty without a guess."""
    if len(shape) == 4 and shape[3] in _CHANNELS:
        return "; this looks like a batch (NHWC): pass it to predict_batch"
    if len(shape) == 4 and shape[1] in _CHANNELS:
        return "; this looks like a batch with channels first (NCHW): pass array.transpose(0, 2, 3, 1) to predict_batch"
    if len(shape) == 3 and shape[2] in _CHANNELS:
        return "; this looks like one image (HWC): pass it to predict, or array[np.newaxis]"
    if len(shape) == 3 and shape[0] in _CHANNELS:
        return (
            "; this looks like one image with channels first (CHW): pass array.transpose(1, 2, 0) to predict "
            "(grey images as list(array) to predict_batch)"
        )
    if len(shape) == 2:
        return "; this looks like one grey image (HW): pass it to predict, or array[np.newaxis]"
    return ""


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


def _read_path(name: str) -> bytes:
    if not name:
        raise ImageError("the path is empty: pass the path of an image file")
    path = Path(name)
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                if (size := os.fstat(file.fileno()).st_size) > MAX_ENCODED_BYTES:
                    raise ImageError(_too_many_bytes(size))
                return read_rest(file)
        what = (
            "a folder" if stat.S_ISDIR(mode) else "not a regular file (to read a pipe, open it and pass the open file)"
        )
        problem = f"there is no image file at {shown(path)}, which is {what}: check the path"
    except FileNotFoundError:  # errors name the path, in the place of which an image may have been passed
        problem = f"there is no image file at {shown(path)}: check the path"
    except (OSError, ValueError) as error:
        problem = f"{shown(path)} cannot be read ({type(error).__name__}): check the path and its permissions"
    raise ImageError(problem)


def _read_file(file: IO[bytes]) -> bytes:
    """What an open binary file holds: all of it if it can seek (as Pillow does), else what is left.

    A file that can seek is left where it stood, so that it can be passed again, also in several calls at once.
    """
    with lock_of(file):
        try:
            position = file.tell() if file.seekable() else None
            if position is None:
                return read_rest(file)
            file.seek(0)
            try:
                return read_rest(file)
            finally:
                file.seek(position)
        except AttributeError:  # it has `read` and nothing else
            return read_rest(file)
        except (OSError, ValueError) as error:
            raise ImageError(_unreadable(error)) from error


def read_rest(file: IO[bytes]) -> bytes:
    """Read an open binary file from where it stands to its end, but never much more than the limit.

    Raises:
        ImageError: it is closed, in text mode, too long, or breaks off with an error.
    """
    held = bytearray()
    while block := _block(file):
        held += block
        if len(held) > MAX_ENCODED_BYTES:
            raise ImageError(f"the file has more than {MAX_ENCODED_BYTES} bytes: scale the image down first")
    return bytes(held)


def _block(file: IO[bytes]) -> bytes:
    try:
        block = cast("object", file.read(_BLOCK_BYTES))
    except Exception as error:  # a file of another library raises what it likes
        raise ImageError(_unreadable(error)) from error
    if isinstance(block, str):
        raise ImageError("the file is open in text mode: open it with mode 'rb'")
    if not isinstance(block, (bytes, bytearray, memoryview)):
        raise ImageError(f"the file gives {type(block).__name__}, not bytes: pass one that is open in binary mode")
    return bytes(cast("bytes", block))


def _unreadable(error: Exception) -> str:
    return f"the file cannot be read ({type(error).__name__}): pass one that is open, in binary mode"


def _too_many_bytes(size: int) -> str:
    return f"the image file has {size} bytes, more than {MAX_ENCODED_BYTES}: scale the image down first"


def _load_encoded(data: bytes, spec: ImageSpec) -> Pixels:
    if len(data) > MAX_ENCODED_BYTES:
        raise ImageError(_too_many_bytes(len(data)))
    opened = open_image(data)
    if opened is None:
        raise ImageError(
            f"the bytes are not an image this package reads ({', '.join(FORMATS)}), or are damaged: {_ACCEPTED}"
        )
    _check_size(opened.size)
    return _convert(upright(opened), spec)


def _convert(image: Image.Image, spec: ImageSpec) -> Pixels:
    """Decoded image of any supported mode to uint8 HWC of the bundle's size."""
    if image.mode in _SIXTEEN_BIT:
        image = Image.fromarray(_to_eight_bits(np.asarray(image)))
    elif image.mode in {"I", "F"}:
        raise ImageError(
            f"images of mode {image.mode!r} have no fixed range of values: convert it to 8 bits a channel first"
        )
    mode = image.mode
    try:
        if image.mode == "La":
            image = image.convert("LA")
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        flat = image.convert("L" if spec.channels == 1 else "RGB")
    except Exception as error:
        raise ImageError(
            f"images of mode {mode!r} cannot be made RGB ({type(error).__name__}): convert it to RGB first"
        ) from error
    flat = resize(flat, spec.width, spec.height)
    return np.reshape(np.asarray(flat, dtype=np.uint8), (spec.height, spec.width, spec.channels))


def _to_eight_bits(values: npt.NDArray[Any]) -> Pixels:
    """uint16 (either byte order) to uint8: 0..65535 becomes 0..255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
