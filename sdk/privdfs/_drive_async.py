"""Runs an exchange's asks on the running event loop: `_drive.py`, with another way to wait.

A module of its own, so that a blocking client need not import asyncio.
"""

import asyncio
import time

from privdfs._dial import READ, Wait
from privdfs._drive import Ask, Exchange, Pump


async def carry_out_async(exchange: Exchange) -> None:
    """Carry out an exchange on the running event loop, until it is done."""
    watcher = _Loop()
    pump = Pump(exchange, watcher)
    try:
        pump.start(exchange.begin())
        while not exchange.done:
            pump.step(await watcher.wait(pump.until))
    finally:
        pump.close()


class _Loop:
    """Waits on the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: list[Ask] = []
        self._waiter: asyncio.Future[None] | None = None

    def watch(self, ask: Ask, wait: Wait) -> None:
        for sock, event in wait.sockets:
            add = self._loop.add_reader if event == READ else self._loop.add_writer
            add(sock.fileno(), self._note, ask)

    def forget(self, wait: Wait) -> None:
        for sock, event in wait.sockets:
            remove = self._loop.remove_reader if event == READ else self._loop.remove_writer
            remove(sock.fileno())

    async def wait(self, until: float) -> list[Ask]:
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(max(0.0, min(until - time.monotonic(), 3600.0)), self._wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
        ready, self._ready = self._ready, []
        return ready

    def _note(self, ask: Ask) -> None:
        self._ready.append(ask)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
