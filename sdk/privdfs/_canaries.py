"""Canaries: images with known answers, sent among a user's, which expose a server that lies.

Where as few servers answer as decode (N = D T + 1), nothing in the answers shows a lie. But coded shares of a known
image look to up to T servers like those of any other, so a server that lies now and then lies about canaries too, and
their answers come out wrong. The known images are the golden examples of the bundle, with the recorded probabilities:
those whose values come out on this device as they were recorded, so that rounding raises no alarm.

What a server can see. A canary goes with a part of a call: it is an exchange of its own, of as many images, in all
rounds, directly before that part or directly after it, as a coin of the system's generator decides. So a server sees
two exchanges of one form in a row, and which of them is the canary is as likely one as the other. It would not do to
add an image to the part, since a call of two images would be a marked one, nor to send it at a time of its own.

A server that takes two in a row for such a pair learns only that. If it answers all second ones truly, it risks half
as much with each lie: the first of a pair is a canary every other time.

A wrong answer ends the call, whatever the user's image was, and so does a canary that too few servers answer: a server
that could be silent to canaries alone would not be found. It cannot be told who lied, only that somebody did.
"""

import secrets
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privdfs._constants import CANARY_TOLERANCE
from privdfs._errors import CanaryError, ConfigError


@dataclass(frozen=True)
class Canary:
    """What travels beside one part of a call.

    Attributes:
        pixels: uint8 [batch, height, width, channels].
        expected: probabilities float32 [batch, classes].
        first: whether it goes before the part; otherwise after it.
    """

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    expected: npt.NDArray[np.float32] = field(repr=False)
    first: bool = field(repr=False)

    def check(self, probabilities: npt.NDArray[np.float32], answered: tuple[int, ...]) -> None:
        """Compare what the answers decoded to with what is known.

        Args:
            probabilities: float32 [batch, classes].
            answered: the servers whose answers went into them.

        Raises:
            CanaryError: they differ.
        """
        # Written so that NaN fails.
        if not (np.abs(probabilities - self.expected) <= CANARY_TOLERANCE).all():
            raise CanaryError(
                f"an image whose answer is known came back with another one: at least one of the servers "
                f"{', '.join(map(str, answered))} lies or is faulty, and it cannot be told which. Trust no answer of "
                "these servers until their operators have found out; with more servers, or a smaller `colluding`, a "
                "call finds liars by itself",
                answered,
            )


@dataclass(frozen=True)
class Canaries:
    """The golden examples that this device can use.

    Attributes:
        images: uint8 [examples, height, width, channels].
        probabilities: what they are known to give, float32 [examples, classes].
    """

    images: npt.NDArray[np.uint8] = field(repr=False)
    probabilities: npt.NDArray[np.float32] = field(repr=False)

    @classmethod
    def among(
        cls,
        images: npt.NDArray[np.uint8],
        probabilities: npt.NDArray[np.float32],
        recorded: npt.NDArray[np.int8],
        found: npt.NDArray[np.int8],
    ) -> "Canaries":
        """Those of a bundle's golden examples that come out on this device exactly as they were recorded.

        Args:
            images: uint8 [examples, height, width, channels].
            probabilities: recorded, float32 [examples, classes].
            recorded: values that the device shares in the first round, int8 [examples, elements].
            found: the same, as this device computes them.

        Raises:
            ConfigError: there are none.
        """
        same = (recorded == found).all(axis=1)
        if not same.any():
            raise ConfigError(
                "no golden example comes out on this device exactly as it was recorded, so none can be a canary: try "
                "another version of onnxruntime, or drop `canary_rate`"
            )
        return cls(images[same], probabilities[same])

    def draw(self, count: int) -> Canary:
        """So many images at random, to go before or after a part of as many, at random."""
        chosen = [secrets.randbelow(len(self.images)) for _ in range(count)]
        return Canary(self.images[chosen], self.probabilities[chosen], first=bool(secrets.randbelow(2)))
