"""What a prediction gives back."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privdfs._errors import ConfigError, ServerError
from privdfs._given import shown


@dataclass(frozen=True)
class RoundTimings:
    """Where the time of one round went, in milliseconds; masked releases have one round, coded ones one or more.

    Attributes:
        encode_ms: making its shares, on the device: the encoder graph, or decoding the round before and sharing again.
        servers_ms: from sending to the answer, by server; None for a server that gave no usable answer.
    """

    encode_ms: float
    servers_ms: tuple[float | None, ...]


@dataclass(frozen=True)
class Timings:
    """Where the time of a call went, in milliseconds.

    For a batch the times are those of the part that the image travelled in (at most `max_batch` images).

    Attributes:
        decode_ms: opening, rotating and resizing; of the whole batch, whatever part of it.
        encode_ms: making the shares on the device, of all rounds.
        servers_ms: from sending to the answer, by server, over all rounds; None for a server that gave no usable answer
            in one of them.
        fusion_ms: from the last answers to the result.
        total_ms: from the call to the result, a first call's connection and release check included.
        rounds: the same by round.
    """

    decode_ms: float
    encode_ms: float
    servers_ms: tuple[float | None, ...]
    fusion_ms: float
    total_ms: float
    rounds: tuple[RoundTimings, ...] = ()


@dataclass(frozen=True)
class SelfTest:
    """How close this device comes to the golden examples.

    Attributes:
        images: number of golden examples.
        differing_values: fraction of int8 share values that differ from the recorded ones.
        probability_error: largest difference of a probability from the recorded one.
    """

    images: int
    differing_values: float
    probability_error: float


@dataclass(frozen=True)
class Health:
    """How one replica of a server does.

    Attributes:
        server: index of the server.
        endpoint: of the replica.
        ms: what the question took, connecting included.
        error: what is wrong with it; None when it serves this server of this release.
    """

    server: int
    endpoint: str
    ms: float
    error: ServerError | None = None

    @property
    def ok(self) -> bool:
        """Whether the replica can be used."""
        return self.error is None


@dataclass(frozen=True, eq=False)
class Result:
    """The fused answer for one image.

    Attributes:
        label: name of the most probable class.
        index: its index.
        probability: its probability, 0 to 1.
        answered: which servers gave a usable answer, by server; in a coded release, in every round.
        timings: where the time went.
        bytes_up: bytes of the share (and in a keyed release the index of its partition) sent to each server, retries
            and hedges included; 0 where it was sent nothing.
        bytes_down: bytes of the answers that each server gave; 0 where it gave no usable one.
        suspects: servers that are faulty or lie, and their operators should hear of it. In a masked release those that
            have kept disagreeing with the others (`_suspects.py` says how often is too often); in a coded one those
            whose answers in this call were wrong, to canaries too.
        corrected: of a coded release, the servers whose wrong answers were found and left out. The result is exact all
            the same.
        repeated: whether `Queries` knew the image, and nothing was sent; all but the timings is then of the first time.
        expected_accuracy: of an answer of exactly these servers, as the manifest states it; None where it does not.
        probabilities: float32 [classes].
        classes: names of all classes, in the order of `probabilities`.
    """

    label: str
    index: int
    probability: float
    answered: tuple[bool, ...]
    timings: Timings
    bytes_up: tuple[int, ...]
    suspects: tuple[int, ...]
    expected_accuracy: float | None
    probabilities: npt.NDArray[np.float32] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    repeated: bool = False
    corrected: tuple[int, ...] = ()
    bytes_down: tuple[int, ...] = ()

    def top(self, k: int) -> list[tuple[str, float]]:
        """The `k` most probable classes (all of them, if there are fewer) with their probabilities, best first.

        Raises:
            ConfigError: `k` is below 1.
        """
        if type(k) is not int or k < 1:
            raise ConfigError(f"top({shown(k)}) asks for no class: pass a whole number from 1")
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.classes[i], float(self.probabilities[i])) for i in order]
