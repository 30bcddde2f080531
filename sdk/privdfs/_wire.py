"""The only module that touches gRPC and tritonclient's protobuf messages, which are imported with the first client.

Guarantees:

- A request to server i holds the share of server i only: int8 [batch, K_i], raw bytes, and in a keyed release the index
  of the partition, int32 [batch, 1]; nothing else, and no key. Its length depends on the batch and the release, never
  on the content. `Link.ask_branch` refuses another server's share.
- No share is sent on a channel before the endpoint behind it has said that it serves this server of this release.
- An answer is float32 [batch, classes], finite and of sane size, or it is an `AnswerError`.
- Errors carry gRPC's status code, never its text: a server can write there what it likes, shares included.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from privdfs._config import Server, is_loopback, split_endpoint
from privdfs._constants import MAX_ABS_LOGIT, MAX_ANSWER_BYTES, RECONNECT_FIRST_S, RECONNECT_MAX_S
from privdfs._core import Call, Chunk, Outcome, Share
from privdfs._errors import (
    AnswerError,
    ServerError,
    ServerMismatchError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from privdfs._manifest import ClientManifest, key_spec
from privdfs._onnx import PARTITION, partition_feed

#: Neither grpcio nor tritonclient has types; their objects do not leave this module and the two drivers.
Message: TypeAlias = Any
Channel: TypeAlias = Any
#: A remote call that has not been started: the stub's method and its request.
Ask: TypeAlias = tuple[Any, Message]

MODEL = "branch"
SHARE = "share"
LOGITS = "logits"
RELEASE_PARAMETER = "privdfs_release"
SERVER_PARAMETER = "privdfs_server"

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


@dataclass(frozen=True, repr=False)
class Reply:
    """How a remote call ended: its message, or the name of a gRPC status code."""

    message: Message | None
    status: str
    ms: float


class Replica:
    """One endpoint of a server: its channel and stub, and whether it has passed the release check."""

    def __init__(self, endpoint: str, channel: Channel) -> None:
        from tritonclient.grpc import service_pb2_grpc  # pyright: ignore[reportMissingTypeStubs]

        stubs: Any = service_pb2_grpc
        self.endpoint = endpoint
        self.channel = channel
        self.checked = False
        stub = stubs.GRPCInferenceServiceStub(channel)
        self.model_config: Any = stub.ModelConfig
        self.model_infer: Any = stub.ModelInfer


class Link:
    """One server as the client sees it: its replicas, and the messages that only it may be sent.

    Calls go to one replica until it fails; the next call then goes to the next replica. A replica that failed is
    checked again before it is sent another share, since another release may have been started in its place.
    """

    def __init__(self, branch: Branch, replicas: list[Replica]) -> None:
        from tritonclient.grpc import service_pb2  # pyright: ignore[reportMissingTypeStubs]

        self._messages: Any = service_pb2
        self._branch = branch
        self._replicas = replicas
        self._current = 0
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
    def replica(self) -> Replica:
        """The replica that the next call goes to."""
        return self._replicas[self._current]

    @property
    def channels(self) -> list[Channel]:
        """All channels, to be closed."""
        return [replica.channel for replica in self._replicas]

    def ask_config(self, replica: Replica) -> Ask:
        """Ask an endpoint what it serves."""
        return replica.model_config, self._messages.ModelConfigRequest(name=MODEL)

    def ask_branch(self, replica: Replica, share: Share) -> Ask:
        """Ask an endpoint for the logits of this server's share.

        Raises:
            RuntimeError: the share is another server's. No input leads here; it would be a fault of this package.
        """
        batch, length = share.values.shape
        if share.server != self.server or length != self._branch.share_length or share.values.dtype != np.int8:
            raise RuntimeError(f"a share of server {share.server} was about to be sent to server {self.server}")
        if self._branch.keyed != (share.partition is not None):
            raise RuntimeError("a share of a keyed release was about to be sent without its partition, or another with")
        request = self._messages.ModelInferRequest()
        request.CopyFrom(self._template)
        request.inputs[0].shape.extend((batch, length))
        request.raw_input_contents.append(share.values.tobytes())
        for feed in partition_feed(share.partition, batch).values():
            request.inputs[1].shape.extend(feed.shape)
            request.raw_input_contents.append(feed.astype("<i4").tobytes())
        return replica.model_infer, request

    def read_config(self, replica: Replica, reply: Reply) -> ServerError | None:
        """Judge an endpoint by the configuration it serves; None when shares may be sent to it."""
        if reply.message is None:
            error = self._failure(replica, reply.status)
        else:
            error = _judge_config(self._branch, replica.endpoint, reply.message.config)
        if error is None:
            replica.checked = True
        else:
            self._failed(replica)
        return error

    def read_answer(self, replica: Replica, batch: int, reply: Reply) -> Outcome:
        """Judge an answer to `batch` shares."""
        if reply.message is None:
            error = self._failure(replica, reply.status)
        else:
            try:
                logits = _parse_answer(self._branch, batch, reply.message)
            except AnswerError as problem:
                error = problem
            else:
                return Outcome(self.server, reply.ms, logits=logits)
        self._failed(replica)
        return Outcome(self.server, reply.ms, error=error)

    def _failed(self, replica: Replica) -> None:
        replica.checked = False
        if replica is self.replica:
            self._current = (self._current + 1) % len(self._replicas)

    def _failure(self, replica: Replica, status: str) -> ServerError:
        where = replica.endpoint
        if status == "DEADLINE_EXCEEDED":
            return ServerTimeoutError(
                f"{where} did not answer in time: raise `timeout`, or look at the server's load", self.server
            )
        if status == "UNAVAILABLE":
            return ServerUnavailableError(
                f"{where} cannot be reached: check that the server runs there, and that both sides use TLS or neither",
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
                f"{where} does not let this device in ({status}): check the certificate in TLS(…)", self.server
            )
        if status == "CANCELLED":
            return ServerUnavailableError(
                f"the call to {where} was cancelled: close a client only when its calls have ended", self.server
            )
        return ServerUnavailableError(f"{where} refused the request ({status}): see the server's log", self.server)


class Exchange:
    """The trip of one chunk to all servers and back, without the input and output: first checks, then shares.

    The replicas are chosen once: the endpoint that passes the check is the one that is sent the share.
    """

    def __init__(self, links: Sequence[Link], call: Call, chunk: Chunk) -> None:
        self._routes = [(link, link.replica) for link in links]
        self._unchecked = [(link, replica) for link, replica in self._routes if not replica.checked]
        self._outcomes: list[Outcome] = []
        self._call = call
        self._chunk = chunk

    def checks(self) -> list[Ask]:
        """What to ask the endpoints that have not passed the release check yet."""
        return [link.ask_config(replica) for link, replica in self._unchecked]

    def take_checks(self, replies: Sequence[Reply]) -> None:
        """Judge what they say; those that fail are sent nothing.

        Raises:
            NotEnoughAnswersError: too few servers are left, so that nobody is sent a share.
        """
        for (link, replica), reply in zip(self._unchecked, replies, strict=True):
            error = link.read_config(replica, reply)
            if error is not None:
                self._outcomes.append(Outcome(link.server, reply.ms, error=error))
        self._call.refuse_few(self._outcomes)
        failed = {outcome.server for outcome in self._outcomes}
        self._routes = [(link, replica) for link, replica in self._routes if link.server not in failed]

    def shares(self) -> list[Ask]:
        """Every share to its own server."""
        return [link.ask_branch(replica, self._chunk.shares[link.server]) for link, replica in self._routes]

    def take_answers(self, replies: Sequence[Reply]) -> list[Outcome]:
        """Judge the answers; one outcome for every server, those that failed the check included."""
        for (link, replica), reply in zip(self._routes, replies, strict=True):
            self._outcomes.append(link.read_answer(replica, self._chunk.size, reply))
        return self._outcomes


def load_libraries() -> None:
    """Import what the first call would otherwise have to wait for."""
    for name in ("grpc.aio", "tritonclient.grpc.service_pb2_grpc"):
        importlib.import_module(name)


def open_replicas(server: Server, *, asynchronous: bool) -> list[Replica]:
    """Open a channel to every replica of a server; nothing is sent yet.

    Raises:
        ConfigError: a TLS file cannot be read.
    """
    return [Replica(endpoint, _open_channel(endpoint, server, asynchronous)) for endpoint in server.endpoints]


def _open_channel(endpoint: str, server: Server, asynchronous: bool) -> Channel:  # noqa: FBT001 - private
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
    if server.tls is None:
        return factory.insecure_channel(endpoint, options=options)
    ca, cert, key = server.tls.read()
    credentials: Any = grpc.ssl_channel_credentials(ca, key, cert)
    return factory.secure_channel(endpoint, credentials, options=options)


def late(ms: float) -> Reply:
    """The reply of a call that did not end by itself."""
    return Reply(None, "DEADLINE_EXCEEDED", ms)


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
