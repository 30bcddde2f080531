"""The other way to a plan: torch-tensorrt, from the network itself instead of its ONNX graph.

ONNX is the way that releases take; this one is for a network that the exporter or TensorRT's parser cannot express. It
needs torch-tensorrt, which needs a GPU to be imported, so **it has never run**: the tests compare every call with the
source of its wheel, and check on the CPU that the exported program computes what the branch does.
"""

import importlib
import time
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from privdfs_export import graphs
from privdfs_export.engine import BuildOptions, Plan
from privdfs_export.errors import EngineBuildError, PrecisionError, TensorRTMissingError
from privdfs_export.precision import Precision
from privdfs_export.triton import profiles
from privdfs_training.models.system import System

_TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ServedBranch(nn.Module):
    """A branch from the int8 share as it travels to float32 logits."""

    def __init__(self, system: System, server: int, dtype: torch.dtype) -> None:
        """Take one server's half.

        Args:
            system: In evaluation mode, masks frozen.
            server: Which.
            dtype: What it computes in.
        """
        super().__init__()
        self.branch = graphs.branch_module(system, server).to(dtype)
        self.scale, self.dtype = system.quantiser.scale(server), dtype

    def forward(self, share: Tensor, *partition: Tensor) -> Tensor:
        """Classify.

        Args:
            share: int8 [batch, values].
            partition: Of a keyed system, int32 [batch, 1].

        Returns:
            Logits, float32 [batch, classes].
        """
        return self.branch(share.to(self.dtype) * self.scale, *partition).float()


def branch_program(system: System, server: int, max_batch: int, precision: Precision = "fp32") -> ExportedProgram:
    """A branch as a program that torch-tensorrt takes.

    Args:
        system: In evaluation mode, masks frozen; without keys.
        server: Whose.
        max_batch: The largest batch, at least 2.
        precision: FP32, FP16 or BF16.

    Returns:
        The program, with a dynamic batch.

    Raises:
        PrecisionError: INT8 takes the way of ONNX.
    """
    if precision not in _TYPES:
        message = (
            f"torch-tensorrt builds {', '.join(_TYPES)} here, not {precision}: build that one from the ONNX graph."
        )
        raise PrecisionError(message)
    share = torch.zeros(2, system.masks.values, dtype=torch.int8)
    module = ServedBranch(system, server, _TYPES[precision]).eval()
    return torch.export.export(module, (share,), dynamic_shapes=({0: Dim("batch", min=1, max=max_batch)},))


def convert(program: ExportedProgram, options: BuildOptions, torch_tensorrt: ModuleType | None = None) -> Plan:
    """Build an engine of a program.

    Args:
        program: As `branch_program` makes it.
        options: How; the timing cache is torch-tensorrt's own.
        torch_tensorrt: The package; found when None.

    Returns:
        The plan.

    Raises:
        TensorRTMissingError: It cannot be imported.
        EngineBuildError: It refused.
    """
    torch_tensorrt = find_torch_tensorrt() if torch_tensorrt is None else torch_tensorrt
    names = program.graph_signature.user_inputs
    sizes = [node.meta["val"].shape[1] for node in program.graph.nodes if node.name in names]
    inputs = [
        torch_tensorrt.Input(
            profiles=[
                {"min_shape": (smallest, size), "opt_shape": (best, size), "max_shape": (largest, size)}
                for smallest, best, largest in profiles(options.max_batch)
            ],
            dtype=torch.int8,
            name="share",
        )
        for size in sizes
    ]
    given = {
        "workspace_size": options.workspace,
        "optimization_level": options.level,
    }
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
            arg_input_binding_names=("share",),
            output_binding_names="logits",
            **{name: value for name, value in given.items() if value is not None},
        )
    except Exception as error:  # torch-tensorrt has no common base for what it raises
        message = f"torch-tensorrt cannot build this branch: {error}. Build it from its ONNX graph instead."
        raise EngineBuildError(message, (str(error),)) from error
    tensorrt = importlib.import_module("tensorrt").__version__
    return Plan(bytes(data), tensorrt, time.monotonic() - started, None, ())


def find_torch_tensorrt() -> ModuleType:
    """The package torch-tensorrt.

    Returns:
        It.

    Raises:
        TensorRTMissingError: It cannot be imported.
    """
    try:
        return importlib.import_module("torch_tensorrt")
    except Exception as error:  # without a GPU its import fails in many ways
        message = (
            f"torch-tensorrt cannot be imported ({error}). On a GPU host with CUDA's torch: pip install "
            "torch-tensorrt==2.14.0 (with torch 2.14); or build from the ONNX graph, which needs TensorRT alone."
        )
        raise TensorRTMissingError(message) from error
