"""Where the next attempt at a server goes: its replicas, which of them is well, and the connections to each.

Guarantees:

- A replica belongs to one server for good. Nothing here knows of two servers, so no failover, retry or hedge can leave
  the server that a share is bound to.
- A connection is used by one attempt at a time.
- Load goes to the replica with the fewest attempts running, in turn among equals.
- A replica that failed `BREAKER_FAILURES` times in a row is left alone for a pause that doubles with every further
  failure; after each pause one attempt may try it. While a server has no other replica, or the others have failed in
  this very call, its last ones are tried every `BREAKER_LAST_S`, so that it is back soon after it is back.
- Hedges are paid for: each call brings a part of a hedge into a purse that holds `HEDGE_BURST`, so that a server
  that is slow as a whole is not sent twice the load.

All of it may be used from several threads at once.
"""

import math
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from privdfs._constants import (
    BREAKER_FAILURES,
    BREAKER_FIRST_S,
    BREAKER_LAST_S,
    BREAKER_MAX_S,
    HEDGE_BURST,
    IDLE_CONNECTION_S,
)


class Endpoint(Protocol):
    """A connection to one endpoint."""

    server: int
    endpoint: str

    @property
    def idle_s(self) -> float:
        """Seconds since its last attempt."""
        ...

    @property
    def reusable(self) -> bool:
        """Whether another attempt may run on it."""
        ...

    def close(self) -> None:
        """Close it."""
        ...

    def interrupt(self) -> None:
        """End it under an attempt that runs on it in another thread."""
        ...


E = TypeVar("E", bound=Endpoint)


class Breaker:
    """Whether an endpoint may be tried; whoever uses it holds a lock."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0
        self._pause = BREAKER_FIRST_S
        self._noted = -math.inf

    def admits(self, now: float, *, last: bool = False) -> bool:
        """Whether an attempt may be made now; `last` says that the server has no better replica."""
        paused = self._failures >= BREAKER_FAILURES and now < self._until
        return not paused or (last and now >= self._noted + BREAKER_LAST_S)

    def enter(self, now: float) -> None:
        """Note that an attempt is made: after a pause it is the only one until it has ended."""
        if self._failures >= BREAKER_FAILURES:
            self._until, self._noted = now + self._pause, now

    def note(self, now: float, *, failed: bool) -> None:
        """Note how an attempt ended."""
        if not failed:
            self._failures, self._pause = 0, BREAKER_FIRST_S
            return
        self._failures += 1
        if self._failures >= BREAKER_FAILURES:
            self._until, self._noted = now + self._pause, now
            self._pause = min(2 * self._pause, BREAKER_MAX_S)


class Replica(Generic[E]):
    """One endpoint of a server over the life of a client."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.breaker = Breaker()
        self.running: set[E] = set()
        self.idle: list[E] = []  # the one used last comes last, and is taken first


