"""One HTTP connection: what it sends, what it takes from a server, and what it refuses."""

import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec
import numpy as np
import pytest
import trustme

from privdfs import _http_messages as messages
from privdfs._constants import MAX_ANSWER_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, MAX_TIMEOUT_S
from privdfs._drive import Ask
from privdfs._http import STATUSES, HttpConnection
from privdfs._security import make_security
from privdfs._tls import TLS
from privdfs._wire import Headers, ModelConfig, Query, Reply, Tensor, TensorType
from tests.sdk.exchanges import ask, finish
from tests.thorough import count

RAW = np.arange(4, dtype="<f4").tobytes()
JSON = b'{"model_name":"branch","outputs":[{"name":"logits","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}]}'  # noqa: E501
TENSOR = Tensor("logits", "FP32", (1, 4), RAW)
QUERY = Query("branch", (Tensor("share", "INT8", (1, 3), b"\x00\x7f\x80"),), "logits", 5_000_000)


def framed(
    body: bytes = JSON + RAW, headers: bytes = b"", status: bytes = b"200 OK", json_length: int = len(JSON)
) -> bytes:
    """An answer as Triton sends it; further headers end in a line break."""
    return (
        b"HTTP/1.1 %b\r\nContent-Type: application/octet-stream\r\n"
        b"Inference-Header-Content-Length: %d\r\n%bContent-Length: %d\r\n\r\n%b"
    ) % (status, json_length, headers, len(body), body)


