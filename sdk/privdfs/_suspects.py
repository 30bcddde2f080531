"""Who keeps disagreeing with the others.

A single answer proves nothing: honest branches are wrong now and then, and each on other images. So the most probable
classes of every two servers are compared, image by image, over the last `SUSPECT_WINDOW` images. A server's score is
how often it disagrees with those servers that it agrees with best, half of the others: an honest server has so many
honest ones beside it, and a minority of liars has not, even if they lie in concert. A server is suspected once its
score is higher, by `SUSPECT_SIGMAS` standard deviations, than both

- what the branches' errors in the manifest explain, and
- the median score of all servers, so that images unlike those of training make nobody a suspect alone.

An answer that cannot be an answer (`AnswerError`) disagrees with everybody. A majority of liars makes the honest ones
look like liars. What is kept is the index of a class for each image and server, and no logits.
"""

import logging
import math
import statistics
import threading
from collections import deque
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from privdfs._constants import SUSPECT_AFTER, SUSPECT_PRIOR, SUSPECT_SIGMAS, SUSPECT_WINDOW
from privdfs._manifest import ClientManifest

_log = logging.getLogger("privdfs")
_MISSING = -1


class Suspects:
    """The record of a client and its copies; may be used from several threads at once."""

    def __init__(self, manifest: ClientManifest) -> None:
        errors = 1 - np.array(manifest.accuracy.branches)
        n = len(errors)
        # Between 2 % and 90 %, so that a release measured on a few images neither accuses nor excuses everybody.
        self._expected = np.minimum(np.maximum(errors[:, None] + errors[None, :], 0.02), 0.9)
        self._together = np.zeros((n, n), np.int64)  # images that both of two servers answered
        self._differed = np.zeros((n, n), np.int64)  # of these, those to which they gave different classes
        self._window: deque[npt.NDArray[np.int64]] = deque()
        self._found: tuple[int, ...] = ()
        self._lock = threading.Lock()

    def note(
        self, logits: npt.NDArray[np.float32], answered: Collection[int], garbled: Collection[int]
    ) -> tuple[int, ...]:
        """Take the answers to a chunk into the record.

        Args:
            logits: float32 [batch, N, classes].
            answered: servers whose rows hold answers.
            garbled: servers that answered with something that cannot be an answer.

        Returns:
            The suspected servers.
        """
        n = logits.shape[1]
        votes = np.full((len(logits), n), _MISSING, np.int64)
        votes[:, list(answered)] = logits[:, list(answered)].argmax(axis=2)
        for server in garbled:
            votes[:, server] = -2 - server  # a class of its own
        with self._lock:
            for row in votes:
                self._count(row, 1)
                self._window.append(row)
                if len(self._window) > SUSPECT_WINDOW:
                    self._count(self._window.popleft(), -1)
            return self._judge()

    def _count(self, row: npt.NDArray[np.int64], sign: int) -> None:
        there = row != _MISSING
        both = there[:, None] & there[None, :]
        self._together += sign * both
        self._differed += sign * (both & (row[:, None] != row[None, :]))

    def _judge(self) -> tuple[int, ...]:
        n = len(self._expected)
        if n < 3:
            return ()
        # Drawn towards what the manifest says while there is little to go by.
        weights = self._together + SUSPECT_PRIOR
        rates = (self._differed + SUSPECT_PRIOR * self._expected) / weights
        place = math.ceil((n - 1) / 2) - 1
        scores: list[float] = []
        seen: list[int] = []
        expected: list[float] = []
        for server in range(n):
            others = sorted((other for other in range(n) if other != server), key=lambda o: rates[server, o])
            scores.append(float(rates[server, others[place]]))
            seen.append(int(self._together[server, others[place]]))
            expected.append(float(np.sort(np.delete(self._expected[server], server))[place]))
        usual, usually_seen = statistics.median(scores), statistics.median(seen)
        found: list[int] = []
        for server in range(n):
            bound = min(max(expected[server], usual), 0.9)
            spread = math.sqrt(
                bound * (1 - bound) * (1 / (seen[server] + SUSPECT_PRIOR) + 1 / (usually_seen + SUSPECT_PRIOR))
            )
            if seen[server] >= SUSPECT_AFTER and scores[server] > bound + SUSPECT_SIGMAS * spread:
                found.append(server)
        for server in set(found) - set(self._found):
            _log.warning(
                "server %d keeps disagreeing with the others (%.0f %% of the last images): it is faulty, or it lies",
                server,
                100 * scores[server],
            )
        self._found = tuple(found)
        return self._found
