"""The part of a call without input or output: plan, check, fuse. Both clients drive it.

A call decodes the images. For each chunk of at most `max_batch` it encodes, sends every share to its server, gets the
answers (`_exchange.py`) and fuses them. One `Deadline`, set at the start, covers all of it.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from privdfs._bundle import Bundle
from privdfs._config import Retries, Wait, check_min_answers, check_retries, check_timeout, check_wait
from privdfs._constants import BRIEF_MACS
from privdfs._errors import AnswerError, ConfigError, DeadlineExceededError, NotEnoughAnswersError, ServerError
from privdfs._format import PARTITION_BYTES, accuracy_of
from privdfs._images import ImageLike, Pixels, load_image, load_images
from privdfs._keys import UserKey
from privdfs._queries import Asked, Queries
from privdfs._result import Result, Timings
from privdfs._suspects import Suspects


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


@dataclass(frozen=True)
class Share:
    """A batch of shares bound to the one server that may see them.

    Attributes:
        server: index of that server.
        values: int8 [batch, K_server].
        partition: the one used; None in a release without keys.
    """

    server: int
    values: npt.NDArray[np.int8] = field(repr=False)
    partition: int | None = None

    @property
    def bytes_up(self) -> int:
        """Bytes of tensors that travel for each image: the share, and the int32 index of the partition."""
        return self.values.shape[1] + (0 if self.partition is None else PARTITION_BYTES)


@dataclass(frozen=True)
class Outcome:
    """The result of one share: logits float32 [batch, classes], or an error.

    Attributes:
        server: index of the server.
        ms: from the first time that the share was sent to the answer.
        sends: how often the share was sent, retries and hedges included.
        ready: the server passed the check but was sent nothing, because others did not pass; no logits, no error.
    """

    server: int
    ms: float
    logits: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    error: ServerError | None = None
    ready: bool = False
    sends: int = 0


@dataclass(frozen=True)
class Decoded:
    """Images of the bundle's size, uint8 [batch, height, width, channels], and how long the whole batch took."""

    pixels: Pixels = field(repr=False)
    ms: float


@dataclass(frozen=True)
class Chunk:
    """Images that travel together, and their shares by server; none of either where `Queries` knows all of them."""

    size: int
    shares: tuple[Share, ...]
    decode_ms: float
    encode_ms: float
    asked: Asked | None = None


class Observer(Protocol):
    """Records every part of a call when it ends; `privdfs.otel.Telemetry` is one."""

    def note(
        self, release: str, images: int, outcomes: Sequence[Outcome], seconds: float, error: BaseException | None
    ) -> None:
        """Record a part that ends now, `seconds` after its call began, with an error or with results."""
        ...


