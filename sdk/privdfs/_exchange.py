"""The trip of one chunk to all servers and back, as a machine without input or output: both clients drive it.

A driver (`_drive.py`) starts the `Ask`s that `begin`, `take` and `tick` give it, hands every `Reply` to `take`, calls
`tick` when `wake` has come, and stops when the trip is `done`. The caller closes the trip in any case.

Guarantees:

- No share is sent before `min_answers` servers have passed the release check: a call that cannot succeed reveals
  nothing.
- A share is sent to replicas of its own server only, on connections that have passed the check; so are its retries and
  its hedges.
- A trip ends at its deadline, whether all have answered or not.
- In a coded release, while another round, part or canary follows, those who are late are waited for only until this
  exchange's part of the time is over, so that one silent server does not use up the time of the rest. It gets its share
  of the next exchange all the same.
- Once too few servers can still answer, nothing new is sent; what is on its way gets `FAIL_GRACE_S` to say more, so
  that the error can name every cause (`BUSY_GRACE_S` where one has a full queue). With `wait="quorum"`, enough answers
  end the trip at once.
"""

import math
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from privdfs._channel import Failure, ServerChannel
from privdfs._chunk import Chunk, Share
from privdfs._constants import BACKOFF_FIRST_S, BACKOFF_JITTER, BACKOFF_MAX_S, BUSY_GRACE_S, FAIL_GRACE_S
from privdfs._core import Call
from privdfs._drive import Ask
from privdfs._errors import ServerBusyError, ServerError, ServerMismatchError, ServerTimeoutError
from privdfs._kinds import Outcome
from privdfs._result import Health
from privdfs._wire import Connection, Reply

if TYPE_CHECKING:
    import numpy.typing as npt


class _Attempt:
    """One try of one share on one connection: first the check, if it has not passed it, then the share."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.ask: Ask | None = None
        self.sent_at: float | None = None  # when the share itself was sent

    @property
    def held(self) -> bool:
        """Whether the connection has passed the check and the share waits for the other servers' checks."""
        return self.ask is None


class _Delivery:
    """The delivery of one share to its server: attempts, and in the end one outcome."""

    def __init__(self, channel: ServerChannel, share: Share) -> None:
        self.channel = channel
        self.share = share
        self.attempts = 0
        self.running: list[_Attempt] = []
        self.avoid: set[str] = set()  # endpoints that fail on every try
        self.tried: set[str] = set()
        self.error: ServerError | None = None  # the latest
        self.outcome: Outcome | None = None
        self.sent_at: float | None = None
        self.sends = 0
        self.wake = math.inf  # of the next retry, or hedge while an attempt is running

    @property
    def held(self) -> bool:
        return any(attempt.held for attempt in self.running)


