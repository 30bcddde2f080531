"""Keeps one tritonserver: starts it, and ends it with everything it started once it is no longer needed.

    python -I -S _keeper.py PARENT FOLDER COMMAND...      (standard input: a pipe that only PARENT holds open)

A program that starts servers can end in ways that let it clean up nothing. So each server has this small process
between: when the pipe closes, or PARENT is no longer the parent, it ends the server and deletes FOLDER, the copy of the
repository that the server reads, and the server's shared memory, whose names begin with FOLDER's. Should this process
itself be killed, the kernel kills the server. It has one thread, as PR_SET_PDEATHSIG, which goes by threads, requires.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
#: How long a server may take to end by itself.
_GRACE_S = 8.0
#: How often to look whether the parent is still the parent.
_LOOK_S = 0.5


def main(parent: int, folder: Path, command: list[str]) -> int:
    """Keep a server running until it ends or is no longer needed; return its exit status."""
    libc = ctypes.CDLL(None, use_errno=True)
    me = os.getpid()

    def set_up() -> None:
        os.setpgid(0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)

    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=set_up)  # noqa: PLW1509 - one thread
        _wait(os.pidfd_open(server.pid), parent)
        # Until `wait` below has reaped the server, its number and its process group cannot be another's.
        os.kill(server.pid, signal.SIGTERM)
        select.select([os.pidfd_open(server.pid)], [], [], _GRACE_S)
        os.killpg(server.pid, signal.SIGKILL)
        status = server.wait()
    finally:
        remove(folder)
    return status if status >= 0 else 128 - status


def remove(folder: Path) -> None:
    """Delete what an ended server leaves: the copy of its repository, and its shared memory."""
    shutil.rmtree(folder, ignore_errors=True)
    for shared in Path("/dev/shm").glob(f"{folder.name}*"):  # noqa: S108 - where Linux keeps shared memory
        shared.unlink(missing_ok=True)


def _wait(server: int, parent: int) -> None:
    """Return when the server has ended, the pipe is closed, or the parent is gone."""
    while os.getppid() == parent:
        if select.select([server, sys.stdin], [], [], _LOOK_S)[0]:
            return


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
