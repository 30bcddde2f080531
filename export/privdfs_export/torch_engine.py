"""`privdfs-export plan --via torch-tensorrt`: engines from the trained network instead of its ONNX graph.

Most releases are planned from ONNX. This route is for a network that TensorRT's parser cannot read. It needs the
`system.safetensors` that the release was exported from, and torch-tensorrt, which cannot be imported without a GPU. So
**it has never run on a GPU**: the tests compare every call with the source of its wheel, check on the CPU that the
exported programs compute what the graphs do, and run the command on a stand-in.
"""

import copy
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from privdfs._format import BASELINE_MODEL, IMAGE, LOGITS, PARTITION, SHARE, TensorSpec
from privdfs_export.engine import Build, BuildOptions, Plan
from privdfs_export.errors import EngineBuildError, EngineError, PrecisionError, TensorRTMissingError
from privdfs_export.modules import branch_module
from privdfs_export.precision import Precision
from privdfs_export.repository import Repository, StoredModel
from privdfs_export.triton import profiles
from privdfs_training.checkpoint import load_system
from privdfs_training.models.system import System

_PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TYPES = {"int8": torch.int8, "int32": torch.int32, "uint8": torch.uint8}


class ServedBranch(nn.Module):
    """A branch from the int8 share as it travels to float32 logits."""

    def __init__(self, system: System, server: int, dtype: torch.dtype) -> None:
        """Copy one server's branch; it computes in `dtype`."""
        super().__init__()
        self.branch = copy.deepcopy(branch_module(system, server)).to(dtype)
        self.scale, self.dtype = system.quantiser.scale(server), dtype

    def forward(self, share: Tensor, *partition: Tensor) -> Tensor:
        """Share int8 [batch, values], and in a keyed system partition int32 [batch, 1], to float32 logits."""
        return self.branch(share.to(self.dtype) * self.scale, *partition).float()


class ServedBaseline(nn.Module):
    """The unprotected model from uint8 pixels to float32 logits."""

    def __init__(self, system: System, dtype: torch.dtype) -> None:
        """Copy the baseline; it computes in `dtype`."""
        super().__init__()
        self.baseline, self.dtype = copy.deepcopy(system.baseline).to(dtype), dtype

    def forward(self, image: Tensor) -> Tensor:
        """Image uint8 [batch, height, width, channels] to float32 logits."""
        return self.baseline(image.to(self.dtype).permute(0, 3, 1, 2)).float()


def torch_builder(checkpoint: Path, precision: Precision, factory: str | None = None) -> Build:
    """Make what builds the engines of a release from the system that it was exported from.

    Args:
        checkpoint: `system.safetensors` of the run.
        precision: FP32, FP16 or BF16.
        factory: What makes the system's custom backbone; None where it has none.

    Returns:
        Builds the engine of one model of a server's folder.

    Raises:
        TensorRTMissingError: torch-tensorrt cannot be imported.
        PrecisionError: INT8 is built from ONNX only.
        CheckpointError: The system cannot be read.
    """
    torch_tensorrt = find_torch_tensorrt()
    dtype = _dtype(precision)
    system = load_system(checkpoint, factory=factory).system

    def build(repository: Repository, model: StoredModel, options: BuildOptions) -> Plan:
        specs, module = _served(system, repository, model, dtype)
        wanted = [(one.name, tuple(one.dims)) for one in model.config.input]
        if [(spec.name, spec.shape) for spec in specs] != wanted:
            message = f"{checkpoint} is not the system of {repository.path}. Give the one that it was exported from."
            raise EngineError(message)
        return convert(served_program(module, specs, options.max_batch), specs, options, torch_tensorrt)

    return build


def _dtype(precision: Precision) -> torch.dtype:
    """What a network of this precision computes in."""
    if precision not in _PRECISIONS:
        message = f"torch-tensorrt builds {', '.join(_PRECISIONS)}, not {precision}. Build that one with --via onnx."
        raise PrecisionError(message)
    return _PRECISIONS[precision]


