import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from privdfs_export.triton import (
    PYTHON_ENGINE,
    Engine,
    ModelSpec,
    TensorSpec,
    config_pbtxt,
    graph_sizes,
    profiles,
    write_model,
)

SHARE = TensorSpec("share", "int8", (12,))
LOGITS = TensorSpec("logits", "float32", (10,))
PARAMETERS = {"privdfs_release": "fashion-1", "privdfs_server": "2"}


def parsed(engine: Engine = "python", source: TensorSpec = SHARE) -> Any:
    spec = ModelSpec("branch", engine, (source,), LOGITS, 64, PARAMETERS)
    return text_format.Parse(config_pbtxt(spec), model_config_pb2.ModelConfig())  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("engine", "filename"),
    [("python", "model.py"), ("onnxruntime", "model.onnx"), ("tensorrt", "model.plan")],
)
def test_everything_that_triton_could_complete_is_stated(engine: Engine, filename: str) -> None:
    config = parsed(engine)
    assert (config.name, config.backend, config.default_model_filename) == ("branch", engine, filename)
    assert config.max_batch_size == 64
    (source,), (answer,) = config.input, config.output
    types = model_config_pb2.DataType  # pyright: ignore[reportAttributeAccessIssue]
    assert (source.name, source.data_type, list(source.dims)) == ("share", types.Value("TYPE_INT8"), [12])
    assert (answer.name, answer.data_type, list(answer.dims)) == ("logits", types.Value("TYPE_FP32"), [10])


def test_one_instance_on_the_cpu() -> None:
    (group,) = parsed().instance_group
    assert (group.count, group.kind) == (1, group.KIND_CPU)


def test_requests_are_batched_without_waiting_for_company() -> None:
    config = parsed()
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    # A queue policy makes Triton 2.51 hold back some requests of a busy client for 500 ms.
    assert not config.dynamic_batching.HasField("default_queue_policy")


def test_the_model_is_warmed_up_with_its_own_input() -> None:
    config = parsed(source=TensorSpec("image", "uint8", (28, 28, 1)))
    (warmup,) = config.model_warmup
    assert warmup.batch_size == 1
    assert list(warmup.inputs) == ["image"]
    assert warmup.inputs["image"].data_type == config.input[0].data_type
    assert list(warmup.inputs["image"].dims) == [28, 28, 1]
    assert warmup.inputs["image"].zero_data


def test_release_and_server_can_be_read_by_clients() -> None:
    assert {key: value.string_value for key, value in parsed().parameters.items()} == PARAMETERS


def test_the_response_cache_is_off() -> None:
    config = parsed()
    assert config.HasField("response_cache")
    assert not config.response_cache.enable


@pytest.mark.parametrize(
    ("engine", "files"),
    [
        ("python", ["branch/config.pbtxt", "branch/1/model.onnx", "branch/1/model.py"]),
        ("onnxruntime", ["branch/config.pbtxt", "branch/1/model.onnx"]),
    ],
)
def test_write_model_writes_what_it_says(tmp_path: Path, engine: Engine, files: list[str]) -> None:
    spec = ModelSpec("branch", engine, (SHARE,), LOGITS, 64, PARAMETERS)
    assert write_model(tmp_path, spec, b"graph") == files
    found = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(files)
    assert (tmp_path / "branch" / "1" / "model.onnx").read_bytes() == b"graph"
    if engine == "python":
        assert (tmp_path / "branch" / "1" / "model.py").read_bytes() == PYTHON_ENGINE.read_bytes()


def tensorrt(**changed: Any) -> Any:
    spec = dataclasses.replace(
        ModelSpec("branch", "tensorrt", (SHARE,), LOGITS, 12, PARAMETERS, {"9.0": "model.plan"}), **changed
    )
    text = config_pbtxt(spec)
    return text, text_format.Parse(text, model_config_pb2.ModelConfig())  # pyright: ignore[reportAttributeAccessIssue]


def test_both_profiles_of_a_plan_are_named_and_warmed_up_with_a_real_share() -> None:
    _, config = tensorrt()
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.profile)) == (group.KIND_GPU, 1, ["0", "1"])
    assert profiles(12) == [(1, 1, 1), (2, 8, 12)]
    assert [sample.batch_size for sample in config.model_warmup] == [1, 12]
    assert {sample.inputs["share"].input_data_file for sample in config.model_warmup} == {"share"}
    (single,) = tensorrt(max_batch=1)[1].instance_group
    assert list(single.profile) == ["0"]


def test_cuda_graphs_are_captured_for_powers_of_two_and_the_largest_batch() -> None:
    _, config = tensorrt()
    cuda = config.optimization.cuda
    assert cuda.graphs
    assert [spec.batch_size for spec in cuda.graph_spec] == graph_sizes(12) == [1, 2, 4, 8, 12]
    assert {tuple(spec.input["share"].dim) for spec in cuda.graph_spec} == {(12,)}
    assert graph_sizes(1) == [1]
    assert graph_sizes(64) == [1, 2, 4, 8, 16, 32, 64]


def test_several_gpus_have_a_plan_each() -> None:
    assert not tensorrt()[1].cc_model_filenames
    _, config = tensorrt(plans={"9.0": "model.plan", "8.6": "model_sm86.plan"})
    assert dict(config.cc_model_filenames) == {"9.0": "model.plan", "8.6": "model_sm86.plan"}


def test_a_version_compatible_plan_says_what_triton_must_be_told() -> None:
    assert "version-compatible" not in tensorrt()[0]
    text, _ = tensorrt(version_compatible=True)
    assert "--backend-config=tensorrt,version-compatible=true" in text


def test_plans_lie_beside_the_graph_pristine(tmp_path: Path) -> None:
    spec = ModelSpec("branch", "tensorrt", (SHARE,), LOGITS, 12, PARAMETERS, {"9.0": "model.plan"})
    golden = {"share": np.arange(24, dtype=np.int8).reshape(2, 12)}
    files = write_model(tmp_path, spec, b"graph", {"model.plan": b"plan"}, golden)
    assert files == [f"branch/{name}" for name in ("config.pbtxt", "1/model.onnx", "1/model.plan", "warmup/share")]
    assert (tmp_path / "branch" / "1" / "model.plan").read_bytes() == b"plan"
    assert (tmp_path / "branch" / "warmup" / "share").read_bytes() == bytes(range(12))
