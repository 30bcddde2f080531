"""The unprotected model under CrypTen: two parties, model and image both secret-shared, on this machine's loopback.

    PYTHON bench/privdfs_bench/speed/crypten.py MODEL.onnx IMAGE.npy TIMES

is what `measure_crypten` starts with a Python that has crypten (0.4.1 and torch; it fits no current release of torch
without the two lines at the top of `_main`, so it has an environment of its own). It prints one line of JSON: the
milliseconds of each answer, from sharing the image to the revealed logits, and the last logits.
"""

import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TIMEOUT_S = 600.0


def measure_crypten(python: Path, graph: bytes, image: "np.ndarray[Any, Any]", times: int) -> dict[str, Any]:
    """Run the model under CrypTen.

    Args:
        python: an interpreter that has crypten.
        graph: serialised ONNX, `image` to `logits`; a ResNet.
        image: uint8 [1, height, width, channels].
        times: answers to time, after one that is not.

    Returns:
        Milliseconds of each answer, their median, and the logits.

    Raises:
        subprocess.CalledProcessError: it failed; the error holds what it said.
    """
    with tempfile.TemporaryDirectory(prefix="privdfs-crypten-") as folder:
        model, pixels = Path(folder) / "model.onnx", Path(folder) / "image.npy"
        model.write_bytes(graph)
        np.save(pixels, image)
        line = [str(python), __file__, str(model), str(pixels), str(times)]
        done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return {"parties": 2, "p50_ms": round(statistics.median(found["samples_ms"]), 1), **found}


def _forward(onnx: Any, model: Any, constants: dict[str, Any], image: Any) -> Any:  # noqa: ANN401
    """Evaluate the graph on a secret-shared image, float [1, channels, height, width]; `constants` are shared too."""
    values: dict[str, Any] = {**constants}
    for node in model.graph.node:
        given: list[Any] = [values.get(name) for name in node.input]
        about = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type in {"Transpose", "Cast"}:  # done before the image is shared
            result = image
        elif node.op_type == "Conv":
            padding, stride = tuple(about["pads"][:2]), tuple(about["strides"])
            result = given[0].conv2d(given[1], padding=padding, stride=stride)
            result = result + given[2].reshape(1, -1, 1, 1) if len(given) > 2 else result
        elif node.op_type == "Relu":
            result = given[0].relu()
        elif node.op_type == "Add":
            result = given[0] + given[1]
        elif node.op_type == "Sub":
            result = given[0] - given[1]
        elif node.op_type == "Div":  # by public constants of the pixels
            result = given[0].div(given[1])
        elif node.op_type == "ReduceMean":
            result = given[0].mean(3).mean(2)
        elif node.op_type == "Gemm":
            result = given[0].matmul(given[1].transpose(0, 1)) + given[2]
        else:
            raise NotImplementedError(f"CrypTen is compared on ResNets only: no {node.op_type}")
        values[node.output[0]] = result
    return values["logits"]


def _main() -> None:
    sys.path.pop(0)  # this folder, in which this file would be taken for the library
    # crypten 0.4.1 looks for a module of torch that has moved since.
    moved = importlib.import_module("torch.onnx._internal.torchscript_exporter.registration")
    sys.modules.setdefault("torch.onnx._internal.registration", moved)
    crypten, torch, onnx = (importlib.import_module(name) for name in ("crypten", "torch", "onnx"))
    context = importlib.import_module("crypten.mpc.context")
    path, pixels, times = sys.argv[1:]

    @context.run_multiprocess(world_size=2)
    def party() -> dict[str, Any]:
        torch.set_num_threads(1)
        model = onnx.load(path)
        image = torch.from_numpy(np.load(pixels)).permute(0, 3, 1, 2).float()
        public = {"Sub", "Div", "ReduceMean"}
        unshared = {name for node in model.graph.node if node.op_type in public for name in node.input}
        constants = {
            tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            for tensor in model.graph.initializer
        }
        constants = {
            name: value if name in unshared else crypten.cryptensor(value, src=0) for name, value in constants.items()
        }
        samples, logits = [], None
        for _ in range(int(times) + 1):
            started = time.perf_counter()
            shared = crypten.cryptensor(image, src=1)
            logits = _forward(onnx, model, constants, shared).get_plain_text()
            samples.append((time.perf_counter() - started) * 1e3)
        assert logits is not None  # noqa: S101 - at least one round
        return {"samples_ms": [round(one, 1) for one in samples[1:]], "logits": logits[0].tolist()}

    print(json.dumps(party()[0]))


if __name__ == "__main__":
    _main()
