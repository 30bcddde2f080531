"""The way of torch-tensorrt, as far as it can be followed without it: the program that it would be given."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from privdfs_export import graphs
from privdfs_export.engine import BuildOptions, build_engine
from privdfs_export.errors import EngineBuildError, PrecisionError, TensorRTMissingError
from privdfs_export.sessions import session
from privdfs_export.torch_engine import branch_program
from privdfs_training.models.system import System
from tests.export.small_branches import untrained


@pytest.fixture(scope="module")
def system() -> System:
    return untrained()


@pytest.fixture
def torch_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in that notes what it is given."""
    given: dict[str, Any] = {}

    def convert(program: Any, **options: Any) -> bytes:
        given.update(options, program=program)
        return b"plan"

    package: Any = ModuleType("torch_tensorrt")
    package.given, package.Input = given, SimpleNamespace
    package.dynamo = SimpleNamespace(convert_exported_program_to_serialized_trt_engine=convert)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", package)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.1.0"))  # pyright: ignore[reportArgumentType]
    return package


@pytest.mark.parametrize("batch", [1, 5])
def test_the_program_computes_what_the_graph_does(system: System, batch: int) -> None:
    share = np.random.default_rng(2).integers(-2, 3, (batch, 16), dtype=np.int8)
    expected = np.asarray(session(graphs.branch_graph(system, 1).SerializeToString()).run(None, {"share": share})[0])
    answer = branch_program(system, 1, 8).module()(torch.from_numpy(share))
    np.testing.assert_allclose(answer.detach().numpy(), expected, atol=1e-4)


def test_one_function_builds_from_graph_and_program(system: System, torch_tensorrt: Any) -> None:
    plan = build_engine(branch_program(system, 0, 8, "fp16"), BuildOptions(8, level=2, hardware="ampere-plus"))
    assert (plan.data, plan.tensorrt) == (b"plan", "11.1.0")
    given = torch_tensorrt.given
    (source,) = given["arg_inputs"]
    assert [profile["max_shape"] for profile in source.profiles] == [(1, 16), (8, 16)]
    assert (source.dtype, source.name) == (torch.int8, "share")
    assert (given["optimization_level"], given["hardware_compatible"]) == (2, True)
    assert "workspace_size" not in given
    weights = [tensor for tensor in given["program"].state_dict.values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in weights} == {torch.float16}


def test_what_it_raises_becomes_ours(system: System, torch_tensorrt: Any) -> None:
    def refuses(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("no converter")

    torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine = refuses
    with pytest.raises(
        EngineBuildError, match=r"cannot build this branch: no converter\. Build it from its ONNX graph"
    ):
        build_engine(branch_program(system, 0, 8), BuildOptions(8))


def test_without_it_the_error_says_what_to_install(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(TensorRTMissingError, match=r"pip install torch-tensorrt==2\.14\.0"):
        build_engine(branch_program(system, 0, 8), BuildOptions(8))


def test_int8_takes_the_other_way(system: System) -> None:
    with pytest.raises(PrecisionError, match="from the ONNX graph"):
        branch_program(system, 0, 8, "int8")
