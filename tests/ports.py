"""Ports for servers of tests that have to know them before the servers start."""

import secrets
import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """Ports in a row that are free, where the system gives none to those who do not choose: no client takes one.

    Where they begin is drawn: processes that ask at the same time get different ones.
    """
    while True:
        first = 11_000 + secrets.randbelow(19_000)  # above 10080, which browsers refuse
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return list(range(first, first + count))
