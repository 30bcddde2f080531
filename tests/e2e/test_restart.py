"""Servers that a program kills and starts again on the same port."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from privdfs_export.repository import read_repository
from privdfs_export.serve import kill, start_at
from tests.e2e.processes import command, descendants, wait_until_gone
from tests.e2e.tiny_release import write_release
from tests.ports import free_ports

pytestmark = pytest.mark.e2e


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def answers(endpoint: str, seconds: float = 60) -> bool:
    host, port = endpoint.removeprefix("http://").split(":")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def test_a_server_that_was_checked_before_is_started_with_http_on_a_chosen_port(tmp_path: Path, port: int) -> None:
    repository = read_repository(write_release(tmp_path / "tiny", 1) / "server-0")
    (http_port,) = free_ports(1)
    server = start_at(repository, port, tmp_path / "log", http_port=http_port)
    try:
        http = server.http or ""
        assert http == f"http://127.0.0.1:{http_port}"
        assert answers(http)
        assert answers(server.endpoint)
    finally:
        kill(server)
    assert not answers(http, 0.5)


def test_a_killed_server_is_gone_and_another_takes_its_port(tmp_path: Path, port: int) -> None:
    folder = write_release(tmp_path / "tiny", 1) / "server-0"
    for _ in range(2):
        server = start_at(folder, port, tmp_path / "log")
        try:
            assert server.endpoint == f"127.0.0.1:{port}"
            assert answers(server.endpoint)
            started = descendants(server.keeper.pid)
            assert started
        finally:
            kill(server)
        assert wait_until_gone(started, 10) == set()
        assert not answers(server.endpoint, 0.5)


def test_a_killed_server_takes_along_what_hangs(tmp_path: Path, port: int) -> None:
    server = start_at(write_release(tmp_path / "tiny", 1) / "server-0", port, tmp_path / "log")
    try:
        assert answers(server.endpoint)
        started = descendants(server.keeper.pid)
        stub = next(pid for pid in started if "python_backend_stub" in command(pid))
        os.kill(stub, signal.SIGSTOP)  # as one that waits for a lock which its killed server held
    finally:
        kill(server)
    assert wait_until_gone(started, 10) == set()