class Trip:
    """One chunk's shares to their servers, and their answers back."""

    def __init__(self, channels: Sequence[ServerChannel], call: Call, chunk: Chunk) -> None:
        self.done = False
        self._call = call
        self._end = time.monotonic() + call.deadline.remaining
        # Until when those are waited for who are not needed: in the last exchange until the deadline.
        left = call.deadline.remaining / chunk.exchanges_left
        self._patient_until = time.monotonic() + left if chunk.exchanges_left > 1 else math.inf
        self._deliveries = [_Delivery(channel, chunk.shares[channel.server]) for channel in channels]
        self._open = False  # shares may be sent
        self._doomed_until: float | None = None
        self._asks: list[Ask] = []

    @property
    def wake(self) -> float:
        """When something is due: a retry, a hedge, the end of the grace, or the deadline."""
        if self._doomed_until is not None:
            return min(self._end, self._doomed_until)
        due = [delivery.wake for delivery in self._deliveries if delivery.outcome is None]
        return min([self._end, self._patient_until or self._end, *due])

    def begin(self) -> list[Ask]:
        """The first attempt at every server."""
        for delivery in self._deliveries:
            delivery.channel.replicas.save_for_hedges(self._call.retries.hedge_budget)
            self._attempt(delivery)
        return self._flush()

    def take(self, ask: Ask, reply: Reply[Any]) -> list[Ask]:
        """Judge a reply; a late one is dropped."""
        for delivery in self._deliveries:
            for attempt in delivery.running:
                if attempt.ask is ask:
                    if attempt.sent_at is None:
                        self._take_check(delivery, attempt, reply)
                    else:
                        self._take_answer(delivery, attempt, reply)
                    return self._flush()
        return []

    def tick(self) -> list[Ask]:
        """Retries and hedges that are due, and the end of the call."""
        now = time.monotonic()
        if now >= self._end:
            for delivery in self._deliveries:
                if delivery.outcome is None and not (delivery.held and not self._open):
                    self._give_up(delivery)
            self.done = True
        elif self._doomed_until is not None:
            self.done = now >= self._doomed_until
        else:
            if now >= self._patient_until:
                self._patient_until = 0.0  # it is over, and not waited for again
            for delivery in self._deliveries:
                if delivery.outcome is None and delivery.wake <= now:
                    self._attempt(delivery)
        return self._flush()

    def close(self) -> None:
        """Let go of the attempts that were cut short."""
        self.done = True
        for delivery in self._deliveries:
            self._drop(delivery)

    def outcomes(self) -> list[Outcome]:
        """What became of every share, so far as anything did."""
        return [
            delivery.outcome
            or Outcome(delivery.channel.server, 0.0, ready=delivery.held and not self._open, sends=delivery.sends)
            for delivery in self._deliveries
        ]

    # ---------------------------------------------------------------------------------------------- one server's way

    def _attempt(self, delivery: _Delivery) -> None:
        """Try a replica: the first time, again, or beside an attempt that takes long (a hedge)."""
        delivery.wake = math.inf
        replicas, hedge = delivery.channel.replicas, bool(delivery.running)
        if hedge and not (replicas.others(delivery.avoid) and replicas.pay_for_hedge()):
            return
        connection = delivery.channel.take(delivery.avoid, delivery.tried)
        if connection is None:
            if not hedge:
                self._finish(delivery, delivery.error or delivery.channel.all_paused())
            return
        delivery.attempts += 1
        delivery.tried.add(connection.endpoint)
        attempt = _Attempt(connection)
        delivery.running.append(attempt)
        if not connection.checked:
            attempt.ask = delivery.channel.ask_config(connection, self._call.deadline.remaining)
            self._asks.append(attempt.ask)
        if hedge or attempt.ask is not None:
            self._plan_hedge(delivery)

    def _plan_hedge(self, delivery: _Delivery) -> None:
        policy = self._call.retries
        if policy.hedge_after is not None and delivery.attempts < policy.attempts:
            delivery.wake = time.monotonic() + policy.hedge_after

    def _send(self, delivery: _Delivery, attempt: _Attempt) -> None:
        deadline = self._call.deadline
        attempt.sent_at = time.perf_counter()
        if delivery.sent_at is None:
            delivery.sent_at = attempt.sent_at
            self._plan_hedge(delivery)
        delivery.sends += 1
        attempt.ask = delivery.channel.ask_branch(
            attempt.connection, delivery.share, deadline.remaining, deadline.timeout
        )
        self._asks.append(attempt.ask)

    def _take_check(self, delivery: _Delivery, attempt: _Attempt, reply: Reply[Any]) -> None:
        failure = delivery.channel.read_config(attempt.connection, reply)
        if failure is None and not attempt.connection.checked:  # it has more models
            attempt.ask = delivery.channel.ask_config(attempt.connection, self._call.deadline.remaining)
            self._asks.append(attempt.ask)
        elif failure is None:
            attempt.ask = None
            if not self._open:  # what it waits for now is not this server
                delivery.wake = math.inf
        else:
            self._failed(delivery, attempt, failure)

    def _take_answer(self, delivery: _Delivery, attempt: _Attempt, reply: Reply[Any]) -> None:
        read = delivery.channel.read_answer(attempt.connection, delivery.share, reply)
        if isinstance(read, Failure):
            self._failed(delivery, attempt, read)
            return
        delivery.running.remove(attempt)
        delivery.channel.replicas.give_back(attempt.connection, failed=False)
        waited = 0.0 if attempt.sent_at is None or delivery.sent_at is None else attempt.sent_at - delivery.sent_at
        self._finish(delivery, read, waited * 1e3 + reply.ms)

    def _failed(self, delivery: _Delivery, attempt: _Attempt, failure: Failure) -> None:
        """End an attempt; try again if that can help, and it can still come in time."""
        delivery.running.remove(attempt)
        # A busy replica is not broken: it goes on answering as many as it can.
        busy = isinstance(failure.error, ServerBusyError)
        delivery.channel.replicas.give_back(attempt.connection, failed=None if busy else True)
        delivery.error = failure.error
        if isinstance(failure.error, ServerMismatchError) and attempt.sent_at is None:
            delivery.attempts -= 1  # it was sent nothing, and several may serve the next release already
        if not failure.again:
            delivery.avoid.add(attempt.connection.endpoint)
        if delivery.running:  # a hedge, or what it was to help, is still on its way
            return
        replicas, now = delivery.channel.replicas, time.monotonic()
        fresh = replicas.others(delivery.avoid | delivery.tried)
        due = now if fresh else now + _backoff(delivery.attempts)
        may = delivery.attempts < self._call.retries.attempts and replicas.others(delivery.avoid) and due < self._end
        if may and self._doomed_until is None:
            delivery.wake = due
        else:
            self._finish(delivery, failure.error)

    def _give_up(self, delivery: _Delivery) -> None:
        """The deadline has come."""
        error = delivery.error
        for attempt in delivery.running:
            if attempt.ask is not None:
                attempt.ask.abandon()
            error = delivery.channel.too_late(attempt.connection)
            delivery.channel.replicas.give_back(attempt.connection, failed=True)
        delivery.running.clear()
        self._finish(
            delivery, error or ServerTimeoutError("the time was over before it was asked", delivery.channel.server)
        )

    def _finish(self, delivery: _Delivery, end: "ServerError | npt.NDArray[Any]", ms: float = 0.0) -> None:
        server, sends = delivery.channel.server, delivery.sends
        if isinstance(end, ServerError):
            end = delivery.channel.clearest(end)
            delivery.outcome = Outcome(server, ms, error=end, sends=sends)
        else:
            delivery.outcome = Outcome(server, ms, end, sends=sends)
        self._drop(delivery)

    def _drop(self, delivery: _Delivery) -> None:
        for attempt in delivery.running:
            if attempt.ask is not None:
                attempt.ask.abandon()  # before the connection is given back: until then no other call may use it
            delivery.channel.replicas.give_back(attempt.connection, failed=None)
        delivery.running.clear()

    # ------------------------------------------------------------------------------------------------- all together

    def _flush(self) -> list[Ask]:
        """End the trip if it can end, open the gate if enough servers are ready, give out what is to be asked."""
        if not self.done:
            self._judge()
        if not self.done and self._doomed_until is None:
            self._open = self._open or sum([delivery.held for delivery in self._deliveries]) >= self._call.min_answers
            for delivery in self._deliveries if self._open else ():
                for attempt in delivery.running:
                    if attempt.held:
                        self._send(delivery, attempt)
        asks, self._asks = self._asks, []
        return [] if self.done else asks

    @property
    def _is_patient(self) -> bool:
        """Whether those are waited for who are not needed."""
        return self._call.wait == "all" and time.monotonic() < self._patient_until

    def _judge(self) -> None:
        needed, count = self._call.min_answers, len(self._deliveries)
        ended = [delivery.outcome for delivery in self._deliveries if delivery.outcome is not None]
        answers = len([outcome for outcome in ended if outcome.answer is not None])
        if len(ended) == count or (answers >= needed and not self._is_patient):
            self.done = True
        elif count - (len(ended) - answers) < needed:
            if self._doomed_until is None:
                busy = any(isinstance(outcome.error, ServerBusyError) for outcome in ended)
                self._doomed_until = time.monotonic() + (BUSY_GRACE_S if busy else FAIL_GRACE_S)
            for delivery in self._deliveries:
                if delivery.outcome is None and not delivery.running:  # it waited to try again
                    self._finish(delivery, delivery.error or delivery.channel.all_paused())
            self.done = all(delivery.outcome is not None or delivery.held for delivery in self._deliveries)


