"""The trip of one chunk to all servers and back, as a machine without input or output: both clients drive it.

A driver starts the `Ask`s that `begin`, `take` and `tick` give it, hands every `Reply` to `take`, calls `tick` when
`wake` has come, cancels asks that are no longer `wanted`, and stops when the trip is `done`. Who made a trip closes it,
whatever happened.

Guarantees:

- No share is sent before `min_answers` servers have passed the release check: a call that cannot succeed tells nobody
  anything.
- A share is sent to replicas of its own server only, each checked first; so are its retries and its hedges.
- A trip is done at its deadline, whoever has not answered by then.
- Once too few servers can still answer, nothing new is sent; what is on its way gets `FAIL_GRACE_S` to say more, so
  that the error can name every cause. With `wait="quorum"`, enough answers end the trip at once.
"""

import math
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from privdfs._constants import BACKOFF_FIRST_S, BACKOFF_JITTER, BACKOFF_MAX_S, FAIL_GRACE_S
from privdfs._core import Call, Chunk, Outcome, Share
from privdfs._errors import ServerError, ServerTimeoutError
from privdfs._result import Health
from privdfs._wire import Ask, Failure, Line, Link, Reply

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Talk(Protocol):
    """What a driver can carry out."""

    @property
    def done(self) -> bool:
        """Whether nothing more is to be waited for."""
        ...

    @property
    def whole(self) -> bool:
        """Whether every ask is expected to run to its end: none is a hedge, or one too many for a quorum."""
        ...

    @property
    def wake(self) -> float:
        """When to call `tick`, on the monotonic clock."""
        ...

    def begin(self) -> list[Ask]:
        """What to ask first."""
        ...

    def take(self, ask: Ask, reply: Reply) -> list[Ask]:
        """Judge a reply; what to ask next."""
        ...

    def tick(self) -> list[Ask]:
        """Do what is due; what to ask next."""
        ...


class _Attempt:
    """One try of one share at one replica: first the check of that replica, if it needs one, then the share."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.ask: Ask | None = None
        self.sent_at: float | None = None  # when the share itself was sent

    @property
    def held(self) -> bool:
        """Whether the replica has passed the check and the share waits for the other servers' checks."""
        return self.ask is None


class _Leg:
    """The way of one share to its server: attempts, and in the end one outcome."""

    def __init__(self, link: Link, share: Share) -> None:
        self.link = link
        self.share = share
        self.attempts = 0
        self.running: list[_Attempt] = []
        self.avoid: set[str] = set()  # endpoints that will not do, however often they are tried
        self.tried: set[str] = set()
        self.error: ServerError | None = None  # the latest
        self.outcome: Outcome | None = None
        self.sent_at: float | None = None
        self.wake = math.inf  # of the next retry, or hedge while an attempt is running

    @property
    def held(self) -> bool:
        return any(attempt.held for attempt in self.running)


