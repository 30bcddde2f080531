"""The part of a call without input or output: plan, check, fuse. Both clients drive it.

A call decodes the images. For each chunk of at most `max_batch` it makes shares, sends every share to its server, gets
the answers (`_exchange.py`) and fuses them, or makes the shares of the next round. What shares and answers are, only
the kind of the release knows: `_masked.py` or `_coded.py`. One `Deadline`, set at the start, covers all of it.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from msgspec import structs

from privdfs._bundle import Bundle
from privdfs._canaries import Canaries, Canary
from privdfs._chunk import Chunk, Decoded, Round, Share, answer_ms, bytes_down, bytes_up, sums, whole
from privdfs._config import Retries, Wait, check_retries, check_timeout, check_wait
from privdfs._constants import BRIEF_MACS
from privdfs._errors import ConfigError, DeadlineExceededError, NotEnoughAnswersError, ServerMismatchError
from privdfs._images import ImageLike, load_image, load_images
from privdfs._kinds import Answered, Kind, Outcome, Sent
from privdfs._queries import Queries
from privdfs._result import Result, RoundTimings, Timings

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("privdfs")


class Deadline:
    """The moment when a call must end, on the monotonic clock."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._started = time.monotonic()

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._started + self.timeout - time.monotonic())

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the call began."""
        return (time.monotonic() - self._started) * 1e3


class Observer(Protocol):
    """Records every part of a call when it ends; `privdfs.otel.Telemetry` is one."""

    def note(
        self, release: str, images: int, outcomes: Sequence[Outcome], seconds: float, error: BaseException | None
    ) -> None:
        """Record a part that ends now, `seconds` after its call began, with an error or with results."""
        ...


@dataclass(frozen=True)
class Settings:
    """What all calls of a client share."""

    bundle: Bundle
    kind: Kind
    timeout: float
    min_answers: int
    wait: Wait
    retries: Retries
    queries: Queries | None = None
    telemetry: Observer | None = None
    canaries: Canaries | None = None
    misplaced: set[int] = field(default_factory=set[int], compare=False)  # servers that the log has told of

    @classmethod
    def check(
        cls,
        bundle: Bundle,
        kind: Kind,
        *,
        timeout: float,
        min_answers: int | None,
        wait: str,
        retries: Retries | None,
        queries: Queries | None = None,
        telemetry: Observer | None = None,
    ) -> "Settings":
        """Settings from a client's arguments.

        Raises:
            ConfigError: one of them makes no sense.
        """
        checked = _check_queries(queries)
        return cls(
            bundle,
            kind,
            check_timeout(timeout),
            kind.check_min_answers(min_answers),
            check_wait(wait),
            check_retries(retries),
            checked,
            _check_telemetry(telemetry),
            bundle.canaries() if checked is not None and checked.canary_rate else None,
        )

    def change(
        self, *, timeout: float | None, min_answers: int | None, wait: str | None, retries: Retries | None
    ) -> "Settings":
        """Other settings for some calls; None leaves what there is.

        Raises:
            ConfigError: one of them makes no sense.
        """
        return replace(
            self,
            timeout=self.timeout if timeout is None else check_timeout(timeout),
            min_answers=self.min_answers if min_answers is None else self.kind.check_min_answers(min_answers),
            wait=self.wait if wait is None else check_wait(wait),
            retries=self.retries if retries is None else check_retries(retries),
        )

    def begin(self, timeout: float | None) -> "Call":
        """Start the clock of a call; `timeout` None means the client's."""
        return Call(self if timeout is None else replace(self, timeout=check_timeout(timeout)))


def _check_queries(queries: object) -> Queries | None:
    if queries is not None and not isinstance(queries, Queries):
        raise ConfigError(f"queries has the type {type(queries).__name__}: pass Queries(budget=…)")
    return queries


