"""The cold start of a client: what a process pays from its first import to its first answer, and its peak memory.

    python -m privdfs_bench.speed.cold privdfs|http|floor|http_floor|bare CLIENT IMAGE ENDPOINT …

prints one line of JSON, from a fresh process.

`cold_starts` starts such processes. `privdfs` is the SDK over gRPC, `http` over HTTP. The floors are the least that the
same first answer costs in Python: imports, two sessions, and a bare stub or a plain socket for each server. `bare` is
an interpreter that has imported what this script needs itself.

All have their bytecode, as installed packages have: the first start of each writes it, and is not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TIMEOUT_S = 120.0
#: Systems, and the wire that each speaks.
SYSTEMS = {"privdfs": "grpc", "http": "http", "floor": "grpc", "http_floor": "http", "bare": "http"}


def cold_starts(client: Path, image: Path, endpoints: Mapping[str, Sequence[str]], times: int) -> dict[str, Any]:
    """Start every system in fresh processes, in turns.

    Args:
        client: folder of the bundle.
        image: an image file.
        endpoints: of the servers, by wire.
        times: how often each.

    Returns:
        For each system the medians in milliseconds and MB, and every start.

    Raises:
        subprocess.CalledProcessError: one failed; the error holds what it said.
    """
    starts: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
    with tempfile.TemporaryDirectory(prefix="privdfs-bytecode-") as bytecode:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for number in range(-1, times):
            for system, wire in SYSTEMS.items():
                line = [sys.executable, "-m", "privdfs_bench.speed.cold", system, str(client), str(image)]
                done = subprocess.run(
                    [*line, *endpoints[wire]],
                    capture_output=True, text=True, check=True, timeout=TIMEOUT_S, env=environment,
                )  # fmt: skip
                if number >= 0:
                    starts[system].append(json.loads(done.stdout.splitlines()[-1]))
    bare = statistics.median(start["peak_mb"] for start in starts["bare"])
    found: dict[str, Any] = {"bare_peak_mb": bare}
    for system in filter("bare".__ne__, SYSTEMS):
        medians = {name: round(statistics.median(one[name] for one in starts[system]), 1) for name in starts[system][0]}
        found[system] = {
            **medians,
            "peak_over_bare_mb": round(medians["peak_mb"] - bare, 1),
            "starts": starts[system],
        }
    return found


def privdfs(client: Path, image: Path, endpoints: Sequence[str], mark: Callable[[str], None]) -> None:
    """What an application does first."""
    from privdfs import Bundle, Client

    mark("import_ms")
    bundle = Bundle.open(client, allow_unsigned=True)
    mark("open_ms")
    with Client(bundle, endpoints, timeout=TIMEOUT_S, key=_key(client)) as connected:
        connected.predict(image)
        mark("first_answer_ms")


def floor(client: Path, image: Path, endpoints: Sequence[str], mark: Callable[[str], None]) -> None:
    """The same by hand over gRPC. It uses none of the SDK, and checks nothing."""
    import numpy as np

    from privdfs_bench.speed.stubs import logits_of, request_for, stubs

    shares, partition, fuse = _encoded(client, image, mark)
    further = {name: ("INT32", values.shape) for name, values in partition.items()}
    with stubs(endpoints) as called:
        calls = []
        for stub, share in zip(called, shares, strict=True):
            request = request_for("branch", {"share": ("INT8", share.shape)} | further)
            request.raw_input_contents[:] = [one.tobytes() for one in (share, *partition.values())]
            calls.append(stub.ModelInfer.future(request, timeout=TIMEOUT_S))
        fuse(np.stack([logits_of(call.result()) for call in calls]))
        mark("first_answer_ms")


def http_floor(client: Path, image: Path, endpoints: Sequence[str], mark: Callable[[str], None]) -> None:
    """The same by hand over HTTP."""
    import numpy as np

    from privdfs_bench.speed.sockets import RawModel, connections

    shares, partition, fuse = _encoded(client, image, mark)
    further = {name: ("INT32", values.shape) for name, values in partition.items()}
    with connections(endpoints) as made:
        models = [
            RawModel(connection, "branch", {"share": ("INT8", share.shape)} | further)
            for connection, share in zip(made, shares, strict=True)
        ]
        for model, share in zip(models, shares, strict=True):
            model.send(*(one.tobytes() for one in (share, *partition.values())))
        fuse(np.stack([model.logits() for model in models]))
        mark("first_answer_ms")


def _encoded(client: Path, image: Path, mark: Callable[[str], None]) -> tuple[list[Any], dict[str, Any], Any]:
    """What both floors begin with: shares, the further inputs of servers, and what fuses their logits."""
    import numpy as np
    import onnxruntime
    from PIL import Image

    mark("import_ms")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    encoder, fusion = (
        onnxruntime.InferenceSession(str(client / name), options, providers=["CPUExecutionProvider"])
        for name in ("encoder.onnx", "fusion.onnx")
    )
    mark("open_ms")
    first, *keyed = encoder.get_inputs()
    _, height, width, channels = first.shape
    opened = Image.open(image).convert("L" if channels == 1 else "RGB").resize((width, height))
    feeds = {"image": np.asarray(opened).reshape(1, height, width, channels)}
    partition = {one.name: np.zeros((1, 1), np.int32) for one in keyed}
    shares = [np.asarray(one) for one in encoder.run(None, feeds | partition)]

    def fuse(logits: Any) -> None:  # noqa: ANN401 - numpy is not imported where this is read
        fusion.run(None, {"logits": logits[np.newaxis], "answered": np.ones((1, len(logits)), np.bool_)})

    return shares, partition, fuse


def _key(client: Path) -> bytes | None:
    """Any key, for a keyed release."""
    keyed = "keys" in json.loads((client / "manifest.json").read_text(encoding="utf-8"))
    return bytes(16) if keyed else None


def _peak_mb() -> float:
    """Most memory that this process has held, from its own pages: getrusage would count those of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (peak,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(peak) / 1024, 1)


def _main() -> None:
    system, client, image, *endpoints = sys.argv[1:]
    found: dict[str, float] = {}
    started = last = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        found[name], last = round((now - last) * 1e3, 1), now

    if system != "bare":
        does = {"privdfs": privdfs, "http": privdfs, "floor": floor, "http_floor": http_floor}[system]
        does(Path(client), Path(image), endpoints, mark)
        found["total_ms"] = round((last - started) * 1e3, 1)
    print(json.dumps(found | {"peak_mb": _peak_mb()}))


if __name__ == "__main__":
    _main()
