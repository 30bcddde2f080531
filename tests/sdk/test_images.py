import io
import os
import random
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from privdfs import ImageError
from privdfs._constants import MAX_ENCODED_BYTES, MAX_PIXELS
from privdfs._format import ImageSpec
from privdfs._images import FORMATS, load_image, load_images
from tests.thorough import count

RGB = ImageSpec(height=12, width=10, channels=3)
GREY = ImageSpec(height=12, width=10, channels=1)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def huge_png(width: int, height: int) -> bytes:
    """A valid PNG header that announces a huge image, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("spec", [RGB, GREY])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_common_mode_comes_to_the_bundles_shape(mode: str, spec: ImageSpec) -> None:
    out = load_image(picture(mode), spec)
    assert (out.dtype, out.shape) == (np.uint8, (spec.height, spec.width, spec.channels))
    assert out.flags.c_contiguous
    assert out.std() > 0


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_from_bytes_and_path(form: str, tmp_path: Path) -> None:
    data = encoded(picture(), form)
    path = tmp_path / "picture"
    path.write_bytes(data)
    from_bytes = load_image(data, RGB)
    for same in (bytearray(data), memoryview(data), path, str(path)):
        np.testing.assert_array_equal(load_image(same, RGB), from_bytes)


def test_the_ways_to_pass_an_image_agree() -> None:
    image = picture()
    expected = load_image(image, RGB)
    np.testing.assert_array_equal(load_image(np.asarray(image), RGB), expected)
    np.testing.assert_array_equal(load_image(encoded(image), RGB), expected)


def test_an_array_of_the_bundles_shape_is_untouched() -> None:
    array = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    np.testing.assert_array_equal(load_image(array, RGB), array)
    np.testing.assert_array_equal(load_image(array[:, ::-1], RGB), array[:, ::-1])


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3), (30, 40, 4)])
def test_arrays_with_or_without_channels(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 200, dtype=np.uint8)
    if shape[-1] == 4:
        array[..., 3] = 255
    assert (load_image(array, RGB) == 200).all()
    assert (load_image(array, GREY) == 200).all()


def test_resizing_is_bilinear_with_antialiasing() -> None:
    image = picture(size=(100, 120))
    across = image.resize((10, 120), Image.Resampling.BILINEAR)
    expected = np.asarray(across.resize((10, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(load_image(image, RGB), expected)
    checkers = np.indices((120, 100)).sum(axis=0).astype(np.uint8) % 2 * 255
    assert abs(load_image(checkers, GREY).astype(int) - 127).max() <= 2


def test_transparency_is_composited_on_white() -> None:
    clear = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    assert (load_image(clear, RGB) == 255).all()
    half = Image.new("RGBA", (40, 30), (0, 0, 0, 128))
    assert abs(load_image(half, GREY).astype(int) - 127).max() <= 1


def test_a_palette_with_a_transparent_colour_is_composited_without_a_warning() -> None:
    image = Image.new("P", (40, 30), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    assert (load_image(encoded(image, "PNG", transparency=bytes([0])), RGB) == 255).all()
    assert (load_image(encoded(image, "PNG"), RGB) == (10, 20, 30)).all()


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_not_clipped(dtype: str) -> None:
    ramp = np.linspace(0, 65535, 120).astype(np.uint16).reshape(12, 10)
    expected = np.round(ramp / 257).astype(int)
    mode = "I;16" if dtype == "<u2" else "I;16B"
    image = Image.frombytes(mode, (10, 12), ramp.astype(dtype).tobytes())
    assert abs(load_image(image, GREY)[..., 0].astype(int) - expected).max() <= 1
    out = load_image(encoded(Image.fromarray(ramp)), GREY)[..., 0]
    assert abs(out.astype(int) - expected).max() <= 1
    assert (out.min(), out.max()) == (0, 255)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(ImageError, match="8 bits"):
        load_image(picture("L").convert(mode), RGB)


def test_the_exif_rotation_is_applied() -> None:
    image = picture(size=(10, 12))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = encoded(image.rotate(180), "PNG", exif=exif)
    np.testing.assert_array_equal(load_image(turned, RGB), np.asarray(image))
    exif[0x0112] = 6  # a quarter turn: the size that counts is that of the upright image
    np.testing.assert_array_equal(
        load_image(encoded(image.rotate(90, expand=True), "PNG", exif=exif), RGB), np.asarray(image)
    )


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("L", (40, 30), value) for value in (50, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (load_image(data, GREY) == 50).all()


@pytest.mark.parametrize(
    "data", [b"", b"P", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff", b"BM", b"%PDF-1.7"]
)
def test_bytes_that_are_no_image(data: bytes) -> None:
    with pytest.raises(ImageError, match="not an image"):
        load_image(data, RGB)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"])
def test_every_truncation_is_refused(form: str) -> None:
    data = encoded(picture(size=(64, 64)), form)
    # The last bytes of some formats are padding or an end mark that decoders do not need.
    for length in range(1, len(data) * 3 // 4, max(1, len(data) // 40)):
        with pytest.raises(ImageError):
            load_image(data[:length], RGB)


def test_formats_beyond_the_list_are_refused() -> None:
    with pytest.raises(ImageError, match="not an image"):
        load_image(encoded(picture(), "ICO"), RGB)


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_too_small(size: tuple[int, int]) -> None:
    for image in (Image.new("RGB", size), encoded(Image.new("RGB", size)), np.zeros((size[1], size[0], 3), np.uint8)):
        with pytest.raises(ImageError, match="smaller than 8"):
            load_image(image, RGB)


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 10_000), (MAX_PIXELS // 8 + 1, 8)])
def test_too_many_pixels_are_refused_before_decoding_and_without_a_warning(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        pytest.fail("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError, match="more than 64000000 pixels"):
            load_image(huge_png(*size), RGB)
    assert not caught


def test_the_header_trick_of_the_test_above_is_a_png_that_pillow_opens() -> None:
    assert Image.open(io.BytesIO(huge_png(100, 100))).size == (100, 100)


def test_a_huge_array_is_refused_without_being_touched() -> None:
    with pytest.raises(ImageError, match="pixels"):
        load_image(np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)), RGB)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(MAX_ENCODED_BYTES + 1)
    with pytest.raises(ImageError, match="bytes, more than"):
        load_image(path, RGB)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16", "int8", "bool", "complex64", "object"])
def test_wrong_dtypes(dtype: str) -> None:
    with pytest.raises(ImageError, match="uint8"):
        load_image(np.zeros((12, 10, 3), dtype=dtype), RGB)


def test_a_masked_array_does_not_give_away_what_it_masks() -> None:
    array = np.full((12, 10, 3), 200, dtype=np.uint8)
    hidden = np.ma.masked_greater(array, 5)
    with pytest.raises(ImageError, match=r"masked array.*array\.filled\(0\)"):
        load_image(hidden, RGB)
    with pytest.raises(ImageError, match="image 0 of the batch: a masked array"):
        load_images(np.ma.stack([hidden, hidden]), RGB)
    assert not load_image(hidden.filled(0), RGB).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinite_floats_are_named(value: float) -> None:
    array = np.zeros((12, 10, 3), dtype=np.float32)
    array[3, 4, 0] = value
    with pytest.raises(ImageError, match="NaN or infinite"):
        load_image(array, RGB)


@pytest.mark.parametrize("shape", [(), (100,), (3, 32, 32), (32, 32, 2), (1, 32, 32, 3), (0, 32, 3), (32, 0)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError):
        load_image(np.zeros(shape, dtype=np.uint8), RGB)


@pytest.mark.parametrize("thing", [None, 3, [[1, 2], [3, 4]], {"a": 1}, object()])
def test_things_that_are_no_image(thing: Any) -> None:
    with pytest.raises(ImageError, match="is not an image: pass"):
        load_image(thing, RGB)


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path, "a\0b", Path("/dev/zero")):
        with pytest.raises(ImageError, match="check the path"):
            load_image(path, RGB)


class Pipe(io.RawIOBase):
    """A file that cannot seek and gives little at a time, for ever if it has no data."""

    def __init__(self, data: bytes | None) -> None:
        self._rest = None if data is None else io.BytesIO(data)
        self.given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = bytes(len(buffer)) if self._rest is None else self._rest.read(min(100, len(buffer)))
        buffer[: len(block)] = block
        self.given += len(block)
        return len(block)


class OnlyRead:
    def __init__(self, data: bytes) -> None:
        self.read = io.BytesIO(data).read


def test_an_open_file_is_read_as_its_bytes(tmp_path: Path) -> None:
    data = encoded(picture())
    expected = load_image(data, RGB)
    path = tmp_path / "picture"
    path.write_bytes(data)
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        for source in (io.BytesIO(data), file, raw, Pipe(data), io.BufferedReader(Pipe(data)), OnlyRead(data)):
            np.testing.assert_array_equal(load_image(cast("Any", source), RGB), expected)


@pytest.mark.parametrize("position", [0, 5, "end"])
def test_a_file_that_can_seek_is_read_whole_and_left_where_it_stood(position: int | str) -> None:
    file = io.BytesIO()
    picture().save(file, "PNG")
    stood = file.tell() if position == "end" else file.seek(int(position))
    for _ in range(2):
        np.testing.assert_array_equal(load_image(file, RGB), load_image(file.getvalue(), RGB))
        assert file.tell() == stood


def test_one_open_file_in_many_threads(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    picture(size=(320, 240)).save(path, "BMP")
    expected = load_image(path, RGB)
    with path.open("rb") as file, ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda each: load_image(each, RGB), [file] * 64):
            np.testing.assert_array_equal(found, expected)


def test_an_open_file_without_end_is_refused_at_the_limit() -> None:
    pipe = Pipe(None)
    with pytest.raises(ImageError, match=f"more than {MAX_ENCODED_BYTES} bytes"):
        load_image(cast("Any", pipe), RGB)
    assert pipe.given <= MAX_ENCODED_BYTES + 2**20


def test_files_that_cannot_be_read_are_refused_clearly(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture().save(path)
    closed = io.BytesIO(b"x")
    closed.close()
    nothing = Pipe(b"")
    nothing.read = lambda _size=-1: None  # pyright: ignore[reportAttributeAccessIssue] - as a file that must not block
    with path.open() as text, path.open("ab") as write_only:
        for file, message in (
            (text, "text mode|binary mode"),
            (io.StringIO("x"), "text mode"),
            (closed, "binary mode"),
            (write_only, "binary mode"),
            (nothing, "NoneType, not bytes"),
            (io.BytesIO(b""), "not an image"),
        ):
            with pytest.raises(ImageError, match=message):
                load_image(cast("Any", file), RGB)
    with pytest.raises(ImageError, match="use predict"):
        load_images(cast("Any", io.BytesIO(encoded(picture()))), RGB)


def test_paths_that_are_no_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        ("", "the path is empty"),
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "open it and pass"),
        (Path("/dev/zero"), "not a regular file"),
        (os.fsencode(tmp_path / "none"), "not an image"),  # bytes are the bytes of a file, not its name
    ):
        with pytest.raises(ImageError, match=message):
            load_image(path, RGB)


def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xff.png"
    Path(os.fsdecode(name)).write_bytes(encoded(picture()))
    for path in (os.fsdecode(name), Path(os.fsdecode(name))):
        np.testing.assert_array_equal(load_image(path, RGB), load_image(picture(), RGB))


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "LA", "RGBA"])
def test_every_kind_of_transparency_is_composited_on_white(mode: str) -> None:
    half = Image.new("RGBA", (40, 30), (0, 0, 0, 128))
    kinds = {
        "La": lambda: half.convert("LA").convert("La"),
        "PA": lambda: Image.new("PA", (40, 30), (0, 128)),
    }
    image = kinds.get(mode, lambda: half.convert(mode))()
    assert image.mode == mode
    assert abs(load_image(image, RGB).astype(int) - 127).max() <= 1


def test_a_conversion_that_pillow_does_not_have_names_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("conversion not supported")

    image = picture("HSV")
    monkeypatch.setattr(Image.Image, "convert", refuse)  # which modes it lacks depends on its version
    with pytest.raises(ImageError, match="images of mode 'HSV' cannot be made RGB"):
        load_image(image, RGB)


def test_lab_is_read_as_colours() -> None:
    grey = Image.new("LAB", (40, 30), (128, 128, 128))
    found = load_image(grey, RGB).astype(int)
    assert abs(found - 119).max() <= 3


def test_batches_keep_the_order() -> None:
    values = (10, 20, 30)
    batch = load_images([Image.new("L", (40, 30), value) for value in values], GREY)
    assert batch.shape == (3, 12, 10, 1)
    assert [int(image[0, 0, 0]) for image in batch] == list(values)
    np.testing.assert_array_equal(load_images(iter(batch), GREY), batch)
    np.testing.assert_array_equal(load_images(batch, GREY), batch)


def test_arrays_are_batches_of_nhwc_or_nhw() -> None:
    chance = np.random.default_rng(0)
    for shape in (
        (2, 30, 40, 3),
        (3, 30, 40, 3),
        (4, 30, 40, 4),
        (1, 30, 40, 1),
        (5, 30, 40),
        (1, 30, 40),
        (2, 12, 10),
    ):
        array = chance.integers(0, 256, shape, dtype=np.uint8)
        for spec in (RGB, GREY):
            one_by_one = [load_image(image, spec) for image in array]
            np.testing.assert_array_equal(load_images(array, spec), one_by_one)
            np.testing.assert_array_equal(load_images(list(array), spec), one_by_one)
    # Three or four grey images of the bundle's own size are a batch, not the channels of one image.
    for images in (3, 4):
        assert load_images(np.zeros((images, 12, 10), np.uint8), GREY).shape == (images, 12, 10, 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), r"one image with channels first \(CHW\): pass array.transpose\(1, 2, 0\) to predict"),
        ((4, 32, 32), "CHW"),
        ((3, 12, 10), "CHW"),
        ((32, 32, 3), r"one image \(HWC\): pass it to predict"),
        ((12, 10, 1), "HWC"),
        ((5, 3, 32, 32), r"\(NCHW\): pass array.transpose\(0, 2, 3, 1\)"),
        ((5, 1, 12, 10), "NCHW"),
        ((12, 10), r"one grey image \(HW\)"),
        ((100,), "not a batch"),
        ((2, 2, 12, 10, 3), "not a batch"),
        ((5, 32, 32, 2), "not a batch"),
    ],
)
def test_an_array_that_is_no_batch_says_what_it_looks_like(shape: tuple[int, ...], message: str) -> None:
    for dtype in (np.uint8, np.float32):
        with pytest.raises(ImageError, match=message):
            load_images(np.zeros(shape, dtype), RGB)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), "CHW"),
        ((5, 32, 32, 3), "predict_batch"),
        ((5, 3, 32, 32), "NCHW"),
        ((32, 32, 2), "not an image: pass"),
    ],
)
def test_an_array_that_is_no_image_says_what_it_looks_like(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(np.zeros(shape, np.uint8), RGB)
    with pytest.raises(ImageError, match=f"image 0 of the batch: .*{message}"):
        load_images([np.zeros(shape, np.uint8)], RGB)


@pytest.mark.parametrize("batch", [[], (), np.zeros((0, 12, 10, 3), np.uint8)])
def test_an_empty_batch(batch: Any) -> None:
    with pytest.raises(ImageError, match="empty"):
        load_images(batch, RGB)


@pytest.mark.parametrize("batch", ["photo.jpg", b"bytes", Path("photo.jpg"), Image.new("L", (9, 9)), 3, None])
def test_what_is_no_batch(batch: Any) -> None:
    with pytest.raises(ImageError):
        load_images(batch, RGB)


def test_one_bad_image_is_named_by_its_position() -> None:
    with pytest.raises(ImageError, match="image 1 of the batch"):
        load_images([picture(), b"no image", picture()], RGB)


def malformed(number: int) -> Iterator[bytes]:
    """Damaged files of every format that pillow writes, those that the SDK does not read among them."""
    chance = random.Random(5)  # noqa: S311 - not for secrets
    Image.init()
    whole: list[bytes] = []
    for form in sorted(Image.SAVE):
        for mode in ("RGB", "L", "P", "1"):
            try:
                whole.append(encoded(picture(mode, (24, 20)), form))
            except Exception:  # noqa: BLE001, S112 - many formats do not have every mode
                continue
            break
    assert len(whole) >= 15
    for i in range(number):
        data = bytearray(whole[i % len(whole)])
        for _ in range(chance.choice((1, 1, 2, 8, 64))):
            start = chance.randrange(len(data))
            kind = chance.randrange(5)
            if kind == 0:
                data[start] = chance.randrange(256)
            elif kind == 1:
                del data[start : start + chance.randrange(1, 40)]
            elif kind == 2:
                data[start:start] = chance.randbytes(chance.randrange(1, 40))
            elif kind == 3:
                data[start : start + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"))
            else:
                data = data[: max(1, start)]
            data = data or bytearray(b"x")
        yield bytes(data)


def test_damaged_images_are_typed_errors_or_pictures() -> None:
    seen = {"refused": 0, "read": 0}
    for data in malformed(count(300, 5_000)):
        try:
            pixels = load_image(data, RGB)
        except ImageError:
            seen["refused"] += 1
        else:
            assert (pixels.shape, pixels.dtype) == ((RGB.height, RGB.width, 3), np.uint8)
            seen["read"] += 1
    assert min(seen.values()) > 10
