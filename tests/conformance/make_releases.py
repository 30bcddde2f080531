"""`releases.json`: releases of the repository by digest, and what three of its images become with them."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from privdfs import Client
from privdfs._images import load_image
from privdfs._local import open_client
from tests.conformance.form import ROOT

ABOUT = (
    "Releases that lie in `folder` of the repository, whose client manifest has the SHA-256 `manifest`. Their golden "
    "examples are vectors too: replay them. Each of `images` becomes pixels of the release's size with the SHA-256 "
    "`pixels`, and gets `label` when the models in the servers' folders answer."
)

FOLDERS = (
    "model_repository/fashion-resnet20", "model_repository/fashion-resnet20-keyed", "model_repository/fashion-coded",
    "model_repository/cifar10-coded",
)  # fmt: skip
IMAGES = ("examples/images/bag-1.png", "examples/images/coat-1.png", "examples/images/sneaker-2.png")
#: For the keyed release.
KEY = "00112233445566778899aabbccddeeff"


def make() -> Iterable[dict[str, Any]]:
    for folder in FOLDERS:
        manifest = hashlib.sha256((ROOT / folder / "client" / "manifest.json").read_bytes()).hexdigest()
        told: dict[str, Any] = {"name": Path(folder).name, "section": "2.7", "folder": folder, "manifest": manifest}
        if folder.endswith("keyed"):
            told["key"] = KEY
        yield told | {"images": found(told)}


def found(told: Mapping[str, Any]) -> list[dict[str, str]]:
    """What the images become, with the release as it lies there."""
    spec = open_client(ROOT / told["folder"]).manifest.image
    key = bytes.fromhex(told["key"]) if "key" in told else None
    with Client.local(ROOT / told["folder"], key=key) as client:
        return [
            {
                "file": name,
                "pixels": hashlib.sha256(load_image(ROOT / name, spec).tobytes()).hexdigest(),
                "label": client.predict(ROOT / name).label,
            }
            for name in IMAGES
        ]
