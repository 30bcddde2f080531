"""What travels together in a call: the images of one request to each server, their shares, and the rounds behind them.

Small values that only hold what they are given, so that `_core.py` can plan, `_exchange.py` send, and neither change
what the other has.
"""

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from privdfs._canaries import Canary
from privdfs._format import PARTITION_BYTES
from privdfs._images import Pixels
from privdfs._kinds import Outcome, Sent
from privdfs._queries import Asked
from privdfs._values import Value


class Share(Value, frozen=True):
    """A batch of shares bound to the one server that may see them.

    Attributes:
        server: index of that server.
        values: int8 [batch, K_server], or in a coded release int8 [batch, primes, values].
        partition: the one used; None in a release without keys.
        round: which of the server's models it is for, counted from 0.
    """

    server: int
    values: npt.NDArray[np.int8]
    partition: int | None = None
    round: int = 0

    @property
    def bytes_up(self) -> int:
        """Bytes of tensors that travel for each image: the share, and the int32 index of the partition."""
        return self.values[0].size + (0 if self.partition is None else PARTITION_BYTES)


class Decoded(Value, frozen=True):
    """Images of the bundle's size, uint8 [batch, height, width, channels], and how long the whole batch took.

    Attributes:
        following: how many parts of the batch come after this one.
    """

    pixels: Pixels
    ms: float
    following: int = 0


class Round(Value, frozen=True):
    """A round that is over: what it took, and what became of every share."""

    encode_ms: float
    outcomes: tuple[Outcome, ...]
    bytes_up: tuple[int, ...]


class Chunk(Value, frozen=True):
    """Images that travel together, and their shares by server; none of either where `Queries` knows all of them.

    Attributes:
        size: how many images.
        shares: of the present round.
        decode_ms: what decoding the whole batch took.
        encode_ms: what making these shares took.
        following: how many chunks the call sends after this one.
        exchanges_left: this round, and what is to share the time with it: later rounds, and chunks that follow.
        sent: what the kind of release keeps of the round.
        past: the rounds before.
        asked: what `Queries` says of the images.
        beside: a canary that travels before or after these images.
        known: of a canary, what its answers must be.
    """

    size: int
    shares: tuple[Share, ...]
    decode_ms: float
    encode_ms: float
    following: int = 0
    exchanges_left: int = 1
    sent: Sent | None = None
    past: tuple[Round, ...] = ()
    asked: Asked | None = None
    beside: "Chunk | None" = None
    known: Canary | None = None

    def in_order(self) -> tuple["Chunk", ...]:
        """What is sent, one after the other."""
        if self.beside is None or self.beside.known is None:
            return (self,)
        return (self.beside, self) if self.beside.known.first else (self, self.beside)


def whole(rounds: Sequence[Round]) -> list[Outcome]:
    """What became of every server over all rounds so far: its times added up, its first error."""
    found = list(rounds[0].outcomes)
    for each in rounds[1:]:
        for server, (before, now) in enumerate(zip(found, each.outcomes, strict=True)):
            answer = None if before.answer is None else now.answer
            error = before.error or now.error
            found[server] = msgspec.structs.replace(
                now, ms=before.ms + now.ms, answer=answer, error=error, sends=before.sends + now.sends
            )
    return found


def answer_ms(outcome: Outcome) -> float | None:
    """How long a server took; None where it gave no usable answer."""
    return None if outcome.answer is None else outcome.ms


def bytes_up(each: Round) -> list[int]:
    """Bytes that each server was sent in a round, for each image."""
    return [outcome.sends * length for outcome, length in zip(each.outcomes, each.bytes_up, strict=True)]


def bytes_down(past: Round) -> list[int]:
    """Bytes of the answers of a round, for each image."""
    return [0 if each.answer is None else each.answer.nbytes // len(each.answer) for each in past.outcomes]


def sums(rows: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """Column by column."""
    return tuple(map(sum, zip(*rows, strict=True)))