@contextmanager
def server(answer: bytes | Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that reads a request and sends these bytes, or does what the test says, for every request."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
                sock = sock if context is None else context.wrap_socket(sock, server_side=True)
            except OSError:
                return
            with sock, suppress(OSError):
                while sock.recv(65536):
                    if callable(answer):
                        answer(sock)
                    else:
                        sock.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"{'http' if context is None else 'https'}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def infer(connection: HttpConnection) -> Reply[tuple[Tensor, ...]]:
    return ask(connection.ask_model(QUERY, 5.0))


def test_a_right_answer_and_the_connection_stays() -> None:
    with server(framed()) as endpoint:
        connection = HttpConnection(0, endpoint)
        assert not connection.reusable
        for _ in range(3):
            reply = infer(connection)
            assert (reply.message, reply.status, reply.trouble) == ((TENSOR,), "OK", None)
            assert connection.fit()
        connection.close()
        assert not connection.fit()


def test_what_is_sent() -> None:
    seen: list[bytes] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = over(ours)
        for steps in (
            connection.ask_model(QUERY, 5.0, [("authorization", "Bearer x")]),
            connection.ask_config("branch", 5.0),
        ):
            next(steps)
            seen.append(theirs.recv(65536))
            theirs.sendall(framed())
            finish(steps)
    head, _, body = seen[0].partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v2/models/branch/infer HTTP/1.1"
    fields = dict(line.split(b": ") for line in lines[1:])
    assert fields[b"Host"] == b"127.0.0.1:1"
    assert fields[b"authorization"] == b"Bearer x"
    assert int(fields[b"Content-Length"]) == len(body)
    json_length = int(fields[b"Inference-Header-Content-Length"])
    assert body[json_length:] == b"\x00\x7f\x80"
    assert msgspec.json.decode(body[:json_length]) == {
        "parameters": {"timeout": 5_000_000},
        "inputs": [
            {"name": "share", "datatype": "INT8", "shape": [1, 3], "parameters": {"binary_data_size": 3}},
        ],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }
    assert seen[1].startswith(b"GET /v2/models/branch/config HTTP/1.1\r\n")
    assert seen[1].endswith(b"\r\n\r\n")
    assert b"Content-Length" not in seen[1]


def test_the_length_of_a_request_tells_of_shapes_alone() -> None:
    draw = np.random.default_rng(0)
    lengths = set()
    for timeout in (1, 50_000, 5_000_000, round(MAX_TIMEOUT_S * 1e6)):
        for _ in range(20):
            raw = draw.integers(-128, 128, 12, dtype=np.int8).tobytes()
            request = sent(HttpConnection(0, ENDPOINT), Query("b", (share(raw, (2, 6)),), "logits", timeout))
            assert request.endswith(raw)
            lengths.add(len(request))
    assert len(lengths) == 1


def test_a_request_is_the_same_whatever_was_asked_on_its_connection_before() -> None:
    used = HttpConnection(0, ENDPOINT)
    token = (("authorization", "Bearer x"),)
    further = Tensor("partition", "INT32", (1, 1), bytes(4))
    for query, headers in [
        (QUERY, ()),
        (QUERY, ()),
        (Query("branch", (share(b"abc"),), "logits", 5_000_000), ()),
        (Query("branch", (share(b"abc"),), "logits", 5_000_000), token),
        (Query("branch", (share(b"abc"),), "logits", 1), token),
        (Query("branch", (share(b"abcd"),), "logits", 1), token),
        (Query("branch", (share(b"abcd", (2, 3)),), "logits", 1), token),
        (Query("branch", (share(b"abcdef", (2, 3)),), "logits", 1), token),
        (Query("branch", (share(b"abcdef", (2, 3)), further), "logits", 1), token),
        (Query("branch", (share(b"abc"),), "others", 5_000_000), ()),
        (Query("branch-2", (share(b"abc"),), "logits", 5_000_000), ()),
        (QUERY, ()),
    ]:
        request = sent(used, query, headers)
        assert request == sent(HttpConnection(0, ENDPOINT), query, headers)
        assert request.endswith(b"".join(each.raw or b"" for each in query.inputs))


ENDPOINT = "http://127.0.0.1:1"


def share(raw: bytes, shape: tuple[int, ...] = (1, 3)) -> Tensor:
    return Tensor("share", "INT8", shape, raw)


def sent(connection: HttpConnection, query: Query, headers: Headers = ()) -> bytes:
    """What a connection sends for a query."""
    return connection._question(query, headers)


def chunked(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


WRONG: dict[str, bytes] = {
    "two lengths": framed(headers=b"Content-Length: 3\r\n"),
    "the same length twice": framed(headers=b"Content-Length: %d\r\n" % len(JSON + RAW)),
    "a list of lengths": framed().replace(b"Content-Length: %d" % len(JSON + RAW), b"Content-Length: 5, 5"),
    "a length with a sign": framed().replace(b"\r\nContent-Length: ", b"\r\nContent-Length: +"),
    "a negative length": framed().replace(b"\r\nContent-Length: ", b"\r\nContent-Length: -"),
    "a length in hex": framed().replace(b"\r\nContent-Length: ", b"\r\nContent-Length: 0x"),
    "a huge length": framed().replace(b"\r\nContent-Length: ", b"\r\nContent-Length: " + b"9" * 5000),
    "no length": framed().replace(b"\r\nContent-Length: ", b"\r\nX-Length: "),
    "a length beyond what an answer can be": framed().replace(
        b"\r\nContent-Length: %d" % len(JSON + RAW), b"\r\nContent-Length: %d" % (MAX_ANSWER_BYTES + 1)
    ),
    "two lengths of the JSON": framed(headers=b"inference-header-content-length: 3\r\n"),
    "more JSON than answer": framed(json_length=len(JSON + RAW) + 1),
    "chunks": chunked(JSON + RAW),
    "chunks and a length": framed(headers=b"Transfer-Encoding: chunked\r\n"),
    "another coding": framed(headers=b"Transfer-Encoding: identity\r\n"),
    "chunks with trailers": chunked(JSON + RAW)[:-2] + b"X: y\r\n\r\n",
    "compression": framed(headers=b"Content-Encoding: gzip\r\n"),
    "100-continue": b"HTTP/1.1 100 Continue\r\n\r\n" + framed(),
    "early hints": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + framed(),
    "another protocol": framed(status=b"101 Switching Protocols"),
    "a redirect": framed(status=b"307 Temporary Redirect", headers=b"Location: https://elsewhere.example/\r\n"),
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "part of it": framed(status=b"206 Partial Content"),
    "HTTP/1.0": framed().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18),
    "HTTP/0.9": JSON + RAW,
    "ICY": framed().replace(b"HTTP/1.1", b"ICY"),
    "bytes behind the answer": framed() + b"x",
    "a second answer": framed() * 2,
    "a folded header": framed(headers=b"X: y\r\n z\r\n"),
    "a blank before the colon": framed(headers=b"X : y\r\n"),
    "a header without a name": framed(headers=b": y\r\n"),
    "a header without a colon": framed(headers=b"X\r\n"),
    "a bare line feed": framed(headers=b"X: y\nContent-Length: 3\r\n"),
    "a bare carriage return": framed(headers=b"X: y\rContent-Length: 3\r\n"),
    "a zero byte": framed(headers=b"X: \0\r\n"),
    "a status of four digits": framed(status=b"2000 OK"),
    "no status": framed(status=b""),
    "a flood of headers": framed(headers=b"X: y\r\n" * (MAX_HEADERS + 1)),
    "a long header": framed(headers=b"X: " + b"y" * MAX_HEAD_BYTES + b"\r\n"),
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000,
    "an endless first line": b"HTTP/1.1 200 " + b"O" * 300_000,
    "nothing but line breaks": b"\r\n" * 5000,
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_what_is_no_answer_is_trouble_and_ends_the_connection(answer: bytes) -> None:
    with server(answer) as endpoint:
        connection = HttpConnection(0, endpoint)
        reply = infer(connection)
        assert reply.trouble is not None
        assert (reply.message, reply.status) == (None, "UNAVAILABLE")
        assert not {"elsewhere", "Link"} & set(reply.trouble.what.replace(".", " ").split()), "nothing it wrote"
        assert not connection.fit()
        assert infer(connection).trouble is not None, "it is never made again"


@pytest.mark.parametrize("part", [0, 1, 20, len(framed()) - 1])
def test_an_answer_that_ends_early_is_trouble(part: int) -> None:
    def answer(sock: socket.socket) -> None:
        sock.sendall(framed()[:part])
        sock.shutdown(socket.SHUT_RDWR)

    with server(answer) as endpoint:
        reply = infer(HttpConnection(0, endpoint))
        assert reply.trouble is not None
        assert "closed the connection" in reply.trouble.what


def test_an_answer_may_come_byte_by_byte() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = over(ours)
        steps = connection.ask_model(QUERY, 5.0)
        next(steps)
        for byte in framed()[:-1]:
            theirs.sendall(bytes([byte]))
            next(steps)
        theirs.sendall(framed()[-1:])
        assert finish(steps).message == (TENSOR,)


def test_an_answer_larger_than_it_can_be_is_cut_off_while_it_is_read() -> None:
    large = b'{"outputs":[],"padding":"%b"}' % (b"x" * (MAX_ANSWER_BYTES - 100))
    with server(framed(large, json_length=len(large))) as endpoint:
        connection = HttpConnection(0, endpoint)
        reply = infer(connection)
        assert (reply.status, reply.message) == ("OK", ())
        connection.close()

    sent = 0

    def flood(sock: socket.socket) -> None:
        nonlocal sent
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        while True:
            sent += sock.send(b"x" * 65536)

    with server(flood) as endpoint:
        reply = infer(HttpConnection(0, endpoint))
        assert reply.trouble is not None
        assert "more than its answer" in reply.trouble.what
    assert sent < 64 * MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    ("code", "name"),
    [*((code, name) for code, name in STATUSES.items() if code != 200), (400, "INVALID_ARGUMENT"),
     (413, "INVALID_ARGUMENT"), (500, "INTERNAL"), (599, "INTERNAL")],
)  # fmt: skip
def test_a_status_has_a_name_and_the_connection_stays(code: int, name: str) -> None:
    said = b'{"error":"a share, perhaps"}'
    with server(framed(said, status=b"%d Told" % code, json_length=len(said))) as endpoint:
        connection = HttpConnection(0, endpoint)
        for _ in range(2):
            reply = infer(connection)
            assert (reply.message, reply.status, reply.trouble) == (None, name, None)
            assert connection.fit()
        connection.close()


@pytest.mark.parametrize(
    "answer",
    [
        chunked(b"<html>").replace(b"200 OK", b"503 Busy"),
        b"HTTP/1.1 503 Busy\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 900000000\r\n\r\n<html>",
        framed(b"<html>", b"Content-Encoding: gzip\r\n", b"503 Busy", 0),
        framed(b"<html>", b"Connection: close\r\n", b"503 Busy", 0),
    ],
)
def test_an_error_counts_however_it_is_framed_and_ends_the_connection(answer: bytes) -> None:
    with server(answer) as endpoint:
        connection = HttpConnection(0, endpoint)
        reply = infer(connection)
        assert (reply.status, reply.trouble) == ("UNAVAILABLE", None)
        assert not connection.reusable


def test_a_server_that_says_that_it_closes_is_believed() -> None:
    with server(framed(headers=b"Connection: keep-alive, Close\r\n")) as endpoint:
        connection = HttpConnection(0, endpoint)
        assert infer(connection).message == (TENSOR,)
        assert not connection.reusable


def test_what_comes_unasked_ends_the_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = over(ours)
        steps = connection.ask_model(QUERY, 5.0)
        next(steps)
        theirs.sendall(framed())
        assert finish(steps).status == "OK"
        assert connection.fit()
        theirs.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        assert not connection.fit()


def test_a_call_that_is_given_up_closes_its_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = over(ours)
        asked = Ask(connection.ask_model(QUERY, 5.0))
        next(asked.steps)
        assert theirs.recv(65536)
        asked.abandon()
        assert not connection.reusable
        assert theirs.recv(65536) == b"", "which is how the server learns of it"


def test_a_connection_that_was_interrupted_before_its_first_call_is_not_made() -> None:
    with server(framed()) as endpoint:
        connection = HttpConnection(0, endpoint)
        connection.interrupt()
        reply = infer(connection)
        assert reply.trouble is not None
        assert "was left" in reply.trouble.what


@pytest.mark.parametrize(("offered", "fits"), [(["http/1.1"], True), ([], True), (["h2", "http/1.1"], True)])
def test_what_a_server_offers_over_tls(offered: list[str], fits: bool) -> None:  # noqa: FBT001 - a parameter
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    if offered:
        context.set_alpn_protocols(offered)
    security = make_security(TLS(ca=authority.cert_pem.bytes()), HttpConnection.protocol)
    with server(framed(), context) as endpoint:
        connection = HttpConnection(0, endpoint, security)
        assert (infer(connection).trouble is None) == fits
        connection.close()


CONFIG = {
    "name": "branch",
    "max_batch_size": 8,
    "input": [{"name": "share", "data_type": "TYPE_INT8", "format": "FORMAT_NONE", "dims": [64]}],
    "output": [{"name": "logits", "data_type": "TYPE_FP32", "dims": [4]}],
    "parameters": {"privdfs_release": {"string_value": "r"}, "privdfs_server": {"string_value": "0"}},
}


def test_a_configuration_is_read() -> None:
    expected = ModelConfig(
        {"privdfs_release": "r", "privdfs_server": "0"},
        (TensorType("share", "INT8", (64,)),),
        (TensorType("logits", "FP32", (4,)),),
        8,
    )
    body = msgspec.json.encode(CONFIG)
    with server(framed(body, json_length=len(body))) as endpoint:
        connection = HttpConnection(0, endpoint)
        assert ask(connection.ask_config("branch", 5.0)).message == expected
        connection.close()
    assert messages.read_config(b"{}") == ModelConfig({}, (), (), 0)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b'{"input":{}}', b'{"max_batch_size":"8"}', b'{"parameters":{"x":1}}', b"\xff",
     b'{"input":[{"name":"share"}]}', b'{"x":' + b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_configuration(body: bytes) -> None:
    assert messages.read_config(body) is None


def outputs(*sizes: int | None) -> bytes:
    rows = [
        {"name": "x", "datatype": "INT8", "shape": [1]}
        | ({} if size is None else {"parameters": {"binary_data_size": size}})
        for size in sizes
    ]
    return msgspec.json.encode({"outputs": rows})


def test_tensors_are_cut_out_of_the_bytes() -> None:
    def read(raw: bytes, *sizes: int | None) -> list[bytes | None] | None:
        json = outputs(*sizes)
        found = messages.read_outputs(json)
        assert found is not None
        tensors = messages.cut(found, json + raw, len(json))
        return None if tensors is None else [tensor.raw for tensor in tensors]

    assert read(b"abc", 1, 2) == [b"a", b"bc"]
    assert read(b"abc", 3, 0) == [b"abc", b""]
    assert read(b"a", None, 1) == [None, b"a"]
    assert read(b"") == []
    for raw, sizes in [(b"abc", (1,)), (b"abc", (4,)), (b"abc", (2, 2)), (b"abc", (-1, 4)), (b"a", (None,))]:
        assert read(raw, *sizes) is None
    for json in (b"", b"{", b"[]", b'{"outputs":[{}]}', b'{"outputs":[{"name":"x","datatype":"INT8","shape":"1"}]}'):
        assert messages.read_outputs(json) is None


def test_an_answer_that_begins_as_the_last_one_is_judged_as_if_it_were_the_first() -> None:
    other = np.arange(4, 8, dtype="<f4").tobytes()
    right = framed()
    answers = {
        framed(JSON + other): (other, None),
        framed(JSON + other)[:-1]: (None, "closed the connection before it answered"),
        framed(JSON + other) + b"x": (None, "sends more than its answer"),
        right.replace(b"Content-Type: application/octet-stream", b"Transfer-Encoding: chunkedxxxxxxxxxxxxx"): (
            None, "answers in chunks or compressed",
        ),
        right.replace(b"FP32", b"INT8"): (RAW, None),
        right.replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 307 OK"): (
            None, "answers with a redirect, which is never followed",
        ),
        right.replace(b":16}", b":15}"): (None, None),
    }  # fmt: skip
    for answer, (raw, trouble) in answers.items():
        for after in (None, right):
            reply, _ = judged(answer, len(answer), after)
            assert (reply.message or (None,))[0] == (
                None if raw is None else Tensor("logits", "INT8" if b"INT8" in answer else "FP32", (1, 4), raw)
            )
            assert getattr(reply.trouble, "what", None) == trouble


