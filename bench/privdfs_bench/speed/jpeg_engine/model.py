"""Decodes one JPEG file and runs the ONNX graph beside this file on its pixels, in Triton's Python backend."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports] - Triton brings it
from PIL import Image


class TritonPythonModel:
    """The interface that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph with the session options of the release's own engine."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.mode = json.loads(args["model_config"])["parameters"]["mode"]["string_value"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests, in their order."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:  # noqa: ANN401 - Triton's own types
        data = pb_utils.get_input_tensor_by_name(request, "jpeg").as_numpy().tobytes()
        pixels = np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",)).convert(self.mode))
        image = pixels.reshape(1, *pixels.shape[:2], -1)
        logits = np.asarray(self.session.run(["logits"], {"image": image})[0])
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("logits", logits)])
