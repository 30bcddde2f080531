"""Run a plan on the GPU it was built for, to compare what it answers with what its graph answers.

**No plan has been run by this module yet**: the tests resolve every name on the real bindings of TensorRT 10.16 and
11.4, and run the code against stubs of TensorRT and of CUDA's driver.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privdfs_export.engine import collected
from privdfs_export.errors import EngineError, EngineMismatchError
from privdfs_export.gpu import Gpu, Memory, using


def run_plan(
    trt: ModuleType,
    gpu: Gpu,
    plan: bytes,
    inputs: Mapping[str, NDArray[np.generic]],
    *,
    profile: int,
    version_compatible: bool = False,
) -> dict[str, NDArray[np.generic]]:
    """Run a plan once.

    Args:
        trt: TensorRT's package.
        gpu: Where.
        plan: A serialised engine.
        inputs: Arrays [batch, …] by name, with a batch that the profile takes.
        profile: Which optimisation profile.
        version_compatible: The plan was built so. It then carries code of its own: load only what you built.

    Returns:
        Outputs by name.

    Raises:
        EngineMismatchError: The plan is damaged, or of another TensorRT or GPU.
        EngineError: It does not take these inputs, or failed.
    """
    with collected(trt) as (logger, errors), using(gpu) as memory:
        runtime = trt.Runtime(logger)
        if version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            message = (
                f"TensorRT {trt.__version__} on {gpu.name} cannot load the plan: it is damaged, or of another TensorRT "
                f"or GPU ({'; '.join(errors()[:2])}). Build it here with `privdfs-export plan`."
            )
            raise EngineMismatchError(message)
        context = engine.create_execution_context()
        if not context.set_optimization_profile_async(profile, memory.stream):
            message = f"the plan has no optimisation profile {profile}: build it again with `privdfs-export plan`."
            raise EngineMismatchError(message)
        for name, array in inputs.items():
            if not context.set_input_shape(name, array.shape):
                message = f"the plan does not take {name} of shape {array.shape}: {'; '.join(errors()[:2])}"
                raise EngineError(message)
            context.set_tensor_address(name, memory.put(array))
        outputs, addresses = _prepare_outputs(trt, engine, context, memory)
        if not context.execute_async_v3(memory.stream):
            message = f"the plan failed on {gpu.name}: {'; '.join(errors()[:2])}"
            raise EngineError(message)
        for name, array in outputs.items():
            memory.get(addresses[name], array)
        del context, engine, runtime  # before the stream and the context of CUDA go
        return outputs


def _prepare_outputs(
    trt: ModuleType, engine: Any, context: Any, memory: Memory
) -> tuple[dict[str, NDArray[np.generic]], dict[str, int]]:
    """Arrays for the outputs here, and where each lies on the GPU."""
    outputs: dict[str, NDArray[np.generic]] = {}
    addresses: dict[str, int] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) != trt.TensorIOMode.OUTPUT:
            continue
        kind = engine.get_tensor_dtype(name)
        # Logits, or residues of a coded round.
        dtype = {trt.DataType.FLOAT: np.float32, trt.DataType.INT8: np.int8}.get(kind)
        if dtype is None:
            message = f"the plan's output {name} is of type {kind}, not float32 or int8 as ours are: build it again."
            raise EngineMismatchError(message)
        outputs[name] = np.empty(tuple(context.get_tensor_shape(name)), dtype)
        addresses[name] = memory.allocate(outputs[name].nbytes)
        context.set_tensor_address(name, addresses[name])
    return outputs, addresses
