"""Servers that a program kills and starts again on the same port."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from privdfs_export.serve import RunningServer, kill, start_at
from tests.e2e.processes import command, descendants, wait_until_gone
from tests.e2e.tiny_release import write_release

pytestmark = pytest.mark.e2e


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def answers(server: RunningServer, seconds: float = 60) -> bool:
    host, port = server.endpoint.split(":")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def test_a_killed_server_is_gone_and_another_takes_its_port(tmp_path: Path, port: int) -> None:
    folder = write_release(tmp_path / "tiny", 1) / "server-0"
    for _ in range(2):
        server = start_at(folder, port, tmp_path / "log")
        try:
            assert server.endpoint == f"127.0.0.1:{port}"
            assert answers(server)
            started = descendants(server.keeper.pid)
            assert started
        finally:
            kill(server)
        assert wait_until_gone(started, 10) == set()
        assert not answers(server, 0.5)


def test_a_killed_server_takes_along_what_hangs(tmp_path: Path, port: int) -> None:
    server = start_at(write_release(tmp_path / "tiny", 1) / "server-0", port, tmp_path / "log")
    try:
        assert answers(server)
        started = descendants(server.keeper.pid)
        stub = next(pid for pid in started if "python_backend_stub" in command(pid))
        os.kill(stub, signal.SIGSTOP)  # as one that waits for a lock which its killed server held
    finally:
        kill(server)
    assert wait_until_gone(started, 10) == set()
