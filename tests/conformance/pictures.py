"""Draws the encoded pictures in `tests/vectors/images`: `python -m tests.conformance.pictures`.

They are inputs of the vectors: another version of an encoder would draw other bytes, so this is run for new pictures.
"""

import io

import numpy as np
from PIL import Image

from tests.conformance.make_pixels import IMAGES


def scene(width: int, height: int) -> Image.Image:
    """Soft colours and hard edges, so that both a shift by a pixel and a wrong filter show."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / width
    green = 255 * y / height
    blue = 127 + 127 * np.sin(x / 5) * np.cos(y / 7)
    inside = (x - width * 0.3) ** 2 + (y - height * 0.6) ** 2 < (min(width, height) * 0.25) ** 2
    channels = [np.where(inside, 255 - channel, channel) for channel in (red, green, blue)]
    return Image.fromarray(np.stack(channels, axis=2).round().astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def pictures() -> dict[str, bytes]:
    photo, small = scene(97, 61), scene(33, 21)
    alpha = small.convert("RGBA")
    alpha.putalpha(Image.fromarray((np.mgrid[0:21, 0:33][1] * 7).astype(np.uint8)))
    deep = Image.fromarray((np.mgrid[0:21, 0:33][1] * 1900 + 77).astype(np.uint16))
    clear = small.quantize(16)
    made = {
        "photo-420.jpg": encoded(photo, "JPEG", quality=85, subsampling="4:2:0"),
        "photo-444.jpg": encoded(photo, "JPEG", quality=95, subsampling="4:4:4"),
        "photo-progressive.jpg": encoded(scene(61, 97), "JPEG", quality=80, progressive=True),
        "photo-wide.jpg": encoded(scene(301, 17), "JPEG", quality=90),
        "photo-tall.jpg": encoded(scene(17, 301), "JPEG", quality=90),
        "photo.png": encoded(photo, "PNG"),
        "photo.webp": encoded(photo, "WEBP", quality=80),
        "photo-lossless.webp": encoded(small, "WEBP", lossless=True),
        "photo.gif": encoded(photo.quantize(64), "GIF"),
        "photo.bmp": encoded(small, "BMP"),
        "photo.tif": encoded(small, "TIFF"),
        "photo.ppm": encoded(small, "PPM"),
        "colour-grey.jpg": encoded(small.convert("L"), "JPEG", quality=90),
        "colour-grey.png": encoded(small.convert("L"), "PNG"),
        "colour-bits.png": encoded(small.convert("1"), "PNG"),
        "colour-palette.png": encoded(small.quantize(16), "PNG"),
        "colour-palette-alpha.png": encoded(clear, "PNG", transparency=3),
        "colour-alpha.png": encoded(alpha, "PNG"),
        "colour-alpha-grey.png": encoded(alpha.convert("LA"), "PNG"),
        "colour-alpha.webp": encoded(alpha, "WEBP", lossless=True),
        "colour-16.png": encoded(deep, "PNG"),
        "colour-cmyk.jpg": encoded(small.convert("CMYK"), "JPEG", quality=90),
        "damaged-truncated.jpg": encoded(photo, "JPEG", quality=85)[:900],
        "damaged-checksum.png": _spoiled(encoded(small, "PNG")),
        "damaged-text.png": b"this is no image\n",
        "damaged-empty.png": b"",
        "damaged-small.png": encoded(scene(7, 40), "PNG"),
    }
    made |= {f"turned-{n}.jpg": encoded(small, "JPEG", quality=90, exif=exif(n)) for n in range(1, 9)}
    made["turned-6.png"] = encoded(small, "PNG", exif=exif(6))
    made["turned-8.webp"] = encoded(small, "WEBP", lossless=True, exif=exif(8))
    made["turned-9.jpg"] = encoded(small, "JPEG", quality=90, exif=exif(9))
    return made


def _spoiled(data: bytes) -> bytes:
    """A PNG of which a byte of the pixels is another one."""
    at = data.index(b"IDAT") + 20
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, data in pictures().items():
        (IMAGES / name).write_bytes(data)
