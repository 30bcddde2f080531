"""ONNX Runtime on this machine's processor, for graphs with a leading batch axis."""

from collections.abc import Mapping

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

BATCH = 500


def session(model: bytes) -> ort.InferenceSession:
    """One CPU session.

    Args:
        model: Serialised ONNX.

    Returns:
        The session.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_batched(model: ort.InferenceSession, inputs: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    """Run a graph over many images, some at a time.

    Args:
        model: With a batch axis first everywhere.
        inputs: Arrays of equal length.

    Returns:
        One array per output.
    """
    length = len(next(iter(inputs.values())))
    parts = [
        model.run(None, {name: value[start : start + BATCH] for name, value in inputs.items()})
        for start in range(0, length, BATCH)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]
