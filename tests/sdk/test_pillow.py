"""What Pillow's version, the application's settings of it, and other threads must not change: the pixels."""

import io
import json
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import GifImagePlugin, Image, ImageFile, TiffImagePlugin

from privdfs import ImageError, _pillow
from privdfs._format import ImageSpec
from privdfs._images import load_image
from privdfs._pillow import FORMATS, lock_of
from tests.sdk.drivers import Driver
from tests.thorough import count

ROOT = Path(__file__).parents[2]
#: Other versions than the environment's, which `make pillow` installs: the oldest supported, and the last that resized
#: horizontally first.
VERSIONS = {"11": "11.0.0", "12": "12.3.0"}
ENVIRONMENT = tuple(int(part) for part in PIL.__version__.split("."))
RGB = ImageSpec(height=12, width=10, channels=3)

DIGESTS = {
    "40x30": "c8d1e54d1d64aab6",
    "30x240": "5b11e3642362910b",
    "240x30": "06501d9dd5cf25e6",
    "9x301": "f594c5f3e3fa4085",
    "301x9": "9b1a2faf7d2fbf6e",
    "100x120": "d2d93016ccc95e16",
    "64x8": "31b2f117c3a6c75d",
    "8x64": "4651039fb47dbad7",
    "10x200": "9b7b956503e97293",
    "200x12": "4124dc35d5910b97",
    "RGB 33x250": "e516212a538a5b0f",
    "RGB 250x33": "d1a5fba03b6e5632",
    "L 33x250": "1cd3492d13a892f4",
    "L 250x33": "6bfab93fa9f51149",
    "RGBA 33x250": "d51c216ed1b5bbe8",
    "RGBA 250x33": "b695265434334a59",
    "LA 33x250": "2e7cf09889f0a467",
    "LA 250x33": "16105d7b833284ba",
    "P 33x250": "b173d0940284f913",
    "P 250x33": "30213b925b45380e",
    "CMYK 33x250": "148a77a5ea963e58",
    "CMYK 250x33": "1fb507fdbaf7f5a8",
    "1 33x250": "dbb49994c29005aa",
    "1 250x33": "3b64766b1d9760fd",
}


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def lazy(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


WAYS: list[Callable[[bytes], Any]] = [bytes, lazy]


# Versions


@pytest.mark.parametrize("version", ["environment", *VERSIONS])
def test_every_version_of_pillow_gives_the_same_pixels(version: str) -> None:
    environment = dict(os.environ)
    if version in VERSIONS:
        folder = ROOT / ".venv-pillow" / version
        assert folder.is_dir(), "another version of Pillow is missing: run `make pillow`"
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tests/sdk/pillow_digests.py")],
        env=environment,
        capture_output=True,
        check=True,
        timeout=120,
    )
    found = json.loads(ran.stdout)
    assert found["version"] == VERSIONS.get(version, found["version"])
    assert found["digests"] == DIGESTS


# Threads


@pytest.mark.parametrize("form", FORMATS)
def test_one_lazily_opened_image_in_many_threads(form: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(picture((320, 240)), form))
    expected = load_image(path, RGB)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(count(6, 100)):
            with Image.open(path) as image:
                for found in pool.map(lambda each: load_image(each, RGB), [image] * 8):
                    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", ["JPEG", "GIF"])
def test_one_lazily_opened_image_in_many_calls(
    form: str, release: Path, connect_local: Callable[..., Driver], tmp_path: Path
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(picture((320, 240)), form))
    client = connect_local(release)
    expected = client.encode(path)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(6):
            with Image.open(path) as image:
                for shares in pool.map(client.encode, [image] * 8):
                    for share, right in zip(shares, expected, strict=True):
                        np.testing.assert_array_equal(share, right)


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_frame_that_an_image_stands_at_is_used_by_every_thread(form: str) -> None:
    frames = [Image.new("RGB", (320, 240), (value, value, value)) for value in (10, 120, 250)]
    options: dict[str, object] = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    with ThreadPoolExecutor(8) as pool:
        for frame, value in ((0, 10), (1, 120), (2, 250)):
            image = lazy(data)
            image.seek(frame)
            for found in pool.map(lambda each: load_image(each, RGB), [image] * 8):
                assert (found == value).all()
            assert image.tell() == frame


def test_an_image_that_was_given_stays_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = lazy(encoded(picture(), "JPEG", exif=exif))
    load_image(image, RGB)
    assert (image.size, image.getexif()[0x0112]) == ((40, 30), 6)
    assert "load_read" not in vars(image)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 warns of threads; the child uses none
