"""Pillow, used so that neither its version nor what the application has set in it changes a pixel.

- The decoders are called directly: limits, warnings and registrations that are global to the process play no part.
- Every decoder must finish its work. Pillow lets damage pass where the application has set `LOAD_TRUNCATED_IMAGES`.
- One image object may be used in several calls at once: Pillow's `load()` is not made for that, so one thread at a time
  decodes it, and the calls work on copies.
- The orientation is read alone, since Pillow trips over other tags that cameras write.
- Resizing goes one axis at a time, horizontal first. Pillow 13 changed the order of its passes.
"""

import functools
import importlib
import io
import os
import re
import struct
import sys
import threading
import zlib
from typing import Any, cast

from PIL import Image, ImageFile, ImageOps

from privdfs._errors import ImageError

#: The decoders that untrusted bytes may reach: module and class of each format.
FORMATS = {
    "JPEG": "JpegImagePlugin.JpegImageFile",
    "PNG": "PngImagePlugin.PngImageFile",
    "WEBP": "WebPImagePlugin.WebPImageFile",
    "GIF": "GifImagePlugin.GifImageFile",
    "BMP": "BmpImagePlugin.BmpImageFile",
    "TIFF": "TiffImagePlugin.TiffImageFile",
    "PPM": "PpmImagePlugin.PpmImageFile",
}
_DAMAGED = "it is truncated or damaged; get the file again"
_CLOSED = "the image, or the file it comes from, is closed: call its load() before closing it, or pass the path instead"
_ORIENTATION = 0x0112
#: Orientation as EXIF counts it -> what makes the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Types of a TIFF tag that hold one whole number -> how `struct` reads it.
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
_STRICT = "privdfs-strict"


def _new_locks() -> None:
    # An object has one of these locks by its address: images cannot be weakly keyed, and none needs forgetting.
    global _locks  # noqa: PLW0603 - a process that was forked must not wait for threads that it does not have
    _locks = tuple(threading.Lock() for _ in range(64))


_locks: tuple[threading.Lock, ...]
_new_locks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_locks)


