"""ONNX to a TensorRT engine ("plan"), with one code path for TensorRT 10, 11 and TensorRT-RTX.

- Precision is in the graph (`precision`); no flag of a builder that only one major version has is ever named.
- Two optimisation profiles: batch 1, and 2 to the largest batch, so that a single request gets kernels of its own.
- TensorRT never raises: its messages are collected, and a refusal becomes a typed error that quotes them.
- `check_graph` refuses what no TensorRT takes, and what it takes but should not.

The tests build with TensorRT-RTX, which needs no GPU, and resolve every name used here on the real bindings of 10.16
and 11.4. **No engine of this module has run on a GPU yet.**
"""

import functools
import importlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import onnx
from onnx import TensorProto, numpy_helper

from privdfs_export.errors import EngineBuildError, EngineError, EngineGraphError, TensorRTMissingError
from privdfs_export.repository import Repository, StoredModel
from privdfs_export.triton import profiles

#: TensorRT's parsers read opsets up to this one without the fused attention operators, which few types support.
MAX_OPSET = 22
Hardware = Literal["none", "ampere-plus", "same-compute-capability"]
_HARDWARE = {
    "none": "NONE",
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}
#: TensorRT's parser has no operator for these, or they are results of ONNX Runtime's dynamic quantisation.
_UNSUPPORTED = frozenset({"Unique", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv"})
_WEIGHTS_MEMORY = re.compile(r"Total Weights Memory: (\d+) bytes")
_ERRORS = frozenset({"ERROR", "INTERNAL_ERROR"})
#: TensorRT-RTX adds this to any error where there is no driver.
_NOISE = "cudaError 35"
_building = threading.Lock()


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        max_batch: the largest batch.
        workspace: bytes that one kernel may use as scratch; None for TensorRT's own limit.
        level: builder's effort, 0 to 5; None for TensorRT's default.
        version_compatible: the plan also loads in a newer TensorRT; it is slower, and Triton needs an option for it.
        hardware: which other GPUs the plan runs on; "none" for the very one it is built on, which is fastest.
        timing_cache: folder that keeps measured kernel times between builds; None to keep none.
        gpu: name of the GPU; part of the timing cache's key.
    """

    max_batch: int
    workspace: int | None = None
    level: int | None = None
    version_compatible: bool = False
    hardware: Hardware = "none"
    timing_cache: Path | None = None
    gpu: str = ""


@dataclass(frozen=True)
class Plan:
    """A serialised engine and how it was built.

    Attributes:
        data: the plan, pristine.
        tensorrt: version of TensorRT that built it.
        seconds: that parsing and building took.
        weights: bytes of the weights in memory, as TensorRT reports; None without a report.
        messages: severity and text of TensorRT's messages.
    """

    data: bytes = field(repr=False)
    tensorrt: str
    seconds: float
    weights: int | None
    messages: tuple[tuple[str, str], ...] = field(repr=False)


#: Builds the engine of one model of a server's folder. There is one for each `--via` of `privdfs-export plan`.
Build = Callable[[Repository, StoredModel, BuildOptions], Plan]


def find_tensorrt() -> ModuleType:
    """TensorRT's Python package.

    Returns:
        The module `tensorrt`; or, where only the bindings are installed, as in our image, those.

    Raises:
        TensorRTMissingError: It cannot be imported.
    """
    try:
        return importlib.import_module("tensorrt")
    except ImportError:
        pass
    try:
        return importlib.import_module("tensorrt_bindings")
    except ImportError as error:
        message = (
            f"TensorRT's Python package cannot be imported ({error}). Run this in the container that will serve (see "
            "deploy/README.md), or install the tensorrt package of exactly the version that your tritonserver has."
        )
        raise TensorRTMissingError(message) from error


def is_rtx(trt: ModuleType) -> bool:
    """Whether this is TensorRT-RTX, whose plans no tritonserver loads.

    Args:
        trt: The package.
    """
    return trt.__name__.startswith("tensorrt_rtx")


def check_graph(model: onnx.ModelProto) -> None:
    """Refuse graphs that cannot become a correct engine, before TensorRT sees them.

    Args:
        model: The graph.

    Raises:
        EngineGraphError: Opset, operator, type, batch axis or quantisation is not what TensorRT takes.
    """
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx"):
            message = f"the graph uses operators of the domain {opset.domain!r}; TensorRT reads standard ones only."
            raise EngineGraphError(message)
        if opset.version > MAX_OPSET:
            message = f"the graph has opset {opset.version}, TensorRT reads up to {MAX_OPSET}: export it with opset 20."
            raise EngineGraphError(message)
    for value in model.graph.input:
        _check_input(value)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    double = [value.name for value in _values(model) if value.type.tensor_type.elem_type == TensorProto.DOUBLE]
    double += [name for name, tensor in constants.items() if tensor.data_type == TensorProto.DOUBLE]
    for node in model.graph.node:
        _check_node(node, constants)
        double += [node.name for attribute in node.attribute if _is_cast_to_double(node, attribute)]
    if double:
        message = f"the graph computes in float64 ({double[0]}), which no engine needs: cast it to float32."
        raise EngineGraphError(message)


def _check_input(value: onnx.ValueInfoProto) -> None:
    dimensions = value.type.tensor_type.shape.dim
    sizes = [dimension.dim_value for dimension in dimensions]
    if not sizes or sizes[0] or not all(sizes[1:]):
        message = (
            f"the input {value.name} must have a dynamic batch as its first axis and fixed sizes behind it, not "
            f"{[dimension.dim_param or dimension.dim_value for dimension in dimensions]}: export it that way."
        )
        raise EngineGraphError(message)


def _check_node(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> None:
    if node.op_type in _UNSUPPORTED:
        message = (
            f"TensorRT has no operator {node.op_type} (node {node.name}). Quantise with `--precision int8`, and leave "
            "other operators of this kind to the client."
        )
        raise EngineGraphError(message)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
        zero = constants.get(node.input[2])
        if zero is None or zero.data_type == TensorProto.UINT8 or numpy_helper.to_array(zero).any():
            message = f"{node.name} quantises with a zero point; TensorRT takes symmetric int8 only: use 0."
            raise EngineGraphError(message)


def _is_cast_to_double(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> bool:
    return node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.DOUBLE


def build_engine(model: onnx.ModelProto, options: BuildOptions, trt: ModuleType | None = None) -> Plan:
    """Build an engine.

    Args:
        model: The graph, in its final precision.
        options: How.
        trt: TensorRT's package; found when None.

    Returns:
        The plan.

    Raises:
        EngineGraphError: The graph cannot become an engine.
        EngineBuildError: TensorRT refused.
        TensorRTMissingError: TensorRT is missing.
    """
    if options.max_batch < 1:
        message = f"max_batch = {options.max_batch}: an engine needs a profile for at least one image."
        raise EngineError(message)
    check_graph(model)
    trt = find_tensorrt() if trt is None else trt
    started = time.monotonic()
    with _said(trt) as logger:
        data = _build(trt, logger, model, options)
        messages, seconds = logger.messages, time.monotonic() - started
        found = [match for _, text in messages if (match := _WEIGHTS_MEMORY.search(text))]
        weights = int(found[-1].group(1)) if found else None
        return Plan(data, trt.__version__, seconds, weights, tuple(messages))


@contextmanager
def collected(trt: ModuleType) -> Iterator[tuple[Any, Callable[[], list[str]]]]:
    """TensorRT's logger, for running an engine.

    Args:
        trt: The package.

    Yields:
        The logger, and what gives the errors that TensorRT has logged so far.
    """
    with _said(trt) as logger:
        yield logger, lambda: _errors(logger.messages)


def _build(trt: ModuleType, logger: Any, model: onnx.ModelProto, options: BuildOptions) -> bytes:
    # Every object stays in a variable until the end: the parser keeps pointers into the network without owning it.
    builder = trt.Builder(logger)
    flags = 0
    if not is_rtx(trt) and int(trt.__version__.split(".")[0]) < 11:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)  # from 11 on there are no other networks
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        problems = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise _refused("cannot read the graph", problems)
    config = builder.create_builder_config()
    shapes = [(network.get_input(i).name, tuple(network.get_input(i).shape)[1:]) for i in range(network.num_inputs)]
    for smallest, best, largest in profiles(options.max_batch):
        profile = builder.create_optimization_profile()
        for name, shape in shapes:
            profile.set_shape(name, (smallest, *shape), (best, *shape), (largest, *shape))
        if config.add_optimization_profile(profile) < 0:
            raise _refused(f"does not take the batch sizes {smallest} to {largest}", _errors(logger.messages))
    cache_file = _configure(trt, config, options)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _refused("cannot build the graph", _errors(logger.messages))
    if cache_file is not None:
        cache_file.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(serialized)


def _configure(trt: ModuleType, config: Any, options: BuildOptions) -> Path | None:
    """Set what the options say; the file for the timing cache, if there is to be one."""
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    # Float32 in the graph stays float32; --precision asks for less, and coded rounds would not be exact with less.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware != "none":
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, _HARDWARE[options.hardware])
    # TensorRT-RTX compiles its kernels on the user's GPU, so there is nothing to time.
    if options.timing_cache is None or is_rtx(trt):
        return None
    key = re.sub(r"[^A-Za-z0-9.]+", "-", f"{options.gpu or 'gpu'}-{trt.__version__}")
    try:
        options.timing_cache.mkdir(parents=True, exist_ok=True)
        file = options.timing_cache / f"{key}.cache"
        stored = file.read_bytes() if file.exists() else b""
    except OSError as error:
        message = f"the timing cache {options.timing_cache} cannot be used ({error.strerror}): name another folder."
        raise EngineError(message) from error
    if not config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # of another driver: start anew
    return file


def _refused(what: str, problems: list[str]) -> EngineBuildError:
    told = "; ".join(problems[:4]) or "it gives no reason"
    message = f"TensorRT {what}: {told}. Fix the graph or choose another --precision, then build again."
    return EngineBuildError(message, tuple(problems))


def _errors(messages: list[tuple[str, str]]) -> list[str]:
    """TensorRT's errors, without those that a missing driver adds."""
    return [text for severity, text in messages if severity in _ERRORS and _NOISE not in text]


def _parser_error(refusal: Any) -> str:
    told = " ".join(line for line in refusal.desc().splitlines() if _NOISE not in line)
    return f"{refusal.node_operator() or 'graph'} {refusal.node_name()}: {told}".strip()


@contextmanager
def _said(trt: ModuleType) -> Iterator[Any]:
    """TensorRT's logger with an empty list of messages; one at a time, as TensorRT keeps the first logger it sees."""
    with _building:
        logger = _logger(trt)
        logger.messages = []
        yield logger


@functools.cache
def _logger(trt: ModuleType) -> Any:
    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 wants it called by name
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, msg: str) -> None:
            self.messages.append((severity.name, msg))

    return Collector()


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    return [*model.graph.input, *model.graph.output, *model.graph.value_info]
