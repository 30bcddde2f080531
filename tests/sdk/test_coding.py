"""Shares over primes: what a minority sees, that decoding gives the very integers back, and who is caught lying."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from privdfs import coding
from privdfs.coding import (
    PRIMES,
    Integers,
    Residues,
    centred,
    correctable,
    decode,
    draw,
    fewest_moduli,
    find_liars,
    interpolation,
    join,
    needed_answers,
    powers,
    share,
    weights,
)

GENERATOR = np.random.default_rng(0)


def answered(values: Integers, moduli: Sequence[int], servers: int, colluding: int, degree: int) -> Residues:
    """What honest servers answer that compute 3 x^degree + x, int8 [batch, servers, primes, values]."""
    shares = share(values, moduli, draw((len(values), colluding, values.shape[1]), moduli), servers).astype(np.int64)
    columns = [
        centred((shares[:, :, column] ** degree * 3 + shares[:, :, column]), prime)
        for column, prime in enumerate(moduli)
    ]
    return np.stack(columns, axis=2).astype(np.int8)


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
    ends = np.array([[most, -most, 0, 1, -1]])
    residues = np.stack([centred(ends, prime) for prime in PRIMES[:count]], axis=1)
    assert np.array_equal(join(residues, PRIMES[:count]), ends)


@pytest.mark.parametrize(("servers", "colluding", "degree"), [(3, 1, 1), (3, 1, 2), (5, 1, 4), (5, 2, 1), (5, 2, 2)])
def test_any_answers_of_enough_servers_decode_to_the_polynomial_of_the_values(
    servers: int, colluding: int, degree: int
) -> None:
    values, moduli = GENERATOR.integers(-100, 101, (2, 50)), PRIMES[:5]
    answers = answered(values, moduli, servers, colluding, degree)
    for chosen in itertools.combinations(range(servers), needed_answers(degree, colluding)):
        found = decode(answers[:, list(chosen)], [index + 1 for index in chosen], moduli)
        assert np.array_equal(found, 3 * values**degree + values)


def test_too_few_answers_decode_to_something_else() -> None:
    values, moduli = GENERATOR.integers(-7, 8, (1, 100)), PRIMES[:2]
    answers = answered(values, moduli, 3, 1, 2)
    assert not np.array_equal(decode(answers[:, :2], (1, 2), moduli), 3 * values**2 + values)


@pytest.mark.parametrize("at", [0, 7])
def test_interpolation_reproduces_every_polynomial(at: int) -> None:
    places, prime = (2, 3, 5), 239
    factors = interpolation(places, prime, at)
    for power in range(len(places)):
        total = sum(factor * place**power for factor, place in zip(factors, places, strict=True))
        assert total % prime == at**power % prime


def test_what_the_graphs_take_stands_for_powers_and_weights() -> None:
    moduli = PRIMES[:3]
    factors, counts = powers(moduli, 16, 7), weights(moduli, (1, 4, 9))
    assert (factors.shape, factors.dtype, counts.shape, counts.dtype) == ((3, 16, 7), np.int8, (3, 3), np.int8)
    for column, prime in enumerate(moduli):
        assert [int(value) % prime for value in factors[column, 4]] == [pow(5, power, prime) for power in range(1, 8)]
        assert tuple(int(value) % prime for value in counts[column]) == interpolation((1, 4, 9), prime)


@pytest.mark.parametrize(("servers", "colluding"), [(3, 1), (5, 2)])
def test_shares_of_one_value_are_uniform_for_every_server_and_prime(servers: int, colluding: int) -> None:
    values, moduli = np.full((1, 200_000), 5), PRIMES[:2]
    shares = share(values, moduli, draw((1, colluding, 200_000), moduli), servers)
    for server in range(servers):
        for column, prime in enumerate(moduli):
            counts = np.bincount(shares[0, server, column].astype(np.int64) % prime, minlength=prime)
            expected = 200_000 / prime
            chi_squared = float(((counts - expected) ** 2 / expected).sum())
            # Of prime - 1 degrees of freedom: mean prime - 1, variance 2 (prime - 1); six deviations.
            assert abs(chi_squared - (prime - 1)) < 6 * math.sqrt(2 * (prime - 1))


@pytest.mark.parametrize("value", range(-2, 3))
def test_two_colluding_servers_see_every_pair_alike_whatever_the_value(value: int) -> None:
    """T = 2, a small prime, all randomness: each value gives every pair of shares exactly once."""
    prime = 5
    randomness = np.stack(np.meshgrid(np.arange(prime), np.arange(prime))).reshape(1, 2, 1, -1).astype(np.int8)
    shares = share(np.full((1, prime**2), value), (prime,), randomness, 4)[0, :, 0].tolist()
    for one, other in itertools.combinations(range(4), 2):
        assert len(set(zip(shares[one], shares[other], strict=True))) == prime**2


def test_randomness_is_fresh_uniform_and_in_range() -> None:
    one, other = (draw((300, 2, 40), PRIMES[:3]) for _ in range(2))
    assert (one.shape, one.dtype) == ((300, 2, 3, 40), np.int8)
    for column, prime in enumerate(PRIMES[:3]):
        assert set(np.unique(one[:, :, column]).tolist()) == set(range(-(prime // 2), prime // 2 + 1))
    assert (one == other).mean() < 0.01
    assert (one[:, :, 0] == one[:, :, 1]).mean() < 0.01, "one prime's numbers say nothing of another's"


def test_bytes_that_are_no_residue_are_thrown_away_and_not_folded() -> None:
    """Of every byte once, each residue must come once: `byte % p` would give the first ones twice."""
    asked = list[int]()

    def every_byte(count: int) -> bytes:
        asked.append(count)
        return bytes(range(256)) * (count // 256 + 1)

    for prime in PRIMES:
        drawn = draw((1, 1, prime), (prime,), every_byte)
        assert sorted(drawn.ravel().tolist()) == list(range(-(prime // 2), prime // 2 + 1))
    assert all(count > 0 for count in asked)


def test_a_source_that_is_slow_to_please_is_asked_again() -> None:
    parts = iter([b"\xff" * 1000, b"\x01\xff", b"\x02", b"\x03" * 1000])
    drawn = draw((1, 1, 3), (241,), lambda _count: next(parts))
    assert (drawn.ravel() + 120).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("servers", "needed", "count"), [(3, 3, 0), (4, 3, 0), (5, 3, 1), (7, 3, 2), (9, 3, 3), (2, 3, 0)]
)
def test_two_answers_more_than_needed_correct_one_lie(servers: int, needed: int, count: int) -> None:
    assert correctable(servers, needed) == count


@pytest.mark.parametrize(
    ("servers", "colluding", "degree", "liars"),
    [(5, 1, 2, (1,)), (5, 1, 1, (4,)), (7, 1, 2, (0, 6)), (7, 2, 2, (3,)), (9, 2, 2, (1, 2)), (9, 1, 2, (0, 4, 8))],
)
def test_liars_are_named_and_the_rest_decodes(
    servers: int, colluding: int, degree: int, liars: tuple[int, ...]
) -> None:
    values, moduli, places = GENERATOR.integers(-9, 10, (6, 30)), PRIMES[:3], range(1, servers + 1)
    needed = needed_answers(degree, colluding)
    answers = answered(values, moduli, servers, colluding, degree)
    assert find_liars(answers, places, moduli, needed) == ()
    for liar in liars:  # one residue of one image is enough
        answers[2, liar, 1, liar] = (int(answers[2, liar, 1, liar]) + 60) % 100 - 50
    assert find_liars(answers, places, moduli, needed) == liars
    honest = [index for index in range(servers) if index not in liars][:needed]
    found = decode(answers[:, honest], [index + 1 for index in honest], moduli)
    assert np.array_equal(found, 3 * values**degree + values)


def test_liars_who_agree_on_another_polynomial_are_outnumbered() -> None:
    """Two of seven answer for another value, consistently: they know everything, shares of each other included."""
    values, moduli = GENERATOR.integers(-9, 10, (3, 20)), PRIMES[:3]
    randomness = draw((3, 1, 20), moduli)
    answers, other = (share(each, moduli, randomness, 7) for each in (values, values + 1))
    answers[:, [2, 5]] = other[:, [2, 5]]
    assert find_liars(answers, range(1, 8), moduli, 3) == (2, 5)


def test_servers_that_lie_about_different_images_are_all_left_out_where_enough_remain() -> None:
    values, moduli = GENERATOR.integers(-9, 10, (4, 20)), PRIMES[:3]
    answers = answered(values, moduli, 5, 1, 2)
    answers[0, 1] = -answers[0, 1]
    answers[3, 4] = -answers[3, 4]
    assert find_liars(answers, range(1, 6), moduli, 3) == (1, 4)
    answers[2, 0] = -answers[2, 0]
    assert find_liars(answers, range(1, 6), moduli, 3) is None, "two answers do not decode"


@pytest.mark.parametrize("lies", [6, 7])
def test_liars_cost_little_however_many_servers_could_be_lying(lies: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying who it is would mean to interpolate among 16 servers in 14,892 ways, for seconds."""
    values, moduli = GENERATOR.integers(-9, 10, (2, 20)), PRIMES[:2]
    answers = answered(values, moduli, 16, 1, 2)
    answers[1, :lies, 1, 3] += 1
    count = itertools.count()
    interpolate = coding.interpolation

    def counted(*arguments: Any, **named: Any) -> tuple[int, ...]:
        next(count)
        return interpolate(*arguments, **named)

    monkeypatch.setattr(coding, "interpolation", counted)
    found = find_liars(answers, range(1, 17), moduli, 3)
    assert found == (tuple(range(6)) if lies == 6 else None)
    assert next(count) < 500


