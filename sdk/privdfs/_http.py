"""One HTTP/1.1 connection to one endpoint, on a socket of our own: the KServe v2 protocol with tensors as bytes.

An answer is read by a small parser that takes what an inference server sends and nothing else: a status line, at most
`MAX_HEAD_BYTES` of headers, and a body whose one Content-Length says how long it is. All the rest of HTTP/1.1, where
two readers can disagree about where an answer ends, or that leads elsewhere, is refused and ends the connection:
chunks and trailers, two lengths, interim answers, redirects, compression, HTTP/1.0, folded headers, bytes behind the
end. A general library would have to accept most of that; it would also take most of the time of a call.

A call that is given up closes its connection: HTTP/1.1 has no other way to say so.
"""

import functools
import re
from dataclasses import dataclass

from privdfs import _http_messages as messages
from privdfs._constants import MAX_ANSWER_BYTES, MAX_HEAD_BYTES, MAX_HEADERS
from privdfs._dial import Steps, Trouble
from privdfs._security import Security
from privdfs._wire import QUEUE_FULL, Connection, Headers, ModelConfig, Query, Reply, Tensor

#: The names that gRPC has for what HTTP's statuses say. Others of 4xx are INVALID_ARGUMENT, others of 5xx INTERNAL.
STATUSES = {
    200: "OK", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 408: "UNAVAILABLE",
    429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}  # fmt: skip

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: [\t\x20-\x7e\x80-\xff]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t\x20-\x7e\x80-\xff]*?)[\t ]*")
_LENGTH = re.compile(rb"[0-9]{1,9}")
_END = b"\r\n\r\n"
_GREETING = b"HTTP/1.1 "
_SAME = "User-Agent: privdfs\r\nAccept-Encoding: identity\r\n"
#: Headers that say where an answer ends, or how it is to be read; each may come once.
_FRAMING = frozenset(
    {b"content-length", b"inference-header-content-length", b"transfer-encoding", b"content-encoding", b"connection"}
)
_NOT_HTTP = "check that this is the server's HTTP port, and that both sides use TLS or neither"
_UNTRUSTED = "it is faulty or not to be trusted; tell its operator"


@dataclass(frozen=True)
class _Head:
    """What the head of an answer says.

    Attributes:
        status: a gRPC name.
        size: of the head itself, with the empty line that ends it.
        length: of the body.
        json_length: how much of the body is JSON; the rest are tensors.
        last: whether the server closes the connection behind it.
    """

    status: str
    size: int
    length: int
    json_length: int
    last: bool


@dataclass(frozen=True)
class _Usual:
    """How an answer began that passed every check, and what that says of its tensors.

    A server begins its answers to the same model alike. Another one that begins with the very same bytes and is as long
    is the same answer with other tensors, so it passes too.

    Attributes:
        beginning: the head and the JSON; without a tensor.
        length: of the whole answer.
        outputs: what the JSON says.
    """

    beginning: bytes
    length: int
    outputs: messages.Outputs


_NOTHING_YET = _Usual(b"", -1, ())


