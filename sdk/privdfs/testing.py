"""A programmable server for tests of applications: it speaks real gRPC or HTTP on loopback, and fails as it is told to.

    from contextlib import ExitStack

    from privdfs import Bundle, Client
    from privdfs.testing import FakeServer, Fault

    release = "model_repository/fashion-resnet20"
    with ExitStack() as stack:
        servers = [stack.enter_context(FakeServer.for_release(release, i)) for i in range(3)]
        servers[1].fault = Fault(status="UNAVAILABLE")
        bundle = Bundle.open(f"{release}/client", allow_unsigned=True)
        client = stack.enter_context(Client(bundle, [server.endpoint for server in servers], min_answers=2))
        assert client.predict("examples/images/bag-1.png").answered == (True, False, True)

A fake keeps the shares that it received in `received`, so that a test can see what would have travelled. It is not a
server for production: it has no batching and no limits. For gRPC it needs grpcio: pip install privdfs[testing].
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from privdfs import _messages as messages
from privdfs._branch import DATATYPES, branches
from privdfs._bundle import Bundle
from privdfs._config import WireName
from privdfs._errors import ConfigError
from privdfs._fake_http import CallFailedError, Handler, HttpFace
from privdfs._format import PARTITION, RELEASE_PARAMETER, SERVER_PARAMETER, SHARE, ClientManifest
from privdfs._local import open_branches, open_client

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Answer", "FakeServer", "Fault"]

#: shares int8 [batch, K], and in a keyed release partitions int32 [batch, 1] -> logits float32 [batch, classes]; in a
#: coded release shares int8 [batch, primes, values] and the number of the round, from 1 -> residues int8
Answer = Callable[..., npt.NDArray[Any]]

_DATATYPES = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a call.

    Attributes:
        delay: seconds to wait before anything else.
        status: name of the gRPC status code to fail with, for example "UNAVAILABLE"; over HTTP the one that it stands
            for there, such as 503.
        logits: replaces the answer's logits, or residues: an array -> one of any shape and type.
        round: of a coded release, the only round that it goes wrong in, from 1; None: in all.
        response: last word on the protobuf message that is sent, or over HTTP turned into what is sent.
    """

    delay: float = 0.0
    status: str | None = None
    logits: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None
    response: Callable[[Any], None] | None = None
    round: int | None = None