class Trip:
    """One chunk's shares to their servers, and their answers back."""

    def __init__(self, links: Sequence[Link], call: Call, chunk: Chunk) -> None:
        self.done = False
        self._call = call
        self._size = chunk.size
        self._end = time.monotonic() + call.deadline.remaining
        self._legs = [_Leg(link, chunk.shares[link.server]) for link in links]
        self._open = False  # shares may be sent
        self._doomed_until: float | None = None
        self._asks: list[Ask] = []

    @property
    def whole(self) -> bool:
        """Whether nothing is cut short so long as all goes well."""
        return self._call.wait == "all" and self._call.retries.hedge_after is None

    @property
    def wake(self) -> float:
        """When something is due: a retry, a hedge, the end of the grace, or the deadline."""
        due = [leg.wake for leg in self._legs if leg.outcome is None]
        return min([self._end, *due] if self._doomed_until is None else [self._end, self._doomed_until])

    def begin(self) -> list[Ask]:
        """The first attempt at every server."""
        for leg in self._legs:
            leg.link.replicas.save_for_hedges(self._call.retries.hedge_budget)
            self._attempt(leg)
        return self._flush()

    def take(self, ask: Ask, reply: Reply) -> list[Ask]:
        """Judge a reply; one that nobody waits for any more is dropped."""
        for leg in self._legs:
            for attempt in leg.running:
                if attempt.ask is ask:
                    if attempt.sent_at is None:
                        self._take_check(leg, attempt, reply)
                    else:
                        self._take_answer(leg, attempt, reply)
                    return self._flush()
        return []

    def tick(self) -> list[Ask]:
        """Retries and hedges that are due, and the end of the call."""
        now = time.monotonic()
        if now >= self._end:
            for leg in self._legs:
                if leg.outcome is None and not (leg.held and not self._open):
                    self._give_up(leg)
            self.done = True
        elif self._doomed_until is not None:
            self.done = now >= self._doomed_until
        else:
            for leg in self._legs:
                if leg.outcome is None and leg.wake <= now:
                    self._attempt(leg)
        return self._flush()

    def close(self) -> None:
        """Let go of the attempts that were cut short."""
        self.done = True
        for leg in self._legs:
            self._drop(leg)

    def outcomes(self) -> list[Outcome]:
        """What became of every share, so far as anything did."""
        return [leg.outcome or Outcome(leg.link.server, 0.0, ready=leg.held and not self._open) for leg in self._legs]

    # ---------------------------------------------------------------------------------------------- one server's way

    def _attempt(self, leg: _Leg) -> None:
        """Try a replica: the first time, again, or beside an attempt that takes long (a hedge)."""
        leg.wake = math.inf
        replicas, hedge = leg.link.replicas, bool(leg.running)
        if hedge and not (replicas.others(leg.avoid) and replicas.pay_for_hedge()):
            return
        line = replicas.take(leg.avoid, leg.tried)
        if line is None:
            if not hedge:
                self._finish(leg, leg.error or leg.link.all_paused())
            return
        leg.attempts += 1
        leg.tried.add(line.endpoint)
        attempt = _Attempt(line)
        leg.running.append(attempt)
        if not line.checked:
            attempt.ask = leg.link.ask_config(line, self._call.deadline.remaining)
            self._asks.append(attempt.ask)
        if hedge or attempt.ask is not None:
            self._plan_hedge(leg)

    def _plan_hedge(self, leg: _Leg) -> None:
        policy = self._call.retries
        if policy.hedge_after is not None and leg.attempts < policy.attempts:
            leg.wake = time.monotonic() + policy.hedge_after

    def _send(self, leg: _Leg, attempt: _Attempt) -> None:
        deadline = self._call.deadline
        if not attempt.line.checked:  # it failed meanwhile, in another call
            attempt.ask = leg.link.ask_config(attempt.line, deadline.remaining)
            self._asks.append(attempt.ask)
            return
        attempt.sent_at = time.perf_counter()
        if leg.sent_at is None:
            leg.sent_at = attempt.sent_at
            self._plan_hedge(leg)
        attempt.ask = leg.link.ask_branch(attempt.line, leg.share, deadline.remaining, deadline.timeout)
        self._asks.append(attempt.ask)

    def _take_check(self, leg: _Leg, attempt: _Attempt, reply: Reply) -> None:
        failure = leg.link.read_config(attempt.line, reply)
        if failure is None:
            attempt.ask = None
            if not self._open:  # what it waits for now is not this server
                leg.wake = math.inf
        else:
            self._failed(leg, attempt, failure)

    def _take_answer(self, leg: _Leg, attempt: _Attempt, reply: Reply) -> None:
        read = leg.link.read_answer(attempt.line, self._size, reply)
        if isinstance(read, Failure):
            self._failed(leg, attempt, read)
            return
        leg.running.remove(attempt)
        leg.link.replicas.give_back(attempt.line, failed=False)
        waited = 0.0 if attempt.sent_at is None or leg.sent_at is None else attempt.sent_at - leg.sent_at
        self._finish(leg, read, waited * 1e3 + reply.ms)

    def _failed(self, leg: _Leg, attempt: _Attempt, failure: Failure) -> None:
        """End an attempt; try again if that can help, and it can still come in time."""
        leg.running.remove(attempt)
        leg.link.replicas.give_back(attempt.line, failed=True)
        leg.error = failure.error
        if not failure.again:
            leg.avoid.add(attempt.line.endpoint)
        if leg.running:  # a hedge, or what it was to help, is still on its way
            return
        replicas, now = leg.link.replicas, time.monotonic()
        fresh = replicas.others(leg.avoid | leg.tried)
        due = now if fresh else now + _backoff(leg.attempts)
        may = leg.attempts < self._call.retries.attempts and replicas.others(leg.avoid) and due < self._end
        if may and self._doomed_until is None:
            leg.wake = due
        else:
            self._finish(leg, failure.error)

    def _give_up(self, leg: _Leg) -> None:
        """The deadline has come."""
        error = leg.error
        for attempt in leg.running:
            error = leg.link.too_late(attempt.line)
            leg.link.replicas.give_back(attempt.line, failed=True)
            if attempt.ask is not None:
                attempt.ask.wanted = False
        leg.running.clear()
        self._finish(leg, error or ServerTimeoutError("the time was over before it was asked", leg.link.server))

    def _finish(self, leg: _Leg, end: "ServerError | npt.NDArray[np.float32]", ms: float = 0.0) -> None:
        server = leg.link.server
        leg.outcome = Outcome(server, ms, error=end) if isinstance(end, ServerError) else Outcome(server, ms, end)
        self._drop(leg)

    def _drop(self, leg: _Leg) -> None:
        for attempt in leg.running:
            leg.link.replicas.give_back(attempt.line, failed=None)
            if attempt.ask is not None:
                attempt.ask.wanted = False
        leg.running.clear()

    # ------------------------------------------------------------------------------------------------- all together

    def _flush(self) -> list[Ask]:
        """End the trip if it can end, open the gate if enough servers are ready, give out what is to be asked."""
        if not self.done:
            self._judge()
        if not self.done and self._doomed_until is None:
            self._open = self._open or sum(leg.held for leg in self._legs) >= self._call.min_answers
            for leg in self._legs if self._open else ():
                for attempt in leg.running:
                    if attempt.held:
                        self._send(leg, attempt)
        asks = [ask for ask in self._asks if ask.wanted and not self.done]
        self._asks.clear()
        return asks

    def _judge(self) -> None:
        needed = self._call.min_answers
        ended = [leg.outcome for leg in self._legs if leg.outcome is not None]
        answers = sum(outcome.logits is not None for outcome in ended)
        if len(ended) == len(self._legs) or (self._call.wait == "quorum" and answers >= needed):
            self.done = True
        elif len(self._legs) - (len(ended) - answers) < needed:
            if self._doomed_until is None:
                self._doomed_until = time.monotonic() + FAIL_GRACE_S
            for leg in self._legs:
                if leg.outcome is None and not leg.running:  # it waited to try again
                    self._finish(leg, leg.error or leg.link.all_paused())
            self.done = all(leg.outcome is not None or leg.held for leg in self._legs)


