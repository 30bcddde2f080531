"""How much a device asks: a budget of images for each key, and the results of the last images, for repeats.

Different images under one key, and one image under different keys, both add to what a server knows of a user
(docs/THREAT_MODEL.md); the same image under the same key does not. So:

- An image that was answered before is answered from the record, under whatever key it comes: nothing is sent.
- An image that was sent under one key, and is in the record, is never sent under another one.
- Every other image costs one of the budget of its key's partition, whether it is answered or not; a failed call for it
  may be repeated at no further cost while it is in the record.

Kept are keyed digests of images, under a secret that no other object shares, and results: no image, no share, no key.
"""

import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privdfs._constants import DEFAULT_REPEATS, MAX_REPEATS
from privdfs._errors import ConfigError, QueryBudgetError
from privdfs._result import Result

_SECRET_BYTES = 32


@dataclass(frozen=True)
class Asked:
    """What is to be done about a batch.

    Attributes:
        digests: of its images, in order.
        known: results that need no server, by digest.
        fresh: positions of the images that have to be sent, each once.
    """

    digests: tuple[bytes, ...] = field(repr=False)
    known: Mapping[bytes, Result] = field(repr=False)
    fresh: tuple[int, ...]


class Queries:
    """What a device has asked, for one client or several, of one user or several; pass it as `queries=`.

    May be used from several threads at once. Counts end with the object: to go on after a restart, keep `spent` with
    the user's data and pass it again.

    Args:
        budget: images that each key's partition may ask for; None: as many as it likes.
        repeats: how many images are remembered, up to 100,000, the oldest forgotten first; 0: none.
        spent: what was asked before, as the attribute `spent` gave it.

    Raises:
        ConfigError: a number outside its range.
    """

    def __init__(
        self,
        *,
        budget: int | None = None,
        repeats: int = DEFAULT_REPEATS,
        spent: Mapping[int | None, int] | None = None,
    ) -> None:
        if budget is not None and (type(budget) is not int or budget < 1):
            raise ConfigError(f"budget={budget!r} is not a whole number from 1: pass how many images a key may ask for")
        if type(repeats) is not int or not 0 <= repeats <= MAX_REPEATS:
            raise ConfigError(f"repeats={repeats!r} is not a whole number from 0 to {MAX_REPEATS}")
        counts = {} if spent is None else dict(spent)
        if any(type(count) is not int or count < 0 for count in counts.values()):
            raise ConfigError("`spent` holds something that is no count: pass what the attribute `spent` gave")
        self._budget = budget
        self._repeats = repeats
        self._spent: dict[int | None, int] = counts
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        #: digest -> the partition that it was sent under, and the result, None before there is one
        self._seen: OrderedDict[bytes, tuple[int | None, Result | None]] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Queries(budget={self._budget}, repeats={self._repeats})"

    @property
    def spent(self) -> dict[int | None, int]:
        """Images asked for, by the partition of their key (None in a release without keys)."""
        with self._lock:
            return dict(self._spent)

    def ask(self, release: str, partition: int | None, pixels: npt.NDArray[np.uint8], min_answers: int) -> Asked:
        """Sort a batch into what is known and what has to be sent, and pay for the latter.

        Args:
            release: id of the release.
            partition: that the user's key picks.
            pixels: uint8 [batch, height, width, channels].
            min_answers: a result of fewer servers is not good enough.

        Raises:
            QueryBudgetError: the budget does not suffice, or an image was sent under another key; nothing is sent.
        """
        digests = tuple(self._digest(release, image) for image in pixels)
        with self._lock:
            known: dict[bytes, Result] = {}
            fresh: dict[bytes, int] = {}
            for position, digest in enumerate(digests):
                under, result = self._seen.get(digest, (partition, None))
                if result is not None and sum(result.answered) >= min_answers:
                    known[digest] = result
                elif under != partition:
                    raise QueryBudgetError(
                        "an image of this call was sent under another user's key before, and would now go out under a "
                        "second one: ask again under the first"
                    )
                else:
                    fresh.setdefault(digest, position)
            new = [digest for digest in fresh if digest not in self._seen]
            total = self._spent.get(partition, 0) + len(new)
            if new and self._budget is not None and total > self._budget:
                raise QueryBudgetError(
                    f"this key has asked for {self._spent.get(partition, 0)} of {self._budget} images and {len(new)} "
                    "more were asked for: nothing was sent; wait for a new budget, or allow a larger one",
                    self._spent.get(partition, 0),
                    self._budget,
                )
            if new:
                self._spent[partition] = total
            for digest in fresh:
                self._keep(digest, partition, self._seen.get(digest, (None, None))[1])
            for digest in known:
                self._seen.move_to_end(digest)
        return Asked(digests, known, tuple(fresh.values()))

    def answer(self, asked: Asked, partition: int | None, results: Sequence[Result]) -> dict[bytes, Result]:
        """Keep the results of the images that were sent; all results of the batch, by digest."""
        found = {asked.digests[position]: result for position, result in zip(asked.fresh, results, strict=True)}
        with self._lock:
            for digest, result in found.items():
                self._keep(digest, partition, result)
        return {**asked.known, **found}

    def _keep(self, digest: bytes, partition: int | None, result: Result | None) -> None:
        self._seen[digest] = partition, result
        self._seen.move_to_end(digest)
        while len(self._seen) > self._repeats:
            self._seen.popitem(last=False)

    def _digest(self, release: str, image: npt.NDArray[np.uint8]) -> bytes:
        return hmac.digest(self._secret, release.encode() + b"\0" + image.tobytes(), hashlib.sha256)
