"""All rounds of a coded release in this process, on its graphs: shares, answers, and what the device decodes."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privdfs import coding
from privdfs._coded_format import ADDED, ANSWERS, POWERS, RANDOMNESS, WEIGHTS, RoundSpec
from privdfs._format import IMAGE, SHARE
from privdfs_export.coded_contents import CodedGraphs
from privdfs_export.contents import Graph

Chosen = Callable[[int], Sequence[int]]


@dataclass(frozen=True, eq=False)
class CodedRun:
    """What was seen of some images' rounds.

    Attributes:
        values: What the device shared in each round, int8 [images, elements].
        shares: What each server was sent in each round, int8 [images, servers, primes, values].
        answers: What the chosen servers answered in each round, int8 [images, chosen, primes, outputs].
        chosen: Those servers, of each round.
        probabilities: float32 [images, classes].
    """

    values: Sequence[NDArray[np.int8]] = field(repr=False)
    shares: Sequence[NDArray[np.int8]] = field(repr=False)
    answers: Sequence[NDArray[np.int8]] = field(repr=False)
    chosen: Sequence[Sequence[int]]
    probabilities: NDArray[np.float32] = field(repr=False)


def run_coded(
    built: CodedGraphs,
    rounds: Sequence[RoundSpec],
    images: NDArray[np.uint8],
    *,
    servers: int,
    colluding: int = 1,
    chosen: Chosen | None = None,
    source: Callable[[int], bytes] = os.urandom,
) -> CodedRun:
    """Run all rounds, with fresh randomness.

    Args:
        built: The graphs.
        rounds: Of the release.
        images: uint8 [images, height, width, channels].
        servers: N.
        colluding: T.
        chosen: Gives the servers that are heard in a round, counted from 0: as many as decode it. None: the first ones.
        source: Gives so many random bytes: the system's, but for golden examples, which protect nothing.

    Returns:
        What was seen.
    """

    def sharing(about: RoundSpec) -> dict[str, NDArray[np.int8]]:
        return {
            RANDOMNESS: coding.draw((len(images), colluding, about.values), about.moduli, source),
            POWERS: coding.powers(about.moduli, servers, colluding),
        }

    shares, values = _run(built.encoder, {IMAGE: images} | sharing(rounds[0]))
    seen_values, seen_shares, seen_answers, heard = [values], [shares], list[NDArray[np.int8]](), list[Sequence[int]]()
    for index, about in enumerate(rounds):
        needed = coding.needed_answers(about.degree, colluding)
        who = list(range(needed)) if chosen is None else list(chosen(index))
        answers = np.stack([_run(built.rounds[index], {SHARE: shares[:, server]})[0] for server in who], axis=1)
        heard.append(who)
        seen_answers.append(answers)
        feed = {ANSWERS: answers, WEIGHTS: coding.weights(about.moduli, [server + 1 for server in who])}
        if index + 1 == len(rounds):
            (probabilities,) = _run(built.fusion, feed)
            return CodedRun(seen_values, seen_shares, seen_answers, heard, probabilities)
        feed |= sharing(rounds[index + 1])
        if about.added:
            feed[ADDED] = seen_values[about.added - 1]
        shares, values = _run(built.relays[index], feed)
        seen_values.append(values)
        seen_shares.append(shares)
    raise AssertionError


def _run(graph: Graph, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    found: Any = graph.session.run(None, dict(feed))
    return found
