"""What a prediction gives back."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privdfs._errors import ConfigError, ServerError
from privdfs._given import shown


@dataclass(frozen=True)
class Timings:
    """Where the time of a call went, in milliseconds.

    For a batch the times are those of the part that the image travelled in (at most `max_batch` images).

    Attributes:
        decode_ms: opening, rotating and resizing; of the whole batch, whatever part of it.
        encode_ms: the encoder graph.
        servers_ms: from sending to the answer, by server; None for a server that gave no usable answer.
        fusion_ms: the fusion graph.
        total_ms: from the call to the result, a first call's connection and release check included.
    """

    decode_ms: float
    encode_ms: float
    servers_ms: tuple[float | None, ...]
    fusion_ms: float
    total_ms: float


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
        answered: which servers' answers went into it, by server.
        timings: where the time went.
        bytes_up: bytes of the share (and in a keyed release the index of its partition) sent to each server, retries
            and hedges included; 0 where it was sent nothing.
        suspects: servers that have kept disagreeing with the others (`_suspects.py` says how often is too often); they
            are faulty or lie, and their operators should hear of it.
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

    def top(self, k: int) -> list[tuple[str, float]]:
        """The `k` most probable classes (all of them, if there are fewer) with their probabilities, best first.

        Raises:
            ConfigError: `k` is below 1.
        """
        if type(k) is not int or k < 1:
            raise ConfigError(f"top({shown(k)}) asks for no class: pass a whole number from 1")
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.classes[i], float(self.probabilities[i])) for i in order]