def test_liars_are_those_whom_trying_finds() -> None:
    """The fewest without whom all agree, for as many shapes and lies as chance gives."""
    kinds = set[object]()
    for _ in range(300):
        servers, degree = int(GENERATOR.integers(3, 9)), int(GENERATOR.integers(1, 3))
        needed, moduli = degree + 1, (17, 241)
        if servers <= needed:
            continue
        places = sorted(GENERATOR.permutation(range(1, 17))[:servers].tolist())
        answers = answered(GENERATOR.integers(-3, 4, (2, 2)), moduli, 16, 1, degree)[:, [at - 1 for at in places]]
        for liar in range(int(GENERATOR.integers(0, servers - needed + 1))):
            answers[GENERATOR.integers(2), liar, GENERATOR.integers(2), GENERATOR.integers(2)] += 1
        found = find_liars(answers, places, moduli, needed)
        assert found == tried(answers, places, moduli, needed)
        kinds.add(found if found is None else len(found))
    assert kinds >= {None, 0, 1, 2, 3}


def tried(answers: np.ndarray, places: list[int], moduli: tuple[int, ...], needed: int) -> tuple[int, ...] | None:
    """Who lies, by trying all sets of servers, small ones first."""
    liars = set[int]()
    for image in answers:
        sets = (
            out
            for count in range(correctable(len(places), needed) + 1)
            for out in itertools.combinations(range(len(places)), count)
            if agree(image, places, moduli, needed, [index for index in range(len(places)) if index not in out])
        )
        if (out := next(sets, None)) is None:
            return None
        liars.update(out)
    return tuple(sorted(liars)) if len(places) - len(liars) >= needed else None


def agree(image: np.ndarray, places: list[int], moduli: tuple[int, ...], needed: int, rest: list[int]) -> bool:
    base = [places[index] for index in rest[:needed]]
    return all(
        not (
            (np.array(interpolation(base, prime, places[index])) @ image[rest[:needed], column] - image[index, column])
            % prime
        ).any()
        for index in rest[needed:]
        for column, prime in enumerate(moduli)
    )


@pytest.mark.parametrize(("count", "found"), [(3, ()), (4, None)])
def test_a_lie_is_unseen_among_as_many_as_needed_and_nobodys_among_one_more(
    count: int, found: tuple[int, ...] | None
) -> None:
    values, moduli = GENERATOR.integers(-9, 10, (2, 20)), PRIMES[:3]
    answers = answered(values, moduli, count, 1, 2)
    answers[1, 0] = -answers[1, 0]
    assert find_liars(answers, range(1, count + 1), moduli, 3) == found
