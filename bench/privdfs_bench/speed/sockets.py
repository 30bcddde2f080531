"""Bare HTTP calls to tritonservers, on plain sockets: what the floors over HTTP are made of.

One thread sends to all servers and then reads from all. It uses none of the SDK; nothing is checked, no deadline kept.
"""

import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_LIMIT_S = 60.0
_CHUNK = 64 * 1024
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)", re.IGNORECASE)
_JSON_LENGTH = re.compile(rb"\r\ninference-header-content-length: ([0-9]+)", re.IGNORECASE)


class RawError(OSError):
    """A server that does not answer, or with an error."""


class RawModel:
    """A model on one tritonserver behind a socket, with a request whose every byte but the tensors' is ready.

    Args:
        connection: to the server.
        model: its name.
        inputs: data type and shape by name.
    """

    def __init__(
        self, connection: socket.socket, model: str, inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> None:
        self._connection = connection
        sizes = {name: int(np.prod(shape)) * (4 if "32" in kind else 1) for name, (kind, shape) in inputs.items()}
        described = [
            {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": sizes[name]}}
            for name, (kind, shape) in inputs.items()
        ]
        outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
        body = json.dumps({"inputs": described, "outputs": outputs}).encode("ascii")
        head = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: server\r\n"
            f"Inference-Header-Content-Length: {len(body)}\r\nContent-Length: {len(body) + sum(sizes.values())}\r\n\r\n"
        )
        self._request = head.encode("ascii") + body

    def send(self, *tensors: bytes) -> None:
        """Send a request with these tensors, in the order of the inputs."""
        self._connection.sendall(b"".join((self._request, *tensors)))

    def logits(self) -> NDArray[np.float32]:
        """Wait for the answer, float32 [classes].

        Raises:
            RawError: there is none.
        """
        data = self._more(b"")
        while (end := data.find(_END)) < 0:
            data = self._more(data)
        head = data[:end]
        length, json_length = _LENGTH.search(head), _JSON_LENGTH.search(head)
        if length is None or json_length is None:
            raise RawError(f"an answer without logits: {head[:40]!r}")
        while len(data) < end + len(_END) + int(length[1]):
            data = self._more(data)
        return np.frombuffer(data, "<f4", offset=end + len(_END) + int(json_length[1]))

    def _more(self, data: bytes) -> bytes:
        received = self._connection.recv(_CHUNK)
        if not received:
            raise RawError("the server has closed the connection")
        return data + received


@contextmanager
def connections(endpoints: Sequence[str], ca: Path | None = None) -> Iterator[list[socket.socket]]:
    """A connection to each server, "http://HOST:PORT", as long as the `with`; in TLS where `ca` says whom to trust."""
    context = None if ca is None else ssl.create_default_context(cafile=ca)
    with ExitStack() as stack:
        found = []
        for endpoint in endpoints:
            host, port = endpoint.partition("://")[2].split(":")
            connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=_LIMIT_S))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                connection = stack.enter_context(context.wrap_socket(connection, server_hostname=host))
            found.append(connection)
        yield found
