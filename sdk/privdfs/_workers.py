"""Threads of the asyncio client's own, for decoding and encoding.

The event loop's default executor belongs to the application: while that keeps it busy, a call would wait there for as
long as it likes, whatever its deadline.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from privdfs._base import CLOSED
from privdfs._constants import MAX_WORKERS
from privdfs._core import Call
from privdfs._errors import ConfigError, DeadlineExceededError

T = TypeVar("T")


class Workers:
    """A few threads, started with the first jobs."""

    def __init__(self) -> None:
        self._closed = False
        self._pool = ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1), thread_name_prefix="privdfs-work")

    async def run(self, call: Call, job: Callable[[], T]) -> T:
        """Run a job of a call in a thread, within the call's deadline.

        Raises:
            DeadlineExceededError: it was not done in time; nobody waits for what it gives.
        """
        try:
            return await asyncio.wait_for(self.finish(job), call.deadline.remaining)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(
                f"the {call.deadline.timeout:g} s of this call were over before its images were ready to send: "
                "raise `timeout`, or pass smaller images or fewer at a time"
            ) from None

    async def finish(self, job: Callable[[], T]) -> T:
        """Run a job in a thread, however long it takes.

        Raises:
            ConfigError: the client was closed before the job began.
        """

        def begin() -> T:
            if self._closed:
                raise ConfigError(CLOSED)
            return job()

        if self._closed:  # the pool takes no more
            raise ConfigError(CLOSED)
        return await asyncio.wrap_future(self._pool.submit(begin))

    def close(self) -> None:
        """End the threads, each when its job has ended.

        Jobs that wait fail. To cancel them would look to their callers as if their own task had been cancelled.
        """
        self._closed = True
        self._pool.shutdown(wait=False)
