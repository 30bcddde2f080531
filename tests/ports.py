"""Ports for servers of tests: known before the servers start, or taken from them."""

import secrets
import socket
from contextlib import ExitStack
from types import ModuleType

import pytest


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


def take_a_port(patch: pytest.MonkeyPatch, module: ModuleType, number: int) -> list[socket.socket]:
    """Take a port between choice and start, as servers take a port that is held for them.

    Args:
        patch: Undoes it.
        module: One that places servers with `processes.place`.
        number: Which of its first server's ports, from 0.

    Returns:
        The socket that listens on it, once a server was placed.
    """
    thieves: list[socket.socket] = []
    place = module.place

    def place_and_lose(held: list[socket.socket], wanted: int | None = None) -> str:
        found: str = place(held, wanted)
        if not thieves and len(held) == number + 1:
            host, port = found.split(":")
            thieves.append(socket.create_server((host, int(port))))
        return found

    patch.setattr(module, "place", place_and_lose)
    return thieves
