"""Sharing integers over small primes, and decoding what polynomial networks answer. Numpy alone, exact everywhere.

Every integer is shared modulo each prime p by a random polynomial (Shamir, Communications of the ACM 22, 1979): server
i gets `value + r_1 a_i + ... + r_T a_i^T mod p` at its place a_i = i + 1. Any T servers together hold uniform numbers,
whatever the value is. A server that evaluates a polynomial of degree D on its share holds one point of a polynomial of
degree D T, whose value at 0 is the result (Yu et al., arXiv 1806.00939). D T + 1 points give it back modulo p, and the
primes together give the integer.

More points than that are checked against each other, and up to `correctable` wrong ones are found (Reed and Solomon,
SIAM Journal 8, 1960): the equations for one number that does not fit name those who got it wrong.

Residues are centred: from -(p - 1) / 2 to (p - 1) / 2, so that int8 holds them.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

#: The largest whose centred residues stay within int8 with room for an approximate quotient.
PRIMES = (241, 239, 233, 229, 227, 223)
#: Sums over as many answers stay exact in float32, and every prime is larger.
MAX_SERVERS = 16
#: Of so many choices of servers the factors are kept: 10 servers, of which 5 answered, have 252.
_CHOICES = 256

Integers = NDArray[np.int64]
Residues = NDArray[np.int8]
Number = TypeVar("Number", bound=np.generic)


def fewest_moduli(bound: int) -> tuple[int, ...] | None:
    """The fewest primes that tell all integers from -bound to bound apart.

    Args:
        bound: What no magnitude exceeds.

    Returns:
        The first of `PRIMES`; None where even all of them are too few.
    """
    counts = range(1, len(PRIMES) + 1)
    return next((PRIMES[:count] for count in counts if math.prod(PRIMES[:count]) > 2 * bound + 1), None)


def needed_answers(degree: int, colluding: int) -> int:
    """How many answers decode a round: D T + 1.

    Args:
        degree: D, of the servers' polynomial.
        colluding: T.
    """
    return degree * colluding + 1


def correctable(answered: int, needed: int) -> int:
    """How many wrong answers can be found and left out.

    Args:
        answered: How many answers there are.
        needed: How many decode.
    """
    return max(0, answered - needed) // 2


def centred(values: Integers, prime: int) -> Integers:
    """The centred residues of integers.

    Args:
        values: Any shape.
        prime: Odd.

    Returns:
        Same shape, from -(prime - 1) / 2 to (prime - 1) / 2.
    """
    half = prime // 2
    return (values + half) % prime - half


def draw(shape: tuple[int, int, int], moduli: Sequence[int], source: Callable[[int], bytes] = os.urandom) -> Residues:
    """Fresh uniform residues from the system's generator, by rejection: bytes that are no residue are thrown away.

    Args:
        shape: Batch, T, values.
        moduli: The primes, each below 256.
        source: Gives so many random bytes. Only tests pass another one than the system's.

    Returns:
        Centred, int8 [batch, T, primes, values]: what the encoder takes. Use it once, and wipe it.

    Raises:
        OSError: The source fails.
    """
    batch, colluding, values = shape
    count = math.prod(shape)
    drawn = np.empty((batch, colluding, len(moduli), values), np.int8)
    for column, prime in enumerate(moduli):
        residues = b""
        while (missing := count - len(residues)) > 0:
            # As many as are expected to do, and ten standard deviations more.
            enough = missing * 256 // prime + 4 * math.isqrt(missing) + 16
            residues += source(enough).translate(*_residues_of_bytes(prime))
        drawn[:, :, column] = np.reshape(np.frombuffer(residues, np.int8, count), shape)
    return drawn


@lru_cache
def _residues_of_bytes(prime: int) -> tuple[bytes, bytes]:
    """For `bytes.translate`: the centred residue that each byte becomes, as int8, and the bytes that become none."""
    # Any p numbers in a row are the residues of p, each once: shifting keeps them uniform.
    return bytes((byte - prime // 2) % 256 for byte in range(256)), bytes(range(prime, 256))


def powers(moduli: Sequence[int], servers: int, colluding: int) -> Residues:
    """What each random number counts for in each server's share.

    Args:
        moduli: The primes.
        servers: N, below every prime.
        colluding: T.

    Returns:
        a_i to the power of 1 to T modulo each prime, centred, int8 [primes, servers, T]: what the encoder takes.
        Read-only.
    """
    return _powers(tuple(moduli), servers, colluding)


@lru_cache
def _powers(moduli: tuple[int, ...], servers: int, colluding: int) -> Residues:
    places, exponents = range(1, servers + 1), range(1, colluding + 1)
    rows = [[[pow(place, exponent, prime) for exponent in exponents] for place in places] for prime in moduli]
    return _constant([centred(np.array(row), prime) for row, prime in zip(rows, moduli, strict=True)], np.int8)


def share(values: Integers, moduli: Sequence[int], randomness: Residues, servers: int) -> Residues:
    """Every server's share: what the encoder's graph computes, in integers.

    Args:
        values: [batch, values].
        moduli: The primes.
        randomness: [batch, T, primes, values], as `draw` gives it, never used before.
        servers: N, below every prime.

    Returns:
        Centred residues, int8 [batch, servers, primes, values].
    """
    shares = np.empty((len(values), servers, len(moduli), values.shape[1]), np.int8)
    factors = powers(moduli, servers, randomness.shape[1]).astype(np.int64)
    for column, prime in enumerate(moduli):
        blinded = np.einsum("st,btv->bsv", factors[column], randomness[:, :, column].astype(np.int64))
        shares[:, :, column] = centred(values[:, np.newaxis] + blinded, prime)
    return shares


def interpolation(places: Sequence[int], prime: int, at: int = 0) -> tuple[int, ...]:
    """What each point counts for in the value of the polynomial through all of them (Lagrange).

    Args:
        places: a_i of the points, all different, from 1 to prime - 1.
        prime: The modulus.
        at: Where the value is wanted.

    Returns:
        One factor each, from 0 to prime - 1.
    """
    factors = list[int]()
    for place in places:
        others = [other for other in places if other != place]
        above, below = math.prod(at - other for other in others), math.prod(place - other for other in others)
        factors.append(above * pow(below, -1, prime) % prime)
    return tuple(factors)


def weights(moduli: Sequence[int], places: Sequence[int]) -> Residues:
    """What each answer counts for in the result.

    Args:
        moduli: The primes.
        places: a_i of those whose answers are decoded, in the order of the answers.

    Returns:
        Centred, int8 [primes, answered]: what relay and fusion take. Read-only.
    """
    return _weights(tuple(moduli), tuple(places))


@lru_cache(maxsize=_CHOICES)
def _weights(moduli: tuple[int, ...], places: tuple[int, ...]) -> Residues:
    return _constant([centred(np.array(interpolation(places, prime)), prime) for prime in moduli], np.int8)


def decode(answers: Residues, places: Sequence[int], moduli: Sequence[int]) -> Integers:
    """The integers that servers' answers stand for: what relay and fusion compute.

    Args:
        answers: int8 [batch, answered, primes, outputs], of polynomials of a degree below `answered`.
        places: a_i of those who answered, in the same order.
        moduli: The primes.

    Returns:
        [batch, outputs], right where the magnitude is below half the primes' product.
    """
    factors = weights(moduli, places).astype(np.int64)
    return join(np.einsum("pa,bapo->bpo", factors, answers.astype(np.int64)), moduli)


def join(residues: Integers, moduli: Sequence[int]) -> Integers:
    """The integer of smallest magnitude with given residues, by the Chinese remainder theorem.

    Digits in mixed radix (Garner, 1959) keep every intermediate value below the primes' product.

    Args:
        residues: [batch, primes, outputs], not reduced.
        moduli: The primes.

    Returns:
        [batch, outputs].
    """
    value, product = residues[:, 0] % moduli[0], moduli[0]
    for column, prime in enumerate(moduli[1:], 1):
        digit = (residues[:, column] - value) * pow(product, -1, prime) % prime
        value, product = value + digit * product, product * prime
    return np.where(value > product // 2, value - product, value)


def find_liars(answers: Residues, places: Sequence[int], moduli: Sequence[int], needed: int) -> tuple[int, ...] | None:
    """Who gave answers that do not lie on one polynomial with the others'.

    Every image is judged by itself, and who lied about one of them is left out for all. With as many answers as are
    needed nothing can be checked, and with one more a lie is seen, but not whose it is.

    Args:
        answers: int8 [batch, answered, primes, outputs].
        places: a_i of those who answered, in the same order.
        moduli: The primes.
        needed: D T + 1.

    Returns:
        Indices into `places`, ascending; empty: all agree. None: some lied, and it cannot be told who.
    """
    if len(places) == needed:
        return ()
    everybody = range(len(places))
    liars = set[int]()
    for image in np.flatnonzero(_contradicting(answers, places, moduli, needed, everybody).any(axis=(1, 2))):
        found = _liars_about(answers[image], places, moduli, needed)
        if found is None:
            return None
        liars |= found
    return None if len(places) - len(liars) < needed else tuple(sorted(liars))


def _liars_about(answers: Residues, places: Sequence[int], moduli: Sequence[int], needed: int) -> set[int] | None:
    """The fewest servers without whom the answers about one image agree, if these are few enough to be told."""
    liars = set[int]()
    while len(liars) <= correctable(len(places), needed):
        rest = [index for index in range(len(places)) if index not in liars]
        contradicting = np.argwhere(_contradicting(answers[np.newaxis], places, moduli, needed, rest)[0])
        if not len(contradicting):
            return liars
        column, output = map(int, contradicting[0])
        found = _wrong_points(places, answers[:, column, output].tolist(), moduli[column], needed)
        if found is None:
            return None
        liars |= found  # one more at least: without these alone the answers contradict each other here
    return None


def _wrong_points(places: Sequence[int], values: Sequence[int], prime: int, needed: int) -> set[int] | None:
    """Which values are not those of the one polynomial that all others have; None: those are too few to tell.

    By linear equations (Welch and Berlekamp, US patent 4633470): Q(a) = value E(a), where E is zero at the wrong ones.
    """
    most = correctable(len(places), needed)
    locating = [[pow(place, exponent, prime) for exponent in range(needed + most)] for place in places]
    rows = [
        [*row, *(-value * power % prime for power in row[: most + 1])]
        for row, value in zip(locating, values, strict=True)
    ]
    solution = _solve(rows, prime)
    if solution is None:
        return None
    locator = solution[needed + most :]
    right = [
        index
        for index, row in enumerate(locating)
        if sum(factor * power for factor, power in zip(locator, row, strict=False)) % prime
    ][:needed]
    base = [places[index] for index in right]
    foretold = [
        sum(factor * values[index] for factor, index in zip(interpolation(base, prime, place), right, strict=True))
        for place in places
    ]
    wrong = {index for index, value in enumerate(values) if (foretold[index] - value) % prime}
    return wrong if len(wrong) <= most else None


def _solve(rows: list[list[int]], prime: int) -> list[int] | None:
    """Numbers, not all zero, whose sum with the factors of every row is zero modulo a prime (Gauss and Jordan)."""
    pivots = list[int]()
    for column in range(len(rows[0])):
        done = len(pivots)
        chosen = next((index for index in range(done, len(rows)) if rows[index][column]), None)
        if chosen is None:
            solution = [0] * len(rows[0])
            solution[column] = 1
            for row, pivot in zip(rows, pivots, strict=False):
                solution[pivot] = -row[column] % prime
            return solution
        inverse = pow(rows[chosen][column], -1, prime)
        rows[chosen], rows[done] = rows[done], [value * inverse % prime for value in rows[chosen]]
        for index, row in enumerate(rows):
            if index != done and row[column]:
                factor = row[column]
                rows[index] = [(one - factor * other) % prime for one, other in zip(row, rows[done], strict=True)]
        pivots.append(column)
    return None


def _contradicting(
    answers: Residues, places: Sequence[int], moduli: Sequence[int], needed: int, who: Sequence[int]
) -> NDArray[np.bool_]:
    """Where the answers of some servers do not lie on one polynomial, [batch, primes, outputs].

    The first ones foretell the others.
    """
    factors = _contradictions(tuple(moduli), tuple(places[index] for index in who), needed)
    theirs = answers if len(who) == len(places) else answers[:, who]
    sums = factors @ np.swapaxes(theirs, 1, 2).astype(np.float32)
    quotients = sums / np.array(moduli, np.float32)[:, np.newaxis, np.newaxis]  # whole only where they come out even
    return (np.rint(quotients) != quotients).any(axis=2)


@lru_cache(maxsize=_CHOICES)
def _contradictions(moduli: tuple[int, ...], places: tuple[int, ...], needed: int) -> NDArray[np.float32]:
    """What gives multiples of the primes where answers lie on one polynomial, [primes, answered - needed, answered].

    Whole numbers of a product with answers stay below 2^24, for `MAX_SERVERS` and any prime below 256: float32 has them
    all, and BLAS is fast with them alone.
    """
    base, others = places[:needed], places[needed:]
    rows = [[interpolation(base, prime, at=other) for other in others] for prime in moduli]
    foretold = [centred(np.array(row), prime) for row, prime in zip(rows, moduli, strict=True)]
    return _constant([np.hstack([each, -np.eye(len(others))]) for each in foretold], np.float32)


def _constant(rows: Sequence[NDArray[Any]], dtype: type[Number]) -> NDArray[Number]:
    """Arrays on top of each other, read-only: who gets them shares them with later calls."""
    stacked = np.stack(rows).astype(dtype)
    stacked.flags.writeable = False
    return stacked
