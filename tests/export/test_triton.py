from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from privdfs_export.triton import PYTHON_ENGINE, Engine, ModelSpec, TensorSpec, config_pbtxt, write_model

SHARE = TensorSpec("share", "int8", (12,))
LOGITS = TensorSpec("logits", "float32", (10,))
PARAMETERS = {"privdfs_release": "fashion-1", "privdfs_server": "2"}


def parsed(engine: Engine = "python", source: TensorSpec = SHARE) -> Any:
    spec = ModelSpec("branch", engine, (source,), LOGITS, 64, PARAMETERS)
    return text_format.Parse(config_pbtxt(spec), model_config_pb2.ModelConfig())  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("engine", "filename"),
    [("python", "model.py"), ("onnxruntime", "model.onnx")],
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
