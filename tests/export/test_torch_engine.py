"""`plan --via torch-tensorrt`, as far as it can be followed without torch-tensorrt and a GPU.

The programs are the real ones, and compute what the graphs compute. Stand-ins take the place of torch-tensorrt, of
TensorRT and of NVIDIA's driver, so that the command is run from its arguments to the planned release.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch

from privdfs_export import gpu as gpu_module
from privdfs_export import graphs
from privdfs_export.cli import main
from privdfs_export.engine import BuildOptions
from privdfs_export.errors import EngineBuildError, EngineError, ParityError, PrecisionError, TensorRTMissingError
from privdfs_export.plan import PlanOptions, plan_release
from privdfs_export.repository import read_repository
from privdfs_export.sessions import session
from privdfs_export.torch_engine import (
    ServedBaseline,
    ServedBranch,
    branch_inputs,
    convert,
    find_torch_tensorrt,
    served_program,
    torch_builder,
)
from privdfs_export.triton import TensorSpec
from privdfs_training.models.system import System
from tests.export import fake_tensorrt, fake_torch_tensorrt
from tests.export.folders import contents
from tests.export.small_branches import branch_inputs as some_inputs
from tests.export.small_branches import untrained

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stub driver")


@pytest.fixture(scope="module")
def system() -> System:
    return untrained()


@pytest.fixture
def torch_tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake_tensorrt.install(monkeypatch)
    return fake_torch_tensorrt.install(monkeypatch)


@pytest.fixture
def host(driver: Path, torch_tensorrt: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host with one GPU, TensorRT 11 and torch-tensorrt."""
    monkeypatch.setattr(gpu_module, "LIBRARY", str(driver))
    return torch_tensorrt


def checkpoint_of(release: Path) -> Path:
    return release.parent / "run" / "system.safetensors"


@pytest.mark.parametrize("keys", [None, {"partitions": 4}], ids=["plain", "keyed"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_branch_program_computes_what_the_graph_does(batch: int, keys: dict[str, Any] | None) -> None:
    system = untrained(keys=keys)
    graph = graphs.branch_graph(system, 1)
    inputs = some_inputs(graph, batch)
    expected = np.asarray(session(graph.SerializeToString()).run(None, inputs)[0])
    program = served_program(ServedBranch(system, 1, torch.float32), branch_inputs(system), 8)
    answer = program.module()(*(torch.from_numpy(inputs[spec.name]) for spec in branch_inputs(system)))
    np.testing.assert_allclose(answer.detach().numpy(), expected, atol=1e-4)


def test_the_baseline_program_computes_what_the_graph_does(system: System) -> None:
    image = np.random.default_rng(3).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    graph: onnx.ModelProto = graphs.baseline_graph(system)
    expected = np.asarray(session(graph.SerializeToString()).run(None, {"image": image})[0])
    program = served_program(ServedBaseline(system, torch.float32), [TensorSpec("image", "uint8", (16, 16, 3))], 8)
    np.testing.assert_allclose(program.module()(torch.from_numpy(image)).detach().numpy(), expected, atol=1e-4)


def test_the_system_keeps_its_own_precision(system: System) -> None:
    ServedBranch(system, 0, torch.float16)
    ServedBaseline(system, torch.bfloat16)
    assert {value.dtype for value in system.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_what_torch_tensorrt_is_told(system: System, torch_tensorrt: Any) -> None:
    inputs = branch_inputs(system)
    program = served_program(ServedBranch(system, 0, torch.float16), inputs, 8)
    plan = convert(program, inputs, BuildOptions(8, level=2, hardware="ampere-plus"), torch_tensorrt)
    assert (plan.tensorrt, plan.weights) == (fake_tensorrt.__version__, None)
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
    inputs = branch_inputs(system)
    program = served_program(ServedBranch(system, 0, torch.float32), inputs, 8)
    with pytest.raises(EngineBuildError, match=r"cannot build this network: no converter\. Build it with --via onnx"):
        convert(program, inputs, BuildOptions(8), torch_tensorrt)


def test_without_it_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(TensorRTMissingError, match=r"pip install torch-tensorrt==2\.14\.0"):
        find_torch_tensorrt()


@pytest.mark.usefixtures("torch_tensorrt")
def test_int8_takes_the_other_route(tmp_path: Path) -> None:
    with pytest.raises(PrecisionError, match="with --via onnx"):
        torch_builder(tmp_path / "system.safetensors", "int8")


# -------------------------------------------------------------------------------------------------------- the command


@needs_compiler
def test_a_release_is_planned(
    trained_release: Path, host: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = trained_release
    before, out = contents(release), tmp_path / "planned"
    line = ["plan", str(release), "--out", str(out), "--precision", "fp32", "--level", "3"]
    assert main([*line, "--via", "torch-tensorrt", "--system", str(checkpoint_of(release))]) == 0
    assert contents(release) == before
    assert capsys.readouterr().out.count("fp32 plan of") == 4
    assert host.given["optimization_level"] == 3
    for folder in ("server-0", "server-1", "server-2", "baseline"):
        manifest = read_repository(out / folder).masked
        assert manifest.plan is not msgspec.UNSET
        assert (manifest.engine, manifest.plan.plans[0].difference < 1e-4) == ("tensorrt", True)
    assert main(["verify", str(out)]) == 0


def refused(release: Path, error: type[Exception], reason: str, options: PlanOptions) -> None:
    """Planning fails so, and leaves every file as it was."""
    before = contents(release)
    with pytest.raises(error, match=reason):
        plan_release(release, None, options)
    assert contents(release) == before


@needs_compiler
@pytest.mark.usefixtures("host")
def test_another_system_is_refused(
    trained_release: Path, trained_release_of_five: Path, keyed_trained_release: Path, tmp_path: Path
) -> None:
    options = PlanOptions("fp32", system=checkpoint_of(trained_release))
    theirs = shutil.copytree(trained_release_of_five, tmp_path / "five")
    other = r"is not the system of .*{}\. Give the one that it was exported from"
    refused(theirs / "server-4", EngineError, other.format("server-4"), options)
    refused(
        theirs, ParityError, "check that .* is what the release was made of", options
    )  # only its weights are others
    keyed = shutil.copytree(keyed_trained_release, tmp_path / "keyed")
    refused(keyed, EngineError, other.format("server-0"), options)


@needs_compiler
@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (PlanOptions("fp32", (1,)), "--device does not go with"),
        (PlanOptions("fp32", (0,), BuildOptions(1, timing_cache=Path("cache"))), "--timing-cache does not go with"),
        (PlanOptions("fp32", (0,), BuildOptions(1, hardware="same-compute-capability")), "--hardware same-compute"),
    ],
)
def test_options_of_the_other_route_are_refused(
    trained_release: Path, options: PlanOptions, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVDFS_STUB_GPUS", "2")
    system = checkpoint_of(trained_release)
    refused(trained_release, EngineError, told, PlanOptions("fp32", options.devices, options.build, system))


@pytest.mark.parametrize("given", [["--via", "torch-tensorrt"], ["--system", "system.safetensors"]])
def test_route_and_system_go_together(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path), *given]) == 2
    assert "--via torch-tensorrt and --system system.safetensors go together" in capsys.readouterr().err