class FakeServer:
    """One server of a release, on a free port of the loopback interface. Use it as a context manager.

    Args:
        bundle: the client's part of the release.
        server: which server of the release to be.
        answer: from shares (and partitions) to logits.
        wire: "grpc" or "http".
        credentials: for TLS, `grpc.ServerCredentials`, or for HTTP an `ssl.SSLContext`; plaintext when None.

    Attributes:
        endpoint: "127.0.0.1:port", or for HTTP "http://127.0.0.1:port", with TLS "https://…".
        received: the shares received, int8 [batch, K] or [batch, primes, values], oldest first.
        rounds: the round of each, from 1.
        partitions: in a keyed release, the partitions that came with them, int32 [batch, 1].
        checks: how often it was asked what it serves.
        fault: what goes wrong with the next answers; None for nothing.
        check_fault: what goes wrong when it is asked what it serves (`response` edits the ModelConfigResponse).
    """

    def __init__(
        self,
        bundle: Bundle,
        server: int,
        answer: Answer,
        *,
        wire: WireName = "grpc",
        credentials: Any = None,  # noqa: ANN401 - grpcio has no types
    ) -> None:
        masked = isinstance(bundle.manifest, ClientManifest)
        self._branch = branches(bundle.manifest, bundle.n_servers if masked else server + 1)[server]
        self._masked = masked
        self._answer = answer
        self._closing = threading.Event()
        self.received: list[npt.NDArray[np.int8]] = []
        self.rounds: list[int] = []
        self.partitions: list[npt.NDArray[np.int32]] = []
        self.checks = 0
        self.fault: Fault | None = None
        self.check_fault: Fault | None = None

        face = HttpFace if wire == "http" else _GrpcFace
        self._face = face(self._answer_config, self._answer_share, credentials)
        self.endpoint = self._face.endpoint

    @classmethod
    def for_release(
        cls,
        release_dir: str | PathLike[str],
        server: int,
        *,
        wire: WireName = "grpc",
        credentials: Any = None,  # noqa: ANN401 - grpcio has no types
    ) -> "Self":
        """A fake that answers with the real branch of a release folder, run in this process."""
        bundle = open_client(release_dir)
        models = open_branches(release_dir, bundle.manifest, server)
        if isinstance(bundle.manifest, ClientManifest):

            def answer(*tensors: npt.NDArray[Any]) -> npt.NDArray[Any]:
                return models[0].run(dict(zip((SHARE, PARTITION), tensors, strict=False)))[0]

            return cls(bundle, server, answer, wire=wire, credentials=credentials)

        def answer_round(share: npt.NDArray[Any], number: int) -> npt.NDArray[Any]:
            return models[number - 1].run({SHARE: share})[0]

        return cls(bundle, server, answer_round, wire=wire, credentials=credentials)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FakeServer(server={self._branch.server}, endpoint={self.endpoint!r})"

    def close(self) -> None:
        """Stop at once: calls in progress fail, later ones find a dead port."""
        self._closing.set()
        self._face.close()

    def _answer_config(self, request: Any, context: Any) -> Any:  # noqa: ANN401 - protobuf has no types
        return self._model_config(request, context)  # looked up at every call, so that a test can replace it

    def _answer_share(self, request: Any, context: Any) -> Any:  # noqa: ANN401 - protobuf has no types
        return self._model_infer(request, context)

    def _model_config(self, request: Any, context: Any) -> Any:  # noqa: ANN401 - protobuf has no types
        self.checks += 1
        self._fail(self.check_fault, context)
        branch = self._branch
        model = next((each for each in branch.models if each.name == request.name), branch.models[0])
        config: Any = messages.new("ModelConfig", name=request.name, max_batch_size=branch.max_batch)
        for each in model.inputs:
            config.input.add(name=each.name, data_type=_number(each.dtype), dims=each.sizes)
        config.output.add(name=model.output.name, data_type=_number(model.output.dtype), dims=model.output.sizes)
        config.parameters[RELEASE_PARAMETER].string_value = branch.release
        config.parameters[SERVER_PARAMETER].string_value = str(branch.server)
        return _edited(self.check_fault, messages.new("ModelConfigResponse", config=config))

    def _model_infer(self, request: Any, context: Any) -> Any:  # noqa: ANN401 - protobuf has no types
        tensors: list[npt.NDArray[Any]] = [
            np.reshape(np.frombuffer(raw, dtype), tuple(tensor.shape))
            for raw, tensor, dtype in zip(request.raw_input_contents, request.inputs, (np.int8, "<i4"), strict=False)
        ]
        names = [model.name for model in self._branch.models]
        number = names.index(request.model_name) + 1
        self.received.append(tensors[0])
        self.rounds.append(number)
        self.partitions += tensors[1:]
        fault = self.fault
        if fault is not None and fault.round not in {None, number}:
            fault = None
        self._fail(fault, context)
        logits = self._answer(*tensors) if self._masked else self._answer(tensors[0], number)
        if fault is not None and fault.logits is not None:
            logits = fault.logits(logits)
        output = self._branch.models[number - 1].output
        response = messages.new("ModelInferResponse", model_name=request.model_name, model_version="1")
        response.outputs.add(name=output.name, datatype=_DATATYPES[str(logits.dtype)], shape=logits.shape)
        response.raw_output_contents.append(logits.tobytes())
        return _edited(fault, response)

    def _fail(self, fault: Fault | None, context: Any) -> None:  # noqa: ANN401 - grpcio has no types
        if fault is None:
            return
        until = time.monotonic() + fault.delay
        while time.monotonic() < until and context.is_active() and not self._closing.wait(0.005):
            pass
        if fault.status is not None:
            raise CallFailedError(fault.status)


class _GrpcFace:
    """A server that answers the two methods a client calls."""

    def __init__(self, config: Handler, infer: Handler, credentials: Any) -> None:  # noqa: ANN401 - grpcio has no types
        try:
            import grpc  # pyright: ignore[reportMissingTypeStubs]
        except ImportError as error:
            raise ConfigError("a fake that speaks gRPC needs grpcio: pip install 'privdfs[testing]'") from error
        self._grpc: Any = grpc
        self._server: Any = self._grpc.server(ThreadPoolExecutor(max_workers=32))
        methods = {
            name: self._grpc.unary_unary_rpc_method_handler(
                self._failing(handler), messages.message_class(f"{name}Request").FromString, _serialised
            )
            for name, handler in {"ModelConfig": config, "ModelInfer": infer}.items()
        }
        service = self._grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)
        self._server.add_generic_rpc_handlers((service,))
        if credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.endpoint = f"127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def _failing(self, handler: Handler) -> Handler:
        def answer(request: Any, context: Any) -> Any:  # noqa: ANN401 - protobuf has no types
            try:
                return handler(request, context)
            except CallFailedError as failed:
                context.abort(self._grpc.StatusCode[failed.status], "told to by the test")

        return answer


def _number(dtype: str) -> int:
    return messages.TYPE_NUMBERS[DATATYPES[dtype]]


def _serialised(message: Any) -> bytes:  # noqa: ANN401 - protobuf has no types
    return message.SerializeToString()


def _edited(fault: Fault | None, response: Any) -> Any:  # noqa: ANN401 - protobuf has no types
    if fault is not None and fault.response is not None:
        fault.response(response)
    return response