class Replicas(Generic[E]):
    """All replicas of one server.

    Args:
        server: index of the server.
        endpoints: of its replicas.
        connect: gives a new connection to an endpoint, which its first attempt makes.
        usable: whether an idle connection is still good; one that is not is closed.
    """

    def __init__(
        self, server: int, endpoints: Sequence[str], connect: Callable[[str], E], usable: Callable[[E], bool]
    ) -> None:
        self.server = server
        self._replicas = {endpoint: Replica[E](endpoint) for endpoint in endpoints}
        self._in_order = list(enumerate(self._replicas.values()))
        self._connect = connect
        self._usable = usable
        self._turn = 0
        self._purse = float(HEDGE_BURST)
        self._closed = False
        self._lock = threading.Lock()

    @property
    def endpoints(self) -> list[str]:
        """Of all replicas."""
        return list(self._replicas)

    def take(self, avoid: Collection[str], busy: Collection[str]) -> E | None:
        """Choose where an attempt goes, and count it as running there until `give_back`.

        Args:
            avoid: endpoints that only another replica can stand in for.
            busy: endpoints that come last.

        Returns:
            A connection for this attempt alone; None when there is no replica to try.
        """
        now = time.monotonic()
        with self._lock:
            able = self._able({*avoid, *busy}, now) or self._able(avoid, now)
            if not able:
                return None
            chosen = self._choose(able) if len(able) > 1 else able[0][1]
            self._turn += 1
            chosen.breaker.enter(now)
            return self._begin(chosen)

    def take_from(self, endpoint: str) -> E:
        """A connection to one endpoint, whatever its breaker says, until `give_back`."""
        with self._lock:
            return self._begin(self._replicas[endpoint])

    def give_back(self, connection: E, *, failed: bool | None) -> None:
        """End an attempt that `take` began: with a failure, without, or (None) cut short, which says nothing."""
        now = time.monotonic()
        with self._lock:
            replica = self._replicas[connection.endpoint]
            replica.running.remove(connection)
            if failed is not None:
                replica.breaker.note(now, failed=failed)
            if connection.reusable and not self._closed:
                replica.idle.append(connection)
            else:
                connection.close()
            while len(replica.idle) > 1 and replica.idle[0].idle_s > IDLE_CONNECTION_S:
                replica.idle.pop(0).close()

    def others(self, avoid: Collection[str]) -> bool:
        """Whether a replica outside `avoid` could be tried now."""
        with self._lock:
            return bool(self._able(avoid, time.monotonic()))

    def forgive(self) -> None:
        """Try every replica again: what made them fail has changed."""
        with self._lock:
            for replica in self._replicas.values():
                replica.breaker = Breaker()

    def drop_idle(self, endpoint: str) -> None:
        """Close the connections to an endpoint that nobody uses."""
        with self._lock:
            idle = self._replicas[endpoint].idle
            while idle:
                idle.pop().close()

    @property
    def connected(self) -> bool:
        """Whether there is any connection."""
        return any(replica.idle or replica.running for replica in self._replicas.values())

    def close(self) -> None:
        """Close every connection; attempts that run end at once, and close theirs."""
        with self._lock:
            self._closed = True
            for replica in self._replicas.values():
                while replica.idle:
                    replica.idle.pop().close()
                for connection in replica.running:
                    connection.interrupt()

    def save_for_hedges(self, part: float) -> None:
        """Put what one call earns into the purse."""
        if self._purse >= HEDGE_BURST:  # as nearly always; what is missed beside a hedge comes with the next call
            return
        with self._lock:
            self._purse = min(float(HEDGE_BURST), self._purse + part)

    def pay_for_hedge(self) -> bool:
        """Take one hedge out of the purse; False when there is not enough in it."""
        with self._lock:
            paid = self._purse >= 1
            self._purse -= 1 if paid else 0
            return paid

    def _able(self, avoid: Collection[str], now: float) -> list[tuple[int, Replica[E]]]:
        """Replicas that may be tried, with their places."""
        wanted = [item for item in self._in_order if item[1].endpoint not in avoid]
        able = [item for item in wanted if item[1].breaker.admits(now)]
        return able or [item for item in wanted if item[1].breaker.admits(now, last=True)]

    def _choose(self, able: Sequence[tuple[int, Replica[E]]]) -> Replica[E]:
        """The one with the fewest attempts running, in turn among equals."""
        turn, count = self._turn, len(self._replicas)

        def order(item: tuple[int, Replica[E]]) -> tuple[int, int]:
            index, replica = item
            return len(replica.running), (index - turn) % count

        return min(able, key=order)[1]

    def _begin(self, replica: Replica[E]) -> E:
        """A connection that is idle and good, or a new one."""
        while replica.idle:
            connection = replica.idle.pop()
            if self._usable(connection):
                break
            connection.close()
        else:
            connection = self._connect(replica.endpoint)
        if self._closed:  # a call that began before the client was closed
            connection.interrupt()
        replica.running.add(connection)
        return connection
