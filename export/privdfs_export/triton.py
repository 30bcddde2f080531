"""Triton model repositories: the configuration of a model, and its files.

A model of a release is one ONNX graph with one output and one input (two in a keyed release), all with a leading batch
axis. Triton can run it by one of several engines; whatever the engine, `config.pbtxt` states everything and leaves
nothing to auto-completion, so that what a server loads is what the exporter wrote.

The engine `tensorrt` loads plans, which are built on the GPU host (`plan`); the ONNX graph stays beside them, to build
from and to compare with, and Triton does not open it. Plans hold nothing of ours: the manifest describes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from google.protobuf import json_format, text_format
from numpy.typing import NDArray

from privdfs._format import TensorSpec

Engine = Literal["python", "onnxruntime", "tensorrt"]
#: Engines that run the ONNX graph itself, as the exporter writes it.
GraphEngine = Literal["python", "onnxruntime"]

#: The one version of a model in a repository of ours.
VERSION = "1"
ONNX_NAME = "model.onnx"
#: The script that Triton's Python backend runs; it serves any graph with one output.
PYTHON_ENGINE = Path(__file__).parent / "python_engine" / "model.py"

PLAN_NAME = "model.plan"
#: Folder beside the version, where Triton looks for the data of a warm-up.
WARMUP = "warmup"

#: Engine -> file that Triton's backend of the same name opens.
FILES: Mapping[Engine, str] = {"python": "model.py", "onnxruntime": ONNX_NAME, "tensorrt": PLAN_NAME}
TENSOR_TYPES = {"uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}


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
        plans: of the engine "tensorrt", file by compute capability, such as {"9.0": "model.plan"}.
        version_compatible: the plans load in newer versions of TensorRT too, if Triton is told to trust them.
    """

    name: str
    engine: Engine
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    max_batch: int
    parameters: Mapping[str, str]
    plans: Mapping[str, str] = field(default_factory=dict)
    version_compatible: bool = False


def config_pbtxt(spec: ModelSpec) -> str:
    """Text of the `config.pbtxt` of a model."""
    from tritonclient.grpc import model_config_pb2

    inputs = [_tensor(tensor) for tensor in spec.inputs]
    config: dict[str, Any] = {
        "name": spec.name,
        "backend": spec.engine,
        "default_model_filename": FILES[spec.engine],
        "max_batch_size": spec.max_batch,
        "input": inputs,
        "output": [_tensor(spec.output)],
        "instance_group": [{"name": spec.name, "kind": "KIND_CPU", "count": 1}],
        # No queue delay: requests that wait together are batched, but none waits for others. No queue policy either:
        # with one, Triton 2.51 holds back some requests for half a second, although no request is ahead of them.
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
    note = ""
    if spec.engine == "tensorrt":
        config |= _tensorrt(spec)
        if spec.version_compatible:
            note = "# Version-compatible plans: tritonserver --backend-config=tensorrt,version-compatible=true\n"
    message = json_format.ParseDict(config, model_config_pb2.ModelConfig())  # pyright: ignore[reportAttributeAccessIssue]
    return note + text_format.MessageToString(message)


def write_model(
    repository: Path,
    spec: ModelSpec,
    onnx: bytes,
    plans: Mapping[str, bytes] | None = None,
    golden: Mapping[str, NDArray[np.generic]] | None = None,
) -> list[str]:
    """Write a model into a Triton model repository.

    Args:
        repository: folder of the repository; made when it is not there.
        spec: what to say of the model.
        onnx: the serialised ONNX graph.
        plans: of the engine "tensorrt", the plans by file name.
        golden: of the engine "tensorrt", real inputs [images, …] by name, for warming up.

    Returns:
        The paths of the files written, relative to `repository`, in posix form.
    """
    version = repository / spec.name / VERSION
    version.mkdir(parents=True)
    config = version.parent / "config.pbtxt"
    config.write_text(config_pbtxt(spec), encoding="utf-8")
    files = {version / ONNX_NAME: onnx}
    if spec.engine == "python":
        files[version / "model.py"] = PYTHON_ENGINE.read_bytes()
    if spec.engine == "tensorrt":
        files |= {version / name: data for name, data in (plans or {}).items()}
        (version.parent / WARMUP).mkdir()
        for name, values in (golden or {}).items():
            files[version.parent / WARMUP / name] = np.ascontiguousarray(values[:1]).tobytes()
    for path, data in files.items():
        path.write_bytes(data)
    return [path.relative_to(repository).as_posix() for path in (config, *files)]


def triton_type(number: int) -> Any:
    """An element type, as numpy calls it.

    Args:
        number: As Triton's protocol has it.

    Returns:
        The name; Triton's own where no tensor of a release has that type.
    """
    from tritonclient.grpc import model_config_pb2

    name = model_config_pb2.DataType.Name(number)  # pyright: ignore[reportAttributeAccessIssue]
    return next((ours for ours, theirs in TENSOR_TYPES.items() if theirs == name), name)


def profiles(max_batch: int) -> list[tuple[int, int, int]]:
    """Batch sizes of the optimisation profiles of an engine: smallest, the one to optimise for, largest.

    Args:
        max_batch: The largest batch.

    Returns:
        One triple per profile: batch 1 alone, then the rest.
    """
    return [(1, 1, 1)] if max_batch == 1 else [(1, 1, 1), (2, min(8, max_batch), max_batch)]


def graph_sizes(max_batch: int) -> list[int]:
    """Batch sizes that get a CUDA graph: powers of two, and the largest batch.

    Args:
        max_batch: The largest batch.

    Returns:
        Ascending.
    """
    return sorted(
        {size for size in (2**power for power in range(max_batch.bit_length())) if size < max_batch} | {max_batch}
    )


def _tensorrt(spec: ModelSpec) -> dict[str, Any]:
    """What is different for TensorRT's backend."""
    batches = profiles(spec.max_batch)
    inputs = {tensor.name: {"dim": [str(size) for size in tensor.shape]} for tensor in spec.inputs}
    fields: dict[str, Any] = {
        # One context for each profile that is named; the backend takes the one nearest to a batch. Without names it
        # would use the first alone, which is for one image. No GPU is named: there is one instance on each.
        "instance_group": [
            {"name": spec.name, "kind": "KIND_GPU", "count": 1, "profile": [str(i) for i in range(len(batches))]}
        ],
        "optimization": {
            "cuda": {
                # A branch is small, so starting its kernels one by one costs more than they do. The backend tries every
                # size in every profile; for each that lies outside of a profile it logs an error, and goes on.
                "graphs": True,
                "graph_spec": [{"batch_size": size, "input": inputs} for size in graph_sizes(spec.max_batch)],
                "output_copy_stream": True,
            },
            "input_pinned_memory": {"enable": True},
            "output_pinned_memory": {"enable": True},
        },
        # Both profiles run once, on a real share, before the model reports ready.
        "model_warmup": [
            {
                "name": f"golden-{size}",
                "batch_size": size,
                "inputs": {
                    tensor.name: {
                        "data_type": TENSOR_TYPES[tensor.dtype],
                        "dims": list(tensor.shape),
                        "input_data_file": tensor.name,
                    }
                    for tensor in spec.inputs
                },
            }
            for size in (largest for _, _, largest in batches)
        ],
    }
    if len(spec.plans) > 1:
        fields["cc_model_filenames"] = dict(spec.plans)
    return fields


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": TENSOR_TYPES[tensor.dtype], "dims": list(tensor.shape)}
