"""One gRPC connection to one endpoint, on a socket of our own: HTTP/2 by the library h2, and gRPC's framing on it.

Why not grpcio: its channels reconnect by themselves, whenever they like, and do not say so. A share could then reach a
server that was started in the place of the one that passed the release check. A connection here is made once and never
again (`_stream.py`), so `checked` is true of the very socket that a share goes out on. It also answers in one thread
for all servers, and says what a certificate lacks.
"""

import logging
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from privdfs import _messages as messages
from privdfs._constants import MAX_ANSWER_BYTES, MAX_LATE_ANSWERS, MAX_OVERHEAD_BYTES
from privdfs._dial import Steps, Trouble
from privdfs._messages import Message
from privdfs._security import Security
from privdfs._wire import QUEUE_FULL, Connection, Headers, ModelConfig, Query, Reply, Tensor

M = TypeVar("M")

# It would log headers, tokens among them, for an application that logs everything it is given.
if logging.getLogger("hpack").level == logging.NOTSET:
    logging.getLogger("hpack").setLevel(logging.WARNING)

#: By number (https://grpc.io/docs/guides/status-codes).
STATUSES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
#: What an HTTP status stands for where something answers that is not gRPC (grpc/doc/http-grpc-status-mapping.md, but
#: for 429, which says more than UNAVAILABLE).
_HTTP_STATUSES = {
    400: "INTERNAL", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED",
    429: "RESOURCE_EXHAUSTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "UNAVAILABLE",
}  # fmt: skip
#: What HTTP/2's error codes of a reset stream stand for; others are INTERNAL.
_RESETS = {0x7: "UNAVAILABLE", 0x8: "CANCELLED", 0xB: "RESOURCE_EXHAUSTED"}
_CANCEL = 0x8
_PREFIX = struct.Struct(">BI")  # gRPC's five bytes before a message: compressed or not, and its length
_MAX_TIMEOUT_MS = 99_999_999  # eight digits, the most that gRPC allows
_TOO_MUCH = "sends more than an answer can be", "it is faulty or not to be trusted; tell its operator"
_NOT_GRPC = "check that this is the server's gRPC port, and that both sides use TLS or neither"


@dataclass
class _Answer:
    """What has come of an answer so far."""

    body: bytearray = field(default_factory=bytearray, repr=False)
    overhead: int = 0
    status: str | None = None
    queue_full: bool = False
    http_status: int = 200
    ended: bool = False


