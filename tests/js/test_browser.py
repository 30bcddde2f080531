"""The SDK in TypeScript in real browsers, and the page of `make web`, against real tritonservers behind nginx.

`make chromium firefox` unpacks them. PRIVDFS_THOROUGH=1 takes 1,000 images of Fashion-MNIST's test set (PRIVDFS_DATA)
and 850 files, 510 of them JPEGs, and measures a call.
"""

import base64
import hashlib
import http.client
import importlib.util
import io
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from privdfs import TLS, Bundle, Client, Server
from privdfs._format import ImageSpec
from privdfs._images import load_image
from privdfs_export.serve import Gateway
from privdfs_export.serve.gateway import gateways
from tests.js.parity import IMAGES, RELEASES
from tests.js.programs import SDK, node
from tests.ports import free_ports
from tests.thorough import THOROUGH

RELEASE = "fashion-resnet20"
#: Only their bundles are opened.
OTHERS = ["fashion-coded", "cifar10-resnet20"]
FILES, LABELLED, REAL = (850, 200, 1000) if THOROUGH else (40, 20, 20)
#: EXIF's orientation: how the pixels lie.
ORIENTATION = 0x0112
#: The same, said by XMP.
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="3"/></rdf:RDF></x:xmpmeta>'
)

#: `make firefox` says why there is none.
NO_FIREFOX = SDK.parent / ".firefox" / "missing"
WITH_FIREFOX = pytest.mark.skipif(NO_FIREFOX.exists(), reason=NO_FIREFOX.read_text() if NO_FIREFOX.exists() else "")

pytestmark = pytest.mark.e2e


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def real_images() -> NDArray[np.uint8]:
    """Test images of Fashion-MNIST, uint8 [images, 28, 28, 1]."""
    if not THOROUGH:
        return np.stack([np.asarray(Image.open(path))[..., None] for path in sorted(IMAGES.glob("*.png"))])
    from privdfs_training.data import load_data

    return load_data("fashion-mnist", None).test_images[:REAL].permute(0, 2, 3, 1).contiguous().numpy()


