"""Bare gRPC calls to tritonservers, in Python's own gRPC: what the floors are made of, and servers' own statistics.

The one place of the benchmarks that knows grpc. It uses none of the SDK, so that a floor starts as fast as it can.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

#: A server that does not answer.
StubError = grpc.RpcError
#: No proxy of the environment, and a connection for each stub.
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))
_messages: Any = service_pb2  # tritonclient has no types


@contextmanager
def stubs(endpoints: Sequence[str], ca: Path | None = None) -> Iterator[list[Any]]:
    """A stub for each server, whose connections last as long as the `with`; `ModelInfer` calls a model.

    In TLS where `ca` says whom to trust.
    """
    trusted = None if ca is None else grpc.ssl_channel_credentials(ca.read_bytes())

    def channel(endpoint: str) -> Any:  # noqa: ANN401 - grpc has no types
        if trusted is None:
            return grpc.insecure_channel(endpoint, options=_OPTIONS)
        return grpc.secure_channel(endpoint, trusted, options=_OPTIONS)

    with ExitStack() as stack:
        channels = [stack.enter_context(channel(endpoint)) for endpoint in endpoints]
        yield [service_pb2_grpc.GRPCInferenceServiceStub(channel) for channel in channels]


def async_stub(endpoint: str) -> tuple[Any, Any]:
    """A channel of its own for an event loop, to be closed, and the stub on it."""
    channel = grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
    return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)


def request_for(model: str, inputs: Mapping[str, tuple[str, tuple[int, ...]]]) -> Any:  # noqa: ANN401 - a message
    """A request without data, which goes into its `raw_input_contents`; of every input the data type and the shape."""
    request = _messages.ModelInferRequest(model_name=model)
    for name, (datatype, shape) in inputs.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.outputs.add(name="logits")
    return request


def logits_of(answer: Any) -> NDArray[np.float32]:  # noqa: ANN401 - a message
    """What a server has answered, float32 [classes]."""
    return np.frombuffer(answer.raw_output_contents[0], "<f4")


def statistics_of(stub: Any, model: str, secret: tuple[str, str], timeout: float) -> Any:  # noqa: ANN401 - messages
    """A server's own statistics of a model; `secret` is a header that it asks for."""
    request = _messages.ModelStatisticsRequest(name=model)
    return stub.ModelStatistics(request, metadata=(secret,), timeout=timeout).model_stats[0].inference_stats
