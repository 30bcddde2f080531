"""`suspects.json`: who keeps disagreeing, in a masked release."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from privdfs._suspects import Suspects
from tests.conformance.exact_graphs import drawn
from tests.conformance.releases import masked_manifest

ABOUT = (
    "Suspects of a masked release whose branches have `accuracies`. One image after the other is answered: `answers` "
    'are the classes of the largest logits by server, null: silent, "invalid": refused with AnswerError. `suspects` '
    "are all changes: after how many images, and who is suspected from then on."
)

#: A class, None, or "invalid".
Told = int | str | None


def make() -> Iterable[dict[str, Any]]:
    for name, accuracies, answers in _cases():
        told = {"name": name, "section": "4.4", "accuracies": accuracies, "answers": answers}
        yield told | {"suspects": changes(told)}


def changes(told: Mapping[str, Any]) -> list[list[Any]]:
    """Every change of who is suspected."""
    accuracies: Sequence[float] = told["accuracies"]
    manifest = masked_manifest("suspects")
    accuracy = msgspec.structs.replace(manifest.accuracy, branches=tuple(accuracies))
    suspects = Suspects(msgspec.structs.replace(manifest, accuracy=accuracy))
    seen: list[list[Any]] = []
    before: tuple[int, ...] = ()
    for number, row in enumerate(told["answers"], 1):
        logits = np.zeros((1, len(row), 4), np.float32)
        for server, answer in enumerate(row):
            if isinstance(answer, int):
                logits[0, server, answer] = 1
        answered = [server for server, answer in enumerate(row) if isinstance(answer, int)]
        garbled = [server for server, answer in enumerate(row) if answer == "invalid"]
        found = suspects.note(logits, answered, garbled)
        if found != before:
            seen.append([number, list(found)])
            before = found
    return seen


def _cases() -> Iterable[tuple[str, list[float], list[list[Told]]]]:
    def lying(servers: int, liars: Sequence[int], images: int, told: Told = 1) -> list[list[Told]]:
        return [[told if server in liars else 0 for server in range(servers)] for _ in range(images)]

    def noisy(servers: int, images: int, one_in: int) -> list[list[Told]]:
        """Each answer is another one every so often."""
        odd = drawn(f"suspects {servers} {images}", (images, servers), 127).astype(int) % one_in == 0
        return [[int(each) for each in row] for row in odd]

    yield "all agree", [0.9] * 3, lying(3, [], 40)
    yield "one of three always disagrees", [0.9] * 3, lying(3, [2], 60)
    yield "one of three always disagrees, and was bad before", [0.9, 0.9, 0.2], lying(3, [2], 60)
    yield "two of five say the same wrong thing", [0.8] * 5, lying(5, [0, 3], 60)
    yield "one of three gives invalid answers", [0.9] * 3, lying(3, [0], 60, "invalid")
    yield "one of three is silent", [0.9] * 3, lying(3, [1], 60, None)
    yield "servers that err as often as they say", [0.7] * 5, noisy(5, 120, 4)
    yield "a liar that reforms is forgotten", [0.9] * 3, lying(3, [2], 60) + lying(3, [], 240)
    yield "of two servers none is suspected", [0.9] * 2, lying(2, [1], 60)
