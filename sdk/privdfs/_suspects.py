"""Finds servers that keep disagreeing with the others.

A single answer proves nothing: honest branches are wrong now and then, and each on other images. So the most probable
classes of every two servers are compared, image by image, over the last `SUSPECT_WINDOW` images. A server's score is
how often it disagrees with those servers that it agrees with best, half of the others: an honest server has so many
honest ones beside it, and a minority of liars has not, even if they lie in concert. A server is suspected once its
score is higher, by `SUSPECT_SIGMAS` standard deviations, than both

- what the branches' errors in the manifest explain, and
- the median score of all servers, so that images unlike those of training accuse no server by themselves.

An invalid answer (`AnswerError`) disagrees with every server. A majority of liars makes the honest ones
look like liars. What is kept is the index of a class for each image and server, and no logits.
"""

import logging
import math
import operator
import statistics
import threading
from collections import deque
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from privdfs._constants import SUSPECT_AFTER, SUSPECT_PRIOR, SUSPECT_SIGMAS, SUSPECT_WINDOW
from privdfs._format import ClientManifest

_log = logging.getLogger("privdfs")
_MISSING = -1


class Suspects:
    """The record of a client and its copies; may be used from several threads at once."""

    def __init__(self, manifest: ClientManifest) -> None:
        errors = [1 - accuracy for accuracy in manifest.accuracy.branches]
        n = len(errors)
        self._others = [[other for other in range(n) if other != server] for server in range(n)]
        self._place = math.ceil((n - 1) / 2) - 1  # of the score among a server's rates, the lowest first
        # Between 2 % and 90 %, so that a release measured on a few images neither accuses nor excuses every server.
        self._errors = [[min(max(one + other, 0.02), 0.9) for other in errors] for one in errors]
        # The score that these explain; none where two servers cannot say which of them is wrong.
        places = range(n) if n > 2 else ()
        self._expected = [sorted(self._errors[i][j] for j in self._others[i])[self._place] for i in places]
        # Plain integers: for a handful of servers numpy takes ten times as long.
        self._together = [[0] * n for _ in range(n)]  # images that both of two servers answered
        self._differed = [[0] * n for _ in range(n)]  # of these, those to which they gave different classes
        self._window: deque[list[int]] = deque()
        self._found: tuple[int, ...] = ()
        self._lock = threading.Lock()

    def note(
        self, logits: npt.NDArray[np.float32], answered: Collection[int], garbled: Collection[int]
    ) -> tuple[int, ...]:
        """Take the answers to a chunk into the record.

        Args:
            logits: float32 [batch, N, classes].
            answered: servers whose rows hold answers.
            garbled: servers whose answers were invalid.

        Returns:
            The suspected servers.
        """
        rows: list[list[int]] = logits.argmax(axis=2).tolist()
        silent = [server for server in range(logits.shape[1]) if server not in answered]
        for row in rows:
            for server in silent:
                row[server] = _MISSING
            for server in garbled:
                row[server] = -2 - server  # a class of its own
        with self._lock:
            for row in rows:
                self._count(row, 1)
                self._window.append(row)
                if len(self._window) > SUSPECT_WINDOW:
                    self._count(self._window.popleft(), -1)
            return self._judge()

    def _count(self, row: Sequence[int], sign: int) -> None:
        for server, vote in enumerate(row):
            if vote != _MISSING:
                together, differed = self._together[server], self._differed[server]
                for other in self._others[server]:
                    if row[other] != _MISSING:
                        together[other] += sign
                        if row[other] != vote:
                            differed[other] += sign

    def _judge(self) -> tuple[int, ...]:
        n = len(self._expected)
        if not n:
            return ()
        scores: list[float] = []
        seen: list[int] = []
        for server, others in enumerate(self._others):
            errors, together, differed = self._errors[server], self._together[server], self._differed[server]
            # Drawn towards what the manifest says while there is little to go by.
            rates = [
                ((differed[other] + SUSPECT_PRIOR * errors[other]) / (together[other] + SUSPECT_PRIOR), together[other])
                for other in others
            ]
            score, images = sorted(rates)[self._place]
            scores.append(score)
            seen.append(images)
        if all(map(operator.le, scores, self._expected)):  # nearly always
            self._found = ()
            return ()
        usual, usually_seen = statistics.median(scores), statistics.median(seen)
        found: list[int] = []
        for server in range(n):
            bound = min(max(self._expected[server], usual), 0.9)
            if seen[server] < SUSPECT_AFTER or scores[server] <= bound:
                continue
            spread = math.sqrt(
                bound * (1 - bound) * (1 / (seen[server] + SUSPECT_PRIOR) + 1 / (usually_seen + SUSPECT_PRIOR))
            )
            if scores[server] > bound + SUSPECT_SIGMAS * spread:
                found.append(server)
        for server in set(found) - set(self._found):
            _log.warning(
                "server %d keeps disagreeing with the others (%.0f %% of the last images): it is faulty, or it lies",
                server,
                100 * scores[server],
            )
        self._found = tuple(found)
        return self._found