def test_a_forked_process_does_not_wait_for_a_thread_it_does_not_have() -> None:
    image = picture()
    with lock_of(image):
        child = os.fork()
        if child == 0:
            os._exit(0 if lock_of(image).acquire(timeout=5) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# The application's settings

HALF = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("WEBP", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
    ("PPM", {}),
]


@pytest.mark.parametrize("setting", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("form", "options"), HALF)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_half_an_image_is_refused_whatever_is_set(
    form: str,
    options: dict[str, object],
    way: Callable[[bytes], Any],
    setting: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = encoded(picture((64, 64)), form, **options)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", setting)
    assert load_image(way(whole), RGB).shape == (12, 10, 3)
    for length in (len(whole) // 4, len(whole) // 2, len(whole) * 3 // 4):
        try:
            image = way(whole[:length])
        except (OSError, ValueError):  # Pillow sees from the header that it is cut off
            continue
        for _ in range(2):  # the second call must not be given what the first has decoded
            with pytest.raises(ImageError):
                load_image(image, RGB)
    assert setting is ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("setting", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_image_is_refused_each_time(
    way: Callable[[bytes], Any],
    setting: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", setting)
    data = bytearray(encoded(picture((64, 64))))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    image = way(bytes(data))
    for _ in range(2):
        with pytest.raises(ImageError, match="damaged"):
            load_image(image, RGB)


@pytest.mark.parametrize("setting", [False, True])
def test_a_wrong_checksum_before_the_pixels_is_refused(
    setting: bool,  # noqa: FBT001 - a parameter of the test
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", setting)
    image = Image.new("P", (40, 30), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    data = bytearray(encoded(image, transparency=bytes([0])))
    data[data.index(b"tRNS") + 4] ^= 0xFF
    with pytest.raises(ImageError, match="damaged"):
        load_image(bytes(data), RGB)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "PPM", "GIF", "WEBP", "TIFF"])
def test_the_applications_limit_of_pixels_is_named_or_plays_no_part(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), form)
    expected = load_image(data, RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if form == "TIFF" or (form == "WEBP" and ENVIRONMENT >= (13,)):  # Pillow checks inside these decoders
            with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):
                load_image(data, RGB)
        else:
            np.testing.assert_array_equal(load_image(data, RGB), expected)


def test_other_registrations_play_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {form: encoded(picture(), form) for form in FORMATS}
    expected = {form: load_image(data[form], RGB) for form in FORMATS}
    Image.init()
    for form in FORMATS:
        monkeypatch.setitem(Image.OPEN, form, (lambda *_: Image.new("RGB", (40, 30)), None))
    for form in FORMATS:
        np.testing.assert_array_equal(load_image(data[form], RGB), expected[form])


@pytest.mark.parametrize("strategy", list(GifImagePlugin.LoadingStrategy))
@pytest.mark.parametrize("transparent", [None, 0])
def test_how_gif_frames_are_loaded_plays_no_part(
    strategy: GifImagePlugin.LoadingStrategy, transparent: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, object] = {} if transparent is None else {"transparency": transparent}
    data = encoded(picture().quantize(16), "GIF", **options)
    expected = load_image(data, RGB)
    monkeypatch.setattr(GifImagePlugin, "LOADING_STRATEGY", strategy)
    np.testing.assert_array_equal(load_image(data, RGB), expected)


def test_how_tiff_is_read_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), "TIFF")
    expected = load_image(data, RGB)
    monkeypatch.setattr(TiffImagePlugin, "READ_LIBTIFF", True)
    np.testing.assert_array_equal(load_image(data, RGB), expected)


# Orientation

SHORT, LONG = 3, 4
#: Tags that cameras write wrongly: tag, type, number of values, content.
ODD = {
    "a maker tag of another type": (0x010F, 11, 1, struct.pack("<f", 1.5)),
    "a negative rational": (0x011A, 10, 1, struct.pack("<I", 8)),
    "a short of -1": (0x0128, 8, 1, struct.pack("<hh", -1, 0)),
    "the width as bytes": (0x0100, 7, 4, b"\x14\0\0\0"),
    "a pointer beyond the end": (0x8769, LONG, 1, struct.pack("<I", 0x7FFFFFFF)),
    "a pointer to before the start": (0x8825, 9, 1, struct.pack("<i", -50)),
    "more values than there are": (0x0110, 2, 0xFFFF, b"\xff\xff\0\0"),
    "an unknown type": (0x0132, 99, 1, bytes(4)),
}


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    directory = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)


def orientation(value: int, kind: int = SHORT) -> tuple[int, int, int, bytes]:
    return 0x0112, kind, 1, value.to_bytes(4, "little")


def with_exif(image: Image.Image, form: str, block: bytes) -> bytes:
    """The block as it is: Pillow's writers put it into the file without looking at it."""
    options: dict[str, object] = {"lossless": True} if form == "WEBP" else {}
    return encoded(image, form, exif=block, **options)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_exif_does_not_keep_a_photograph_from_being_turned(
    form: str,
    odd: str,
    first: bool,  # noqa: FBT001 - a parameter of the test
    strict: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    image = Image.new("RGB", (80, 96))
    image.paste((255, 255, 255), (0, 0, 80, 48))  # white above, black below
    entries = (orientation(6), ODD[odd]) if first else (ODD[odd], orientation(6))
    data = with_exif(image.rotate(90, expand=True), form, exif_block(*entries))
    with warnings.catch_warnings():
        if strict:
            warnings.simplefilter("error")
        found = load_image(data, RGB)
    np.testing.assert_allclose(found, load_image(image, RGB), atol=2)
    if not strict:
        np.testing.assert_array_equal(load_image(lazy(data), RGB), found)


@pytest.mark.parametrize("value", range(10))
@pytest.mark.parametrize("kind", [1, SHORT, LONG, 8])
def test_all_orientations(value: int, kind: int) -> None:
    image = picture((10, 12))
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    # What undoes it: quarter turns are each other's inverse, the others are their own.
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = image.transpose(undo.get(value, Image.Transpose(turned[value]))) if value in turned else image
    data = with_exif(stored, "PNG", exif_block(orientation(value, kind)))
    np.testing.assert_array_equal(load_image(data, RGB), np.asarray(image))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize(
    "xmp", ['<x tiff:Orientation="6"/>', "<tiff:Orientation>6</tiff:Orientation>"], ids=["attribute", "element"]
)
def test_the_orientation_of_xmp(form: str, xmp: str) -> None:
    image = Image.new("RGB", (80, 96))
    image.paste((255, 255, 255), (0, 0, 80, 48))
    stored = image.rotate(90, expand=True)
    if form == "TIFF":
        data = encoded(stored, form, tiffinfo={700: xmp.encode()})
    elif form == "PNG":
        chunk = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + xmp.encode()
        data = encoded(stored)
        end = data.index(b"IDAT") - 4
        added = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = data[:end] + added + data[end:]
    else:
        data = encoded(stored, form, xmp=xmp.encode(), **({"lossless": True} if form == "WEBP" else {"quality": 95}))
    np.testing.assert_allclose(load_image(data, RGB), load_image(image, RGB), atol=2)


def test_the_orientation_as_imagemagick_writes_it() -> None:
    block = exif_block(orientation(3))
    image = picture((10, 12))
    stored = image.rotate(180)
    stored.info["Raw profile type exif"] = f"\nexif\n{len(block):8}\n{block.hex()}\n"
    np.testing.assert_array_equal(load_image(stored, RGB), np.asarray(image))
    stored.info["Raw profile type exif"] = "no hexadecimal"
    np.testing.assert_array_equal(load_image(stored, RGB), np.asarray(stored))


def test_an_orientation_that_the_application_has_set() -> None:
    image = picture((10, 12))
    stored = image.rotate(180)
    stored.getexif()[0x0112] = 3
    np.testing.assert_array_equal(load_image(stored, RGB), np.asarray(image))


def raw_tiff(image: Image.Image, *extra: tuple[int, int, int, bytes]) -> bytes:
    """An RGB image in one strip, with entries as they are."""
    pixels = image.tobytes()
    entries = [
        (0x0100, LONG, 1, struct.pack("<I", image.width)),
        (0x0101, LONG, 1, struct.pack("<I", image.height)),
        (0x0102, SHORT, 1, struct.pack("<I", 8)),
        (0x0103, SHORT, 1, struct.pack("<I", 1)),
        (0x0106, SHORT, 1, struct.pack("<I", 1)),
        (0x0111, LONG, 1, struct.pack("<I", 8)),
        (0x0115, SHORT, 1, struct.pack("<I", 1)),
        (0x0116, LONG, 1, struct.pack("<I", image.height)),
        (0x0117, LONG, 1, struct.pack("<I", len(pixels))),
        *extra,
    ]
    entries.sort()
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI4s", *each) for each in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4)


@pytest.mark.parametrize(
    "odd", [name for name in ODD if name not in {"the width as bytes", "more values than there are"}]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_tags_of_a_tiff_do_not_keep_it_from_being_turned(odd: str) -> None:
    image = picture((10, 12)).convert("L")
    data = raw_tiff(image.rotate(90, expand=True), orientation(6), ODD[odd])
    np.testing.assert_array_equal(load_image(data, RGB), np.asarray(image.convert("RGB")))


# Closed images


def test_an_image_that_was_closed_is_refused_clearly(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture().save(path)
    left = Image.open(path)
    with left:
        pass
    closed = Image.open(path)
    closed.close()
    loaded = picture()
    loaded.close()
    with path.open("rb") as file:
        cut_off = Image.open(file)
    for image in (left, closed, loaded, cut_off):
        with pytest.raises(ImageError, match="is closed"):
            load_image(image, RGB)


def test_an_image_that_was_loaded_before_its_file_was_closed_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture().save(path)
    with Image.open(path) as image:
        image.load()
    np.testing.assert_array_equal(load_image(image, RGB), load_image(path, RGB))


def test_an_object_always_has_the_same_lock_and_many_objects_share_few_of_them() -> None:
    things = [object() for _ in range(1000)]
    locks = [lock_of(thing) for thing in things]
    assert all(lock_of(thing) is lock for thing, lock in zip(things, locks, strict=True))
    used = {id(lock) for lock in locks}
    assert len(_pillow._locks) / 2 < len(used) <= len(_pillow._locks)
    with locks[0]:
        assert lock_of(things[0]).locked()
