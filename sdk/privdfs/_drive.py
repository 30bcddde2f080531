"""Runs an exchange's asks: steps that wait for sockets, by poll (blocking) or an event loop (asyncio).

One thread carries out a whole call, however many servers it has: it sends to all and takes what comes. The two drivers
differ in how they wait and in nothing else.
"""

import math
import select
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from privdfs._dial import READ, Steps, Wait
from privdfs._wire import Reply


def _nothing() -> None:
    """Nobody waits for this ask."""


@dataclass(eq=False)
class Ask:
    """A remote call: the steps that carry it out, begun by a driver."""

    steps: Steps[Reply[Any]]
    wanted: bool = True
    forget: Callable[[], None] = _nothing

    def abandon(self) -> None:
        """Cancel it, at once: its sockets are let go of before anybody else can get their numbers."""
        if self.wanted:
            self.wanted = False
            self.forget()
            self.steps.close()


class Exchange(Protocol):
    """What a driver can carry out."""

    @property
    def done(self) -> bool:
        """Whether nothing more is to be waited for."""
        ...

    @property
    def wake(self) -> float:
        """When to call `tick`, on the monotonic clock."""
        ...

    def begin(self) -> list[Ask]:
        """What to ask first."""
        ...

    def take(self, ask: Ask, reply: Reply[Any]) -> list[Ask]:
        """Judge a reply; what to ask next."""
        ...

    def tick(self) -> list[Ask]:
        """Do what is due; what to ask next."""
        ...


def carry_out(exchange: Exchange) -> None:
    """Carry out an exchange in this thread, until it is done."""
    watcher = _Poll()
    pump = Pump(exchange, watcher)
    try:
        pump.start(exchange.begin())
        while not exchange.done:
            pump.step(watcher.wait(pump.until))
    finally:
        pump.close()


class Watcher(Protocol):
    """Says when the sockets of asks are ready."""

    def watch(self, ask: Ask, wait: Wait) -> None:
        """Look after what an ask waits for."""
        ...

    def forget(self, wait: Wait) -> None:
        """Look after it no more."""
        ...


class Pump:
    """Advances asks whose sockets are ready, and gives the exchange their replies."""

    def __init__(self, exchange: Exchange, watcher: Watcher) -> None:
        self._exchange = exchange
        self._watcher = watcher
        self._waits: dict[Ask, Wait] = {}

    @property
    def until(self) -> float:
        """When something is due, whether a socket is ready or not."""
        return min(self._exchange.wake, *[wait.until for wait in self._waits.values()], math.inf)

    def start(self, asks: Iterable[Ask]) -> None:
        """Run asks until they wait or end, and what their ends lead to."""
        left = deque(asks)
        while left and not self._exchange.done:
            ask = left.popleft()
            if ask.wanted and (reply := self._run(ask)) is not None:
                left.extend(self._exchange.take(ask, reply))

    def step(self, ready: Iterable[Ask]) -> None:
        """Go on with what is ready, and with what is due."""
        now = time.monotonic()
        due = [ask for ask, wait in self._waits.items() if wait.until <= now]
        for ask in dict.fromkeys([*ready, *due]):
            if ask in self._waits:
                ask.forget()
                self.start([ask])
        if not self._exchange.done and now >= self._exchange.wake:
            self.start(self._exchange.tick())

    def close(self) -> None:
        """Cancel what still runs."""
        for ask in list(self._waits):
            ask.abandon()

    def _run(self, ask: Ask) -> Reply[Any] | None:
        try:
            wait = next(ask.steps)
        except StopIteration as end:
            return end.value
        self._waits[ask] = wait
        self._watcher.watch(ask, wait)
        ask.forget = partial(self._forget, ask)
        return None

    def _forget(self, ask: Ask) -> None:
        ask.forget = _nothing  # a cycle would keep the whole call alive, its shares too, until garbage is collected
        if (wait := self._waits.pop(ask, None)) is not None:
            self._watcher.forget(wait)


class _Poll:
    """Waits in this thread.

    For a handful of sockets poll costs less than epoll, which would have to be opened for every call, and a fifth of
    what a selector around it costs.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._asks: dict[int, Ask] = {}

    def watch(self, ask: Ask, wait: Wait) -> None:
        for sock, event in wait.sockets:
            self._poll.register(sock, select.POLLIN if event == READ else select.POLLOUT)
            self._asks[sock.fileno()] = ask

    def forget(self, wait: Wait) -> None:
        for sock, _ in wait.sockets:
            self._poll.unregister(sock)
            del self._asks[sock.fileno()]

    def wait(self, until: float) -> list[Ask]:
        left_ms = None if until == math.inf else max(0, math.ceil((until - time.monotonic()) * 1e3))
        return [self._asks[number] for number, _ in self._poll.poll(left_ms)]
