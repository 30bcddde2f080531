"""One gRPC connection: what it takes from a server, and what it refuses. Fakes for what no real server sends."""

import logging
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trustme
from tritonclient.grpc import model_config_pb2 as config_messages
from tritonclient.grpc import service_pb2 as service_messages

from privdfs import _messages as messages
from privdfs._constants import MAX_ANSWER_BYTES, MAX_CALLS_PER_CONNECTION
from privdfs._dial import Trouble
from privdfs._grpc import STATUSES, GrpcConnection, _new_http
from privdfs._security import make_security
from privdfs._stream import Stream
from privdfs._tls import TLS
from privdfs._wire import Reply
from privdfs.testing import FakeServer, Fault
from tests.sdk.drivers import HANG_S
from tests.sdk.exchanges import ask, finish
from tests.thorough import count


def call(connection: GrpcConnection, message: bytes = b"", method: str = "ModelConfig") -> Reply[bytes]:
    return ask(connection.call(method, message, HANG_S))


@pytest.fixture
def wire() -> str:
    """The fakes of this module speak gRPC alone."""
    return "grpc"


triton: Any = service_messages  # protobuf has no types
triton_config: Any = config_messages

Answer = Callable[[h2.connection.H2Connection, int, socket.socket], None]


@contextmanager
def server(answer: Answer, on: type = h2.events.StreamEnded) -> Iterator[str]:
    """A server that speaks HTTP/2 until a request has come, or this event of it, and leaves the rest to the test."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
                http.initiate_connection()
                try:
                    while data := sock.recv(65536):
                        happened: list[Any] = http.receive_data(data)
                        for event in [each for each in happened if isinstance(each, on)]:
                            answer(http, event.stream_id or 0, sock)
                        sock.sendall(http.data_to_send())
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def framed(message: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(message)) + message


def right(http: h2.connection.H2Connection, stream: int, body: bytes, status: str = "0", code: str = "200") -> None:
    http.send_headers(stream, [(":status", code), ("content-type", "application/grpc")])
    http.send_data(stream, body)
    http.send_headers(stream, [("grpc-status", status)], end_stream=True)


def test_a_right_answer() -> None:
    with server(lambda http, stream, _: right(http, stream, framed(b"abc"))) as endpoint:
        connection = GrpcConnection(0, endpoint)
        assert not connection.reusable
        for _ in range(3):
            reply = call(connection)
            assert (reply.message, reply.status, reply.trouble) == (b"abc", "OK", None)
            assert connection.fit()
        connection.close()
        assert not connection.fit()


WRONG: dict[str, Answer] = {
    "a compressed message": lambda http, stream, _: right(http, stream, framed(b"abc", 1)),
    "two messages": lambda http, stream, _: right(http, stream, framed(b"abc") * 2),
    "no message": lambda http, stream, _: right(http, stream, b""),
    "half a message": lambda http, stream, _: right(http, stream, framed(b"abc")[:-1]),
    "another length": lambda http, stream, _: right(http, stream, framed(b"abc") + b"d"),
    "garbage": lambda _http, _stream, sock: sock.sendall(b"\xff" * 4096),
    "HTTP/1.1": lambda _http, _stream, sock: sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    "an end": lambda _http, _stream, sock: sock.shutdown(socket.SHUT_RDWR),
    "a farewell": lambda http, _stream, _sock: http.close_connection(),
    "endless pings": lambda _http, _stream, sock: sock.sendall(b"\0\0\x08\x06\0\0\0\0\0privdfs!" * 40_000),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_what_is_no_answer_is_trouble_and_ends_the_connection(answer: Answer) -> None:
    with server(answer) as endpoint:
        connection = GrpcConnection(0, endpoint)
        reply = call(connection)
        assert reply.message is None
        assert reply.trouble is not None
        assert not connection.fit()
        assert call(connection).trouble is not None, "it is never made again"


def test_an_answer_larger_than_it_can_be_is_cut_off(fakes: list[FakeServer]) -> None:
    connection = GrpcConnection(0, fakes[0].endpoint)
    request = messages.new("ModelConfigRequest", name="branch").SerializeToString()
    for size in (1_000_000, MAX_ANSWER_BYTES - 1000):  # longer than HTTP/2's windows
        fakes[0].check_fault = Fault(response=lambda reply, size=size: setattr(reply.config, "name", "x" * size))
        assert call(connection, request).status == "OK"
    connection.close()

    def flood(http: h2.connection.H2Connection, stream: int, sock: socket.socket) -> None:
        right_start = [(":status", "200"), ("content-type", "application/grpc")]
        http.send_headers(stream, right_start)
        sent = 0
        while sent <= MAX_ANSWER_BYTES + 100_000:
            window = min(http.local_flow_control_window(stream), http.max_outbound_frame_size)
            if window:
                http.send_data(stream, b"\0" * window)
                sent += window
            sock.sendall(http.data_to_send())
            if not window and not http.receive_data(sock.recv(65536)):
                continue

    with server(flood) as endpoint:
        reply = call(GrpcConnection(0, endpoint))
        assert reply.trouble is not None
        assert "more than an answer can be" in reply.trouble.what


@pytest.mark.parametrize(("number", "name"), [*enumerate(STATUSES[1:], 1), (99, "UNKNOWN"), (-1, "UNKNOWN")])
def test_a_status_is_known_by_its_name_and_the_connection_stays(number: int, name: str) -> None:
    with server(lambda http, stream, _: right(http, stream, b"", str(number))) as endpoint:
        connection = GrpcConnection(0, endpoint)
        reply = call(connection)
        assert (reply.message, reply.status, reply.trouble) == (None, name, None)
        assert connection.fit()
        connection.close()


@pytest.mark.parametrize(("code", "name"), [("404", "UNIMPLEMENTED"), ("503", "UNAVAILABLE"), ("301", "UNKNOWN")])
def test_what_answers_without_grpc_status(code: str, name: str) -> None:
    def answer(http: h2.connection.H2Connection, stream: int, _: socket.socket) -> None:
        http.send_headers(stream, [(":status", code), ("location", "https://elsewhere.example")], end_stream=True)

    with server(answer) as endpoint:
        connection = GrpcConnection(0, endpoint)
        assert call(connection).status == name
        connection.close()


def test_a_status_of_any_length_is_read() -> None:
    def answer(http: h2.connection.H2Connection, stream: int, _: socket.socket) -> None:
        http.config.validate_outbound_headers = False
        http.send_headers(stream, [(":status", "2" * 5000)], end_stream=True)  # Python converts 4300 digits at most

    with server(answer) as endpoint:
        connection = GrpcConnection(0, endpoint)
        assert call(connection).status == "UNKNOWN"
        connection.close()


@pytest.mark.parametrize("trailers", [False, True], ids=["reset", "trailers and reset"])
def test_a_server_that_refuses_a_request_before_all_of_it_came(trailers: bool) -> None:  # noqa: FBT001 - a parameter
    def refuse(http: h2.connection.H2Connection, stream: int, _: socket.socket) -> None:
        if trailers:
            http.send_headers(stream, [(":status", "200"), ("grpc-status", "8")], end_stream=True)
        http.reset_stream(stream, 0xB)

    with server(refuse, on=h2.events.RequestReceived) as endpoint:
        connection = GrpcConnection(0, endpoint)
        reply = call(connection, b"x" * 500_000)  # more than its window takes
        assert (reply.status, reply.trouble) == ("RESOURCE_EXHAUSTED", None)
        assert connection.fit()
        connection.close()


def give_up(connection: GrpcConnection) -> None:
    """Begin a call, and end it while its answer is awaited."""
    steps = connection.call("ModelConfig", b"", HANG_S)
    next(steps)
    steps.close()


@contextmanager
def late(body: bytes, given_up: int) -> Iterator[str]:
    """A server that answers these calls, after its first one, only when the next one has come: before that one."""
    held = list[int]()

    def answer(http: h2.connection.H2Connection, stream: int, _: socket.socket) -> None:
        if 1 < stream <= 1 + 2 * given_up:
            held.append(stream)
            return
        while held:
            right(http, held.pop(), framed(body))
        right(http, stream, framed(b"now"))

    with server(answer) as endpoint:
        yield endpoint


@pytest.mark.parametrize("given_up", [1, 8])
def test_an_answer_that_nobody_waits_for_passes(given_up: int) -> None:
    with late(b"late", given_up) as endpoint:
        connection = GrpcConnection(0, endpoint)
        call(connection)
        for _ in range(given_up):
            give_up(connection)
            assert connection.reusable
        for _ in range(2):
            reply = call(connection)
            assert (reply.message, reply.status, reply.trouble) == (b"now", "OK", None)
            assert connection.fit()
        connection.close()


def test_of_many_that_nobody_waits_for_the_connection_ends() -> None:
    with late(b"late", 9) as endpoint:
        connection = GrpcConnection(0, endpoint)
        call(connection)
        for _ in range(9):
            assert connection.reusable
            give_up(connection)
        assert not connection.reusable


def test_an_answer_that_nobody_waits_for_is_no_longer_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privdfs._grpc.MAX_ANSWER_BYTES", 1000)
    with late(b"x" * 2000, 1) as endpoint:
        connection = GrpcConnection(0, endpoint)
        call(connection)
        give_up(connection)
        reply = call(connection)
        assert reply.trouble is not None
        assert "sends more than an answer can be" in reply.trouble.what
        assert not connection.reusable


def test_a_connection_that_was_interrupted_before_its_first_call_is_not_made(fakes: list[FakeServer]) -> None:
    connection = GrpcConnection(0, fakes[0].endpoint)
    connection.interrupt()  # as `Client.close` does from another thread
    reply = call(connection)
    assert reply.trouble is not None
    assert "was left" in reply.trouble.what


def test_a_connection_whose_state_is_not_known_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: bytes) -> None:
        raise KeyboardInterrupt

    with server(lambda http, stream, _: right(http, stream, framed(b"abc"))) as endpoint:
        connection = GrpcConnection(0, endpoint)
        call(connection)
        monkeypatch.setattr(connection._http, "receive_data", interrupt)
        with pytest.raises(KeyboardInterrupt):
            call(connection)
        assert not connection.reusable


def test_an_application_that_logs_everything_does_not_log_tokens(
    fakes: list[FakeServer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    connection = GrpcConnection(0, fakes[0].endpoint)
    ask(connection.call("ModelConfig", b"", HANG_S, [("authorization", "Bearer zz-secret")]))
    connection.close()
    assert not [record for record in caplog.records if record.name.startswith(("hpack", "h2"))]


def test_a_goodbye_of_tls_is_seen_although_the_socket_stays_open() -> None:
    """What comes in one piece with the end of the handshake is read without waiting for more, then the goodbye."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    security = make_security(TLS(ca=authority.cert_pem.bytes()), "h2")
    assert security.context.options & ssl.OP_NO_RENEGOTIATION
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = context.wrap_bio(incoming, outgoing, server_side=True)
    stream = Stream("127.0.0.1", 1, security, protocol="h2", service="gRPC")
    ours, other = socket.socketpair()
    with ours, other:
        ours.setblocking(False)
        stream._socket = ours
        stream._tls = security.context.wrap_bio(stream._incoming, stream._outgoing, server_hostname="127.0.0.1")
        for _ in range(3):
            with suppress(ssl.SSLWantReadError):
                stream._tls.do_handshake()
            incoming.write(stream._outgoing.read())
            with suppress(ssl.SSLWantReadError):
                theirs.do_handshake()
            stream._incoming.write(outgoing.read())
        theirs.write(b"settings")
        stream._incoming.write(outgoing.read())
        assert stream.peek() == b"settings"
        theirs.write(b"last")
        with suppress(ssl.SSLWantReadError):
            theirs.unwrap()
        other.sendall(outgoing.read())
        assert stream.peek() == b"last"
        with pytest.raises(Trouble):
            stream.peek()


