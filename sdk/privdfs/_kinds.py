"""What the two kinds of release have in common in a call: shares go out, outcomes come back, round after round."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from privdfs._errors import ServerError
from privdfs._values import Value


class Outcome(Value, frozen=True):
    """The result of one share: an answer, or an error.

    Attributes:
        server: index of the server.
        ms: from the first time that the share was sent to the answer.
        answer: logits float32 [batch, classes], or in a coded release residues int8 [batch, primes, outputs].
        sends: how often the share was sent, retries and hedges included.
        ready: the server passed the check but was sent nothing, because others did not pass; no answer, no error.
    """

    server: int
    ms: float
    answer: npt.NDArray[Any] | None = None
    error: ServerError | None = None
    ready: bool = False
    sends: int = 0


class Sent(Value, frozen=True):
    """The shares of one round.

    Attributes:
        shares: one for each server: int8 [batch, K_i], or in a coded release int8 [batch, primes, values].
        round: counted from 0.
        state: what the device keeps for the rounds that follow; only its kind looks into it.
    """

    shares: tuple[npt.NDArray[np.int8], ...]
    round: int = 0
    state: Any = None

    def wipe(self) -> None:
        """Wipe the shares: the exchange is over."""
        for values in self.shares:
            values.fill(0)


class Answered(Value, frozen=True):
    """What came of all rounds.

    Attributes:
        probabilities: float32 [batch, classes].
        suspects: servers that lie, or are faulty, as far as is known.
        corrected: servers whose answers were found wrong in this call, and left out.
        expected_accuracy: of such an answer; None where the manifest does not state it.
    """

    probabilities: npt.NDArray[np.float32]
    suspects: tuple[int, ...]
    corrected: tuple[int, ...]
    expected_accuracy: float | None


class Kind(Protocol):
    """How a release's images become shares, and answers a result: `_masked.Masked` or `_coded.Coded`."""

    @property
    def servers(self) -> int:
        """N."""
        ...

    @property
    def rounds(self) -> int:
        """How many exchanges a call has."""
        ...

    @property
    def partition(self) -> int | None:
        """Of a keyed release."""
        ...

    def check_min_answers(self, min_answers: int | None) -> int:
        """How many servers must answer in every round."""
        ...

    def may_lower(self, min_answers: int) -> bool:
        """Whether fewer answers would do, at the price of a less certain result."""
        ...

    def begin(self, pixels: npt.NDArray[np.uint8]) -> Sent:
        """The shares of the first round: uint8 [batch, height, width, channels] of the bundle's image size."""
        ...

    def take(self, sent: Sent, outcomes: Sequence[Outcome]) -> Sent | Answered:
        """The shares of the next round, or what came of the last one; enough servers have answered.

        Shares that were sent are wiped, and after the last round also what was kept.
        """
        ...

    def forget(self, sent: Sent) -> None:
        """Wipe shares, and what the device kept for later rounds: the call has ended, one way or another."""
        ...

    def exchanges_left(self, index: int, following: int) -> int:
        """Among how many exchanges the time that is left is divided, so that who is late does not use it up.

        Args:
            index: of the present round, from 0.
            following: how many chunks the call sends after this one.
        """
        ...

    def rehearse(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Run every graph once, for one image: ONNX Runtime allocates at the first run."""
        ...