def _served(
    system: System, repository: Repository, model: StoredModel, dtype: torch.dtype
) -> tuple[list[TensorSpec], nn.Module]:
    """What one folder serves: its inputs and its network."""
    if model.name == BASELINE_MODEL:
        channels, height, width = system.image_shape
        return [TensorSpec(IMAGE, "uint8", (height, width, channels))], ServedBaseline(system, dtype)
    server = repository.masked.server
    if server >= system.masks.servers:
        return [], nn.Identity()  # not the system of this release
    return branch_inputs(system), ServedBranch(system, server, dtype)


def branch_inputs(system: System) -> list[TensorSpec]:
    """What every branch of a system takes."""
    share = TensorSpec(SHARE, "int8", (system.masks.values,))
    return [share] if system.family is None else [share, TensorSpec(PARTITION, "int32", (1,))]


def served_program(module: nn.Module, specs: Sequence[TensorSpec], max_batch: int) -> ExportedProgram:
    """Export a network as a program with a dynamic batch, which torch-tensorrt takes.

    Args:
        module: `ServedBranch` or `ServedBaseline`.
        specs: Its inputs.
        max_batch: The largest batch, at least 2.

    Returns:
        The program.
    """
    batch = Dim("batch", min=1, max=max_batch)
    inputs = tuple(torch.zeros(2, *spec.sizes, dtype=_TYPES[spec.dtype]) for spec in specs)
    shapes: tuple[Any, ...] = ({0: batch},)
    if len(specs) > 1:  # `*partition` is one argument
        shapes += (({0: batch},),)
    return torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)


def convert(
    program: ExportedProgram, specs: Sequence[TensorSpec], options: BuildOptions, torch_tensorrt: ModuleType
) -> Plan:
    """Build an engine of a program.

    Args:
        program: As `served_program` makes it.
        specs: Its inputs.
        options: How; `check_options` says which torch-tensorrt has.
        torch_tensorrt: The package.

    Returns:
        The plan.

    Raises:
        EngineBuildError: torch-tensorrt refused.
    """
    inputs = [
        torch_tensorrt.Input(
            profiles=[
                {
                    "min_shape": (smallest, *spec.sizes),
                    "opt_shape": (best, *spec.sizes),
                    "max_shape": (largest, *spec.sizes),
                }
                for smallest, best, largest in profiles(options.max_batch)
            ],
            dtype=_TYPES[spec.dtype],
            name=spec.name,
        )
        for spec in specs
    ]
    given = {"workspace_size": options.workspace, "optimization_level": options.level}
    started = time.monotonic()
    try:
        data = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=inputs,
            require_full_compilation=True,
            assume_dynamic_shape_support=True,
            disable_tf32=True,
            version_compatible=options.version_compatible,
            hardware_compatible=options.hardware != "none",
            immutable_weights=True,
            arg_input_binding_names=tuple(spec.name for spec in specs),
            output_binding_names=LOGITS,
            **{name: value for name, value in given.items() if value is not None},
        )
    except Exception as error:  # torch-tensorrt has no common base for what it raises
        message = f"torch-tensorrt cannot build this network: {error}. Build it with --via onnx instead."
        raise EngineBuildError(message, (str(error),)) from error
    tensorrt = importlib.import_module("tensorrt").__version__
    return Plan(bytes(data), tensorrt, time.monotonic() - started, None, ())


def check_options(devices: Sequence[int], build: BuildOptions) -> None:
    """Refuse options that torch-tensorrt does not have.

    Args:
        devices: GPUs to build for.
        build: How.

    Raises:
        EngineError: One of them is only for the ONNX route.
    """
    only_onnx = {
        "--device": tuple(devices) != (0,),
        "--timing-cache": build.timing_cache is not None,
        "--hardware same-compute-capability": build.hardware == "same-compute-capability",
    }
    for option, given in only_onnx.items():
        if given:
            message = f"{option} does not go with --via torch-tensorrt. Leave it out, or build with --via onnx."
            raise EngineError(message)


def find_torch_tensorrt() -> ModuleType:
    """Import torch-tensorrt.

    Raises:
        TensorRTMissingError: It cannot be imported.
    """
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as error:  # without a GPU its import fails in many ways
        message = (
            f"torch-tensorrt cannot be imported ({error}). On a GPU host with CUDA's torch: pip install "
            "torch-tensorrt==2.14.0 (with torch 2.14). Or build with --via onnx, which needs TensorRT alone."
        )
        raise TensorRTMissingError(message) from error
