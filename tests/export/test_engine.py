"""Engines built with TensorRT-RTX, which needs no GPU: every branch parses, is typed and shaped right, and compiles.

RTX has TensorRT 11's interface, ONNX parser and compiler front, but its engines run in no tritonserver, and nothing can
run them here: what a GPU computes is not tested.
"""

import functools
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from privdfs._coded_format import CodedServerManifest
from privdfs_export import graphs
from privdfs_export.engine import BuildOptions, build_engine, check_graph, find_tensorrt, is_rtx
from privdfs_export.errors import (
    EngineBuildError,
    EngineError,
    EngineGraphError,
    RepositoryError,
    TensorRTMissingError,
)
from privdfs_export.exact import with_exact_int8
from privdfs_export.precision import PRECISIONS, Precision, measure_ranges, with_precision
from privdfs_export.repository import Repository, read_repository
from privdfs_export.sessions import session
from tests.coded_release import build_coded_release
from tests.export.small_branches import branch_inputs, branch_models, untrained
from tests.training.coded_systems import KINDS

rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 only")

RELEASES = Path(__file__).parents[2] / "model_repository"
SERVERS = sorted(path.parent.relative_to(RELEASES).as_posix() for path in RELEASES.glob("*/server-*/manifest.json"))


@pytest.mark.parametrize("name", SERVERS)
def test_every_branch_of_every_release_builds_in_every_precision(name: str) -> None:
    builds(read_repository(RELEASES / name))


@pytest.mark.parametrize("kind", KINDS)
def test_every_round_of_a_coded_release_builds_as_it_is(tmp_path: Path, kind: str) -> None:
    repository = read_repository(build_coded_release(tmp_path / "release", kind) / "server-2")
    builds(repository)
    with pytest.raises(RepositoryError, match="this is for masked ones"):
        builds_in_every_precision(repository)


def builds(repository: Repository) -> None:
    """A server's branch in every precision that `plan` offers for it: of a coded release, its rounds in two."""
    if not isinstance(repository.manifest, CodedServerManifest):
        builds_in_every_precision(repository)
        return
    assert len(repository.models) == len(repository.manifest.rounds)
    for model in repository.models:
        build_round(model.graph, model.config.max_batch_size)


@functools.cache
def build_round(graph: bytes, batch: int) -> None:
    """Build a round in float32 and in exact INT8; all servers of a release have the same, so it is done once."""
    given = onnx.load_from_string(graph)
    for model in (given, with_exact_int8(given)):
        check_graph(model)
        plan = build_engine(model, BuildOptions(batch), rtx)
        assert plan.data
        assert not [text for severity, text in plan.messages if severity.endswith("ERROR")]


def builds_in_every_precision(repository: Repository) -> None:
    model = onnx.load_from_string(repository.model.graph)
    ranges = repository.ranges or measure_ranges(model, branch_inputs(model))
    batch = repository.model.config.max_batch_size
    plans = {}
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    for precision in precisions:
        plans[precision] = build_engine(with_precision(model, precision, ranges), BuildOptions(batch), rtx)
        assert plans[precision].tensorrt == rtx.__version__
        assert not [text for severity, text in plans[precision].messages if severity.endswith("ERROR")]
    weights = {precision: plan.weights or 0 for precision, plan in plans.items()}
    # What INT8 and FP16 weigh shows that they are what they are called; of a small plan most is not weights.
    assert 0.45 * weights["fp32"] < weights["fp16"] < 0.6 * weights["fp32"]
    assert 0.2 * weights["fp32"] < weights["int8"] < 0.4 * weights["fp32"]
    assert len(plans["fp16"].data) < len(plans["fp32"].data)


@pytest.fixture(scope="module")
def branches() -> dict[str, onnx.ModelProto]:
    return branch_models()


@pytest.mark.parametrize("kind", ["channels", "keyed", "resnet", "vit"])
def test_every_kind_of_branch_builds(branches: dict[str, onnx.ModelProto], kind: str) -> None:
    model = branches[kind]
    ranges = measure_ranges(model, branch_inputs(model))
    sizes = {}
    some: tuple[Precision, ...] = PRECISIONS if kind == "resnet" else ("fp16", "int8-fp16")
    for precision in some:
        plan = build_engine(with_precision(model, precision, ranges), BuildOptions(8), rtx)
        sizes[precision] = plan.weights or 0
    assert sizes["int8-fp16"] < sizes["fp16"]


def test_the_baseline_builds_from_its_uint8_pixels() -> None:
    model = graphs.baseline_graph(untrained())
    assert build_engine(with_precision(model, "fp16"), BuildOptions(8), rtx).data


def test_an_engine_for_one_image_has_one_profile(branches: dict[str, onnx.ModelProto]) -> None:
    assert build_engine(branches["compact"], BuildOptions(1), rtx).data


# ------------------------------------------------------------------------------------------------------- bad input