class Checkup:
    """Asks every replica of every server what it serves, once, and waits until the last has answered."""

    def __init__(self, links: Sequence[Link], call: Call) -> None:
        self._call = call
        self._end = time.monotonic() + call.deadline.remaining
        self._links = links
        self._running: dict[Ask, tuple[Link, Line]] = {}
        self._found: list[tuple[Line, float, ServerError | None]] = []

    @property
    def done(self) -> bool:
        """Whether every replica has been judged."""
        return not self._running

    @property
    def whole(self) -> bool:
        """Everybody's answer is of interest."""
        return True

    @property
    def wake(self) -> float:
        """The deadline."""
        return self._end

    def begin(self) -> list[Ask]:
        """All questions at once; breakers are not asked, since this is how one sees that a replica is back."""
        for link in self._links:
            for line in link.replicas.lines:
                self._running[link.ask_config(line, self._call.deadline.remaining)] = link, line
        return list(self._running)

    def take(self, ask: Ask, reply: Reply) -> list[Ask]:
        """Judge an answer."""
        link, line = self._running.pop(ask)
        failure = link.read_config(line, reply)
        self._found.append((line, reply.ms, None if failure is None else failure.error))
        return []

    def tick(self) -> list[Ask]:
        """The deadline has come."""
        for ask, (link, line) in self._running.items():
            ask.wanted = False
            self._found.append((line, self._call.deadline.elapsed_ms, link.too_late(line)))
        self._running.clear()
        return []

    def health(self) -> list[Health]:
        """What was found, in the order of the servers and their endpoints."""
        listed = [line.endpoint for link in self._links for line in link.replicas.lines]
        found = sorted(self._found, key=lambda row: listed.index(row[0].endpoint))
        return [Health(line.server, line.endpoint, ms, error) for line, ms, error in found]


def _backoff(attempts: int) -> float:
    """Seconds before the next attempt: doubling, within a quarter of jitter, so that clients do not come in step."""
    wait = min(BACKOFF_FIRST_S * 2 ** (attempts - 1), BACKOFF_MAX_S)
    return wait * random.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)  # noqa: S311 - not for secrets
