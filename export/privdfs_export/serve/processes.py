"""Processes that end with the program that started them, each with a folder of its own and a log."""

import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from privdfs_export.errors import ProcessFailedError, ServeError
from privdfs_export.serve._keeper import remove

#: Longest that a process may take to be ready: a server has to load its models and to warm them up.
_READY_LIMIT_S = 120.0
#: Longest that a process may take to end: a little more than its keeper gives it.
_STOP_LIMIT_S = 12.0
#: How often another port is tried when somebody took the one that was free a moment ago.
_PORT_ATTEMPTS = 5
_LOOK_S = 0.05
_PROJECT = Path(__file__).parents[3]
_LOG_TAIL_LINES = 12
_PORT_TAKEN = re.compile(r"(already in use|Address already in use|Failed to bind)", re.IGNORECASE)


@dataclass(frozen=True)
class Kept:
    """A process and its keeper: what it is, the folder that is deleted with it, its log, and the ports held for it."""

    failure: ClassVar[type[ProcessFailedError]] = ProcessFailedError

    what: str
    copy: Path
    log: Path
    keeper: "subprocess.Popen[bytes]"
    held: Sequence[socket.socket] = field(repr=False, compare=False)

    @property
    def pid(self) -> int | None:
        """Of the process itself; None when it has ended."""
        return next(iter(_children(self.keeper.pid)), None)


AnyKept = TypeVar("AnyKept", bound=Kept)


def find_program(name: str, folder: str) -> Path | None:
    """A program on PATH, else in that folder of the project, or of the current folder."""
    for candidate in (name, *(place / folder / name for place in (_PROJECT, Path.cwd()))):
        found = shutil.which(candidate)
        if found is not None:
            return Path(found)
    return None


def start(
    prefix: str, log: Path, fill: Callable[[Path], Sequence[str]], of: str, held: Sequence[socket.socket]
) -> tuple[Path, "subprocess.Popen[bytes]"]:
    """Start a process in a new folder, with a keeper.

    Args:
        prefix: of the folder's name.
        log: its output goes there; overwritten.
        fill: writes what the process needs into the folder, and says its command line.
        of: what is written, for an error.
        held: ports of the process (`place`); given back where it cannot be started.

    Returns:
        The folder, and the keeper.

    Raises:
        ServeError: the folder or the log cannot be written.
    """
    # Named before it is made, so that no interrupt can come between and leave it behind.
    folder = Path(tempfile.gettempdir()) / f"{prefix}{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700)
        command = fill(folder)
        keeper = [sys.executable, "-I", "-S", str(Path(__file__).parent / "_keeper.py"), str(os.getpid()), str(folder)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*keeper, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=folder,
            )
    except BaseException as error:  # Ctrl-C too: only a keeper that runs removes the folder
        shutil.rmtree(folder, ignore_errors=True)
        _give_back(held)
        if isinstance(error, OSError):
            msg = f"cannot write {of} and its log ({error}): free some space, or set TMPDIR"
            raise ServeError(msg) from error
        raise
    return folder, process


@contextmanager
def all_ready(begin: Sequence[Callable[[], AnyKept]], is_ready: Callable[[AnyKept], bool]) -> Iterator[list[AnyKept]]:
    """Processes that are started at once, ready inside the `with`, and gone after it.

    Args:
        begin: each starts one process.
        is_ready: asks one.

    Raises:
        ProcessFailedError: one ended, or was not ready in time.
    """
    found: list[AnyKept] = []
    try:
        found.extend(start_one() for start_one in begin)  # one by one: those before an error are ended
        deadline = time.monotonic() + _READY_LIMIT_S
        for index, start_one in enumerate(begin):
            found[index] = _make_ready(found[index], is_ready, start_one, deadline)
        yield found
    finally:
        _stop(found)


def _make_ready(
    kept: AnyKept, is_ready: Callable[[AnyKept], bool], again: Callable[[], AnyKept], deadline: float
) -> AnyKept:
    """Wait until a process is ready; one that lost its port to another program is started again.

    Raises:
        ProcessFailedError: it ended, or was not ready in time.
    """
    try:
        for _ in range(_PORT_ATTEMPTS):
            if _wait_until_ready(kept, is_ready, deadline):
                return kept
            status = _end(kept)
            if not _PORT_TAKEN.search(_read_log(kept.log)):
                raise failed(kept, f"ended with status {status} before it was ready")  # noqa: TRY301 - `_end` is for all
            kept = again()
        raise failed(kept, f"lost its port to another program {_PORT_ATTEMPTS} times")  # noqa: TRY301
    except BaseException:
        _end(kept)
        raise