def image_file(number: int, generator: np.random.Generator) -> dict[str, Any]:
    """A file of an odd size, mostly JPEG, and the digests of what Pillow makes of it."""
    width, height = (int(each) for each in generator.integers(9, 400, 2))
    small = generator.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    form = ("JPEG", "JPEG", "JPEG", "PNG", "JPEG", "WEBP", "JPEG", "BMP", "JPEG", "GIF")[number % 10]
    exif = Image.Exif()
    exif[ORIENTATION] = number % 8 + 1
    options: dict[str, Any] = {}
    if form == "JPEG":
        options = {"quality": int(generator.integers(40, 98)), "subsampling": number // 10 % 3, "exif": exif}
        options["progressive"] = number % 4 == 0
        if number % 7 == 0:
            image = image.convert("L")
    file = io.BytesIO()
    image.save(file, form, **options)
    data = file.getvalue()
    with Image.open(io.BytesIO(data)) as found:
        upright = np.asarray(ImageOps.exif_transpose(found).convert("RGB"))
    resized = load_image(data, ImageSpec(height=32, width=32, channels=3))
    return {
        "name": f"{number}.{form}",
        "data": text(data),
        "size": [upright.shape[1], upright.shape[0]],
        "whole": hashlib.sha256(upright.tobytes()).hexdigest(),
        "resized": hashlib.sha256(resized.tobytes()).hexdigest(),
    }


def odd_files() -> list[dict[str, Any]]:
    """Files that browsers may read otherwise than Pillow does, and Pillow's pixels of a model's size."""
    generator = np.random.default_rng(7)
    colours = Image.fromarray(generator.integers(0, 256, (6, 8, 4), np.uint8)).resize(
        (96, 72), Image.Resampling.BICUBIC
    )
    grey = Image.fromarray(generator.integers(0, 2**16, (72, 96), np.uint16))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "transparent PNG": (colours, "PNG", {}),
        "transparent WebP": (colours, "WEBP", {"lossless": True}),
        "PNG of 16 bits": (grey, "PNG", {}),
        "turned WebP": (colours.convert("RGB"), "WEBP", {"lossless": True, "exif": exif}),
        "turned PNG": (colours.convert("RGB"), "PNG", {"exif": exif}),
        "JPEG turned by XMP": (colours.convert("RGB"), "JPEG", {"xmp": XMP, "quality": 90}),
        "JPEG in CMYK": (colours.convert("CMYK"), "JPEG", {"quality": 90}),
        "animation after a picture": (
            colours.convert("RGB"),
            "PNG",
            {"save_all": True, "append_images": [Image.new("RGB", (96, 72))], "default_image": True},
        ),
        "very wide": (colours.convert("RGB").resize((70_000, 9)), "PNG", {}),
        "TIFF": (colours.convert("RGB"), "TIFF", {}),
        "PPM": (colours.convert("RGB"), "PPM", {}),
    }
    written: dict[str, bytes] = {}
    for name, (image, form, options) in files.items():
        file = io.BytesIO()
        image.save(file, form, **options)
        written[name] = file.getvalue()
    gif = io.BytesIO()
    colours.convert("RGB").save(gif, "GIF")
    size = struct.pack("<HH", 120, 100)
    written["GIF of a larger canvas"] = gif.getvalue()[:6] + size + gif.getvalue()[10:]
    found = []
    for name, data in written.items():
        pixels = load_image(data, ImageSpec(height=32, width=32, channels=3))
        found.append({"name": name, "data": text(data), "pixels": text(pixels.tobytes())})
    icon = io.BytesIO()
    colours.save(icon, "ICO")
    found.append({"name": "icon", "data": text(icon.getvalue()), "pixels": ""})
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        whole = io.BytesIO()
        colours.convert("RGB").save(whole, form)
        found.append({"name": f"{form}, cut off", "data": text(whole.getvalue()[:-400]), "pixels": ""})
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The page of `make web`, gateways with TLS in front of its servers, and what Python makes of the same images."""
    found = importlib.util.spec_from_file_location("web", SDK.parent / "examples" / "web.py")
    assert found
    assert found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    generator = np.random.default_rng(29)
    images = real_images()
    folder = tmp_path_factory.mktemp("browser")
    with ExitStack() as stack:
        web = stack.enter_context(module.Web(0, [RELEASES / name for name in (RELEASE, *OTHERS)], stack))
        served = web.releases[RELEASE]
        served.servers()
        examples = f"http://127.0.0.1:{free_ports(1)[0]}"
        gateway = Gateway(origins=(web.origin, examples), rate=10_000)
        doors = stack.enter_context(gateways(gateway, served.repositories, served.running))
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(web.shutdown)
        bundle = Bundle.open(RELEASES / RELEASE / "client", allow_unsigned=True)
        servers = [Server(door.endpoint, tls=TLS(door.ca)) for door in doors]
        with Client(bundle, servers, timeout=60) as client:
            results = client.predict_batch(list(images[:LABELLED]))
        yield {
            "origin": web.origin,
            "examples": examples,
            "release": RELEASE,
            "https": [door.endpoint for door in doors],
            "trust": web.trust,
            "images": text(images.tobytes()),
            "shares": [text(share.tobytes()) for share in bundle.encode(images)],
            "labels": [result.label for result in results],
            "probabilities": [result.probability for result in results],
            "files": [image_file(number, generator) for number in range(FILES)],
            "odd": odd_files(),
            "others": OTHERS,
            "measured": str(folder / "measured.json") if THOROUGH else None,
        }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("browser", "tests"),
    [("chromium", ["sdk", "page", "examples"]), pytest.param("firefox", ["sdk", "firefox"], marks=WITH_FIREFOX)],
)
def test_all_tests_pass_in(browser: str, tests: list[str], given: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "given.json"
    file.write_text(json.dumps({"browser": browser, **given}))
    files = [f"browser/{name}.test.ts" for name in tests]
    node(
        *("node_modules/vitest/vitest.mjs", "run", "--config", "vitest.browser.config.ts", *files),
        PRIVDFS_JS_BROWSER=str(file),
    )
    if given["measured"]:
        print(Path(given["measured"]).read_text())  # noqa: T201 - for whoever asked for it, with -s


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/", {"Host": "app.example"}, 403),
        ("GET", "/api/releases", {"Host": "app.example"}, 403),
        ("POST", "/api/switch", {}, 403),
        ("POST", "/api/switch", {"Origin": "https://app.example"}, 403),
        ("POST", "/api/switch", {"Origin": "ours"}, 400),
        ("POST", "/api/other", {"Origin": "ours"}, 404),
        ("GET", "/api/servers/nothing", {}, 400),
        ("GET", "/../web.py", {}, 404),
        ("GET", "/sdk/../package.json", {}, 404),
        ("GET", "/releases/fashion-resnet20/../../web.py", {}, 404),
        ("GET", "/releases/nothing/manifest.json", {}, 404),
        ("GET", "/tsconfig.json?x", {}, 200),
    ],
)
def test_the_page_is_served_to_itself_alone(
    given: dict[str, Any], method: str, path: str, headers: dict[str, str], status: int
) -> None:
    """Other pages can reach this port, too, under names of their own."""
    address = given["origin"].removeprefix("http://")
    sent = {name: given["origin"] if value == "ours" else value for name, value in headers.items()}
    connection = http.client.HTTPConnection(address, timeout=20)
    body = None if method == "GET" else b'{"release": "nothing", "server": 0, "on": true}'
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    assert answer.status == status, answer.read()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy
    connection.close()
