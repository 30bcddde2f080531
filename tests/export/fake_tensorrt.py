"""Stands where TensorRT 11 would be: takes a graph, and runs it by ONNX Runtime on the memory of the stub driver.

Only what the exporter calls is here, under the names that test_tensorrt_api holds against the real packages. A plan is
JSON: version, compute capability, profiles, and the graph. `install` makes it importable as `tensorrt`.
"""

import base64
import ctypes
import enum
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from privdfs_export.sessions import session

__version__ = "11.4.0.106"


class Severity(enum.Enum):
    INFO = 0
    ERROR = 1


class BuilderFlag(enum.Enum):
    TF32 = 0
    VERSION_COMPATIBLE = 1


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


class TensorIOMode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class DataType(enum.Enum):
    FLOAT = 0
    INT8 = 2


class ILogger:
    def __init__(self) -> None:
        pass


class Config:
    def __init__(self) -> None:
        self.profiles: list[dict[str, Any]] = []
        self.set: dict[str, Any] = {"flags": {"TF32"}}
        self.cache = b""

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.set[pool.name] = size

    def set_flag(self, flag: BuilderFlag) -> None:
        self.set["flags"].add(flag.name)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.set["flags"].discard(flag.name)

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:  # noqa: FBT001  as TensorRT has it
        assert not ignore_mismatch
        if cache == b"of another driver":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache + b"timed ")


class Builder:
    #: What the last builder was told, for tests to look at.
    last: Config

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> Any:
        assert flags == 0  # of version 11: every network is strongly typed
        return SimpleNamespace(model=None)

    def create_builder_config(self) -> Config:
        Builder.last = Config()
        return Builder.last

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *sizes: shapes.__setitem__(name, sizes))

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        self.logger.log(Severity.INFO, "Total Weights Memory: 1234 bytes")
        plan = {
            "version": __version__,
            "profiles": config.profiles,
            "off": spoiled["off"],
            "graph": base64.b64encode(network.model.SerializeToString()).decode(),
        }
        return json.dumps(plan).encode()


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self.network = network

    def parse(self, data: bytes) -> bool:
        model = onnx.load_from_string(data)
        self.network.model = model
        names = [value.name for value in model.graph.input]
        shapes = [(-1, *(one.dim_value for one in value.type.tensor_type.shape.dim[1:])) for value in model.graph.input]
        self.network.num_inputs = len(names)
        inputs = [SimpleNamespace(name=name, shape=shape) for name, shape in zip(names, shapes, strict=True)]
        self.network.get_input = inputs.__getitem__
        return True


class Context:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan, self.profile = plan, -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.session = session(base64.b64decode(plan["graph"]))

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == 5
        self.profile = profile
        return profile < len(self.plan["profiles"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.plan["profiles"][self.profile][name]
        self.shapes[name] = shape
        return smallest[0] <= shape[0] <= largest[0] and list(shape[1:]) == list(smallest[1:])

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = self.session.get_outputs()[0].shape
        return (next(iter(self.shapes.values()))[0], *sizes[1:])

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 5
        types = {"tensor(int8)": np.int8, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}
        feeds = {}
        for one in self.session.get_inputs():
            feeds[one.name] = np.zeros(self.shapes[one.name], types[one.type])
            ctypes.memmove(feeds[one.name].ctypes.data, self.addresses[one.name], feeds[one.name].nbytes)
        (answer,) = self.session.run(None, feeds)
        answer = np.ascontiguousarray(answer)
        if answer.dtype == np.int8:  # one residue of many
            answer.flat[-1] += np.int8(self.plan["off"])
        else:
            answer = answer + np.float32(self.plan["off"])
        ctypes.memmove(self.addresses[self.session.get_outputs()[0].name], answer.ctypes.data, answer.nbytes)
        return True


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        try:
            plan = json.loads(data)
        except ValueError:
            self.logger.log(Severity.ERROR, "the plan is truncated")
            return None
        if plan["version"] != __version__:
            self.logger.log(Severity.ERROR, "Version tag does not match")
            return None
        context = Context(plan)
        names = [one.name for one in (*context.session.get_inputs(), *context.session.get_outputs())]
        outputs = len(context.session.get_inputs())
        kinds = {"tensor(float)": DataType.FLOAT, "tensor(int8)": DataType.INT8}
        types = {one.name: kinds[one.type] for one in context.session.get_outputs()}
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: TensorIOMode.OUTPUT if names.index(name) >= outputs else TensorIOMode.INPUT,
            get_tensor_dtype=lambda name: types[name],
            create_execution_context=lambda: context,
        )


#: How far off the next plans are to be, as a kernel that computes something else would be: of residues, the last one.
spoiled = {"off": 0.0}


def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make this module importable as `tensorrt`, for one test."""
    import sys

    from privdfs_export import engine

    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(spoiled, "off", 0.0)
    engine._logger.cache_clear()
    return module