def _wait_until_ready(kept: AnyKept, is_ready: Callable[[AnyKept], bool], deadline: float) -> bool:
    """True when the process is ready, False when it has ended."""
    while kept.keeper.poll() is None:
        if is_ready(kept):
            return True
        if time.monotonic() > deadline:
            raise failed(kept, f"was not ready after {_READY_LIMIT_S:.0f} s")
        time.sleep(_LOOK_S)
    return False


def place(held: list[socket.socket], wanted: int | None = None) -> str:
    """An address, "127.0.0.1:PORT", with that port, or else with a free one, which is held from now on."""
    if wanted is None:
        held.append(_hold_port())
        wanted = held[-1].getsockname()[1]
    return f"127.0.0.1:{wanted}"


def _hold_port() -> socket.socket:
    """A free TCP port, which the system gives to nobody while this socket is open.

    The socket never listens, so that a server that sets SO_REUSEADDR, as Triton and nginx do, can listen there.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _give_back(held: Sequence[socket.socket]) -> None:
    for each in held:
        each.close()


def ports(first: int | None, skip: int, count: int) -> Sequence[int | None]:
    """So many ports of 127.0.0.1, from `skip` behind the first on; None, for any, where no first one is given.

    Raises:
        ServeError: one does not exist, or is not free.
    """
    if first is None:
        return [None] * count
    wanted = [first + skip + index for index in range(count)]
    for port in wanted:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a server that has just ended
                probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            msg = f"port {port} cannot be used ({getattr(error, 'strerror', None) or error}): choose another --port"
            raise ServeError(msg) from error
    return wanted


def _stop(processes: Sequence[Kept]) -> None:
    """End all processes at once, and wait for them."""
    for kept in processes:
        if kept.keeper.stdin is not None:
            kept.keeper.stdin.close()
    for kept in processes:
        _end(kept)


def _end(kept: Kept) -> int:
    """End a process; its exit status."""
    if kept.keeper.stdin is not None:
        kept.keeper.stdin.close()
    try:
        return kept.keeper.wait(_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        _kill(kept)
        return kept.keeper.wait()
    finally:
        _give_back(kept.held)
        remove(kept.copy)  # by now, unless the keeper was killed, there is nothing left


def kill(kept: Kept) -> None:
    """Kill a process and wait until it is gone; it can end nothing in good order."""
    _kill(kept)
    _end(kept)


def _kill(kept: Kept) -> None:
    """Kill a process and all that it started."""
    # The keeper's child leads a group. The kernel kills it with its keeper, but not what it started, such as stubs of
    # Triton's Python backend, which wait for their server forever if they were just starting.
    groups = _children(kept.keeper.pid)
    ends: list[int] = []
    for group in groups:
        with suppress(ProcessLookupError):
            ends.append(os.pidfd_open(group))
    kept.keeper.kill()
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    for end in ends:  # the keeper's own end says nothing about its child's, which holds the port
        select.select([end], [], [], _STOP_LIMIT_S)
        os.close(end)


def _children(pid: int) -> list[int]:
    """Of a process with one thread, such as a keeper."""
    with suppress(OSError):  # it has ended
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return []


def ended(processes: Sequence[Kept], parent: int) -> Iterator[tuple[Kept, int]]:
    """Processes that end by themselves, as they end, with their exit status; until the parent has ended."""
    watched = list(processes)
    while os.getppid() == parent:
        for kept in tuple(watched):
            status = kept.keeper.poll()
            if status is not None:
                watched.remove(kept)
                yield kept, status
        time.sleep(0.25)


def failed(kept: Kept, what: str) -> ProcessFailedError:
    """The error that says what happened to a process, with the end of its log."""
    lines = _read_log(kept.log).splitlines()
    # Triton prints wide tables; the lines of its messages say what went wrong.
    told = [line[:300] for line in lines if line.strip() and not line.startswith(("+", "|"))][-_LOG_TAIL_LINES:]
    msg = f"the {kept.what} {what}. Its log is {kept.log}; it ends with:\n" + "\n".join(told)
    return kept.failure(msg, str(kept.log))


def _read_log(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")