class GrpcConnection(Connection):
    """A connection that speaks gRPC."""

    protocol = "h2"
    service = "gRPC"

    def __init__(self, server: int, endpoint: str, security: Security | None = None) -> None:
        super().__init__(server, endpoint, security)
        self._http: Any = None  # h2's connection
        self._running = 0  # the id of HTTP/2's stream of the present call
        self._unsent = 0  # bytes of its request that the server has not taken yet
        self._late: dict[int, int] = {}  # streams whose answers nobody waits for, and how many bytes of them came
        self._greeting = b""  # the first bytes that came

    def ask_config(self, model: str, timeout: float, headers: Headers = ()) -> Steps[Reply[ModelConfig]]:
        """Ask for the configuration of a model."""
        request = messages.new("ModelConfigRequest", name=model)
        return self._run(self._ask("ModelConfig", request, messages.read_config, timeout, headers))

    def ask_model(self, query: Query, timeout: float, headers: Headers = ()) -> Steps[Reply[tuple[Tensor, ...]]]:
        """Ask a model."""
        request = messages.infer_request(query)
        return self._run(self._ask("ModelInfer", request, messages.read_tensors, timeout, headers))

    def call(self, method: str, message: bytes, timeout: float, headers: Headers = ()) -> Steps[Reply[bytes]]:
        """Send a request, serialised, to a method of Triton's service, and wait for the answer's message."""
        return self._run(self._exchange(method, message, timeout, headers))

    def _look(self) -> bool:
        from h2.exceptions import H2Error

        idle = _Answer(ended=True)
        with suppress(Trouble, H2Error):
            while data := self._stream.peek():
                self._handle(data, None, idle)
            return not self._leaving and self._stream.try_to_send(self._http.data_to_send())
        return False

    def _ask(
        self, method: str, request: Message, read: Callable[[bytes], M | None], timeout: float, headers: Headers
    ) -> Steps[tuple[str, M | None]]:
        status, body = yield from self._exchange(method, request.SerializeToString(), timeout, headers)
        return status, None if body is None else read(body)

    def _exchange(
        self, method: str, message: bytes, timeout: float, headers: Headers
    ) -> Steps[tuple[str, bytes | None]]:
        from h2.exceptions import H2Error, StreamClosedError

        if self._http is None:
            self._http = _new_http()
        http, answer = self._http, _Answer()
        try:
            stream = self._running = http.get_next_available_stream_id()
            http.send_headers(stream, self._headers(method, timeout, headers))
            body = memoryview(_PREFIX.pack(0, len(message)) + message)
            while not answer.ended:
                body = self._queue_body(stream, body)
                self._unsent = len(body)
                yield from self._stream.send(http.data_to_send())
                self._handle((yield from self._stream.receive()), stream, answer)
            if body:  # the server answered without waiting for all of it
                with suppress(StreamClosedError):  # by the server's own reset
                    http.reset_stream(stream, _CANCEL)
            self._leaving |= not self._stream.try_to_send(http.data_to_send())  # the answer is here all the same
        except H2Error as error:
            raise Trouble(f"breaks the rules of HTTP/2 ({type(error).__name__})", _NOT_GRPC) from None
        return _read(answer)

    def _queue_body(self, stream: int, body: memoryview) -> memoryview:
        """Queue as much of a request as the server takes now; what is left of it."""
        http = self._http
        while body:
            size = min(len(body), http.local_flow_control_window(stream), http.max_outbound_frame_size)
            if size <= 0:
                break
            http.send_data(stream, body[:size].tobytes(), end_stream=size == len(body))
            body = body[size:]
        return body

    def _handle(self, data: bytes, stream: int | None, answer: _Answer) -> None:
        """Take in bytes; what belongs to `stream` goes into the answer."""
        from h2 import events

        self._check_greeting(data)
        answer.overhead += len(data)
        happened: list[Any] = self._http.receive_data(data)
        for event in happened:
            number = getattr(event, "stream_id", None)
            if isinstance(event, events.ConnectionTerminated):
                self._leaving = True
            elif stream is not None and number == stream:
                self._take_in(event, stream, answer)
            elif number in self._late:
                self._let_pass(event, answer)
        if len(answer.body) > MAX_ANSWER_BYTES + _PREFIX.size or answer.overhead > MAX_OVERHEAD_BYTES:
            raise Trouble(*_TOO_MUCH)
        if self._leaving and not answer.ended:
            raise Trouble("closed the connection before it answered", "check that the server runs there")

    def _take_in(self, event: Any, stream: int, answer: _Answer) -> None:  # noqa: ANN401 - h2's events have no common class
        """An event of the answer that is awaited."""
        from h2 import events

        if isinstance(event, events.DataReceived):
            answer.body += event.data or b""
            answer.overhead -= len(event.data or b"")
            self._http.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, (events.ResponseReceived, events.TrailersReceived)):
            _read_headers(event.headers or (), answer)
        elif isinstance(event, events.StreamReset):
            answer.status = answer.status or _RESETS.get(int(event.error_code or 0), "INTERNAL")
            answer.ended = True
        elif isinstance(event, events.StreamEnded):
            answer.ended = True

    def _let_pass(self, event: Any, answer: _Answer) -> None:  # noqa: ANN401 - h2's events have no common class
        """An event of an answer that nobody waits for."""
        from h2 import events

        if isinstance(event, events.DataReceived):
            size = len(event.data or b"")
            answer.overhead -= size
            self._late[event.stream_id] += size
            self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if self._late[event.stream_id] > MAX_ANSWER_BYTES + _PREFIX.size:
                raise Trouble(*_TOO_MUCH)
        elif isinstance(event, (events.StreamEnded, events.StreamReset)):
            del self._late[event.stream_id]

    def _check_greeting(self, data: bytes) -> None:
        """An HTTP/2 server begins with a SETTINGS frame; h2 would wait for as much as another one's bytes promise."""
        if len(self._greeting) < 4:
            self._greeting += data[: 4 - len(self._greeting)]
            if self._greeting[3:] not in {b"", b"\x04"}:
                raise Trouble("does not speak HTTP/2", _NOT_GRPC)

    def _headers(self, method: str, timeout: float, more: Headers) -> list[Any]:
        from hpack import HeaderTuple, NeverIndexedHeaderTuple

        ms = min(max(1, round(timeout * 1e3)), _MAX_TIMEOUT_MS)
        same = (
            (b":method", b"POST"),
            (b":scheme", b"http" if self.security is None else b"https"),
            (b":path", b"/inference.GRPCInferenceService/" + method.encode()),
            (b":authority", self._authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"privdfs"),
        )
        # A timeout is another one each time, so it is not worth a place in HTTP/2's table; a secret must not be in it.
        private = ((b"grpc-timeout", b"%08dm" % ms), *((name.encode(), value.encode()) for name, value in more))
        return [*(HeaderTuple(*pair) for pair in same), *(NeverIndexedHeaderTuple(*pair) for pair in private)]

    def _cancel(self) -> bool:
        """Let the answer pass when it comes: a reset that meets it half-way ends older Tritons (issues 7368, 8034)."""
        if self._http is None or self._unsent or len(self._late) >= MAX_LATE_ANSWERS:
            return False
        self._late[self._running] = 0
        return self._stream.try_to_send(self._http.data_to_send())


def _new_http() -> Any:  # noqa: ANN401 - as the attribute
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.settings import SettingCodes

    # Our own headers were checked when the endpoint and the token were given.
    config = H2Configuration(header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False)
    http = H2Connection(config)
    http.local_settings[SettingCodes.ENABLE_PUSH] = 0
    http.local_settings.acknowledge()
    http.initiate_connection()
    return http


def _read_headers(headers: Iterable[tuple[bytes, bytes]], answer: _Answer) -> None:
    for name, value in headers:
        if name == b":status" and value.isdigit() and len(value) == 3:
            answer.http_status = int(value)
        elif name == b"grpc-status":
            number = int(value) if value.isdigit() and len(value) <= 2 else -1
            answer.status = STATUSES[number] if 0 <= number < len(STATUSES) else "UNKNOWN"
        elif name == b"grpc-message":
            answer.queue_full = value.endswith(QUEUE_FULL)


def _read(answer: _Answer) -> tuple[str, bytes | None]:
    """Status and message of an answer that has ended."""
    if answer.status is None:
        answer.status = _HTTP_STATUSES.get(answer.http_status, "UNKNOWN")
    if answer.status == "UNAVAILABLE" and answer.queue_full:
        answer.status = "RESOURCE_EXHAUSTED"
    if answer.status != "OK":
        return answer.status, None
    body = bytes(answer.body)
    compressed, length = _PREFIX.unpack(body[: _PREFIX.size]) if len(body) >= _PREFIX.size else (1, 0)
    if compressed or length != len(body) - _PREFIX.size:
        raise Trouble("answered with something that is not one gRPC message", _NOT_GRPC)
    return "OK", body[_PREFIX.size :]