def graph(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto] | None = None,
    *,
    opset: int = 20,
    kind: int = TensorProto.FLOAT,
    sizes: tuple[str | int, ...] = ("batch", 4),
    domain: str | None = None,
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "bad",
        [helper.make_tensor_value_info("x", kind, sizes)],
        [helper.make_tensor_value_info("y", kind, None)],
        initializers or [],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def constant(name: str, values: Any, dtype: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


RELU = helper.make_node("Relu", ["x"], ["y"], "relu")
QUANTISE = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise")
DEQUANTISE = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantise")
SCALE = constant("s", 0.5, np.float32)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (graph([RELU], opset=23), r"opset 23, TensorRT reads up to 22: export it with opset 20"),
        (graph([helper.make_node("Own", ["x"], ["y"], domain="own")], domain="own"), "domain 'own'"),
        (graph([RELU], sizes=(8, 4)), r"dynamic batch as its first axis .* not \[8, 4\]"),
        (graph([RELU], sizes=("batch", "length")), r"fixed sizes behind it, not \['batch', 'length'\]"),
        (graph([RELU], kind=TensorProto.DOUBLE), r"float64 \(x\).* cast it to float32"),
        (
            graph(
                [
                    helper.make_node("Cast", ["x"], ["d"], "up", to=TensorProto.DOUBLE),
                    helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
                ]
            ),
            r"float64 \(up\)",
        ),
        (graph([helper.make_node("Unique", ["x"], ["y"], "unique")]), "no operator Unique .node unique."),
        (graph([QUANTISE, DEQUANTISE], [SCALE, constant("z", 3, np.int8)]), "quantise quantises with a zero point"),
        (graph([QUANTISE, DEQUANTISE], [SCALE, constant("z", 0, np.uint8)]), "symmetric int8 only"),
    ],
    ids=["opset", "domain", "static batch", "dynamic size", "fp64", "fp64 inside", "operator", "zero point", "uint8"],
)
def test_a_graph_that_no_tensorrt_takes_is_refused_before_it_is_asked(model: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(EngineGraphError, match=reason):
        check_graph(model)
    with pytest.raises(EngineGraphError, match=reason):
        build_engine(model, BuildOptions(8), rtx)


MIXED = graph([helper.make_node("MatMul", ["x", "w"], ["y"], "mixed")], [constant("w", np.ones((4, 2)), np.float16)])
BAKED = graph([helper.make_node("Reshape", ["x", "shape"], ["y"], "baked")], [constant("shape", [2, 2, 2], np.int64)])
UNKNOWN = graph([helper.make_node("NoSuchOperator", ["x"], ["y"], "unknown")])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (MIXED, r"cannot read the graph: MatMul mixed: .*type"),
        (UNKNOWN, r"cannot read the graph: NoSuchOperator unknown: .*Plugin not found"),
        (BAKED, r"cannot build the graph: .*Reshaping \[1,4\] to \[2,2,2\].* Fix the graph"),
    ],
    ids=["mixed types", "unknown operator", "batch baked in"],
)
def test_what_tensorrt_refuses_becomes_an_error_with_its_words(model: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(EngineBuildError, match=reason) as caught:
        build_engine(model, BuildOptions(8), rtx)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  our own bytes
    assert again.messages == caught.value.messages
    assert again.messages
    assert "cudaError" not in str(again)


def test_after_a_refusal_the_next_engine_builds(branches: dict[str, onnx.ModelProto]) -> None:
    with pytest.raises(EngineBuildError):
        build_engine(UNKNOWN, BuildOptions(8), rtx)
    assert build_engine(branches["compact"], BuildOptions(8), rtx).data


def test_too_little_workspace_is_tensorrts_own_error(branches: dict[str, onnx.ModelProto]) -> None:
    with pytest.raises(EngineBuildError, match=r"no tactics .* within workspace limit"):
        build_engine(branches["vit"], BuildOptions(8, workspace=1024), rtx)


def test_no_images_are_no_engine(branches: dict[str, onnx.ModelProto]) -> None:
    with pytest.raises(EngineError, match="a profile for at least one image"):
        build_engine(branches["compact"], BuildOptions(0), rtx)


def test_without_tensorrt_the_error_says_where_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    with pytest.raises(TensorRTMissingError, match="Run this in the container that will serve"):
        find_tensorrt()


def test_rtx_is_told_apart() -> None:
    assert is_rtx(rtx)
    assert not is_rtx(onnx)


def test_the_graph_of_an_engine_is_one_that_onnxruntime_computes(branches: dict[str, onnx.ModelProto]) -> None:
    model = branches["compact"]
    inputs = branch_inputs(model)
    turned = with_precision(model, "int8-fp16", measure_ranges(model, inputs))
    check_graph(turned)
    assert np.isfinite(np.asarray(session(turned.SerializeToString()).run(None, inputs)[0])).all()