def _check_telemetry(telemetry: Observer | None) -> Observer | None:
    if telemetry is not None and not callable(getattr(telemetry, "note", None)):
        raise ConfigError(f"telemetry has the type {type(telemetry).__name__}: pass privdfs.otel.Telemetry()")
    return telemetry


class Call:
    """One call of a client, from images to results.

    A context manager: what the device keeps between rounds is wiped at the end, whatever the end is.
    """

    def __init__(self, settings: Settings) -> None:
        self.deadline = Deadline(settings.timeout)
        self.min_answers = settings.min_answers
        self.wait = settings.wait
        self.retries = settings.retries
        self._kind = settings.kind
        self._queries = settings.queries
        self._telemetry = settings.telemetry
        self._canaries = settings.canaries
        self._bundle = settings.bundle
        self._misplaced = settings.misplaced
        self._kept: list[Sent] = []
        self._over = False
        self._lied_to_canaries: set[int] = set()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for sent in self._kept:
            self._kind.forget(sent)

    def _keep(self, sent: Sent) -> Sent:
        """Have it wiped at the end of the call; at once, where a thread made it for a call that was given up."""
        self._kept.append(sent)
        if self._over:
            self._kind.forget(sent)
        return sent

    def warm_up(self) -> None:
        """Run every graph once: ONNX Runtime allocates at the first run."""
        spec = self._bundle.manifest.image
        self._kind.rehearse(np.zeros((1, spec.height, spec.width, spec.channels), np.uint8))

    def is_brief(self, image: ImageLike) -> bool:
        """Whether decoding and encoding an image here is faster than handing it to another thread."""
        spec, macs = self._bundle.manifest.image, self._bundle.manifest.macs
        ready = isinstance(image, np.ndarray) and image.shape == (spec.height, spec.width, spec.channels)
        return ready and macs.head <= BRIEF_MACS

    def decode_one(self, image: ImageLike) -> Decoded:
        """One image to a batch of one."""
        started = time.perf_counter()
        pixels = load_image(image, self._bundle.manifest.image)[np.newaxis]
        return Decoded(pixels, (time.perf_counter() - started) * 1e3)

    def decode_many(self, images: Iterable[ImageLike]) -> Decoded:
        """Several images to a batch."""
        started = time.perf_counter()
        pixels = load_images(images, self._bundle.manifest.image)
        return Decoded(pixels, (time.perf_counter() - started) * 1e3)

    def split(self, decoded: Decoded) -> Iterator[Decoded]:
        """Cut a batch into what one request may hold."""
        step = self._bundle.manifest.max_batch
        starts = range(0, len(decoded.pixels), step)
        for following, start in zip(reversed(range(len(starts))), starts, strict=True):
            yield Decoded(decoded.pixels[start : start + step], decoded.ms, following)

    def shares(self, decoded: Decoded) -> list[npt.NDArray[np.int8]]:
        """The shares of a batch in the first round, by server: int8 [batch, …]."""
        return [np.array(values) for values in self._keep(self._kind.begin(decoded.pixels)).shares]

    def encode(self, decoded: Decoded) -> Chunk:
        """Make the shares of the images in a chunk that have to be sent.

        Raises:
            DeadlineExceededError: no time is left to send them.
            QueryBudgetError: `Queries` does not let them be sent.
            RandomnessError: the system's random generator failed.
        """
        asked = None
        if self._queries is not None:
            partition = self._kind.partition
            asked = self._queries.ask(self._bundle.release, partition, decoded.pixels, self.min_answers)
            if not asked.fresh:
                return Chunk(0, (), decoded.ms, 0.0, asked=asked)
            decoded = structs.replace(decoded, pixels=decoded.pixels[list(asked.fresh)])
        started = time.perf_counter()
        sent = self._keep(self._kind.begin(decoded.pixels))
        encode_ms = (time.perf_counter() - started) * 1e3
        canary = self._due_canary(len(decoded.pixels))
        beside = None if canary is None else self._encode_canary(canary, decoded.following)
        if self.deadline.remaining == 0:
            raise DeadlineExceededError(
                f"this call used up its {self.deadline.timeout:g} s before its images were ready to send: "
                "raise `timeout`, or pass smaller images or fewer at a time"
            )
        following = decoded.following + (canary is not None and not canary.first)
        about = Chunk(len(decoded.pixels), (), decoded.ms, encode_ms, following, asked=asked, beside=beside)
        return self._chunk(about, sent)

    def _due_canary(self, size: int) -> Canary | None:
        """As many images with known answers, if a canary is due."""
        if self._canaries is None or self._queries is None or not self._queries.canary_due():
            return None
        return self._canaries.draw(size)

    def _encode_canary(self, canary: Canary, following: int) -> Chunk:
        """Its shares, made before anything of its part is sent; `following` parts come after the two."""
        sent = self._keep(self._kind.begin(canary.pixels))
        return self._chunk(Chunk(len(canary.pixels), (), 0.0, 0.0, following + canary.first, known=canary), sent)

    def proceed(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> Chunk | list[Result]:
        """Take the answers of a round: the shares of the next one, or the results.

        Args:
            chunk: what was sent.
            outcomes: one for each server; none where nothing was sent.

        Returns:
            The next round, or results for `finish`; none for a canary.

        Raises:
            NotEnoughAnswersError: fewer than `min_answers` servers answered.
            ContradictingAnswersError: of a coded release, a server lies, and it cannot be told which.
            CanaryError: a canary came back with another answer than the known one.
            RandomnessError: the system's random generator failed.
        """
        if not chunk.size:
            return []
        past = Round(chunk.encode_ms, tuple(outcomes), tuple(share.bytes_up for share in chunk.shares))
        rounds = (*chunk.past, past)
        started = time.perf_counter()
        try:
            found = self._take(chunk, outcomes)
        except Exception as error:
            self._note(chunk, rounds, error)
            raise
        took = (time.perf_counter() - started) * 1e3
        self._kept = [sent for sent in self._kept if sent is not chunk.sent]  # wiped, or carried on
        if isinstance(found, Sent):
            self._keep(found)
            return self._chunk(structs.replace(chunk, encode_ms=took, past=rounds), found)
        self._note(chunk, rounds, None)
        if chunk.known is not None:
            self._lied_to_canaries.update(found.corrected)
            return []
        return self._results(chunk, rounds, found, took)

    def with_suspects(self, results: list[Result]) -> list[Result]:
        """Results that also name the servers whose wrong answers to canaries of this call were corrected."""
        if not self._lied_to_canaries:
            return results
        return [replace(each, suspects=tuple(sorted({*each.suspects, *self._lied_to_canaries}))) for each in results]

    def _note(self, chunk: Chunk, rounds: Sequence[Round], error: BaseException | None) -> None:
        """Tell telemetry of a part that has ended; of a canary, which is not the program's, only that it failed."""
        own = chunk.known is None
        if self._telemetry is not None and (own or error is not None):
            seconds = self.deadline.elapsed_ms / 1e3
            self._telemetry.note(self._bundle.release, chunk.size * own, whole(rounds), seconds, error)

    def _take(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> Sent | Answered:
        if sum(outcome.answer is not None for outcome in outcomes) < self.min_answers:
            raise self._too_few(chunk, outcomes)
        if chunk.sent is None:
            raise RuntimeError("answers came for a chunk that was not sent")
        found = self._kind.take(chunk.sent, outcomes)
        if chunk.known is not None and isinstance(found, Answered):
            chunk.known.check(found.probabilities, tuple(each.server for each in outcomes if each.answer is not None))
        return found

    def _chunk(self, about: Chunk, sent: Sent) -> Chunk:
        """A chunk with the shares of a round."""
        shares = tuple(
            Share(server, values, self._kind.partition, sent.round) for server, values in enumerate(sent.shares)
        )
        left = self._kind.exchanges_left(sent.round, about.following)
        return structs.replace(about, shares=shares, sent=sent, exchanges_left=left)

    def finish(self, chunk: Chunk, results: list[Result]) -> list[Result]:
        """All results of a chunk, once what travels beside it has ended well too.

        `Queries` keeps those that servers gave now. One that came with a canary's alarm is not to be trusted, or kept.
        """
        if self._queries is None or chunk.asked is None:
            return results
        found = self._queries.answer(chunk.asked, self._kind.partition, results)
        return [
            found[digest] if position in chunk.asked.fresh else self._repeated(chunk, found[digest])
            for position, digest in enumerate(chunk.asked.digests)
        ]

    def _repeated(self, chunk: Chunk, result: Result) -> Result:
        nothing = (0,) * self._kind.servers
        timings = Timings(chunk.decode_ms, 0.0, (None,) * self._kind.servers, 0.0, self.deadline.elapsed_ms)
        return replace(result, timings=timings, bytes_up=nothing, bytes_down=nothing, repeated=True)

    def _results(self, chunk: Chunk, rounds: Sequence[Round], found: Answered, fusion_ms: float) -> list[Result]:
        servers = whole(rounds)
        self._warn_of_mismatches(servers)
        timings = Timings(
            decode_ms=chunk.decode_ms,
            encode_ms=sum(each.encode_ms for each in rounds),
            servers_ms=tuple(map(answer_ms, servers)),
            fusion_ms=fusion_ms,
            total_ms=self.deadline.elapsed_ms,
            rounds=tuple(RoundTimings(each.encode_ms, tuple(map(answer_ms, each.outcomes))) for each in rounds),
        )
        shared = {
            "answered": tuple(outcome.answer is not None for outcome in servers),
            "timings": timings,
            "bytes_up": sums(map(bytes_up, rounds)),
            "bytes_down": sums(map(bytes_down, rounds)),
            "suspects": found.suspects,
            "corrected": found.corrected,
            "expected_accuracy": found.expected_accuracy,
        }
        return [_result(row, self._bundle.classes, shared) for row in found.probabilities]

    def _warn_of_mismatches(self, servers: Sequence[Outcome]) -> None:
        """Say which servers a result was made without because another one runs there: once, until it answers."""
        for outcome in servers:
            if outcome.answer is not None:
                self._misplaced.discard(outcome.server)
            elif isinstance(outcome.error, ServerMismatchError) and outcome.server not in self._misplaced:
                self._misplaced.add(outcome.server)
                _log.warning("the result was made without server %d: %s", outcome.server, outcome.error.message)

    def _too_few(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> NotEnoughAnswersError:
        causes = {outcome.server: outcome.error for outcome in outcomes if outcome.error is not None}
        usable = tuple(outcome.server for outcome in outcomes if outcome.answer is not None)
        ready = sum(outcome.ready for outcome in outcomes)
        listed = "; ".join(f"server {i}: {causes[i].message}" for i in sorted(causes))
        count, needed = self._kind.servers, self.min_answers
        hint = ""
        if self._kind.may_lower(needed):
            hint = ", or lower `min_answers` if a less certain answer will do"
        found = f"{len(usable)} of {count} servers gave a usable answer, {needed} are needed"
        if chunk.past:
            found += f" in round {len(chunk.past) + 1}"
        if ready and not chunk.past:
            found = f"{ready} of {count} servers passed the release check, {needed} must, so no share was sent"
        return NotEnoughAnswersError(
            f"{found} ({listed}): fix these servers{hint}",
            causes,
            usable,
            self.min_answers,
        )


def _result(probabilities: npt.NDArray[np.float32], classes: tuple[str, ...], shared: Mapping[str, Any]) -> Result:
    index = int(probabilities.argmax())
    return Result(
        label=classes[index],
        index=index,
        probability=float(probabilities[index]),
        probabilities=probabilities,
        classes=classes,
        **shared,
    )
