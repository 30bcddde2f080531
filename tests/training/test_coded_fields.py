"""Shares over primes: what a minority sees, and that decoding gives the very integers back."""

import math

import numpy as np
import pytest

from privdfs_training.coded.fields import (
    PRIMES,
    centred,
    decode,
    fewest_moduli,
    interpolation_weights,
    join,
    random_residues,
    share,
)

GENERATOR = np.random.default_rng(0)


def test_centred_residues_fit_int8_and_stand_for_the_same_numbers() -> None:
    values = GENERATOR.integers(-(10**12), 10**12, 10_000)
    for prime in PRIMES:
        residues = centred(values, prime)
        assert not ((values - residues) % prime).any()
        assert np.abs(residues).max() == (prime - 1) // 2 <= 120


def test_the_primes_are_primes_and_the_largest_first() -> None:
    assert list(PRIMES) == sorted(PRIMES, reverse=True)
    assert all(prime % factor for prime in PRIMES for factor in range(2, prime))


@pytest.mark.parametrize("count", range(1, len(PRIMES) + 1))
def test_the_fewest_primes_tell_every_integer_of_the_range_apart(count: int) -> None:
    most = (math.prod(PRIMES[:count]) - 1) // 2
    assert fewest_moduli(most - 1) == PRIMES[:count]
    assert fewest_moduli(most + 1) == (PRIMES[: count + 1] if count < len(PRIMES) else None)
    ends = np.array([most, -most, 0, 1, -1])
    assert np.array_equal(join([centred(ends, prime) for prime in PRIMES[:count]], PRIMES[:count]), ends)


@pytest.mark.parametrize(("servers", "colluding", "degree"), [(3, 1, 1), (3, 1, 2), (5, 1, 4), (5, 2, 1), (5, 2, 2)])
def test_a_polynomial_of_the_shares_decodes_to_that_of_the_values(servers: int, colluding: int, degree: int) -> None:
    values, moduli = GENERATOR.integers(-100, 101, (2, 50)), PRIMES[:5]
    shares = share(values, moduli, random_residues(values.shape, moduli, colluding), servers)
    column = np.array(moduli)[:, None, None]
    answers = (shares.astype(object) ** degree * 3 + shares) % column
    needed = degree * colluding + 1
    # The last ones answer: any will do.
    places = range(servers - needed + 1, servers + 1)
    found = decode(answers[servers - needed :].astype(np.int64), places, moduli)
    assert np.array_equal(found, 3 * values**degree + values)


def test_too_few_answers_decode_to_something_else() -> None:
    values, moduli = GENERATOR.integers(-7, 8, 100), PRIMES[:2]
    shares = share(values, moduli, random_residues(values.shape, moduli, 1), 3)
    squares = centred(shares**2, moduli[0])
    assert not np.array_equal(decode(squares[:2], (1, 2), moduli), values**2)


def test_interpolation_weights_reproduce_every_polynomial_at_zero() -> None:
    places, prime = (2, 3, 5), 239
    weights = interpolation_weights(places, prime)
    for power in range(len(places)):
        total = sum(weight * place**power for weight, place in zip(weights, places, strict=True))
        assert total % prime == (1 if power == 0 else 0)


@pytest.mark.parametrize(("servers", "colluding"), [(3, 1), (5, 2)])
def test_shares_of_one_value_are_uniform_for_every_server_and_prime(servers: int, colluding: int) -> None:
    values, moduli = np.full(200_000, 5), PRIMES[:2]
    shares = share(values, moduli, random_residues(values.shape, moduli, colluding), servers)
    for server in range(servers):
        for column, prime in enumerate(moduli):
            counts = np.bincount(shares[server, column] % prime, minlength=prime)
            expected = len(values) / prime
            chi_squared = float(((counts - expected) ** 2 / expected).sum())
            # Of prime - 1 degrees of freedom: mean prime - 1, variance 2 (prime - 1); six deviations.
            assert abs(chi_squared - (prime - 1)) < 6 * math.sqrt(2 * (prime - 1))


def test_two_colluding_servers_see_every_pair_alike_whatever_the_value() -> None:
    """T = 2, a small prime, all randomness: each value gives every pair of shares exactly once."""
    prime = 5
    randomness = np.stack(np.meshgrid(np.arange(prime), np.arange(prime))).reshape(2, 1, -1)
    for value in range(-2, 3):
        shares = share(np.full(prime**2, value), (prime,), randomness, 4)
        for one in range(4):
            for other in range(one):
                pairs = set(zip(shares[one, 0].tolist(), shares[other, 0].tolist(), strict=True))
                assert len(pairs) == prime**2


def test_randomness_is_fresh_and_in_range() -> None:
    one, other = (random_residues((300, 40), PRIMES[:3], 2) for _ in range(2))
    assert one.shape == (2, 3, 300, 40)
    for column, prime in enumerate(PRIMES[:3]):
        assert set(np.unique(one[:, column]).tolist()) == set(range(prime))
    assert (one == other).mean() < 0.01
