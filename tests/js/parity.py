"""What the Python SDK makes of images, written down so that the SDK in TypeScript can be compared with it.

One file of JSON, whose tensors are base64: resized pixels, shares of every release, whole calls of coded releases with
the residues that they drew.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from privdfs import Bundle, coding
from privdfs._bundle import CodedManifest
from privdfs._coded import Coded
from privdfs._coded_format import RESIDUES
from privdfs._format import SHARE, ImageSpec, key_spec
from privdfs._images import load_image
from privdfs._kinds import Outcome, Sent
from privdfs._local import open_branches
from privdfs._onnx import Graph

RELEASES = Path(__file__).parents[2] / "model_repository"
IMAGES = Path(__file__).parents[2] / "examples" / "images"
#: Old and new sizes, width and height: up, down, one axis alone, tall, wide, by one, prime.
SIZES = [
    ((28, 28), (28, 28)), ((28, 40), (28, 28)), ((40, 28), (28, 28)), ((56, 56), (28, 28)), ((29, 27), (28, 28)),
    ((8, 8), (28, 28)), ((8, 300), (28, 28)), ((300, 8), (28, 28)), ((97, 101), (32, 32)), ((31, 33), (32, 32)),
    ((640, 480), (32, 32)), ((213, 1021), (32, 32)), ((1021, 213), (32, 32)), ((32, 31), (32, 32)),
    ((64, 8), (224, 224)), ((500, 333), (224, 224)), ((225, 223), (224, 224)), ((9, 11), (7, 5)), ((1500, 9), (3, 3)),
]  # fmt: skip


def packed(array: NDArray[Any]) -> dict[str, Any]:
    """A tensor as JSON."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


def write_vectors(path: Path) -> None:
    """Write everything that `sdk-js/test/parity.test.ts` compares."""
    releases = sorted(folder.name for folder in RELEASES.iterdir() if (folder / "client" / "manifest.json").exists())
    masked, coded = [], []
    for name in releases:
        bundle = Bundle.open(RELEASES / name / "client", allow_unsigned=True)
        (coded if isinstance(bundle.manifest, CodedManifest) else masked).append(name)
    vectors = {
        "pixels": pixel_cases(),
        "masked": [masked_case(name) for name in masked],
        "coded": [coded_case(name, servers, colluding) for name in coded for servers, colluding in ((3, 1), (5, 2))],
    }
    path.write_text(json.dumps(vectors), encoding="utf-8")


def pixel_cases() -> list[dict[str, Any]]:
    """Arrays of odd sizes and every number of channels, and all pairs of a value and an alpha."""
    generator = np.random.default_rng(29)
    cases = []
    for index, ((width, height), (new_width, new_height)) in enumerate(SIZES):
        for channels, wanted in ((1, 3), (3, 1), (4, 3), (1, 1), (3, 3), (4, 1)):
            if (index + channels) % 3 and width * height > 100_000:
                continue  # large ones take most of the time
            smooth = generator.integers(0, 256, (max(2, height // 9), max(2, width // 9), 4), np.uint8)
            image = np.asarray(Image.fromarray(smooth).resize((width, height)))[:, :, :channels].copy()
            image[::3, ::2] = generator.integers(0, 256, (*image[::3, ::2].shape[:2], channels), np.uint8)
            spec = ImageSpec(height=new_height, width=new_width, channels=1 if wanted == 1 else 3)
            cases.append(_pixel_case(image, spec))
    values = np.arange(256, dtype=np.uint8)
    every = np.stack([*np.broadcast_arrays(values, values[::-1], values[:, None] ^ 85, values[:, None])], axis=2)
    cases.append(_pixel_case(every, ImageSpec(height=256, width=256, channels=3)))
    return cases


def _pixel_case(image: NDArray[np.uint8], spec: ImageSpec) -> dict[str, Any]:
    return {
        "image": packed(image),
        "spec": {"height": spec.height, "width": spec.width, "channels": spec.channels},
        "expected": packed(load_image(image, spec)),
    }


def batch_of(name: str, spec: ImageSpec) -> NDArray[np.uint8]:
    """Golden examples, the demo's images and noise, in a release's size."""
    golden = load_file(RELEASES / name / "client" / "golden.safetensors")["images"]
    real = [load_image(path, spec) for path in sorted(IMAGES.glob("*.png"))]
    noise = np.random.default_rng(7).integers(0, 256, (30, *golden.shape[1:]), np.uint8)
    return np.concatenate([golden, np.stack(real), noise])


def masked_case(name: str) -> dict[str, Any]:
    """Images to shares, and logits to probabilities, for every set of servers that may answer."""
    bundle = Bundle.open(RELEASES / name / "client", allow_unsigned=True)
    images = batch_of(name, bundle.manifest.image)
    keys = key_spec(bundle.masked)
    secret = bytes(range(16))
    partition = None if keys is None else bundle.partition(secret)
    n_servers = bundle.n_servers
    logits = np.random.default_rng(3).normal(0, 4, (2**n_servers - 1, n_servers, len(bundle.classes)))
    answered = np.array([[bool(n >> i & 1) for i in range(n_servers)] for n in range(1, 2**n_servers)])
    return {
        "release": name,
        "key": None if keys is None else secret.hex(),
        "partition": partition,
        "images": packed(images),
        "shares": [packed(share) for share in bundle.encode(images, partition=partition)],
        "logits": packed(logits.astype(np.float32)),
        "answered": packed(answered.astype(np.uint8)),
        "probabilities": packed(bundle.fuse(logits.astype(np.float32), answered)),
    }


def coded_case(name: str, servers: int, colluding: int) -> dict[str, Any]:
    """A whole call: what was drawn, every server's shares and answers round by round, and the probabilities."""
    bundle = Bundle.open(RELEASES / name / "client", allow_unsigned=True)
    manifest = bundle.manifest
    assert isinstance(manifest, CodedManifest)
    branches = open_branches(RELEASES / name, manifest, 0)  # all servers run the same networks
    images = batch_of(name, manifest.image)[::13]
    drawn: list[dict[str, Any]] = []
    draw = coding.draw

    def noted(shape: tuple[int, int, int], moduli: Sequence[int]) -> NDArray[np.int8]:
        found = draw(shape, moduli)
        drawn.append(packed(found))
        return found

    rounds = []
    with mock.patch.object(coding, "draw", noted):
        kind = Coded.check(bundle.coded, manifest, servers, colluding)
        step: Any = kind.begin(images)
        while isinstance(step, Sent):
            answers = _answers(branches[step.round], step.shares)
            rounds.append({"shares": [*map(packed, step.shares)], "answers": [*map(packed, answers)]})
            step = kind.take(step, [Outcome(server, 0.0, answer) for server, answer in enumerate(answers)])
    return {
        "release": name,
        "servers": servers,
        "colluding": colluding,
        "images": packed(images),
        "drawn": drawn,
        "rounds": rounds,
        "probabilities": packed(step.probabilities),
    }


def _answers(branch: Graph, shares: Sequence[NDArray[np.int8]]) -> list[NDArray[np.int8]]:
    found = []
    for share in shares:
        (residues,) = branch.run({SHARE: share})
        assert residues.dtype == np.int8, RESIDUES
        found.append(residues)
    return found
