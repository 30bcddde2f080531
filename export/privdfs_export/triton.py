"""Triton model repositories: the configuration of a model, and its files.

A model of a release is one ONNX graph with one output and one input (two in a keyed release), all with a leading batch
axis. Triton can run it by one of several engines; whatever the engine, `config.pbtxt` states everything and leaves
nothing to auto-completion, so that what a server loads is what the exporter wrote.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from google.protobuf import json_format, text_format

Engine = Literal["python", "onnxruntime"]

#: The one version of a model in a repository of ours.
VERSION = "1"
ONNX_NAME = "model.onnx"
#: The script that Triton's Python backend runs; it serves any graph with one output.
PYTHON_ENGINE = Path(__file__).parent / "python_engine" / "model.py"

#: Engine -> (Triton backend, file that the backend opens). A "tensorrt" engine adds ("tensorrt", "model.plan").
_BACKENDS: Mapping[Engine, tuple[str, str]] = {
    "python": ("python", "model.py"),
    "onnxruntime": ("onnxruntime", ONNX_NAME),
}
_TYPES = {"uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a model: name, element type, and shape without the batch axis."""

    name: str
    dtype: Literal["uint8", "int8", "int32", "float32"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelSpec:
    """What `config.pbtxt` says of a model.

    Attributes:
        name: of the model, `branch` or `baseline`; it is also the name of its folder.
        engine: what runs the graph.
        inputs: the tensors that requests bring.
        output: the one tensor that answers bring.
        max_batch: the most images one execution takes.
        parameters: free text that clients can read with the ModelConfig call: release id and server index.
    """

    name: str
    engine: Engine
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    max_batch: int
    parameters: Mapping[str, str]


def config_pbtxt(spec: ModelSpec) -> str:
    """Text of the `config.pbtxt` of a model."""
    from tritonclient.grpc import model_config_pb2

    backend, filename = _BACKENDS[spec.engine]
    inputs = [_tensor(tensor) for tensor in spec.inputs]
    config: dict[str, Any] = {
        "name": spec.name,
        "backend": backend,
        "default_model_filename": filename,
        "max_batch_size": spec.max_batch,
        "input": inputs,
        "output": [_tensor(spec.output)],
        "instance_group": [{"name": spec.name, "kind": "KIND_CPU", "count": 1}],
        # No queue delay: requests that wait together are batched, but none waits for company. No queue policy either:
        # with one, Triton 2.51 holds back some requests for half a second, although nobody is in front of them.
        "dynamic_batching": {},
        # The model reports ready only after one run, so that no client pays for the first one.
        "model_warmup": [
            {
                "name": "zeros",
                "batch_size": 1,
                "inputs": {
                    tensor["name"]: {"data_type": tensor["data_type"], "dims": tensor["dims"], "zero_data": True}
                    for tensor in inputs
                },
            },
        ],
        # Triton's cache would keep answers under a hash of the share.
        "response_cache": {"enable": False},
        "parameters": {key: {"string_value": value} for key, value in spec.parameters.items()},
    }
    message = json_format.ParseDict(config, model_config_pb2.ModelConfig())  # pyright: ignore[reportAttributeAccessIssue]
    return text_format.MessageToString(message)


def write_model(repository: Path, spec: ModelSpec, onnx: bytes) -> list[str]:
    """Write a model into a Triton model repository.

    Args:
        repository: folder of the repository; made when it is not there.
        spec: what to say of the model.
        onnx: the serialised ONNX graph.

    Returns:
        The paths of the files written, relative to `repository`, in posix form.
    """
    version = repository / spec.name / VERSION
    version.mkdir(parents=True)
    config = version.parent / "config.pbtxt"
    config.write_text(config_pbtxt(spec), encoding="utf-8")
    graph = version / ONNX_NAME
    graph.write_bytes(onnx)
    written = [config, graph]
    if spec.engine == "python":
        written.append(version / "model.py")
        shutil.copyfile(PYTHON_ENGINE, written[-1])
    return [path.relative_to(repository).as_posix() for path in written]


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": _TYPES[tensor.dtype], "dims": list(tensor.shape)}
