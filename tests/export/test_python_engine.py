"""The script that Triton's Python backend runs, without Triton: faults that a real server cannot show."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from privdfs_export.triton import PYTHON_ENGINE
from tests.e2e.tiny_release import SHARE_LENGTH, write_server


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model of a tiny branch, loaded; requests are bare arrays, responses hold `output_tensors` and `error`."""
    triton = ModuleType("triton_python_backend_utils")
    vars(triton).update(
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: request),
        Tensor=lambda name, array: (name, array),
        TritonError=str,
        TritonModelException=RuntimeError,
        InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(
            output_tensors=output_tensors, error=error
        ),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    write_server(tmp_path, 0)
    names: dict = {}
    exec(compile(PYTHON_ENGINE.read_text(), str(PYTHON_ENGINE), "exec"), names)  # noqa: S102 - as the backend does
    loaded = names["TritonPythonModel"]()
    loaded.initialize({"model_repository": str(tmp_path / "server-0" / "branch"), "model_version": "1"})
    return loaded


def shares(*counts: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(-127, 128, (count, SHARE_LENGTH), dtype=np.int8) for count in counts]


def test_requests_run_together_are_answered_in_order(model: Any) -> None:
    requests = shares(1, 3, 2)
    for request, response in zip(requests, model.execute(requests), strict=True):
        ((name, logits),) = response.output_tensors
        assert name == "logits"
        np.testing.assert_allclose(logits, model._run([request]), rtol=1e-5)


def test_one_bad_request_does_not_spoil_those_beside_it(model: Any) -> None:
    good, other = shares(2, 1)
    bad = np.full((1, SHARE_LENGTH + 1), 77, np.int8)
    first, refused, last = model.execute([good, bad, other])
    assert first.error is None
    assert len(first.output_tensors[0][1]) == 2
    assert refused.output_tensors == []
    assert refused.error == "the model could not process this request (InvalidArgument)"
    assert last.error is None


def test_one_run_for_all_requests(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    run = model._run
    monkeypatch.setattr(model, "_run", lambda arrays: sizes.append(len(arrays[0])) or run(arrays))
    model.execute(shares(1, 3, 2))
    assert sizes == [6]