class Checkup:
    """Asks every replica of every server what it serves, once, and waits until the last has answered."""

    def __init__(self, channels: Sequence[ServerChannel], call: Call) -> None:
        self._call = call
        self._end = time.monotonic() + call.deadline.remaining
        self._channels = channels
        self._running: dict[Ask, tuple[ServerChannel, Connection]] = {}
        self._found: dict[tuple[int, str], Health] = {}

    @property
    def done(self) -> bool:
        """Whether every replica has been judged."""
        return not self._running

    @property
    def wake(self) -> float:
        """The deadline."""
        return self._end

    def begin(self) -> list[Ask]:
        """All questions at once; breakers are not asked, since this is how one sees that a replica is back."""
        for channel in self._channels:
            for endpoint in channel.replicas.endpoints:
                connection = channel.take_from(endpoint)
                self._running[channel.ask_config(connection, self._call.deadline.remaining)] = channel, connection
        return list(self._running)

    def take(self, ask: Ask, reply: Reply[Any]) -> list[Ask]:
        """Judge an answer; a replica that is well is tried again at once, whatever its breaker said."""
        channel, connection = self._running.pop(ask)
        failure = channel.read_config(connection, reply)
        if failure is None and not connection.checked:  # it has more models
            following = channel.ask_config(connection, self._call.deadline.remaining)
            self._running[following] = channel, connection
            return [following]
        channel.replicas.give_back(connection, failed=False if failure is None else None)
        self._note(connection, reply.ms, None if failure is None else failure.error)
        return []

    def tick(self) -> list[Ask]:
        """The deadline has come."""
        for ask, (channel, connection) in self._running.items():
            ask.abandon()
            self._note(connection, self._call.deadline.elapsed_ms, channel.too_late(connection))
            channel.replicas.give_back(connection, failed=None)
        self._running.clear()
        return []

    def close(self) -> None:
        """Let go of what still runs."""
        for ask, (channel, connection) in self._running.items():
            ask.abandon()
            channel.replicas.give_back(connection, failed=None)
        self._running.clear()

    def health(self) -> list[Health]:
        """What was found, in the order of the servers and their endpoints."""
        keys = [(channel.server, endpoint) for channel in self._channels for endpoint in channel.replicas.endpoints]
        return [self._found[key] for key in keys]

    def _note(self, connection: Connection, ms: float, error: ServerError | None) -> None:
        key = connection.server, connection.endpoint
        self._found[key] = Health(*key, ms, error)


def _backoff(attempts: int) -> float:
    """Seconds before the next attempt: doubling, within a quarter of jitter, so that clients do not come in step."""
    wait = min(BACKOFF_FIRST_S * 2 ** (attempts - 1), BACKOFF_MAX_S)
    return wait * random.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)  # noqa: S311 - not for secrets
