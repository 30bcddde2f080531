"""The SDK in TypeScript: its style, types, tests and package, run by the Node that a wheel brought.

`make js` installs and builds it. Its tests compare it with the Python SDK: this module writes down what that makes of
the same images, and starts the tritonservers that both ask.
"""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image

from privdfs import Client, Server
from privdfs_export.serve import serve, serve_release
from tests.js.parity import IMAGES, RELEASES, packed, write_vectors
from tests.js.programs import NODE, SDK, node

#: What real servers are started for: masked shares, with keys too, and coded ones in two rounds.
SERVED = {"fashion-resnet20": None, "fashion-resnet20-keyed": bytes(range(16)), "fashion-coded": None}
KEY = bytes(range(16))
#: Lines of the core that the tests must run, in percent.
COVERED = 95.0

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def servers() -> Iterator[list[dict[str, Any]]]:
    """Real tritonservers, and what the Python SDK gets from them over HTTP."""
    images = [np.asarray(Image.open(path)) for path in sorted(IMAGES.glob("*.png"))]
    found = []
    with ExitStack() as stack:
        for name, key in SERVED.items():
            folder = RELEASES / name
            if name == "fashion-coded":
                running = stack.enter_context(serve([folder / f"server-{i}" for i in range(3)], wire="http"))
            else:
                running = stack.enter_context(serve_release(folder, wire="http"))
            endpoints = [Server(endpoint) for endpoint in running]
            with Client(folder / "client", endpoints, allow_unsigned=True, timeout=30, key=key) as client:
                results = client.predict_batch(images)
            found.append(
                {
                    "release": name,
                    "endpoints": list(running),
                    "key": None if key is None else key.hex(),
                    "images": [*map(packed, images)],
                    "labels": [result.label for result in results],
                    "probabilities": [result.probability for result in results],
                }
            )
        yield found


def write_certificates(folder: Path) -> None:
    """What a server that speaks TLS needs, and a client that it knows."""
    authority = trustme.CA()
    (folder / "ca.pem").write_bytes(authority.cert_pem.bytes())
    for name, issued in (("server", authority.issue_cert("localhost")), ("client", authority.issue_cert("device"))):
        (folder / f"{name}.pem").write_bytes(issued.cert_chain_pems[0].bytes())
        (folder / f"{name}-key.pem").write_bytes(issued.private_key_pem.bytes())


def test_style() -> None:
    node("node_modules/@biomejs/biome/bin/biome", "ci", ".")


@pytest.mark.parametrize("project", ["tsconfig.json", "tsconfig.core.json", "web", "examples", "examples/react-native"])
def test_types(project: str) -> None:
    """The second one: the core uses nothing of the DOM or of Node. The others: the page of `make web`, and examples.

    The app for React Native is checked against the types of what it imports (`make react-native`), and against the
    built package, as its users have it.
    """
    node("node_modules/typescript/bin/tsc", "-p", project)


def test_the_ten_lines_of_the_guide_work(servers: list[dict[str, Any]], tmp_path: Path) -> None:
    guide = (SDK.parent / "docs" / "JAVASCRIPT.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```js\n(.*?)```", guide, re.DOTALL)
    program, photo = SDK / "dist" / "guide.mjs", tmp_path / "photo"  # beside the package, which it imports by name
    program.write_text(code, encoding="utf-8")
    photo.write_bytes(base64.b64decode(servers[0]["images"][0]["data"]))
    printed = node(program, RELEASES / servers[0]["release"] / "client", photo, *servers[0]["endpoints"])
    program.unlink()
    assert printed == f"{servers[0]['labels'][0]} true true true\n"


def test_the_package_is_well_formed() -> None:
    node("node_modules/publint/src/cli.js", "--strict", "--pack", "false")
    npm = NODE.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    (packed_up,) = json.loads(node(npm, "pack", "--dry-run", "--json", "--loglevel=error"))
    files = {each["path"] for each in packed_up["files"]}
    assert {"LICENSE", "NOTICE", "README.md", "package.json", "dist/index.js", "dist/index.d.ts"} <= files
    others = [name for name in files if not re.fullmatch(r"dist/[\w.-]+\.(js|d\.ts)|[A-Z]+(\.md)?|package\.json", name)]
    assert others == []
    assert packed_up["size"] < 120_000


@pytest.mark.timeout(300)
def test_all_tests_pass_and_the_core_is_covered(servers: list[dict[str, Any]], tmp_path: Path) -> None:
    write_vectors(tmp_path / "vectors.json")
    write_certificates(tmp_path)
    node(
        "node_modules/vitest/vitest.mjs",
        "run",
        "--coverage",
        PRIVDFS_JS_VECTORS=str(tmp_path / "vectors.json"),
        PRIVDFS_JS_CERTIFICATES=str(tmp_path),
        PRIVDFS_JS_SERVERS=json.dumps(servers),
    )
    summary = json.loads((SDK / "coverage" / "coverage-summary.json").read_text())
    assert summary["total"]["lines"]["pct"] >= COVERED