class HttpConnection(Connection):
    """A connection that speaks HTTP/1.1."""

    protocol = "http/1.1"
    service = "HTTP"

    def __init__(self, server: int, endpoint: str, security: Security | None = None) -> None:
        super().__init__(server, endpoint, security)
        # By model: all of the last request but its tensors, beside what that depends on; and how its answer began.
        self._asked: dict[str, tuple[object, bytes]] = {}
        self._usual: dict[str, _Usual] = {}

    def ask_config(self, model: str, timeout: float, headers: Headers = ()) -> Steps[Reply[ModelConfig]]:  # noqa: ARG002 - HTTP's servers know no deadline
        """Ask for the configuration of a model."""
        return self._run(self._ask_config(model, headers))

    def ask_model(self, query: Query, timeout: float, headers: Headers = ()) -> Steps[Reply[tuple[Tensor, ...]]]:  # noqa: ARG002
        """Ask a model."""
        return self._run(self._ask_model(query, headers))

    def _ask_config(self, model: str, headers: Headers) -> Steps[tuple[str, ModelConfig | None]]:
        yield from self._stream.send(self._request(b"GET", f"{model}/config", headers))
        head, body = yield from self._read((yield from self._stream.receive()))
        return head.status, messages.read_config(body) if head.status == "OK" else None

    def _ask_model(self, query: Query, headers: Headers) -> Steps[tuple[str, tuple[Tensor, ...] | None]]:
        yield from self._stream.send(self._question(query, headers))
        data = yield from self._stream.receive()
        usual = self._usual.get(query.model, _NOTHING_YET)
        if len(data) == usual.length and data.startswith(usual.beginning):
            return "OK", messages.cut(usual.outputs, data, len(usual.beginning))
        head, body = yield from self._read(data)
        if head.status == "UNAVAILABLE" and QUEUE_FULL in body:
            return "RESOURCE_EXHAUSTED", None
        if head.status != "OK":
            return head.status, None
        outputs = messages.read_outputs(body[: head.json_length])
        tensors = None if outputs is None else messages.cut(outputs, body, head.json_length)
        whole = len(data) == head.size + head.length  # it came in one piece
        if outputs and tensors and whole and not head.last and all(each.raw is not None for each in tensors):
            self._usual[query.model] = _Usual(data[: head.size + head.json_length], len(data), outputs)
        return "OK", tensors

    def _question(self, query: Query, headers: Headers) -> bytes:
        """A request to a model. The next one like it has other tensors, and all before them is the same."""
        raws = [each.raw or b"" for each in query.inputs]
        tensors = [
            (each.name, each.datatype, each.shape, len(raw)) for each, raw in zip(query.inputs, raws, strict=True)
        ]
        form = query.output, query.timeout_us, tensors, headers
        asked, beginning = self._asked.get(query.model, (None, b""))
        if asked != form:
            json, size = messages.infer_json(query), sum(map(len, raws))
            lengths = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n" % (len(json), len(json) + size)
            beginning = self._request(b"POST", f"{query.model}/infer", headers, lengths) + json
            self._asked[query.model] = form, beginning
        return b"".join((beginning, *raws))

    def _request(self, method: bytes, path: str, headers: Headers, lengths: bytes = b"") -> bytes:
        """The head of a request."""
        more = "".join(f"{name}: {value}\r\n" for name, value in headers)  # checked when the token was given
        start = f"/v2/models/{path} HTTP/1.1\r\nHost: {self._authority}\r\n{_SAME}{more}".encode("ascii")
        return b"%b %b%b\r\n" % (method, start, lengths)

    def _read(self, data: bytes) -> Steps[tuple[_Head, bytes]]:
        """Head and body of an answer, of which these bytes have come."""
        while (end := data.find(_END)) < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise Trouble("sends more headers than an answer has", _UNTRUSTED)
            if not data.startswith(_GREETING[: len(data)]):
                raise Trouble("does not speak HTTP/1.1", _NOT_HTTP)
            data += yield from self._stream.receive()
        head = _read_head(data[:end])
        self._leaving |= head.last
        if head.status != "OK" and head.last:  # what it says of an error is not looked at
            return head, b""
        body = data[end + len(_END) :]
        if len(body) < head.length:
            pieces = bytearray(body)
            while len(pieces) < head.length:
                pieces += yield from self._stream.receive()
            body = bytes(pieces)
        if len(body) > head.length:
            raise Trouble("sends more than its answer", _UNTRUSTED)
        return head, body

    def _look(self) -> bool:
        try:
            return not self._stream.peek()  # whatever comes unasked is no answer
        except Trouble:
            return False

    def _cancel(self) -> bool:
        return False


@functools.lru_cache(maxsize=32)
def _read_head(data: bytes) -> _Head:
    """The head of an answer, without the empty line that ends it; kept, as a server begins its answers alike.

    Raises:
        Trouble: it is not an HTTP/1.1 answer, or one that is refused.
    """
    first, *lines = data.split(b"\r\n")
    matched = _STATUS_LINE.fullmatch(first)
    if matched is None or len(data) > MAX_HEAD_BYTES or len(lines) > MAX_HEADERS:
        raise Trouble("does not speak HTTP/1.1", _NOT_HTTP)
    code = int(matched[1])
    framing: dict[bytes, bytes] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Trouble("breaks the rules of HTTP/1.1", _NOT_HTTP)
        name = header[1].lower()
        if name in _FRAMING:
            if name in framing:
                raise Trouble(f"sends the header {name.decode()} twice", _UNTRUSTED)
            framing[name] = header[2]
    if 300 <= code < 400:
        raise Trouble(
            "answers with a redirect, which is never followed", "give the endpoint that it leads to, if that is right",
            again=False,
        )  # fmt: skip
    if code != 200 and code < 400:
        raise Trouble(f"answers with the status {code} instead of 200", _NOT_HTTP, again=False)
    status = STATUSES.get(code, "INVALID_ARGUMENT" if code < 500 else "INTERNAL")
    return _head(status, framing, len(data) + len(_END))


def _head(status: str, framing: dict[bytes, bytes], size: int) -> _Head:
    """How an answer is framed. An error's text is not needed, so an error may be framed in any way."""
    plain = b"transfer-encoding" not in framing and framing.get(b"content-encoding", b"identity") == b"identity"
    length = _length(framing.get(b"content-length", b""))
    if status != "OK" and not (plain and length is not None and length <= MAX_ANSWER_BYTES):
        return _Head(status, size, 0, 0, last=True)
    if not plain:
        raise Trouble(
            "answers in chunks or compressed", "switch that off in the proxy before the server", again=False
        )  # fmt: skip
    if length is None:
        raise Trouble("does not say how long its answer is", "let the server answer with Content-Length", again=False)
    if length > MAX_ANSWER_BYTES:
        raise Trouble("sends more than an answer can be", _UNTRUSTED)
    json_length = _length(framing.get(b"inference-header-content-length", b"%d" % length))
    if json_length is None or json_length > length:
        raise Trouble("answers with lengths that contradict each other", _UNTRUSTED)
    return _Head(status, size, length, json_length, last=b"close" in framing.get(b"connection", b"").lower())


def _length(text: bytes) -> int | None:
    return int(text) if _LENGTH.fullmatch(text) else None
