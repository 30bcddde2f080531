"""Threads of the asyncio client's own, for decoding and encoding.

The event loop's default executor belongs to the application: while that keeps it busy, a call would wait there for as
long as it likes, whatever its deadline.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from privdfs._base import CLOSED
from privdfs._constants import MAX_WORKERS
from privdfs._core import Call
from privdfs._errors import ConfigError, DeadlineExceededError

T = TypeVar("T")


async def ended_in_time(future: "asyncio.Future[Any]", seconds: float) -> bool:
    """Wait for a future, which is cancelled when it is late, or when the task that waits is.

    Not `asyncio.wait_for`: before Python 3.12 it swallows a cancellation that comes while the future ends.
    """
    try:
        await asyncio.wait({future}, timeout=seconds)
    finally:
        in_time = future.done()
        if not in_time:
            future.cancel()
    return in_time


class Workers:
    """A few threads, started with the first jobs."""

    def __init__(self) -> None:
        self._closed = False
        self._pool = ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1), thread_name_prefix="privdfs-work")

    async def run(self, call: Call, job: Callable[[], T]) -> T:
        """Run a job of a call in a thread, within the call's deadline.

        Raises:
            ConfigError: the client was closed before the job began.
            DeadlineExceededError: it was not done in time; nobody waits for what it gives.
        """
        future = self._start(job)
        if not await ended_in_time(future, call.deadline.remaining):
            raise DeadlineExceededError(
                f"the {call.deadline.timeout:g} s of this call were over before its images were ready to send: "
                "raise `timeout`, or pass smaller images or fewer at a time"
            )
        return future.result()

    async def finish(self, job: Callable[[], T]) -> T:
        """Run a job in a thread, however long it takes.

        Raises:
            ConfigError: the client was closed before the job began.
        """
        return await self._start(job)

    def close(self) -> None:
        """End the threads, each when its job has ended.

        Jobs that wait fail. To cancel them would look to their callers as if their own task had been cancelled.
        """
        self._closed = True
        self._pool.shutdown(wait=False)

    def _start(self, job: Callable[[], T]) -> "asyncio.Future[T]":
        def begin() -> T:
            if self._closed:
                raise ConfigError(CLOSED)
            return job()

        if self._closed:  # the pool takes no more
            raise ConfigError(CLOSED)
        return asyncio.wrap_future(self._pool.submit(begin))
