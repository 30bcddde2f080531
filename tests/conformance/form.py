"""How values stand in the vectors' JSON: bytes in base64, tensors with type and shape, big integers as text."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.conformance.replay import Request

VECTORS = Path(__file__).parents[1] / "vectors"
RELEASES = VECTORS / "releases"
ROOT = VECTORS.parents[1]

_DTYPES = {"bool": "u1", "uint8": "u1", "int8": "i1", "int32": "<i4", "float32": "<f4"}


def text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def raw(encoded: str) -> bytes:
    return base64.b64decode(encoded, validate=True)


def tensor(values: NDArray[Any]) -> dict[str, Any]:
    dtype = str(values.dtype)
    return {"dtype": dtype, "shape": list(values.shape), "data": text(values.astype(_DTYPES[dtype]).tobytes())}


def array(written: dict[str, Any]) -> NDArray[Any]:
    """A fresh array, which may be changed."""
    data = np.frombuffer(raw(written["data"]), _DTYPES[written["dtype"]])
    return data.reshape(written["shape"]).astype(written["dtype"])


def request(found: Request) -> dict[str, Any]:
    told: dict[str, Any] = {"line": found.line, "headers": [list(pair) for pair in found.headers]}
    return told | ({"body": text(found.body)} if found.body else {})


def load(name: str) -> list[dict[str, Any]]:
    """The vectors of a file."""
    found: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text("utf-8"))
    return found["vectors"]


def dumped(about: str, vectors: list[dict[str, Any]]) -> bytes:
    """The bytes of a file of vectors: one vector a line, so that a change can be read."""
    lines = ",\n".join(json.dumps(vector, ensure_ascii=False) for vector in vectors)
    return f'{{"about": {json.dumps(about)},\n"vectors": [\n{lines}\n]}}\n'.encode()
