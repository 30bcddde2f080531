"""The network of bench/latency.py. Only lower bounds of times are checked: nothing arrives early on a busy machine."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from privdfs_bench.speed.network import Direction, Network, through


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that returns what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(4096):
                    connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def exchange(connection: socket.socket, data: bytes) -> tuple[bytes, float]:
    started = time.perf_counter()
    connection.sendall(data)
    back = b""
    while len(back) < len(data):
        back += connection.recv(4096)
    return back, time.perf_counter() - started


def test_bytes_arrive_whole_later_and_counted(echo: str) -> None:
    with through(Network.parse("30,8"), [echo]) as proxy:
        assert proxy.measured["rtt_ms"] >= 30
        assert proxy.measured["mbit"] <= 8.5  # bytes of the probe may be a little late, and the rest in time
        host, port = proxy.endpoints[0].split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            assert exchange(connection, b"hello")[1] >= 0.03
            data = bytes(range(256)) * 100
            back, took = exchange(connection, data)
            assert back == data
            assert took >= 0.03 + len(data) / 1e6  # 8 Mbit/s are 1e6 bytes a second
            assert proxy.bytes() == [(5 + len(data), 5 + len(data))]


def test_a_server_that_is_gone_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = f"127.0.0.1:{listener.getsockname()[1]}"
    with through(Network.parse("lan"), [gone]) as proxy:
        host, port = proxy.endpoints[0].split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            assert connection.recv(1) == b""


def test_a_direction_is_shared_and_keeps_its_rate() -> None:
    direction = Direction(delay=0.5, rate=100.0)
    assert direction.arrival(now=0, size=100) == 1.5
    assert direction.arrival(now=0, size=100) == 2.5  # behind the first
    assert direction.arrival(now=10, size=50) == 11.0  # the link was idle


@pytest.mark.parametrize("text", ["5g", "20", "20,", "-1,10", "20,0", "20,10,5", "nan,10", ""])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no network"):
        Network.parse(text)


def test_names_and_numbers() -> None:
    assert Network.parse("4g") == Network("4g", 50, 20)
    assert Network.parse("20,10") == Network("20,10", 20, 10)