@dataclass(frozen=True)
class Settings:
    """What all calls of a client share. It keeps the partition that the user's key picks, not the key."""

    bundle: Bundle
    timeout: float
    min_answers: int
    wait: Wait
    retries: Retries
    partition: int | None
    suspects: Suspects = field(repr=False)
    queries: Queries | None = None
    telemetry: Observer | None = None

    @classmethod
    def check(
        cls,
        bundle: Bundle,
        *,
        timeout: float,
        min_answers: int | None,
        wait: str,
        retries: Retries | None,
        key: UserKey | bytes | None,
        queries: Queries | None = None,
        telemetry: Observer | None = None,
    ) -> "Settings":
        """Settings from a client's arguments.

        Raises:
            ConfigError: one of them makes no sense.
        """
        return cls(
            bundle,
            check_timeout(timeout),
            check_min_answers(min_answers, bundle.n_servers),
            check_wait(wait),
            check_retries(retries),
            bundle.partition(key),
            Suspects(bundle.manifest),
            _check_queries(queries),
            _check_telemetry(telemetry),
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
            min_answers=self.min_answers
            if min_answers is None
            else check_min_answers(min_answers, self.bundle.n_servers),
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
    """One call of a client, from images to results."""

    def __init__(self, settings: Settings) -> None:
        self.deadline = Deadline(settings.timeout)
        self.min_answers = settings.min_answers
        self.wait = settings.wait
        self.retries = settings.retries
        self._suspects = settings.suspects
        self._queries = settings.queries
        self._telemetry = settings.telemetry
        self._partition = settings.partition
        self._bundle = settings.bundle

    def warm_up(self) -> None:
        """Run both graphs once: ONNX Runtime allocates at the first run."""
        spec, n_servers = self._bundle.manifest.image, self._bundle.n_servers
        self.shares(Decoded(np.zeros((1, spec.height, spec.width, spec.channels), np.uint8), 0.0))
        logits = np.zeros((1, n_servers, len(self._bundle.classes)), np.float32)
        self._bundle.fuse(logits, np.ones((1, n_servers), np.bool_))

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
        for start in range(0, len(decoded.pixels), step):
            yield Decoded(decoded.pixels[start : start + step], decoded.ms)

    def shares(self, decoded: Decoded) -> list[npt.NDArray[np.int8]]:
        """The shares of a batch, by server: int8 [batch, K_i]."""
        return self._bundle.encode(decoded.pixels, partition=self._partition)

    def encode(self, decoded: Decoded) -> Chunk:
        """Make the shares of the images in a chunk that have to be sent.

        Raises:
            DeadlineExceededError: no time is left to send them.
            QueryBudgetError: `Queries` does not let them be sent.
        """
        asked = None
        if self._queries is not None:
            asked = self._queries.ask(self._bundle.release, self._partition, decoded.pixels, self.min_answers)
            if not asked.fresh:
                return Chunk(0, (), decoded.ms, 0.0, asked)
            decoded = Decoded(decoded.pixels[list(asked.fresh)], decoded.ms)
        started = time.perf_counter()
        shares = self.shares(decoded)
        encode_ms = (time.perf_counter() - started) * 1e3
        if self.deadline.remaining == 0:
            raise DeadlineExceededError(
                f"this call used up its {self.deadline.timeout:g} s before its images were ready to send: "
                "raise `timeout`, or pass smaller images or fewer at a time"
            )
        return Chunk(
            size=len(decoded.pixels),
            shares=tuple(Share(i, values, self._partition) for i, values in enumerate(shares)),
            decode_ms=decoded.ms,
            encode_ms=encode_ms,
            asked=asked,
        )

    def finish(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> list[Result]:
        """Fuse the answers of a chunk: one outcome for each server, none where nothing was sent.

        Raises:
            NotEnoughAnswersError: fewer than `min_answers` servers answered.
        """
        error: BaseException | None = None
        try:
            results = self._fuse(chunk, outcomes) if chunk.size else []
        except Exception as caught:
            error = caught
            raise
        finally:
            if self._telemetry is not None and chunk.size:
                seconds = self.deadline.elapsed_ms / 1e3
                self._telemetry.note(self._bundle.release, chunk.size, outcomes, seconds, error)
        if self._queries is None or chunk.asked is None:
            return results
        found = self._queries.answer(chunk.asked, self._partition, results)
        return [
            found[digest] if position in chunk.asked.fresh else self._repeated(chunk, found[digest])
            for position, digest in enumerate(chunk.asked.digests)
        ]

    def _repeated(self, chunk: Chunk, result: Result) -> Result:
        n_servers = self._bundle.n_servers
        timings = Timings(chunk.decode_ms, 0.0, (None,) * n_servers, 0.0, self.deadline.elapsed_ms)
        return replace(result, timings=timings, bytes_up=(0,) * n_servers, repeated=True)

    def _fuse(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> list[Result]:
        n_servers, classes = self._bundle.n_servers, self._bundle.classes
        logits = np.zeros((chunk.size, n_servers, len(classes)), dtype=np.float32)
        servers_ms: list[float | None] = [None] * n_servers
        for outcome in outcomes:
            if outcome.logits is not None:
                logits[:, outcome.server] = outcome.logits
                servers_ms[outcome.server] = outcome.ms
        answered = tuple(ms is not None for ms in servers_ms)
        if sum(answered) < self.min_answers:
            raise self._too_few(outcomes)
        present = [i for i in range(n_servers) if answered[i]]
        garbled = [outcome.server for outcome in outcomes if isinstance(outcome.error, AnswerError)]
        suspects = self._suspects.note(logits, present, garbled)
        started = time.perf_counter()
        probabilities = self._bundle.fuse(logits, np.array([answered] * chunk.size, dtype=np.bool_))
        timings = Timings(
            decode_ms=chunk.decode_ms,
            encode_ms=chunk.encode_ms,
            servers_ms=tuple(servers_ms),
            fusion_ms=(time.perf_counter() - started) * 1e3,
            total_ms=self.deadline.elapsed_ms,
        )
        shared = {
            "answered": answered,
            "timings": timings,
            "bytes_up": tuple(chunk.shares[outcome.server].bytes_up * outcome.sends for outcome in outcomes),
            "suspects": suspects,
            "expected_accuracy": accuracy_of(self._bundle.manifest, present),
        }
        return [_result(row, classes, shared) for row in probabilities]

    def _too_few(self, outcomes: Sequence[Outcome]) -> NotEnoughAnswersError:
        causes = {outcome.server: outcome.error for outcome in outcomes if outcome.error is not None}
        usable = tuple(outcome.server for outcome in outcomes if outcome.logits is not None)
        ready = sum(outcome.ready for outcome in outcomes)
        listed = "; ".join(f"server {i}: {causes[i].message}" for i in sorted(causes))
        hint = "" if self.min_answers == 1 else ", or lower `min_answers` if a less certain answer will do"
        count, needed = self._bundle.n_servers, self.min_answers
        found = f"{len(usable)} of {count} servers gave a usable answer, {needed} are needed"
        if ready:
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
