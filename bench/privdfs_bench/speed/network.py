"""A network between the device and the servers, on this machine: a TCP proxy that delays bytes and limits their rate.

The device has one link: all its connections together share its rate, one direction apart from the other. Every byte
arrives half a round trip after it has passed the link, and a new connection waits one round trip. Not modelled: loss,
jitter, TCP's slow start. The proxy is a process of its own, so that it does not compete for the interpreter of what is
measured, and it is measured itself before it is used (`Proxy.measured`).

    python -m privdfs_bench.speed.network RTT_MS MBIT HOST:PORT …

is what `through` starts. It prints where it listens, one line of JSON, answers every line of input with the bytes that
have passed each of these points, up and down, and ends with its input.
"""

import asyncio
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

#: Round trip in milliseconds and rate in Mbit/s of the named networks; typical figures, chosen by us.
NETWORKS = {"lan": (0.5, 1000.0), "wifi": (5.0, 100.0), "4g": (50.0, 20.0)}
#: A proxy whose own round trip or rate differs by more is told in the results.
TOLERANCE, TOLERANCE_MS = 0.1, 1.0
_CHUNK, _QUEUED_CHUNKS = 16 * 1024, 512
_PROBES, _PROBE_S, _PROBE_BYTES = 15, 0.5, 4 * 1024 * 1024
_LIMIT_S = 60.0


@dataclass(frozen=True)
class Network:
    """What lies between device and servers: round trip, and the rate of the device's link in each direction."""

    name: str
    rtt_ms: float
    mbit: float

    @classmethod
    def parse(cls, text: str) -> "Network":
        """A name of `NETWORKS`, or "RTT,MBIT".

        Raises:
            ValueError: it is neither.
        """
        given = NETWORKS.get(text)
        try:
            rtt_ms, mbit = given or map(float, text.split(","))
        except ValueError:
            given = None
            rtt_ms = mbit = -1.0
        if not (0 <= rtt_ms <= 10_000 and 0.01 <= mbit <= 100_000):
            raise ValueError(f"{text!r} is no network: give {', '.join(NETWORKS)} or RTT,MBIT such as 20,10")
        return cls(text, rtt_ms, mbit)


@dataclass(frozen=True)
class Proxy:
    """A running proxy.

    Attributes:
        endpoints: where it listens, in the order of what lies behind.
        measured: its own round trip and rate, and whether they are as set.
    """

    endpoints: list[str]
    measured: dict[str, Any]
    _process: "subprocess.Popen[str]" = field(repr=False)

    def bytes(self) -> list[tuple[int, int]]:
        """Bytes that have passed so far, up and down, for every endpoint; gRPC's own are among them."""
        return [(up, down) for up, down in _ask(self._process)]


@contextmanager
def through(network: Network, endpoints: Sequence[str]) -> Iterator[Proxy]:
    """Put a network before some servers.

    Args:
        network: its settings.
        endpoints: of the servers.

    Raises:
        OSError: the proxy cannot be started.
    """
    with _echo() as echo:
        line = [
            sys.executable,
            "-m",
            "privdfs_bench.speed.network",
            str(network.rtt_ms),
            str(network.mbit),
            *endpoints,
            echo,
        ]
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                *listening, probe = _read(process)
                yield Proxy(listening, _measure(network, probe), process)
            finally:
                assert process.stdin is not None  # noqa: S101 - a pipe was asked for
                process.stdin.close()
                process.wait(_LIMIT_S)


def _ask(process: "subprocess.Popen[str]") -> list[Any]:
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    print("bytes", file=process.stdin, flush=True)
    return _read(process)


def _read(process: "subprocess.Popen[str]") -> list[Any]:
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    line = process.stdout.readline()
    if not line:
        raise OSError("the network's proxy has ended: run the benchmark again")
    return json.loads(line)


