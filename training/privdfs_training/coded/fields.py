"""Sharing integers over small primes, and decoding what polynomial networks answer. Numpy alone, exact everywhere.

Every integer is shared modulo each prime p by a random polynomial (Shamir, Communications of the ACM 22, 1979):
server i gets `value + r_1 a_i + ... + r_T a_i^T mod p` at its place a_i = i + 1. A server that evaluates a polynomial
of degree D on its share holds one point of a polynomial of degree D T, whose value at 0 is the result (Yu et al.,
arXiv 1806.00939). D T + 1 points give it back modulo p, and the primes together give the integer.

Residues are centred: from -(p - 1) / 2 to (p - 1) / 2, so that int8 holds them.
"""

import math
import secrets
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: The largest whose centred residues stay within int8 with room for an approximate quotient.
PRIMES = (241, 239, 233, 229, 227, 223)

Integers = NDArray[np.int64]


def fewest_moduli(bound: int) -> tuple[int, ...] | None:
    """The fewest primes that tell all integers from -bound to bound apart.

    Args:
        bound: What no magnitude exceeds.

    Returns:
        The first of `PRIMES`; None where even all of them are too few.
    """
    counts = range(1, len(PRIMES) + 1)
    return next((PRIMES[:count] for count in counts if math.prod(PRIMES[:count]) > 2 * bound + 1), None)


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


def random_residues(shape: Sequence[int], moduli: Sequence[int], colluding: int) -> Integers:
    """Fresh uniform residues from the system's generator, by rejection.

    Args:
        shape: Of the values that are shared.
        moduli: The primes, each below 256.
        colluding: T.

    Returns:
        int64 [colluding, primes, *shape], each from 0 to its prime - 1.
    """
    count = colluding * math.prod(shape)
    columns = []
    for prime in moduli:
        found = np.empty(0, np.uint8)
        while len(found) < count:
            drawn = np.frombuffer(secrets.token_bytes(count + 64), np.uint8)
            found = np.concatenate([found, drawn[drawn < prime]])
        columns.append(found[:count].reshape(colluding, *shape))
    return np.stack(columns, axis=1).astype(np.int64)


def share(values: Integers, moduli: Sequence[int], randomness: Integers, servers: int) -> Integers:
    """Every server's share.

    Args:
        values: [...].
        moduli: The primes.
        randomness: [colluding, primes, ...], as `random_residues` gives it, never used before.
        servers: N, below every prime.

    Returns:
        Centred residues [servers, primes, ...].
    """
    shares = []
    for place in range(1, servers + 1):
        columns = []
        for column, prime in enumerate(moduli):
            total = np.zeros_like(values)
            for coefficient in randomness[::-1, column]:  # Horner
                total = (total + coefficient) * place % prime
            columns.append(centred(values + total, prime))
        shares.append(np.stack(columns))
    return np.stack(shares)


def interpolation_weights(places: Sequence[int], prime: int) -> tuple[int, ...]:
    """What each answer counts for in the value at 0 of the polynomial through them.

    Args:
        places: a_i of those who answered, all different, from 1 to prime - 1.
        prime: The modulus.

    Returns:
        One factor each, from 0 to prime - 1.
    """
    weights = []
    for place in places:
        others = [other for other in places if other != place]
        below = math.prod(other - place for other in others)
        weights.append(math.prod(others) * pow(below, -1, prime) % prime)
    return tuple(weights)


def decode(answers: Integers, places: Sequence[int], moduli: Sequence[int]) -> Integers:
    """The integers that servers' answers stand for.

    Args:
        answers: Residues [answered, primes, ...] of polynomials of a degree below `answered`.
        places: a_i of those who answered, in the same order.
        moduli: The primes.

    Returns:
        [...], right where the magnitude is below half the primes' product.
    """
    residues = [
        np.tensordot(np.array(interpolation_weights(places, prime)), answers[:, column], axes=1) % prime
        for column, prime in enumerate(moduli)
    ]
    return join(residues, moduli)


def join(residues: Sequence[Integers], moduli: Sequence[int]) -> Integers:
    """The integer of smallest magnitude with given residues, by the Chinese remainder theorem.

    Digits in mixed radix (Garner, 1959) keep every intermediate value below the primes' product.

    Args:
        residues: One array for each prime, all of one shape.
        moduli: The primes.

    Returns:
        Same shape.
    """
    value, product = residues[0] % moduli[0], moduli[0]
    for residue, prime in zip(residues[1:], moduli[1:], strict=True):
        digit = (residue - value) * pow(product, -1, prime) % prime
        value, product = value + digit * product, product * prime
    return np.where(value > product // 2, value - product, value)
