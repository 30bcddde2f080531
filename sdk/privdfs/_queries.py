"""How much a device asks: a budget of images for each key, and the results of the last images, for repeats.

Different images under one key, and one image under different keys, both add to what a server knows of a user
(docs/THREAT_MODEL.md); the same image under the same key does not. So:

- An image that was answered before is answered from the record, under whatever key it comes: nothing is sent.
- An image that was sent under one key, and is in the record, is never sent under another one.
- Every other image costs one of the budget of its key's partition, whether it is answered or not; a failed call for it
  may be repeated at no further cost while it is in the record.

With `canary_rate`, images whose answers are known travel among the others, and a wrong answer to one is an error
(`_canaries.py`).

Kept are keyed digests of images, under a secret that no other object shares, and results: no image, no share, no key.
"""

import hashlib
import hmac
import math
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np
import numpy.typing as npt

from privdfs._constants import DEFAULT_REPEATS, MAX_REPEATS
from privdfs._errors import ConfigError, QueryBudgetError
from privdfs._given import check_path, read_file, shown, write_file
from privdfs._result import Result

if TYPE_CHECKING:
    from typing_extensions import Self

_SECRET_BYTES = 32
_SYSTEM_RANDOM = secrets.SystemRandom()
_PARTITION = re.compile(r"0|[1-9][0-9]{0,9}")
#: None, as JSON spells it when it is a key.
_NO_PARTITION = "null"


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `Queries.save` writes."""

    privdfs_queries: int
    spent: dict[str, int]


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

    May be used from several threads at once. Counts end with the object: to go on after a restart, `save` them with the
    user's data, and make the next object with `load`.

    Args:
        budget: images that each key's partition may ask for; None for no limit.
        repeats: how many images are remembered, up to 100,000, the oldest forgotten first; 0: none.
        spent: what was asked before, as the attribute `spent` gave it; JSON, which turns its keys into
            text, may lie between.
        canary_rate: the fraction of exchanges with servers, 0 to 1, that carry images with known answers, for
            coded releases: 0.05 costs 5 % more traffic, and exposes a server that always lies within 20 calls or so,
            even where no answer is to spare. They count towards no budget.

    Raises:
        ConfigError: a number outside its range, or something else than `spent` gave.
    """

    def __init__(
        self,
        *,
        budget: int | None = None,
        repeats: int = DEFAULT_REPEATS,
        spent: Mapping[int | None, int] | None = None,
        canary_rate: float = 0.0,
    ) -> None:
        if budget is not None and (type(budget) is not int or budget < 1):
            raise ConfigError(
                f"budget={shown(budget)} is not a whole number of at least 1: pass how many images a key may ask for"
            )
        if type(repeats) is not int or not 0 <= repeats <= MAX_REPEATS:
            raise ConfigError(f"repeats={shown(repeats)} is not a whole number from 0 to {MAX_REPEATS}")
        self._budget = budget
        self._repeats = repeats
        self._canary_rate = _check_rate(canary_rate)
        self._spent = _read_counts({} if spent is None else spent)
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        #: digest -> the partition that it was sent under, and the result, None before there is one
        self._seen: OrderedDict[bytes, tuple[int | None, Result | None]] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Queries(budget={self._budget}, repeats={self._repeats}, canary_rate={self._canary_rate:g})"

    @property
    def canary_rate(self) -> float:
        """The fraction of exchanges with servers that carry images with known answers."""
        return self._canary_rate

    def canary_due(self) -> bool:
        """Whether one travels with the next exchange: a coin of the system's generator, fresh each time."""
        return self._canary_rate > 0 and _SYSTEM_RANDOM.random() < self._canary_rate

    @property
    def spent(self) -> dict[int | None, int]:
        """Images asked for, by the partition of their key (None in a release without keys)."""
        with self._lock:
            return dict(self._spent)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        budget: int | None = None,
        repeats: int = DEFAULT_REPEATS,
        canary_rate: float = 0.0,
    ) -> "Self":
        """Go on with the counts that `save` wrote.

        Args:
            path: of the file. Where there is none yet, in a folder that exists, nothing has been asked for.
            budget: as for the constructor.
            repeats: as for the constructor. Which images were asked for is not in the file.
            canary_rate: as for the constructor.

        Raises:
            ConfigError: the file cannot be read, was damaged, or is something else; a number outside its range.
        """
        checked = check_path(path, "the file of counts")
        spent: Mapping[int | None, int] | None = None
        if not _is_new(checked):
            try:
                kept = msgspec.json.decode(read_file(checked, "the file of counts"), type=_Kept)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                kept = None
            if kept is None or kept.privdfs_queries != 1:
                raise ConfigError(
                    f"{shown(checked)} does not hold what Queries.save writes (`spent`): get it back from where the "
                    "user's data is kept, or remove it to start at zero"
                )
            spent = cast("Mapping[int | None, int]", kept.spent)
        return cls(budget=budget, repeats=repeats, spent=spent, canary_rate=canary_rate)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the counts to a file that only this user can read, in one step; `load` reads it.

        It holds how many images each partition asked for, and nothing of a key or an image. Call it after the calls
        that it is to count, before the process may end.

        Raises:
            ConfigError: it cannot be written; what was there before still is.
        """
        spent = {_NO_PARTITION if partition is None else str(partition): n for partition, n in self.spent.items()}
        write_file(path, "the file of counts", msgspec.json.encode(_Kept(1, spent)) + b"\n")

    def ask(self, release: str, partition: int | None, pixels: npt.NDArray[np.uint8], min_answers: int) -> Asked:
        """Sort a batch into known images and those to send, and charge the latter to the budget.

        Args:
            release: id of the release.
            partition: that the user's key picks.
            pixels: uint8 [batch, height, width, channels].
            min_answers: a result of fewer servers is not good enough.

        Raises:
            QueryBudgetError: the budget is too small, or an image was sent under another key; nothing is sent.
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
                        "an image of this call was sent under another user's key before, and would now be sent under a "
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


def _check_rate(rate: object) -> float:
    number = float(rate) if isinstance(rate, (int, float)) and not isinstance(rate, bool) else math.nan
    if not 0 <= number <= 1:  # NaN compares false
        raise ConfigError(
            f"canary_rate={shown(rate)} is not a number from 0 to 1: 0.05 sends a canary with every twentieth exchange"
        )
    return number


def _read_counts(spent: object) -> dict[int | None, int]:
    """Counts by partition; keys may be the text that JSON made of them."""
    counts: dict[int | None, int] = {}
    rows = cast("Mapping[object, object]", spent).items() if isinstance(spent, Mapping) else [(object(), 0)]
    for key, count in rows:
        partition = int(key) if isinstance(key, str) and _PARTITION.fullmatch(key) else key
        partition = None if partition == _NO_PARTITION else partition
        fits = partition is None or (type(partition) is int and partition >= 0)
        if not fits or type(count) is not int or count < 0 or partition in counts:
            raise ConfigError(
                "`spent` is not what the attribute `spent` gave (a count for every partition): pass that, or use "
                "Queries.save and Queries.load"
            )
        counts[cast("int | None", partition)] = count
    return counts


def _is_new(path: Path) -> bool:
    try:
        return not path.exists() and path.parent.is_dir()
    except OSError:  # reading it will say why
        return False