def test_a_connection_is_replaced_after_so_many_calls() -> None:
    connection = GrpcConnection(0, "127.0.0.1:1")
    connection._stream._socket = socket.socket()
    assert connection.reusable
    connection._calls = MAX_CALLS_PER_CONNECTION
    assert not connection.reusable
    connection.close()


def test_mutated_answers_are_answers_or_trouble() -> None:
    """Bytes of a right answer, changed anywhere: nothing but a reply comes of them, and no reply holds foreign text."""
    draw = random.Random(0)  # noqa: S311 - not for secrets
    kinds: set[str] = set()
    for _ in range(count(1_500, 10_000)):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = GrpcConnection(0, "127.0.0.1:1")
        connection._stream._socket = ours
        connection._http, connection._made = _new_http(), True
        http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        http.initiate_connection()
        steps = connection.call("ModelConfig", b"abc", 1.0)
        next(steps)
        http.receive_data(theirs.recv(65536))
        right(http, 1, framed(b"an answer"))
        data = bytearray(http.data_to_send())
        for _ in range(draw.randrange(1, 4)):
            position = draw.randrange(len(data))
            change = draw.randrange(3)
            if change == 0:
                data[position] = draw.randrange(256)
            elif change == 1:
                del data[position : position + draw.randrange(1, 9)]
            else:
                data[position:position] = draw.randbytes(draw.randrange(1, 9))
        theirs.sendall(data)
        theirs.close()
        reply = finish(steps)
        kinds.add("trouble" if reply.trouble else reply.status)
        connection.close()
    assert {"trouble", "OK"} <= kinds


