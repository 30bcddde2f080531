"""Runs the ONNX graph beside this file in Triton's Python backend, by ONNX Runtime on the CPU.

The graph has one output and any inputs, all with a leading batch axis; their names are read from the graph, so this
file serves every model of a release as it stands. Requests that Triton hands over together are run as one batch.
Nothing that a request carries is ever logged or put into an error.
"""

import os
from pathlib import Path
from typing import Any

# ONNX Runtime from 1.29 on reports every session to Microsoft, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports] - Triton brings it


class TritonPythonModel:
    """The interface that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph; `args` are Triton's: where the model lies, and its version."""
        options = ort.SessionOptions()
        # One thread that does not spin: several servers share a machine, and a branch is small.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        outputs = self.session.get_outputs()
        if len(outputs) != 1:
            msg = f"model.onnx has {len(outputs)} outputs, expected one"
            raise pb_utils.TritonModelException(msg)
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.output = outputs[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests, in their order: one run for all of them."""
        feeds = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
            for request in requests
        ]
        try:
            joined = feeds[0] if len(feeds) == 1 else [np.concatenate(arrays) for arrays in zip(*feeds, strict=True)]
            ends = np.cumsum([len(arrays[0]) for arrays in feeds])[:-1]
            answers = np.split(self._run(joined), ends)
        except Exception:  # noqa: BLE001 - one request must not spoil the answers of those beside it
            return [self._answer_alone(arrays) for arrays in feeds]
        return [self._response(answer) for answer in answers]

    def _answer_alone(self, arrays: list[np.ndarray]) -> Any:  # noqa: ANN401 - Triton's own types
        try:
            return self._response(self._run(arrays))
        except Exception as error:  # noqa: BLE001 - only its type goes out: a message might quote values
            reason = pb_utils.TritonError(f"the model could not process this request ({type(error).__name__})")
            return pb_utils.InferenceResponse(output_tensors=[], error=reason)

    def _run(self, arrays: list[np.ndarray]) -> np.ndarray:
        return np.asarray(self.session.run([self.output], dict(zip(self.inputs, arrays, strict=True)))[0])

    def _response(self, array: np.ndarray) -> Any:  # noqa: ANN401 - Triton's own types
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(self.output, array)])
