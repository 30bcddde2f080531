"""Threads in which the blocking client makes its remote calls.

grpc's own futures cost more: it starts a thread for each of them, and the answer passes through two locks. A blocking
call needs neither, and takes a third less processor time; but it cannot be cancelled, it only ends. So it is for calls
that nobody will want to cut short (`Talk.whole`).
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from privdfs._wire import Ask, Reply

#: Where a driver hears of the ends: an ask, and its reply or what went wrong with the call itself.
Ended: TypeAlias = "queue.SimpleQueue[tuple[Ask, Reply | Exception]]"


class Threads:
    """As many threads as calls are on their way at once; they stay for the next ones, until `close`."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Ask, Ended] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # threads that wait, and have not been promised a job yet
        self._closed = False

    def start(self, ask: Ask, ended: Ended) -> Callable[[], object]:
        """Begin a call; how it ends comes through `ended`. What is returned would cancel it, if that were possible."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                threading.Thread(target=self._work, name="privdfs-call", daemon=True).start()
        self._jobs.put((ask, ended))
        return _let_run

    def close(self) -> None:
        """End the threads, each when its call has ended."""
        with self._lock:
            self._closed = True
            for _ in range(self._idle):
                self._jobs.put(None)
            self._idle = 0

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            ask, ended = job
            reply = _call(ask)
            with self._lock:  # before anybody hears of the end, and brings the next job
                closed = self._closed
                self._idle += 0 if closed else 1
            ended.put((ask, reply))
            if closed:
                return
            del job, ask, ended, reply  # a thread that waits keeps no share and no answer


def _let_run() -> None:
    """A blocking call ends at its own deadline."""


def _call(ask: Ask) -> Reply | Exception:
    import grpc  # pyright: ignore[reportMissingTypeStubs]

    started = time.perf_counter()
    try:
        message, status = ask.method(ask.request, timeout=ask.timeout, metadata=ask.metadata), "OK"
    except grpc.RpcError as error:
        message, status = None, error.code().name
    except Exception as error:  # noqa: BLE001 - it is for the thread that waits
        return error
    return Reply(message, status, (time.perf_counter() - started) * 1e3)