def _measure(network: Network, probe: str) -> dict[str, Any]:
    """Send bytes through the proxy to a server that returns them."""
    host, port = probe.split(":")
    size = int(min(_PROBE_BYTES, max(1000, network.mbit * 1e6 / 8 * _PROBE_S)))
    with socket.create_connection((host, int(port)), timeout=_LIMIT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = [_round_trip(connection, b"x") for _ in range(_PROBES)][1:]  # the first one also connects
        rtt = statistics.median(trips)
        # What comes back follows what goes up at once, so the way back adds a round trip and next to nothing else.
        took = _round_trip(connection, bytes(size)) - rtt
    mbit = size * 8 / 1e6 / took if took > 0 else float("inf")
    rtt_ms = rtt * 1e3
    as_set = abs(rtt_ms - network.rtt_ms) <= network.rtt_ms * TOLERANCE + TOLERANCE_MS
    return {
        "rtt_ms": round(rtt_ms, 3),
        "mbit": round(mbit, 3),
        "as_set": as_set and abs(mbit - network.mbit) <= network.mbit * TOLERANCE,
    }


def _round_trip(connection: socket.socket, data: bytes) -> float:
    """Seconds until all of it is back."""
    started, back = time.perf_counter(), 0
    sender = threading.Thread(target=connection.sendall, args=(data,))
    sender.start()
    while back < len(data):
        received = len(connection.recv(_CHUNK))
        if not received:
            raise OSError("the network's proxy has closed its probe: run the benchmark again")
        back += received
    sender.join()
    return time.perf_counter() - started


@contextmanager
def _echo() -> Iterator[str]:
    """A server that returns what it gets, for one connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := connection.recv(_CHUNK):
                    connection.sendall(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


class Direction:
    """One direction of the device's link: bytes pass it one after the other, at its rate, and arrive later."""

    def __init__(self, delay: float, rate: float) -> None:
        self._delay, self._rate = delay, rate
        self._free_at = 0.0

    def arrival(self, now: float, size: int) -> float:
        """When bytes that are given to the link now have arrived."""
        self._free_at = max(now, self._free_at) + size / self._rate
        return self._free_at + self._delay


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction, counts: list[int], which: int
) -> None:
    """Bring bytes to the other side, each when it would have arrived there."""
    clock = asyncio.get_running_loop().time
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_CHUNKS)

    async def deliver() -> None:
        with suppress(OSError):
            while True:
                at, data = await queue.get()
                await asyncio.sleep(max(0.0, at - clock()))
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    delivery = asyncio.ensure_future(deliver())
    data = b"x"
    while data:
        try:
            data = await reader.read(_CHUNK)
        except OSError:
            data = b""
        counts[which] += len(data)
        await queue.put((direction.arrival(clock(), len(data)), data))
    await delivery


async def _serve(rtt: float, rate: float, endpoints: Sequence[str]) -> None:
    """Listen before every endpoint until the input ends."""
    up, down = Direction(rtt / 2, rate), Direction(rtt / 2, rate)
    counts = [[0, 0] for _ in endpoints]
    servers = []
    for endpoint, count in zip(endpoints, counts, strict=True):

        async def accept(
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            endpoint: str = endpoint,
            count: list[int] = count,
        ) -> None:
            host, port = endpoint.split(":")
            await asyncio.sleep(rtt)
            try:
                back, forth = await asyncio.open_connection(host, int(port))
            except OSError:
                writer.close()
                return
            await asyncio.gather(_relay(reader, forth, up, count, 0), _relay(back, writer, down, count, 1))

        servers.append(await asyncio.start_server(accept, "127.0.0.1", 0))
    print(json.dumps([f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]), flush=True)
    asked = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    while await asked.readline():
        print(json.dumps(counts[:-1]), flush=True)


def _main() -> None:
    rtt_ms, mbit, *endpoints = sys.argv[1:]
    # select() waits by the microsecond; asyncio's usual selector rounds up to the next millisecond.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(_serve(float(rtt_ms) / 1e3, float(mbit) * 1e6 / 8, endpoints))
    os._exit(0)  # connections that are still open end with the process; winding them up would only be noise


if __name__ == "__main__":
    _main()
