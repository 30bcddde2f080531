"""Coded shares in a call: rounds of shares over primes, answers decoded exactly, liars found and left out.

Guarantees:

- Every sharing has fresh randomness from the system's generator: for every call, round, value and prime. If the
  generator fails, nothing of that round is sent.
- Arrays are wiped as soon as they have served, and when the call ends, also with an error: random residues when the
  shares are made, shares and gathered answers when their round is over, what was shared after the last round. What
  Python and its libraries own cannot be wiped: the generator's bytes, messages as they travel, and ONNX Runtime's
  memory. They free it, and it is overwritten when it is used again.
- All servers get a share in every round, those too that were silent or lied before: what is decoded changes nothing
  that servers can see, but for one thing. Where answers contradict each other and it cannot be told who lies, or too
  few are left without those of servers that were caught, the call ends with an error, and no later round is sent.
- No result is decoded from the answer of a server that was caught in this round or in an earlier one.
- A result is decoded from answers that agree with all others that were heard, or of which `corrected` names the rest.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privdfs import coding
from privdfs._coded_format import (
    ADDED,
    ANSWERS,
    POWERS,
    RANDOMNESS,
    WEIGHTS,
    CodedManifest,
    RoundSpec,
    coded_encoder_signature,
    coded_fusion_signature,
    largest_degree,
    relay_name,
    relay_signature,
)
from privdfs._constants import ONNX_THREADS
from privdfs._errors import BundleFormatError, ConfigError, ContradictingAnswersError, RandomnessError
from privdfs._format import ENCODER_NAME, FUSION_NAME, IMAGE, largest_coalition
from privdfs._given import shown
from privdfs._kinds import Answered, Outcome, Sent
from privdfs._onnx import Array, Graph


class CodedGraphs:
    """The device's graphs of a coded release: the encoder, a relay between every two rounds, the fusion."""

    def __init__(self, manifest: CodedManifest, files: Mapping[str, bytes]) -> None:
        """Open them.

        Raises:
            BundleFormatError: one cannot be loaded, or has other inputs or outputs than the manifest says.
        """
        self.rounds, self.classes = manifest.rounds, len(manifest.classes)
        self._encoder = Graph(ENCODER_NAME, files[ENCODER_NAME], coded_encoder_signature(manifest), ONNX_THREADS)
        self._relays = [
            Graph(name, files[name], relay_signature(manifest, number), ONNX_THREADS)
            for number, name in enumerate(map(relay_name, range(1, len(manifest.rounds))), 1)
        ]
        self._fusion = Graph(FUSION_NAME, files[FUSION_NAME], coded_fusion_signature(manifest), 1)

    def encode(self, images: Array, randomness: Array, powers: Array) -> tuple[Array, Array]:
        """Images to the shares of the first round, int8 [batch, N, primes, values], and what they share."""
        shares, values = self._encoder.run({IMAGE: images, RANDOMNESS: randomness, POWERS: powers})
        return _shaped(ENCODER_NAME, shares, values, self.rounds[0], len(images), powers.shape[1])

    def relay(
        self, index: int, answers: Array, weights: Array, randomness: Array, powers: Array, added: Array | None
    ) -> tuple[Array, Array]:
        """Answers of a round, counted from 0, to the shares of the next, and what they share."""
        feed = {ANSWERS: answers, WEIGHTS: weights, RANDOMNESS: randomness, POWERS: powers}
        if added is not None:
            feed[ADDED] = added
        shares, values = self._relays[index].run(feed)
        name = relay_name(index + 1)
        return _shaped(name, shares, values, self.rounds[index + 1], len(answers), powers.shape[1])

    def fuse(self, answers: Array, weights: Array) -> npt.NDArray[np.float32]:
        """Answers of the last round to probabilities, float32 [batch, classes]."""
        (probabilities,) = self._fusion.run({ANSWERS: answers, WEIGHTS: weights})
        if probabilities.shape != (len(answers), self.classes) or not np.isfinite(probabilities).all():
            raise BundleFormatError(f"{FUSION_NAME} does not give probabilities: run the bundle's self-test")
        return probabilities