def test_a_connection_remembers_no_numbers_of_an_answer() -> None:
    """A server may answer in JSON though bytes are asked for; then every answer is read from the start."""
    json = b'{"outputs":[{"name":"logits","datatype":"FP32","shape":[1,4],"data":[0.125,1,2,3]}]}'
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = over(ours)
        for answer in (framed(), framed(json, json_length=len(json))):
            steps = connection.ask_model(QUERY, 1.0)
            next(steps)
            theirs.sendall(answer)
            assert finish(steps).status == "OK"
        assert connection._usual["branch"].beginning == framed()[: -len(RAW)]
        connection.close()


def test_mutated_answers_are_answers_or_trouble() -> None:
    """Bytes of a right answer, changed anywhere: nothing but a reply comes of them, and no reply holds foreign text."""
    draw = random.Random(0)  # noqa: S311 - not for secrets
    words = [
        b"\r\n", b"\n", b"\r\n\r\n", b":", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\0",
        b"Connection: close\r\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"9", b"-1", b"}", b'"',
    ]  # fmt: skip
    kinds: set[str] = set()
    troubles: set[str] = set()
    for _ in range(count(3_000, 10_000)):
        data = bytearray(framed())
        for _ in range(draw.randrange(1, 4)):
            position = draw.randrange(len(data))
            change = draw.randrange(4)
            if change == 0:
                data[position] = draw.randrange(256)
            elif change == 1:
                del data[position : position + draw.randrange(1, 9)]
            elif change == 2:
                data[position:position] = draw.randbytes(draw.randrange(1, 9))
            else:
                data[position:position] = draw.choice(words)
        reply, reusable = judged(bytes(data), draw.randrange(len(data) + 1))
        if reply.trouble is not None:
            kinds.add("trouble")
            troubles.add(reply.trouble.what)
            assert (reply.message, reusable) == (None, False)
        else:
            kinds.add(reply.status if reply.message is not None else f"no message, {reply.status}")
        # A connection that knows how right answers begin judges no other way.
        again, still = judged(bytes(data), draw.randrange(len(data) + 1), after=framed())
        assert (again.message, again.status, still) == (reply.message, reply.status, reusable)
        assert getattr(again.trouble, "what", None) == getattr(reply.trouble, "what", None)
    assert {"trouble", "OK", "no message, OK"} <= kinds
    assert len(troubles) < 20, "our own words"


def judged(answer: bytes, split: int, after: bytes | None = None) -> tuple[Reply[tuple[Tensor, ...]], bool]:
    """What comes of an answer in two pieces, the first on its connection or `after` another; whether that stays."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = over(ours)
        if after is not None:
            steps = connection.ask_model(QUERY, 1.0)
            next(steps)
            theirs.sendall(after)
            assert finish(steps).status == "OK"
        steps = connection.ask_model(QUERY, 1.0)
        next(steps)
        theirs.sendall(answer[:split])
        theirs.sendall(answer[split:])
        theirs.shutdown(socket.SHUT_WR)
        reply = finish(steps)
        reusable = connection.reusable
        connection.close()
        return reply, reusable


def over(sock: socket.socket) -> HttpConnection:
    """A connection that is made already."""
    sock.setblocking(False)
    connection = HttpConnection(0, "http://127.0.0.1:1")
    connection._stream._socket, connection._made = sock, True
    return connection
