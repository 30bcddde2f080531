"""The only module that touches ONNX Runtime, which is imported when the first graph is opened.

Sessions run on the CPU, with few threads that sleep between calls (spinning costs a battery more than it gains), and
may be used from several threads at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from privdfs._errors import BundleFormatError
from privdfs._format import PARTITION, Signature, TensorSpec

Array: TypeAlias = npt.NDArray[Any]

_DTYPES = {
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(bool)": "bool",
}


def partition_feed(partition: int | None, batch: int) -> dict[str, Array]:
    """The same partition for a whole batch, int32 [batch, 1]; nothing for a release without keys."""
    return {} if partition is None else {PARTITION: np.full((batch, 1), partition, np.int32)}


class Graph:
    """An ONNX graph with exactly the inputs and outputs that the release format promises."""

    def __init__(self, name: str, data: bytes, signature: Signature, threads: int) -> None:
        """Parse a graph (its bytes must have been verified) and compare its signature.

        Raises:
            BundleFormatError: ONNX Runtime cannot load it, or its inputs or outputs differ.
        """
        import onnxruntime as untyped  # pyright: ignore[reportMissingTypeStubs]

        onnxruntime: Any = untyped
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # only fatal: whatever goes wrong is raised, and log lines can show values
        try:
            self._session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleFormatError(
                f"{name} cannot be loaded by ONNX Runtime {onnxruntime.__version__} ({type(error).__name__}): "
                "update onnxruntime, or get the release again"
            ) from error
        self._name = name
        self._outputs = [spec.name for spec in signature.outputs]
        _compare(name, "inputs", self._session.get_inputs(), signature.inputs)
        _compare(name, "outputs", self._session.get_outputs(), signature.outputs)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Run the graph; the outputs come in the order of the signature.

        Raises:
            BundleFormatError: ONNX Runtime fails on tensors that fit the signature.
        """
        try:
            return self._session.run(self._outputs, dict(feeds))
        except Exception as error:  # noqa: BLE001 - the runtime's own message may quote values, so it is not passed on
            raise BundleFormatError(
                f"{self._name} fails on an input that fits its signature ({type(error).__name__}): "
                "run the bundle's self-test, and get the release again if that fails"
            ) from None


def _compare(name: str, side: str, found: Sequence[Any], expected: Sequence[TensorSpec]) -> None:
    """Names, types and shapes must be exactly those expected, and the axes that a call decides dynamic."""
    batched = {spec.name: spec.batched for spec in expected}
    actual = [
        _describe(
            value.name,
            _DTYPES.get(str(value.type), "another type"),
            tuple(value.shape),
            batched=batched.get(value.name, True),
        )
        for value in found
    ]
    wanted = [_describe(spec.name, spec.dtype, ("batch",) * spec.batched + spec.shape) for spec in expected]
    if actual != wanted:
        raise BundleFormatError(
            f"{name} has the {side} {', '.join(actual)} where the manifest promises {', '.join(wanted)}: "
            "the files belong to different releases; get the release again"
        )


def _describe(name: str, dtype: str, shape: tuple[object, ...], *, batched: bool = True) -> str:
    """One spelling for a tensor, whatever the exporter called its dynamic batch axis."""
    axes = [str(axis) for axis in shape]
    if batched and shape and not isinstance(shape[0], int):
        axes[0] = "batch"
    return f"{name} {dtype}[{', '.join(axes)}]"
