"""The part of a call that does no input or output: plan, check, fuse. Both clients drive it.

A call goes: decode the images -> for each chunk of at most `max_batch`: encode -> check the servers not checked yet ->
send every share to its server -> fuse. One `Deadline`, set at the start, covers all of it.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privdfs._bundle import Bundle
from privdfs._config import check_min_answers, check_timeout
from privdfs._errors import DeadlineExceededError, NotEnoughAnswersError, ServerError
from privdfs._images import ImageLike, Pixels, load_image, load_images
from privdfs._keys import UserKey
from privdfs._manifest import PARTITION_BYTES
from privdfs._result import Result, Timings


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
        partition: that they are cut by; None in a release without keys.
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
    """What became of one share: logits float32 [batch, classes], or why there are none."""

    server: int
    ms: float
    logits: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    error: ServerError | None = None


@dataclass(frozen=True)
class Decoded:
    """Images of the bundle's size, uint8 [batch, height, width, channels], and how long the whole batch took."""

    pixels: Pixels = field(repr=False)
    ms: float


@dataclass(frozen=True)
class Chunk:
    """Images that travel together, and their shares by server."""

    size: int
    shares: tuple[Share, ...]
    decode_ms: float
    encode_ms: float


@dataclass(frozen=True)
class Settings:
    """What all calls of a client share. Of the user's key it keeps only which partition it picks."""

    bundle: Bundle
    timeout: float
    min_answers: int
    partition: int | None = None

    @classmethod
    def check(
        cls, bundle: Bundle, timeout: float, min_answers: int | None, key: UserKey | bytes | None = None
    ) -> "Settings":
        """Settings from a client's arguments.

        Raises:
            ConfigError: one of them makes no sense.
        """
        partition = bundle.partition(key)
        return cls(bundle, check_timeout(timeout), check_min_answers(min_answers, bundle.n_servers), partition)

    def begin(self, timeout: float | None) -> "Call":
        """Start the clock of a call; `timeout` None means the client's."""
        seconds = self.timeout if timeout is None else check_timeout(timeout)
        return Call(self.bundle, self.min_answers, seconds, self.partition)


class Call:
    """One call of a client, from images to results."""

    def __init__(self, bundle: Bundle, min_answers: int, timeout: float, partition: int | None) -> None:
        self.deadline = Deadline(timeout)
        self._partition = partition
        self._bundle = bundle
        self._min_answers = min_answers

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
        """Make the shares of a chunk.

        Raises:
            DeadlineExceededError: no time is left to send them.
        """
        started = time.perf_counter()
        shares = self.shares(decoded)
        encode_ms = (time.perf_counter() - started) * 1e3
        if self.deadline.remaining == 0:
            raise DeadlineExceededError(
                f"the {self.deadline.timeout:g} s of this call were over before its images were ready to send: "
                "raise `timeout`, or pass smaller images or fewer at a time"
            )
        return Chunk(
            size=len(decoded.pixels),
            shares=tuple(Share(i, values, self._partition) for i, values in enumerate(shares)),
            decode_ms=decoded.ms,
            encode_ms=encode_ms,
        )

    def refuse_few(self, failed: Sequence[Outcome]) -> None:
        """End the call before anybody is sent a share, when too few servers have passed the check.

        Raises:
            NotEnoughAnswersError: fewer than `min_answers` are left.
        """
        causes = _causes(failed)
        self._require([i for i in range(self._bundle.n_servers) if i not in causes], causes)

    def finish(self, chunk: Chunk, outcomes: Sequence[Outcome]) -> list[Result]:
        """Fuse the answers of a chunk: one outcome for every server.

        Raises:
            NotEnoughAnswersError: fewer than `min_answers` servers answered.
        """
        n_servers, classes = self._bundle.n_servers, self._bundle.classes
        logits = np.zeros((chunk.size, n_servers, len(classes)), dtype=np.float32)
        servers_ms: list[float | None] = [None] * n_servers
        for outcome in outcomes:
            if outcome.logits is not None:
                logits[:, outcome.server] = outcome.logits
                servers_ms[outcome.server] = outcome.ms
        answered = tuple(ms is not None for ms in servers_ms)
        self._require([i for i in range(n_servers) if answered[i]], _causes(outcomes))
        started = time.perf_counter()
        probabilities = self._bundle.fuse(logits, np.tile(np.array(answered, dtype=np.bool_), (chunk.size, 1)))
        timings = Timings(
            decode_ms=chunk.decode_ms,
            encode_ms=chunk.encode_ms,
            servers_ms=tuple(servers_ms),
            fusion_ms=(time.perf_counter() - started) * 1e3,
            total_ms=self.deadline.elapsed_ms,
        )
        bytes_up = tuple(share.bytes_up for share in chunk.shares)
        return [_result(row, classes, answered, timings, bytes_up) for row in probabilities]

    def _require(self, usable: Sequence[int], causes: Mapping[int, ServerError]) -> None:
        if len(usable) >= self._min_answers:
            return
        listed = "; ".join(f"server {i}: {causes[i].message}" for i in sorted(causes))
        hint = "" if self._min_answers == 1 else ", or lower `min_answers` if a less certain answer will do"
        raise NotEnoughAnswersError(
            f"{len(usable)} of {self._bundle.n_servers} servers gave a usable answer, {self._min_answers} are needed "
            f"({listed}): mend these servers{hint}",
            causes,
            tuple(usable),
            self._min_answers,
        )


def _causes(outcomes: Sequence[Outcome]) -> dict[int, ServerError]:
    return {outcome.server: outcome.error for outcome in outcomes if outcome.error is not None}


def _result(
    probabilities: npt.NDArray[np.float32],
    classes: tuple[str, ...],
    answered: tuple[bool, ...],
    timings: Timings,
    bytes_up: tuple[int, ...],
) -> Result:
    index = int(probabilities.argmax())
    return Result(
        label=classes[index],
        index=index,
        probability=float(probabilities[index]),
        answered=answered,
        timings=timings,
        bytes_up=bytes_up,
        probabilities=probabilities,
        classes=classes,
    )