def _shaped(name: str, shares: Array, values: Array, about: RoundSpec, batch: int, n: int) -> tuple[Array, Array]:
    """Refuse what would not fit a message."""
    wanted = (batch, n, len(about.moduli), about.values), (batch, about.elements)
    if (shares.shape, values.shape) != wanted:
        raise BundleFormatError(
            f"{name} gives {list(shares.shape)} and {list(values.shape)} where the manifest promises "
            f"{list(wanted[0])} and {list(wanted[1])}: get the release again"
        )
    return shares, values


@dataclass(frozen=True, eq=False)
class _Carried:
    """What the device keeps between rounds.

    Attributes:
        values: what it shared in every round so far, int8 [batch, elements].
        liars: servers that were caught so far.
    """

    values: tuple[npt.NDArray[np.int8], ...] = field(repr=False)
    liars: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Coded:
    """What all calls of a client for a coded release share.

    Attributes:
        graphs: the device's.
        manifest: of the release.
        servers: N.
        colluding: T.
    """

    graphs: CodedGraphs = field(repr=False)
    manifest: CodedManifest = field(repr=False)
    servers: int
    colluding: int

    @classmethod
    def check(cls, graphs: CodedGraphs, manifest: CodedManifest, servers: int, colluding: int | None) -> "Coded":
        """For so many servers, of which so many may collude; the largest minority when None.

        Raises:
            ConfigError: servers are too few to decode what they compute, or too many to find liars among.
        """
        if servers > coding.MAX_SERVERS:
            raise ConfigError(f"{servers} servers are more than the {coding.MAX_SERVERS} that a client can decode from")
        trusted = largest_coalition(servers) if colluding is None else colluding
        if type(trusted) is not int or trusted < 1:
            raise ConfigError(
                f"colluding={shown(colluding)} is not a whole number of at least 1: pass how many servers together "
                "must learn nothing"
            )
        degree = largest_degree(manifest)
        needed = coding.needed_answers(degree, trusted)
        if servers < needed:
            most = (servers - 1) // degree
            instead = f"give {needed} servers" + (f", or pass colluding={most}" if most > 0 else "")
            raise ConfigError(
                f"{servers} servers cannot keep {trusted} of them ignorant: the rounds of {manifest.release} have "
                f"degree {degree}, so {needed} answers decode them; {instead}"
            )
        return cls(graphs, manifest, servers, trusted)

    @property
    def rounds(self) -> int:
        """How many exchanges a call has."""
        return len(self.manifest.rounds)

    @property
    def partition(self) -> None:
        """Coded releases have no keys."""

    @property
    def needed(self) -> int:
        """How many answers decode every round."""
        return coding.needed_answers(largest_degree(self.manifest), self.colluding)

    def check_min_answers(self, min_answers: int | None) -> int:
        """How many servers must answer: as many as decode, unless the caller wants more, to find liars with."""
        if min_answers is None:
            return self.needed
        if type(min_answers) is not int or min_answers > self.servers:
            raise ConfigError(
                f"min_answers={shown(min_answers)} is not a whole number from {self.needed} to {self.servers}, the "
                "number of servers"
            )
        if min_answers < self.needed:
            raise ConfigError(
                f"{self.servers} servers with colluding={self.colluding} need {self.needed} answers; "
                f"min_answers={min_answers} is too few"
            )
        return min_answers

    def may_lower(self, min_answers: int) -> bool:
        """Fewer answers would do where more were asked for than decode; the result is exact all the same."""
        return min_answers > self.needed

    def begin(self, pixels: npt.NDArray[np.uint8]) -> Sent:
        """The shares of the first round."""
        with _wiped(self._randomness(0, len(pixels))) as randomness:
            shares, values = self.graphs.encode(pixels, randomness, self._powers(0))
        return _sent(shares, 0, _Carried((values,)))

    def take(self, sent: Sent, outcomes: Sequence[Outcome]) -> Sent | Answered:
        """Decode a round, and make the shares of the next."""
        sent.wipe()
        places = [outcome.server + 1 for outcome in outcomes if outcome.answer is not None]
        gathered = np.stack([outcome.answer for outcome in outcomes if outcome.answer is not None], axis=1)
        with _wiped(gathered) as answers:
            found = self._decode(sent, places, answers)
        if isinstance(found, Answered):
            self.forget(sent)
        return found

    def _decode(self, sent: Sent, places: Sequence[int], answers: Array) -> Sent | Answered:
        """What comes of a round's answers, int8 [batch, answered, primes, outputs]."""
        index, carried = sent.round, sent.state
        about = self.manifest.rounds[index]
        needed = coding.needed_answers(about.degree, self.colluding)
        found = coding.find_liars(answers, places, about.moduli, needed)
        liars = carried.liars | {places[position] - 1 for position in found or ()}
        # Whoever lied in an earlier round is not believed either: here too few may have answered to see its lies.
        chosen = [position for position, place in enumerate(places) if place - 1 not in liars][:needed]
        if found is None or len(chosen) < needed:
            raise _cannot_decide(places, index + 1, needed, carried.liars)
        weights = coding.weights(about.moduli, [places[position] for position in chosen])
        with _wiped(answers if len(chosen) == len(places) else answers[:, chosen]) as believed:
            if index + 1 == self.rounds:
                caught = tuple(sorted(liars))
                probabilities = self.graphs.fuse(believed, weights)
                return Answered(probabilities, caught, caught, self.manifest.accuracy.fused)
            added = carried.values[about.added - 1] if about.added else None
            with _wiped(self._randomness(index + 1, len(answers))) as randomness:
                shares, values = self.graphs.relay(index, believed, weights, randomness, self._powers(index + 1), added)
        return _sent(shares, index + 1, _Carried((*carried.values, values), frozenset(liars)))

    def forget(self, sent: Sent) -> None:
        """Wipe the shares, and what was shared in all rounds so far."""
        sent.wipe()
        for values in sent.state.values:
            values.fill(0)

    def exchanges_left(self, index: int, following: int) -> int:
        """All: a late answer changes nothing in the result, so it may not cost what comes after it."""
        return self.rounds - index + self.rounds * following

    def rehearse(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Run every graph once, on answers of zeros."""
        sent: Sent | Answered = self.begin(pixels)
        while isinstance(sent, Sent):
            about = self.manifest.rounds[sent.round]
            zeros = np.zeros((len(pixels), len(about.moduli), about.outputs), np.int8)
            sent = self.take(sent, [Outcome(server, 0.0, zeros) for server in range(self.servers)])

    def _randomness(self, index: int, batch: int) -> npt.NDArray[np.int8]:
        """Fresh residues for the shares of one round."""
        about = self.manifest.rounds[index]
        try:
            return coding.draw((batch, self.colluding, about.values), about.moduli)
        except (OSError, NotImplementedError) as error:
            raise RandomnessError(
                "the system's random generator failed, so no share of this round was sent: without it shares would "
                "not be private; check /dev/urandom and the limits of this process"
            ) from error

    def _powers(self, index: int) -> npt.NDArray[np.int8]:
        return coding.powers(self.manifest.rounds[index].moduli, self.servers, self.colluding)


@contextmanager
def _wiped(values: Array) -> Generator[Array]:
    """An array that is needed no longer than this."""
    try:
        yield values
    finally:
        values.fill(0)


def _cannot_decide(
    places: Sequence[int], number: int, needed: int, caught: frozenset[int]
) -> ContradictingAnswersError:
    """The error of a round, counted from 1, in which too few answers can be believed."""
    servers = tuple(place - 1 for place in places)
    before = ""
    if caught:
        before = (
            f", or come from servers that gave wrong ones in earlier rounds ({', '.join(map(str, sorted(caught)))})"
        )
    return ContradictingAnswersError(
        f"the answers of servers {', '.join(map(str, servers))} contradict each other{before} in round {number}: at "
        f"least one of them lies or is faulty, and too few answers are left to decode from: it takes {needed}, and two "
        "more for each lie; more servers, or a smaller `colluding`, would correct it",
        servers,
        number,
    )


def _sent(shares: Array, index: int, carried: _Carried) -> Sent:
    """Each server's shares by themselves: as they are in a batch of one, copies otherwise."""
    own = tuple(np.ascontiguousarray(shares[:, server]) for server in range(shares.shape[1]))
    if len(shares) > 1:
        shares.fill(0)
    return Sent(own, index, carried)