def test_the_messages_are_those_of_triton() -> None:
    request = messages.new("ModelInferRequest", model_name="branch")
    request.parameters["timeout"].int64_param = 5
    request.inputs.add(name="share", datatype="INT8", shape=(2, 3))
    request.outputs.add(name="logits")
    request.raw_input_contents.append(b"abcdef")
    theirs = triton.ModelInferRequest(model_name="branch")
    theirs.parameters["timeout"].int64_param = 5
    theirs.inputs.add(name="share", datatype="INT8", shape=(2, 3))
    theirs.outputs.add(name="logits")
    theirs.raw_input_contents.append(b"abcdef")
    assert triton.ModelInferRequest.FromString(request.SerializeToString()) == theirs

    config = triton_config.ModelConfig(name="branch", max_batch_size=8, backend="python", platform="x")
    config.input.add(name="share", data_type=triton_config.TYPE_INT8, dims=[3])
    config.output.add(name="logits", data_type=triton_config.TYPE_FP32, dims=[10])
    config.parameters["privdfs_release"].string_value = "r"
    answer = triton.ModelConfigResponse(config=config).SerializeToString()
    ours = messages.message_class("ModelConfigResponse").FromString(answer).config
    assert (ours.name, ours.max_batch_size, ours.parameters["privdfs_release"].string_value) == ("branch", 8, "r")
    assert [(t.name, t.data_type, list(t.dims)) for t in ours.input] == [("share", messages.TYPE_NUMBERS["INT8"], [3])]
    assert [(t.name, t.data_type, list(t.dims)) for t in ours.output] == [
        ("logits", messages.TYPE_NUMBERS["FP32"], [10])
    ]
    assert messages.TYPE_NUMBERS["INT32"] == triton_config.TYPE_INT32

    reply = triton.ModelInferResponse(model_name="branch", model_version="1")
    reply.outputs.add(name="logits", datatype="FP32", shape=[2, 10])
    reply.raw_output_contents.append(b"x" * 80)
    read = messages.message_class("ModelInferResponse").FromString(reply.SerializeToString())
    assert (read.outputs[0].name, read.outputs[0].datatype, list(read.outputs[0].shape)) == ("logits", "FP32", [2, 10])
    assert read.raw_output_contents[0] == b"x" * 80
