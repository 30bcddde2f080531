"""A server that records what a client sends, byte for byte, and answers with bytes that a test gives it."""

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)\r\n")

#: What stands in vectors where a request names the server's host and port.
AUTHORITY = "{authority}"


@dataclass(frozen=True)
class Request:
    """One request as it came, and on which of the server's connections, counted from 1."""

    connection: int
    line: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)

    @property
    def model(self) -> str:
        """The model that is asked, or asked about."""
        return self.line.split("/")[3]

    @property
    def is_check(self) -> bool:
        """Whether it asks for a configuration."""
        return self.line.startswith("GET ")

    @property
    def json_length(self) -> int:
        """How much of the body is JSON."""
        return int(dict(self.headers)["Inference-Header-Content-Length"])


#: From a request to the bytes of an answer; None closes the connection instead.
Answerer = Callable[[Request], "bytes | None"]


class ReplayServer:
    """An HTTP server on a free port of the loopback interface, as a context manager."""

    def __init__(self, answer: Answerer) -> None:
        self._answer = answer
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.authority = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.endpoint = f"http://{self.authority}"
        self.received: list[Request] = []
        self.faults: list[Exception] = []
        self._serving: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        _wake(self._listener)
        self._accepting.join()
        for sock in self._open:
            _wake(sock)
        for thread in self._serving:
            thread.join()

    def _accept(self) -> None:
        with self._listener, suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._open.append(sock)
                thread = threading.Thread(target=self._serve, args=(sock, len(self._open)))
                self._serving.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        data = b""
        with sock, suppress(OSError):
            while True:
                while (request := self._cut(data, number)) is None:
                    chunk = sock.recv(65536)
                    if not chunk:
                        return
                    data += chunk
                found, data = request
                self.received.append(found)
                try:
                    answer = self._answer(found)
                except Exception as fault:  # noqa: BLE001 - whoever runs the call raises it
                    self.faults.append(fault)
                    return
                if answer is None:
                    return
                sock.sendall(answer)

    def _cut(self, data: bytes, number: int) -> tuple[Request, bytes] | None:
        head, end, rest = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        size = 0 if length is None else int(length[1])
        if not end or len(rest) < size:
            return None
        line, *headers = head.decode("ascii").replace(self.authority, AUTHORITY).split("\r\n")
        pairs = tuple((name, value) for name, _, value in (header.partition(": ") for header in headers))
        return Request(number, line, pairs, rest[:size]), rest[size:]


def _wake(sock: socket.socket) -> None:
    """End what a thread waits for on a socket; the thread closes it."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
