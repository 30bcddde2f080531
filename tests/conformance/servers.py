"""What the servers of the small releases answer, as Triton writes it, and the ways in which a vector spoils it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privdfs import Bundle
from privdfs._branch import Branch, branches
from privdfs._format import ClientManifest
from privdfs._local import open_branches
from privdfs._onnx import Graph
from tests.conformance.form import RELEASES
from tests.conformance.replay import Answerer, Request

#: Server, round (from 1) and true answer -> another answer, the bytes of a reply, or None: it hangs up.
Spoil = Callable[[int, int, NDArray[Any]], "NDArray[Any] | bytes | None"]

DATATYPES = {"int8": "INT8", "int32": "INT32", "float32": "FP32", "float64": "FP64"}
BUSY = (
    b'HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"error":"busy"}'
)


@dataclass(frozen=True)
class Small:
    """One of the small releases, open."""

    name: str
    bundle: Bundle
    branches: Sequence[Branch]
    graphs: Sequence[Sequence[Graph]]


@cache
def open_small(name: str, servers: int) -> Small:
    """Open once, for all tests; nothing changes it."""
    folder = RELEASES / name
    bundle = Bundle.open(folder / "client", allow_unsigned=True)
    graphs = [open_branches(folder, bundle.manifest, server) for server in range(servers)]
    return Small(name, bundle, branches(bundle.manifest, servers), graphs)


def answerer(small: Small, server: int, spoil: Spoil | None = None, config: dict[str, Any] | None = None) -> Answerer:
    """A server of a release; `config` changes what it says of itself."""
    branch = small.branches[server]
    names = [model.name for model in branch.models]
    masked = isinstance(small.bundle.manifest, ClientManifest)

    def answer(request: Request) -> bytes | None:
        number = names.index(request.model)
        if request.is_check:
            return framed(json_bytes(model_config(branch, number) | (config or {})))
        model = branch.models[number]
        feeds, position = dict[str, NDArray[Any]](), request.json_length
        for each in json.loads(request.body[:position])["inputs"]:
            size = each["parameters"]["binary_data_size"]
            kind = {"INT8": "i1", "INT32": "<i4"}[each["datatype"]]
            data = np.frombuffer(request.body[position : position + size], kind)
            feeds[each["name"]] = data.reshape(each["shape"]).astype(data.dtype.newbyteorder("="))
            position += size
        (true,) = small.graphs[server][number].run(feeds)
        given = true if spoil is None else spoil(server, 1 if masked else number + 1, true)
        return (
            given if given is None or isinstance(given, bytes) else tensor_answer(model.name, model.output.name, given)
        )

    return answer


def model_config(branch: Branch, number: int) -> dict[str, Any]:
    """What Triton says of a model, as far as a client reads it, and some of the rest."""
    model = branch.models[number]
    return {
        "name": model.name,
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": branch.max_batch,
        "input": [
            {
                "name": each.name,
                "data_type": f"TYPE_{DATATYPES[each.dtype]}",
                "format": "FORMAT_NONE",
                "dims": list(each.sizes),
            }
            for each in model.inputs
        ],
        "output": [
            {
                "name": model.output.name,
                "data_type": f"TYPE_{DATATYPES[model.output.dtype]}",
                "dims": list(model.output.sizes),
                "label_filename": "",
            }
        ],
        "parameters": {
            "privdfs_release": {"string_value": branch.release},
            "privdfs_server": {"string_value": str(branch.server)},
        },
    }


def tensor_answer(model: str, name: str, values: NDArray[Any]) -> bytes:
    """An answer of one tensor."""
    output = {
        "name": name,
        "datatype": DATATYPES[str(values.dtype)],
        "shape": list(values.shape),
        "parameters": {"binary_data_size": values.nbytes},
    }
    told = json_bytes({"model_name": model, "model_version": "1", "outputs": [output]})
    return framed(told + values.tobytes(), len(told))


def framed(body: bytes, json_length: int | None = None, status: str = "200 OK", headers: str = "") -> bytes:
    """An HTTP answer; further headers end in a line break."""
    inner = "" if json_length is None else f"Inference-Header-Content-Length: {json_length}\r\n"
    kind = "application/json" if json_length is None else "application/octet-stream"
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{inner}{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def json_bytes(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
