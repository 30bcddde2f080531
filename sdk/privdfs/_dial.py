"""Name lookup and connecting, as steps: generators that say which sockets they wait for, and are driven from outside.

Both clients drive the same steps (`_drive.py`): the blocking one with a selector, the asyncio one with its event loop.
A lookup cannot be cancelled, so it runs in a thread. Calls that need the same name share one thread, so there are never
more of them than names.
"""

import errno
import itertools
import math
import os
import selectors
import socket
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from privdfs._constants import (
    CONNECT_STAGGER_S,
    KEEPALIVE_IDLE_S,
    KEEPALIVE_INTERVAL_S,
    KEEPALIVE_PROBES,
)
from privdfs._values import Value

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

T = TypeVar("T")


class Wait(Value, frozen=True):
    """What steps wait for: any of these sockets with any of these events, or the moment `until` (monotonic clock)."""

    sockets: tuple[tuple[socket.socket, int], ...]
    until: float = math.inf


Steps: TypeAlias = Generator[Wait, None, T]

#: Family, kind, protocol, canonical name and address, as `socket.getaddrinfo` gives them.
_Address: TypeAlias = tuple[Any, ...]


class Trouble(Exception):  # noqa: N818 - it never leaves this package; the typed errors are in _errors.py
    """Why there is no answer, in our own words: never what the other side wrote.

    Attributes:
        what: what happened, to follow the endpoint in a sentence.
        advice: what to do about it.
        again: whether the same endpoint may do better the next time.
    """

    def __init__(self, what: str, advice: str, *, again: bool = True) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice
        self.again = again


def dial(host: str, port: int) -> Steps[socket.socket]:
    """Open a TCP connection to the first address of a host that accepts one.

    Raises:
        Trouble: the name does not resolve, or no address accepts.
    """
    addresses = yield from _look_up(host, port)
    return (yield from _connect(addresses))


# ------------------------------------------------------------------------------------------------------------- lookup


class _Lookup:
    """One running lookup, and the sockets by which those who wait for it are told."""

    def __init__(self) -> None:
        self.found: list[_Address] = []
        self.problem: str | None = None
        self.bells: set[socket.socket] = set()


_lookups: dict[tuple[str, int], _Lookup] = {}
_lock = threading.RLock()  # a collected generator that waited for a lookup may take it in the midst of another


def _begin_anew() -> None:
    """In a forked child: the threads that look up its parent's names did not come along."""
    global _lock  # noqa: PLW0603 - one of those threads may have held it
    _lock = threading.RLock()
    _lookups.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _look_up(host: str, port: int) -> Steps[list[_Address]]:
    with suppress(OSError, UnicodeError):  # an address needs no thread
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:  # no descriptor left
        raise _not_found(type(error).__name__) from None
    lookup = _join(host, port, theirs)
    try:
        ours.setblocking(False)
        yield Wait(((ours, READ),))
    finally:
        ours.close()
        with _lock:  # the lookup may go on for long after nobody waits for it
            lookup.bells.discard(theirs)
            theirs.close()
    if lookup.problem is not None:
        raise _not_found(lookup.problem)
    return lookup.found


def _not_found(problem: str) -> Trouble:
    return Trouble(f"cannot be found ({problem})", "check the name in the endpoint, and this device's name server")


def _join(host: str, port: int, bell: socket.socket) -> _Lookup:
    """Wait for the lookup of a name that is running, or start one."""
    with _lock:
        lookup = _lookups.get((host, port))
        if lookup is None:
            lookup = _Lookup()
            try:
                threading.Thread(target=_resolve, args=(host, port, lookup), name="privdfs-lookup", daemon=True).start()
            except RuntimeError as error:  # no thread left
                bell.close()
                lookup.problem = type(error).__name__
                return lookup
            _lookups[host, port] = lookup
        lookup.bells.add(bell)
    return lookup


def _resolve(host: str, port: int, lookup: _Lookup) -> None:
    try:
        lookup.found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        lookup.problem = type(error).__name__
    with _lock:
        del _lookups[host, port]
        for bell in lookup.bells:
            bell.close()  # which wakes the other end


# ------------------------------------------------------------------------------------------------------------ connect


def _connect(addresses: Sequence[_Address]) -> Steps[socket.socket]:
    """Try the addresses one after the other, each a little after the one before (RFC 8305, "happy eyeballs")."""
    left = iter(_alternating(addresses))
    running: dict[socket.socket, _Address] = {}
    problem = "no address"
    try:
        due = 0.0
        while True:
            now = time.monotonic()
            if now >= due or not running:
                address = next(left, None)
                if address is None:
                    if not running:
                        raise Trouble(
                            f"cannot be reached ({problem})", "check that the server runs there, and the network"
                        )
                    due = math.inf
                else:
                    problem = _begin(address, running) or problem
                    due = now + CONNECT_STAGGER_S
                    continue
            yield Wait(tuple((sock, WRITE) for sock in running), due)
            for sock in list(running):
                code = _state(sock)
                if code == 0:
                    del running[sock]
                    return _prepared(sock)
                if code is not None:
                    problem = errno.errorcode.get(code, f"error {code}")
                    del running[sock]
                    sock.close()
                    due = 0.0
    finally:
        for sock in running:
            sock.close()


def _alternating(addresses: Sequence[_Address]) -> list[_Address]:
    """The system's order, but IPv6 and IPv4 in turn, so that one broken family costs one pause."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    pairs = itertools.zip_longest(first, others)
    return [address for pair in pairs for address in pair if address is not None]


def _begin(address: _Address, running: dict[socket.socket, _Address]) -> str | None:
    """Start to connect; what is wrong when that fails at once."""
    family, kind, protocol, _, where = address
    try:
        sock = socket.socket(family, kind, protocol)
    except OSError as error:  # no descriptor left, or a family that this machine does not have
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    sock.setblocking(False)
    try:
        code = sock.connect_ex(where)
    except OSError as error:
        code = error.errno or errno.EINVAL
    if code not in {0, errno.EINPROGRESS, errno.EWOULDBLOCK}:
        sock.close()
        return errno.errorcode.get(code, f"error {code}")
    running[sock] = address
    return None


def _state(sock: socket.socket) -> int | None:
    """0 for connected, an error's number, or None while it is under way."""
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        return code
    try:
        sock.getpeername()
    except OSError as error:
        return None if error.errno == errno.ENOTCONN else error.errno
    return 0


def _prepared(sock: socket.socket) -> socket.socket:
    """Small messages go at once; keepalive finds a peer that is gone, and keeps NATs from forgetting an idle line."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        ("TCP_KEEPCNT", KEEPALIVE_PROBES),
    ):
        if hasattr(socket, name):  # not every system has all of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock
