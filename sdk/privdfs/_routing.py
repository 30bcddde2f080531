"""Where the next attempt at a server goes: its replicas, and which of them is well. No input or output.

Guarantees:

- A replica belongs to one server for good. Nothing here knows of two servers, so no failover, retry or hedge can leave
  the server that a share is bound to.
- Load goes to the replica with the fewest attempts running, in turn among equals.
- A replica that failed `BREAKER_FAILURES` times in a row is left alone for a pause that doubles with every further
  failure; after each pause one attempt may try it.
- Hedges are paid for: each call brings a part of a hedge into a purse that holds `HEDGE_BURST`, so that a server
  that is slow as a whole is not sent twice the load.

All of it may be used from several threads at once.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Generic, Protocol, TypeVar

from privdfs._constants import BREAKER_FAILURES, BREAKER_FIRST_S, BREAKER_MAX_S, HEDGE_BURST


class Endpoint(Protocol):
    """What is known of one endpoint while a connection to it lasts."""

    server: int
    endpoint: str
    checked: bool


E = TypeVar("E", bound=Endpoint)


class Breaker:
    """Whether an endpoint may be tried; whoever uses it holds a lock."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0
        self._pause = BREAKER_FIRST_S

    def admits(self, now: float) -> bool:
        """Whether an attempt may be made now."""
        return self._failures < BREAKER_FAILURES or now >= self._until

    def enter(self, now: float) -> None:
        """Note that an attempt is made: after a pause it is the only one until it has ended."""
        if self._failures >= BREAKER_FAILURES:
            self._until = now + self._pause

    def note(self, now: float, *, failed: bool) -> None:
        """Note how an attempt ended."""
        if not failed:
            self._failures, self._pause = 0, BREAKER_FIRST_S
            return
        self._failures += 1
        if self._failures >= BREAKER_FAILURES:
            self._until = now + self._pause
            self._pause = min(2 * self._pause, BREAKER_MAX_S)


class Replica(Generic[E]):
    """One endpoint of a server over the life of a client; its connection may be renewed."""

    def __init__(self, line: E) -> None:
        self.line = line
        self.breaker = Breaker()
        self.running = 0


class Replicas(Generic[E]):
    """All replicas of one server.

    Args:
        lines: a connection to each.
        renew: gives a new connection in the place of one, or the same when it is still good; asked before any attempt.
        retire: called once with a connection that was replaced, when no attempt runs on it any more.

    Raises:
        RuntimeError: the lines belong to different servers. No input leads here; it would be a fault of this package.
    """

    def __init__(
        self, lines: Sequence[E], renew: Callable[[E], E] | None = None, retire: Callable[[E], None] | None = None
    ) -> None:
        if len({line.server for line in lines}) != 1:
            raise RuntimeError("replicas of different servers were about to be treated as one")
        self.server = lines[0].server
        self._replicas = [Replica(line) for line in lines]
        self._renew = renew
        self._retire = retire
        self._users: dict[E, int] = {}  # attempts on each connection, the replaced ones included
        self._turn = 0
        self._purse = float(HEDGE_BURST)
        self._lock = threading.Lock()

    @property
    def lines(self) -> list[E]:
        """The present connection to every replica."""
        return [replica.line for replica in self._replicas]

    @property
    def open_lines(self) -> list[E]:
        """Every connection that is still open, replaced ones with attempts on them included."""
        with self._lock:
            return list({**dict.fromkeys(self.lines), **self._users})

    def take(self, avoid: Collection[str], busy: Collection[str]) -> E | None:
        """Choose where an attempt goes, and count it as running there until `give_back`.

        Args:
            avoid: endpoints that only another replica can stand in for.
            busy: endpoints that come last.

        Returns:
            None when there is no replica to try.
        """
        now = time.monotonic()
        with self._lock:
            self._look_after_lines()
            able = [
                (index, replica)
                for index, replica in enumerate(self._replicas)
                if replica.line.endpoint not in avoid and replica.breaker.admits(now)
            ]
            if not able:
                return None
            turn, count = self._turn, len(self._replicas)
            self._turn += 1

            def order(item: tuple[int, Replica[E]]) -> tuple[bool, int, int]:
                index, replica = item
                return replica.line.endpoint in busy, replica.running, (index - turn) % count

            chosen = min(able, key=order)[1]
            chosen.breaker.enter(now)
            chosen.running += 1
            self._users[chosen.line] = self._users.get(chosen.line, 0) + 1
            return chosen.line

    def give_back(self, line: E, *, failed: bool | None) -> None:
        """End an attempt that `take` began: with a failure, without, or (None) cut short, which says nothing."""
        now = time.monotonic()
        with self._lock:
            replica = next(replica for replica in self._replicas if replica.line.endpoint == line.endpoint)
            replica.running -= 1
            if failed is not None:
                replica.breaker.note(now, failed=failed)
            self._users[line] -= 1
            if not self._users[line]:
                del self._users[line]
                self._close_if_unused(line)

    def others(self, avoid: Collection[str]) -> bool:
        """Whether a replica outside `avoid` could be tried now."""
        now = time.monotonic()
        with self._lock:
            return any(replica.line.endpoint not in avoid and replica.breaker.admits(now) for replica in self._replicas)

    def save_for_hedges(self, part: float) -> None:
        """Put what one call earns into the purse."""
        with self._lock:
            self._purse = min(float(HEDGE_BURST), self._purse + part)

    def pay_for_hedge(self) -> bool:
        """Take one hedge out of the purse; False when there is not enough in it."""
        with self._lock:
            paid = self._purse >= 1
            self._purse -= 1 if paid else 0
            return paid

    def _look_after_lines(self) -> None:
        if self._renew is None:
            return
        for replica in self._replicas:
            old, replica.line = replica.line, self._renew(replica.line)
            if replica.line is not old:
                replica.breaker = Breaker()  # what failed was another connection
                self._close_if_unused(old)

    def _close_if_unused(self, line: Any) -> None:  # noqa: ANN401 - an E, or a line that has just been replaced
        replaced = all(replica.line is not line for replica in self._replicas)
        if replaced and line not in self._users and self._retire is not None:
            self._retire(line)
