"""The HTTP face of a `FakeServer`: what comes as HTTP is handed on as gRPC's messages, and its answers go back as HTTP.

So a fault that edits a message is the same fault on both wires.
"""

import itertools
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from privdfs import _messages as messages
from privdfs._http import STATUSES
from privdfs._tls import WIRES_OWN

_PATH = re.compile(r"/v2/models/([^/]+)/(config|infer)")
_CODES = {name: code for code, name in reversed(STATUSES.items())} | {"INVALID_ARGUMENT": 400}
_TYPES = {number: f"TYPE_{name}" for name, number in messages.TYPE_NUMBERS.items()}


class CallFailedError(Exception):
    """A fake was told to answer with a status, by its name in gRPC."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Caller:
    """Who waits for an answer, as far as a fake asks."""

    def __init__(self, connection: socket.socket, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._headers = headers

    def is_active(self) -> bool:
        """Whether the caller still waits."""
        readable, _, _ = select.select([self._connection], [], [], 0)
        try:
            return not readable or bool(socket.socket.recv(self._connection, 1, socket.MSG_PEEK))
        except OSError:
            return False

    def invocation_metadata(self) -> list[tuple[str, str]]:
        """The headers of the caller's own, such as a token, as gRPC calls them."""
        pairs = [(name.lower(), value) for name, value in self._headers.items()]
        return [pair for pair in pairs if pair[0] not in WIRES_OWN]


#: A request of gRPC's and its caller to the answer of gRPC's.
Handler = Callable[[Any, Any], Any]


class HttpFace(ThreadingHTTPServer):
    """A server on a free port of the loopback interface that answers the two paths a client asks for.

    Args:
        config: answers a ModelConfigRequest.
        infer: answers a ModelInferRequest.
        context: TLS; plaintext when None.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, config: Handler, infer: Handler, context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.config, self.infer = config, infer
        self.open: set[socket.socket] = set()
        if context is not None:  # hands are shaken in the connection's own thread
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.endpoint = f"{'http' if context is None else 'https'}://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop at once: calls in progress fail, later ones find a dead port."""
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self.open):
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that go away, or do not shake hands, are what tests are about."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpFace  # pyright: ignore[reportIncompatibleVariableOverride]

    def setup(self) -> None:
        self.server.open.add(self.request)
        super().setup()

    def finish(self) -> None:
        self.server.open.discard(self.request)
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the library calls it
        """Keep silent."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        headers, code = "", 200
        try:
            json, raw = self._handle(body)
            answer = json + raw
            if raw:
                headers = f"Inference-Header-Content-Length: {len(json)}\r\n"
        except CallFailedError as failed:
            answer, code = b'{"error":"told to by the test"}', _CODES.get(failed.status, 500)
        head = (
            f"HTTP/1.1 {code} Told\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(answer)}\r\n\r\n"
        )
        self.wfile.write(head.encode("ascii") + answer)

    def _handle(self, body: bytes) -> tuple[bytes, bytes]:
        """The JSON of an answer, and the bytes that follow it."""
        matched, caller = _PATH.fullmatch(self.path), Caller(self.connection, dict(self.headers))
        if matched is None:
            raise CallFailedError("NOT_FOUND")
        if matched[2] == "config":
            request = messages.new("ModelConfigRequest", name=matched[1])
            return _config_json(self.server.config(request, caller).config), b""
        json_length = int(self.headers["Inference-Header-Content-Length"])
        return _infer_answer(self.server.infer(_infer_request(matched[1], body, json_length), caller))


def _infer_request(model: str, body: bytes, json_length: int) -> Any:  # noqa: ANN401 - protobuf has no types
    fields = msgspec.json.decode(body[:json_length])
    request = messages.new("ModelInferRequest", model_name=model)
    request.parameters["timeout"].int64_param = fields["parameters"]["timeout"]
    position = json_length
    for each in fields["inputs"]:
        request.inputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        end = position + each["parameters"]["binary_data_size"]
        request.raw_input_contents.append(body[position:end])
        position = end
    return request


def _infer_answer(response: Any) -> tuple[bytes, bytes]:  # noqa: ANN401 - protobuf has no types
    raws = list(response.raw_output_contents)
    outputs = [
        {"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
        | ({} if raw is None else {"parameters": {"binary_data_size": len(raw)}})
        for each, raw in itertools.zip_longest(response.outputs, raws[: len(response.outputs)])
    ]
    fields = {"model_name": response.model_name, "model_version": response.model_version, "outputs": outputs}
    return msgspec.json.encode(fields), b"".join(raws)


def _config_json(config: Any) -> bytes:  # noqa: ANN401 - protobuf has no types
    return msgspec.json.encode(
        {
            "name": config.name,
            "max_batch_size": config.max_batch_size,
            "input": [_tensor(each) for each in config.input],
            "output": [_tensor(each) for each in config.output],
            "parameters": {name: {"string_value": config.parameters[name].string_value} for name in config.parameters},
        }
    )


def _tensor(tensor: Any) -> dict[str, object]:  # noqa: ANN401 - protobuf has no types
    return {
        "name": tensor.name,
        "data_type": _TYPES.get(tensor.data_type, "TYPE_INVALID"),
        "dims": list(tensor.dims),
    }
