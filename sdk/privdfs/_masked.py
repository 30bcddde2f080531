"""Masked shares in a call: one round, whose answers are fused, whoever gave them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privdfs._bundle import Bundle
from privdfs._config import check_min_answers
from privdfs._errors import AnswerError, ConfigError
from privdfs._format import accuracy_of
from privdfs._kinds import Answered, Outcome, Sent
from privdfs._suspects import Suspects


@dataclass(frozen=True)
class Masked:
    """What all calls for a masked release share. It keeps the partition that the user's key picks, not the key."""

    bundle: Bundle
    partition: int | None
    suspects: Suspects = field(repr=False)

    @property
    def servers(self) -> int:
        """How many there are: training decided."""
        return self.bundle.n_servers

    @property
    def rounds(self) -> int:
        """How many exchanges a call has."""
        return 1

    def check_min_answers(self, min_answers: int | None) -> int:
        """How many servers must answer: all of them, unless the caller is content with fewer."""
        return check_min_answers(min_answers, self.servers)

    def may_lower(self, min_answers: int) -> bool:
        """Fewer answers than that are fused too, down to one."""
        return min_answers > 1

    def begin(self, pixels: npt.NDArray[np.uint8]) -> Sent:
        """The shares of a batch."""
        return Sent(tuple(self.bundle.encode(pixels, partition=self.partition)))

    def take(self, sent: Sent, outcomes: Sequence[Outcome]) -> Answered:
        """Fuse what the servers answered."""
        sent.wipe()
        manifest, n_servers = self.bundle.masked, self.servers
        size = len(sent.shares[0])
        logits = np.zeros((size, n_servers, len(manifest.classes)), dtype=np.float32)
        for outcome in outcomes:
            if outcome.answer is not None:
                logits[:, outcome.server] = outcome.answer
        answered = [outcome.answer is not None for outcome in outcomes]
        present = [i for i in range(n_servers) if answered[i]]
        garbled = [outcome.server for outcome in outcomes if isinstance(outcome.error, AnswerError)]
        suspects = self.suspects.note(logits, present, garbled)
        probabilities = self.bundle.fuse(logits, np.array([answered] * size, dtype=np.bool_))
        return Answered(probabilities, suspects, (), accuracy_of(manifest, present))

    def forget(self, sent: Sent) -> None:
        """Nothing was kept but the shares: no round follows."""
        sent.wipe()

    def exchanges_left(self, index: int, following: int) -> int:  # noqa: ARG002 - as of every kind
        """This one, for whose late answers all the time may go, and one for each chunk that needs its part of it."""
        return 1 + following

    def rehearse(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Run both graphs once."""
        self.begin(pixels)
        logits = np.zeros((1, self.servers, len(self.bundle.classes)), np.float32)
        self.bundle.fuse(logits, np.ones((1, self.servers), np.bool_))


def refuse_colluding(colluding: int | None) -> None:
    """Refuse an argument that masked releases do not have.

    Raises:
        ConfigError: it was given.
    """
    if colluding is not None:
        raise ConfigError(
            "`colluding` belongs to coded releases, and this one is masked: what its servers learn together was "
            "measured, see Bundle.describe(); drop the argument"
        )
