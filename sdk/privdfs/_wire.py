"""The only module that touches gRPC and tritonclient's protobuf messages, which are imported with the first client.

Guarantees:

- A request to server i holds the share of server i only: int8 [batch, K_i], raw bytes, and in a keyed release the index
  of the partition, int32 [batch, 1], and the timeout of the call; nothing else, and no key. Its length depends on the
  batch, the release and that timeout, never on the content. `Link.ask_branch` refuses what is another server's.
- No share is sent on a channel before the endpoint behind it has said that it serves this server of this release.
- An answer is float32 [batch, classes], finite and of sane size, or it is an `AnswerError`.
- Errors carry gRPC's status code, never its text: a server can write there what it likes, shares included.
"""

import asyncio
import importlib
import logging
import time
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from privdfs._config import Server, is_loopback, split_endpoint
from privdfs._constants import (
    BREAKER_FAILURES,
    BREAKER_MAX_S,
    MAX_ABS_LOGIT,
    MAX_ANSWER_BYTES,
    RECONNECT_FIRST_S,
    RECONNECT_MAX_S,
    RELOAD_AFTER_S,
)
from privdfs._core import Share
from privdfs._errors import (
    AnswerError,
    ConfigError,
    ServerError,
    ServerMismatchError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from privdfs._manifest import ClientManifest, key_spec
from privdfs._onnx import PARTITION, partition_feed
from privdfs._routing import Replicas
from privdfs._tls import TLS

#: Neither grpcio nor tritonclient has types; their objects do not leave this module and the two drivers.
Message: TypeAlias = Any
Channel: TypeAlias = Any

MODEL = "branch"
SHARE = "share"
LOGITS = "logits"
RELEASE_PARAMETER = "privdfs_release"
SERVER_PARAMETER = "privdfs_server"

#: Status codes after which the same replica may do better the next time. An inference changes nothing on the server,
#: and the same share tells it nothing new, so asking again is always safe; after other codes it would be of no use.
_PASSING = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN"})

_log = logging.getLogger("privdfs")
_ADVICE = "the server is faulty or not to be trusted; tell its operator"


@dataclass(frozen=True)
class Branch:
    """What a server of a release must be: used to check it, and to build and read its messages."""

    server: int
    release: str
    share_length: int
    classes: int
    max_batch: int
    keyed: bool


def branches(manifest: ClientManifest) -> list[Branch]:
    """What each server of a release must be."""
    keyed = key_spec(manifest) is not None
    return [
        Branch(i, manifest.release, server.share_length, len(manifest.classes), manifest.max_batch, keyed)
        for i, server in enumerate(manifest.servers)
    ]


@dataclass(eq=False)
class Ask:
    """A remote call that has not been started; the driver cancels one that is no longer `wanted`."""

    method: Any
    request: Message = field(repr=False)
    timeout: float
    metadata: tuple[tuple[str, str], ...] | None = field(default=None, repr=False)
    wanted: bool = True


@dataclass(frozen=True, repr=False)
class Reply:
    """How a remote call ended: its message, or the name of a gRPC status code."""

    message: Message | None
    status: str
    ms: float


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed, and whether the same replica may do better the next time."""

    error: ServerError
    again: bool


class Line:
    """A connection to one endpoint of a server: channel and stub, and whether it has passed the release check.

    `stamp` is that of the certificates it was made with.
    """

    def __init__(self, server: int, endpoint: str, channel: Channel, stamp: tuple[object, ...] = ()) -> None:
        from tritonclient.grpc import service_pb2_grpc  # pyright: ignore[reportMissingTypeStubs]

        stubs: Any = service_pb2_grpc
        self.server = server
        self.endpoint = endpoint
        self.channel = channel
        self.checked = False
        self.stamp = stamp
        self.looked_at = time.monotonic()
        stub = stubs.GRPCInferenceServiceStub(channel)
        self.model_config: Any = stub.ModelConfig
        self.model_infer: Any = stub.ModelInfer


class Link:
    """One server as the client sees it: its replicas, and the messages that only it may be sent.

    A replica that failed is checked again before it is sent another share, since another release may have been started
    in its place.

    Args:
        branch: what the server must be.
        server: where it is.
        asynchronous: whether the channels are of asyncio; they then belong to the event loop that runs now.

    Raises:
        ConfigError: a TLS file cannot be read.
    """

    def __init__(self, branch: Branch, server: Server, *, asynchronous: bool) -> None:
        from tritonclient.grpc import service_pb2  # pyright: ignore[reportMissingTypeStubs]

        self._messages: Any = service_pb2
        self._branch = branch
        self._config = server
        self._asynchronous = asynchronous
        self._closing: set[Any] = set()  # tasks that close channels, which asyncio forgets unless somebody holds them
        self.replicas = Replicas([self._open(endpoint) for endpoint in server.endpoints], self._renew, self._retire)
        self._template = self._messages.ModelInferRequest(model_name=MODEL)
        self._template.inputs.add(name=SHARE, datatype="INT8")
        if branch.keyed:
            self._template.inputs.add(name=PARTITION, datatype="INT32")
        self._template.outputs.add(name=LOGITS)

    @property
    def server(self) -> int:
        """Index of the server."""
        return self._branch.server

    @property
    def channels(self) -> list[Channel]:
        """All channels, to be closed."""
        return [line.channel for line in self.replicas.open_lines]

    def ask_config(self, line: Line, remaining: float) -> Ask:
        """Ask an endpoint what it serves."""
        return self._ask(line.model_config, self._messages.ModelConfigRequest(name=MODEL), remaining)

    def ask_branch(self, line: Line, share: Share, remaining: float, timeout: float) -> Ask:
        """Ask an endpoint for the logits of this server's share.

        Args:
            line: to one of this server's replicas, which has passed the check.
            share: of this server.
            remaining: seconds after which gRPC gives up.
            timeout: of the whole call, after which Triton may drop the request from its queue. Not the remaining time:
                that would change the length of the message.

        Raises:
            RuntimeError: the share or the replica is another server's, or the replica has not passed the check. No
                input leads here; it would be a fault of this package.
        """
        batch, length = share.values.shape
        fits = length == self._branch.share_length and share.values.dtype == np.int8
        if not share.server == line.server == self.server or not fits:
            raise RuntimeError(f"a share of server {share.server} was about to be sent to server {line.server}")
        if not line.checked:
            raise RuntimeError("a share was about to be sent to an endpoint that has not passed the check")
        if self._branch.keyed != (share.partition is not None):
            raise RuntimeError("a share of a keyed release was about to be sent without its partition, or another with")
        request = self._messages.ModelInferRequest()
        request.CopyFrom(self._template)
        request.parameters["timeout"].int64_param = round(timeout * 1e6)
        request.inputs[0].shape.extend((batch, length))
        request.raw_input_contents.append(share.values.tobytes())
        for feed in partition_feed(share.partition, batch).values():
            request.inputs[1].shape.extend(feed.shape)
            request.raw_input_contents.append(feed.astype("<i4").tobytes())
        return self._ask(line.model_infer, request, remaining)

    def read_config(self, line: Line, reply: Reply) -> Failure | None:
        """Judge an endpoint by the configuration it serves; None when shares may be sent to it."""
        failure = None
        if reply.message is None:
            failure = self._failure(line, reply.status)
        else:
            error = _judge_config(self._branch, line.endpoint, reply.message.config)
            failure = None if error is None else Failure(error, again=False)
        line.checked = failure is None
        return failure

    def read_answer(self, line: Line, batch: int, reply: Reply) -> "npt.NDArray[np.float32] | Failure":
        """Judge an answer to `batch` shares: its logits, or why there are none."""
        if reply.message is None:
            failure = self._failure(line, reply.status)
        else:
            try:
                return _parse_answer(self._branch, batch, reply.message)
            except AnswerError as problem:
                failure = Failure(problem, again=False)
        line.checked = False
        return failure

    def too_late(self, line: Line) -> ServerError:
        """The error of an endpoint that had not answered at the deadline, which will have to pass the check again."""
        line.checked = False
        return self._failure(line, "DEADLINE_EXCEEDED").error

    def all_paused(self) -> ServerError:
        """The error of a server whose replicas are all left alone."""
        where = ", ".join(line.endpoint for line in self.replicas.lines)
        return ServerUnavailableError(
            f"{where} failed {BREAKER_FAILURES} times in a row and is left alone for up to {BREAKER_MAX_S:.0f} s: "
            "see the server's log",
            self.server,
        )

    def _ask(self, method: Any, request: Message, remaining: float) -> Ask:  # noqa: ANN401 - grpcio has no types
        token = self._config.token
        return Ask(method, request, remaining, None if token is None else token.metadata())

    def _open(self, endpoint: str) -> Line:
        tls = self._config.tls
        stamp = () if tls is None else tls.stamp()  # before the files are read, so that no change is missed
        return Line(self.server, endpoint, _open_channel(endpoint, tls, self._asynchronous), stamp)

    def _renew(self, line: Line) -> Line:
        """A new connection where the certificates have changed; the old one while the new files do not fit."""
        tls, now = self._config.tls, time.monotonic()
        if tls is None or now - line.looked_at < RELOAD_AFTER_S:
            return line
        line.looked_at = now
        if tls.stamp() == line.stamp:
            return line
        try:
            return self._open(line.endpoint)
        except ConfigError as error:
            _log.warning("the certificates for %s changed but cannot be used yet: %s", line.endpoint, error.message)
            return line

    def _retire(self, line: Line) -> None:
        closing = line.channel.close()
        if self._asynchronous:
            task = asyncio.ensure_future(closing)
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _failure(self, line: Line, status: str) -> Failure:
        return Failure(self._error(line.endpoint, status), again=status in _PASSING)

    def _error(self, where: str, status: str) -> ServerError:
        if status == "DEADLINE_EXCEEDED":
            return ServerTimeoutError(
                f"{where} did not answer in time: raise `timeout`, or look at the server's load", self.server
            )
        if status == "UNAVAILABLE":
            return ServerUnavailableError(
                f"{where} cannot be reached: check that the server runs there, "
                + (
                    "and that both sides use TLS or neither"
                    if self._config.tls is None
                    else "with TLS and a certificate in that name which TLS(…) trusts, and that it trusts this device's"
                ),
                self.server,
            )
        if status == "NOT_FOUND":
            return ServerMismatchError(
                f"{where} serves no model {MODEL!r}: give the endpoint of server {self.server} of release "
                f"{self._branch.release}",
                self.server,
            )
        if status in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
            return ServerUnavailableError(
                f"{where} does not let this device in ({status}): check the certificate in TLS(…), and the token",
                self.server,
            )
        if status == "CANCELLED":
            return ServerUnavailableError(
                f"the call to {where} was cancelled: close a client only when its calls have ended", self.server
            )
        return ServerUnavailableError(f"{where} refused the request ({status}): see the server's log", self.server)


def load_libraries() -> None:
    """Import what the first call would otherwise have to wait for."""
    for name in ("grpc.aio", "tritonclient.grpc.service_pb2_grpc"):
        importlib.import_module(name)


def _open_channel(endpoint: str, tls: TLS | None, asynchronous: bool) -> Channel:  # noqa: FBT001 - private
    import grpc  # pyright: ignore[reportMissingTypeStubs]
    import grpc.aio  # pyright: ignore[reportMissingTypeStubs]

    factory: Any = grpc.aio if asynchronous else grpc
    options = [
        ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ("grpc.initial_reconnect_backoff_ms", int(RECONNECT_FIRST_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", int(RECONNECT_MAX_S * 1000)),
        # A connection belongs to one client: it is closed with it, and is not shared with other code in the process.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if is_loopback(split_endpoint(endpoint)[0]):
        options.append(("grpc.enable_http_proxy", 0))
    if tls is None:
        return factory.insecure_channel(endpoint, options=options)
    pems = tls.read()
    credentials: Any = grpc.ssl_channel_credentials(pems.roots, pems.key, pems.cert)
    return factory.secure_channel(endpoint, credentials, options=options)


def _judge_config(branch: Branch, where: str, config: Message) -> ServerError | None:
    """Whether an endpoint serves this branch: release and server first, then shapes."""
    release = config.parameters[RELEASE_PARAMETER].string_value if RELEASE_PARAMETER in config.parameters else ""
    server = config.parameters[SERVER_PARAMETER].string_value if SERVER_PARAMETER in config.parameters else ""
    wanted = f"server {branch.server} of release {branch.release}"
    if release != branch.release:
        return ServerMismatchError(
            f"{where} serves release {_quoted(release)}, not {branch.release}: start {wanted} there, or use the bundle "
            "that fits",
            branch.server,
        )
    if server != str(branch.server):
        return ServerMismatchError(
            f"{where} is server {_quoted(server)} of the release, not {branch.server}: put the servers in order",
            branch.server,
        )
    inputs = [(tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in config.input]
    outputs = [(tensor.name, tensor.data_type, tuple(tensor.dims)) for tensor in config.output]
    wanted_inputs = [(SHARE, _type_code("TYPE_INT8"), (branch.share_length,))]
    if branch.keyed:
        wanted_inputs.append((PARTITION, _type_code("TYPE_INT32"), (1,)))
    fits = inputs == wanted_inputs
    fits = fits and outputs == [(LOGITS, _type_code("TYPE_FP32"), (branch.classes,))]
    if not fits or config.max_batch_size < branch.max_batch:
        return ServerMismatchError(
            f"{where} calls itself {wanted}, but takes or gives other tensors: its folder was changed; "
            "start it from the release as exported",
            branch.server,
        )
    return None


def _type_code(name: str) -> int:
    from tritonclient.grpc import model_config_pb2  # pyright: ignore[reportMissingTypeStubs]

    messages: Any = model_config_pb2
    return messages.DataType.Value(name)


def _parse_answer(branch: Branch, batch: int, response: Message) -> npt.NDArray[np.float32]:
    """Logits float32 [batch, classes] of a response.

    Raises:
        AnswerError: it holds anything else.
    """
    outputs = response.outputs
    if len(outputs) != 1 or len(response.raw_output_contents) != 1:
        raise AnswerError(
            f"answered with {len(outputs)} tensors ({len(response.raw_output_contents)} of them raw) instead of one: "
            f"{_ADVICE}",
            branch.server,
        )
    tensor, raw = outputs[0], response.raw_output_contents[0]
    if (tensor.name, tensor.datatype) != (LOGITS, "FP32"):
        raise AnswerError(f"answered with another tensor than {LOGITS!r} of type FP32: {_ADVICE}", branch.server)
    if list(tensor.shape) != [batch, branch.classes] or len(raw) != 4 * batch * branch.classes:
        raise AnswerError(
            f"answered with shape {list(tensor.shape)[:8]} in {len(raw)} bytes instead of {[batch, branch.classes]}: "
            f"{_ADVICE}",
            branch.server,
        )
    logits = np.reshape(np.frombuffer(raw, dtype="<f4"), (batch, branch.classes))
    if not (np.abs(logits) <= MAX_ABS_LOGIT).all():  # NaN compares false
        raise AnswerError(f"answered with NaN, infinite or absurdly large logits: {_ADVICE}", branch.server)
    return logits.astype(np.float32, copy=False)


def _quoted(text: str) -> str:
    """What a server calls itself, made safe for a log line."""
    return ascii(text[:80]) if text else "no name"