def lock_of(thing: object) -> threading.Lock:
    """The lock for reading an object that several calls may have been given."""
    return _locks[id(thing) // 16 % len(_locks)]


def open_image(data: bytes) -> Image.Image | None:
    """Read the header of an image file; None if no format fits."""
    for name in FORMATS:
        try:
            opened = _image_class(name)(io.BytesIO(data), "")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(_bomb()) from error
        except Exception:  # noqa: BLE001, S112 - decoders raise anything on foreign bytes; the next format is tried
            continue
        return None if name == "PNG" and not _png_is_sound(data) else opened
    return None


@functools.cache
def _image_class(name: str) -> type[ImageFile.ImageFile]:
    module, kind = FORMATS[name].split(".")
    found: type[ImageFile.ImageFile] = getattr(importlib.import_module(f"PIL.{module}"), kind)
    if name == "JPEG":  # it would read the resolution from the EXIF block, and warn of whatever else is wrong there
        return type(kind, (found,), {"_read_dpi_from_exif": _nothing})
    return found


def _nothing(_: object) -> None:
    pass


def upright(image: Image.Image) -> Image.Image:
    """Decode an image that no other thread uses and apply its orientation.

    Raises:
        ImageError: it is closed, truncated or damaged.
    """
    try:
        _load(image)
        method = _UPRIGHT.get(_orientation(image))
        return image if method is None else image.transpose(method)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(_bomb()) from error
    except Exception as error:
        if isinstance(error, ValueError) and " closed " in str(error):
            raise ImageError(_CLOSED) from error
        raise ImageError(f"the image cannot be decoded ({type(error).__name__}): {_DAMAGED}") from error


def upright_copy(image: Image.Image) -> Image.Image:
    """The same for an image that others may use: what comes back belongs to the caller."""
    with lock_of(image):
        turned = upright(image)
        try:
            return turned.copy() if turned is image else turned
        except ValueError as error:
            raise ImageError(_CLOSED) from error


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bilinear with antialiasing, one axis at a time: horizontal first, 8 bits in between."""
    if image.width != width:
        image = image.resize((width, image.height), Image.Resampling.BILINEAR)
    if image.height != height:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image


class _StrictDecoder:
    """One of Pillow's decoders that must come to its end without an error."""

    def __init__(self, mode: str, name: str, args: object, *config: object) -> None:
        make: Any = Image._getdecoder  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - Pillow has no other way
        self._decoder = make(mode, name, args, config)
        self.pulls_fd: bool = self._decoder.pulls_fd
        self.setimage = self._decoder.setimage
        self.setfd = self._decoder.setfd
        self._ended = False

    def decode(self, data: bytes) -> tuple[int, int]:
        used, error = self._decoder.decode(data)
        if error < 0:
            raise ImageError(f"the image cannot be decoded (error {error}): {_DAMAGED}")
        self._ended = self.pulls_fd or used < 0
        return used, error

    def cleanup(self) -> None:
        self._decoder.cleanup()
        if not self._ended and sys.exc_info()[0] is None:
            raise ImageError(f"the image cannot be decoded: {_DAMAGED}")


Image.register_decoder(_STRICT, cast("Any", _StrictDecoder))


def _load(image: Image.Image) -> None:
    """`image.load()`, which must decode all of it, and must not leave a half-decoded image if it cannot."""
    tiles: list[Any] = getattr(image, "tile", None) or []
    if not isinstance(image, ImageFile.ImageFile) or not tiles:
        image.load()
        return
    file: Any = image.fp
    if file is None or getattr(file, "closed", False):
        raise ImageError(_CLOSED)
    # Decoders that other code calls, libtiff for one, heed no settings.
    if image.format == "TIFF" or type(image).load is ImageFile.ImageFile.load:
        image.tile = [
            tile if tile[0] == "libtiff" else tile._replace(codec_name=_STRICT, args=(tile[0], tile[3]))
            for tile in tiles
        ]
    if image.format in {"JPEG", "MPO"}:  # its own would end a truncated file as if it were whole
        vars(image)["load_read"] = file.read
    if image.format == "TIFF":
        vars(image)["load_end"] = functools.partial(_end_of_tiff, image)
    try:
        image.load()
    except BaseException:
        image.tile = tiles
        raise
    finally:
        vars(image).pop("load_read", None)
        vars(image).pop("load_end", None)


def _end_of_tiff(image: ImageFile.ImageFile) -> None:
    """Pillow turns a TIFF as it decodes it, but gives up before that where other tags are wrong."""
    try:
        type(image).load_end(image)
    except Exception:  # noqa: BLE001 - whatever is wrong with the other tags, the pixels are all right
        ImageOps.exif_transpose(image, in_place=True)


def _png_is_sound(data: bytes) -> bool:
    """Whether the checksums before the pixels are right (Pillow leaves out some by a setting)."""
    position = 8
    while len(data) >= position + 8:
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            return True
        end = position + 8 + length
        if len(data) < end + 4 or zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return False
        position = end + 4
    return False


def _orientation(image: Image.Image) -> int:
    """How the image is turned, as EXIF counts it: by its EXIF block, else XMP, else what the application has set."""
    found = _exif_orientation(_exif_block(image.info))
    if found is None:
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
        text = xmp if isinstance(xmp, bytes) else str(xmp or "").encode(errors="replace")
        match = re.search(rb'tiff:Orientation(?:="|>)([0-9])', text)
        found = int(match[1]) if match else None
    if found is None:
        try:
            value: Any = image.getexif().get(_ORIENTATION)
            found = value if isinstance(value, int) else None
        except Exception:  # noqa: BLE001 - whatever is wrong with the other tags, the pixels are all right
            return 1
    return 1 if found is None else found


def _exif_block(info: dict[Any, Any]) -> bytes:
    block = info.get("exif")
    if isinstance(block, bytes):
        return block
    try:  # as ImageMagick writes it into PNG: three lines of something else, then hexadecimal
        return bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
    except (KeyError, AttributeError, ValueError):
        return b""


def _exif_orientation(block: bytes) -> int | None:
    """The orientation in the first directory of an EXIF block; None without one."""
    block = re.sub(rb"^(Exif\x00\x00){1,2}", b"", block)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    found = None
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(f"{order}HHI", block, entry)
            if tag == _ORIENTATION:
                known = values == 1 and kind in _WHOLE_NUMBERS
                found = struct.unpack_from(order + _WHOLE_NUMBERS[kind], block, entry + 8)[0] if known else 1
    except struct.error:  # the block ends early: what stands before counts
        pass
    return found


def _bomb() -> str:
    return "the image is larger than the application's Image.MAX_IMAGE_PIXELS allows: raise it, or scale the image down"
