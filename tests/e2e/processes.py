"""What runs on this machine, read from /proc: to show that nothing is left behind, and who listens where."""

import socket
import time
from contextlib import suppress
from pathlib import Path


def proxies() -> dict[str, str]:
    """An environment in which every variable of a proxy names one that takes connections and never answers."""
    where = f"http://127.0.0.1:{_SILENT.getsockname()[1]}"
    names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
    settings = dict.fromkeys((*names, *map(str.upper, names)), where)
    return settings | dict.fromkeys(("no_proxy", "NO_PROXY", "no_grpc_proxy", "NO_GRPC_PROXY"), "")


#: Takes connections as long as this process runs.
_SILENT = socket.create_server(("127.0.0.1", 0))


class Queued:
    """How long threads of this process were ready to run while the machine ran others, since this was made.

    Nothing that a program waits for counts: not a socket, a lock or a deadline.
    """

    def __init__(self) -> None:
        self._before = self._by_thread()

    @property
    def seconds(self) -> float:
        """All threads together, but for those that have ended."""
        return sum(ns - self._before.get(thread, 0) for thread, ns in self._by_thread().items()) / 1e9

    @staticmethod
    def _by_thread() -> dict[str, int]:
        found = {}
        for thread in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # it has just ended
                found[thread.name] = int((thread / "schedstat").read_text("ascii").split()[1])
        return found


def descendants(pid: int) -> set[int]:
    """All processes below one."""
    found: set[int] = set()
    parents = {child: parent for child in _pids() if (parent := _parent(child)) is not None}
    todo = [pid]
    while todo:
        above = todo.pop()
        below = [child for child, parent in parents.items() if parent == above]
        found.update(below)
        todo.extend(below)
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def wait_until_gone(pids: set[int], seconds: float) -> set[int]:
    """Those of the processes that still run after some time; zombies do not run."""
    deadline = time.monotonic() + seconds
    alive = set(pids)
    while alive and time.monotonic() < deadline:
        alive = {pid for pid in alive if _state(pid) not in {None, "Z", "X"}}
        time.sleep(0.05)
    return alive


def listening(pid: int) -> list[str]:
    """Addresses (in hex, as the kernel writes them) and ports on which a process listens for TCP."""
    sockets = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(str(fd.readlink()))
        except OSError:
            continue
    rows = [
        row.split()
        for table in ("tcp", "tcp6")
        for row in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
    ]
    listen = "0A"
    return [row[1] for row in rows if row[3] == listen and f"socket:[{row[9]}]" in sockets]


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None


def _state(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[0] if fields else None


def _parent(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[1]) if fields else None
