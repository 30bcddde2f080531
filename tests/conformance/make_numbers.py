"""Files about numbers alone: drawing residues, decoding answers, users' partitions."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privdfs import UserKey, coding
from privdfs._format import KeySpec
from tests.conformance.exact_graphs import drawn
from tests.conformance.form import tensor, text

Vectors = Iterable[dict[str, Any]]

RANDOMNESS = (
    "Uniform residues from random bytes. A source that gives `bytes`, then no more, makes `residues` [batch, T, "
    "primes, values], in whatever portions it is asked. With one modulus the last byte that counts is number `used`. "
    "With several, all bytes are the same, since it is free how many are thrown away before the next modulus."
)
POWERS = "What each random number counts for in each server's share: `powers` [primes, servers, colluding]."
DECODING = (
    "Answers of a round to integers. `answers` [batch, answered, primes, outputs] came from servers at `places`. "
    "`liars` are positions among them, null where it cannot be told who lies; then nothing is decoded. Else the first "
    "`needed` of the others, `chosen`, are decoded with `weights` [primes, needed] to `results` [batch, outputs]."
)
PARTITIONS = "A user's key to the partition of a keyed release."


def randomness() -> Vectors:
    every = bytes(range(256))
    cases: list[tuple[str, tuple[int, int, int], tuple[int, ...], bytes]] = [
        ("every byte once, the largest prime", (1, 1, 241), (241,), every * 3),
        ("every byte once, another prime", (1, 1, 223), (223,), every * 3),
        ("a small prime, for which most bytes are no residue", (1, 2, 9), (17,), _noise("small", 2000)),
        ("bytes that are no residue, then others", (1, 1, 4), (223,), b"\xff" * 60 + b"\xdf\xde\xe0\x00" * 50),
        ("the order of batch, T and values", (2, 3, 5), (239,), _noise("order", 400)),
        ("the order of the primes", (2, 2, 3), coding.PRIMES, b"\x07" * 2000),
    ]
    for name, shape, moduli, source in cases:
        told: dict[str, Any] = {
            "name": name, "section": "5.3", "moduli": list(moduli), "batch": shape[0], "colluding": shape[1],
            "values": shape[2], "bytes": text(source), "residues": tensor(coding.draw(shape, moduli, once(source))),
        }  # fmt: skip
        if len(moduli) == 1:
            counting = [position for position, byte in enumerate(source, 1) if byte < moduli[0]]
            told["used"] = counting[math.prod(shape) - 1]
        yield told


def once(data: bytes, taken: list[int] | None = None) -> Callable[[int], bytes]:
    """A source of these bytes, which may not be asked for more; `taken` gets the size of each portion."""
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        position += size
        assert position <= len(data), "more was asked for than any client needs"
        if taken is not None:
            taken.append(size)
        return data[position - size : position]

    return read


def powers() -> Vectors:
    for servers, colluding, moduli in ((3, 1, (241,)), (5, 2, (241, 239, 233)), (9, 4, (239, 17)), (16, 15, (223, 19))):
        yield {
            "name": f"{servers} servers, {colluding} colluding, moduli {list(moduli)}", "section": "5.4",
            "moduli": list(moduli), "servers": servers, "colluding": colluding,
            "powers": tensor(coding.powers(moduli, servers, colluding)),
        }  # fmt: skip


def decoding() -> Vectors:
    def case(
        name: str, moduli: Sequence[int], degree: int, colluding: int, places: Sequence[int],
        results: NDArray[np.int64], lies: Sequence[tuple[int, int, int]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """`lies` are image, position among the servers and prime of a number that is changed."""
        answers = _answers(f"decoding {name}", moduli, degree * colluding, places, results)
        for image, position, column in lies:
            prime = moduli[column]
            wrong = int(answers[image, position, column, 0]) + 1
            answers[image, position, column, 0] = coding.centred(np.array(wrong), prime)
        needed = coding.needed_answers(degree, colluding)
        liars = coding.find_liars(answers, places, moduli, needed)
        told: dict[str, Any] = {
            "name": name, "section": "5.6" if lies else "5.7", "moduli": list(moduli), "degree": degree,
            "colluding": colluding, "needed": needed, "places": list(places), "answers": tensor(answers),
            "liars": None if liars is None else list(liars),
        }  # fmt: skip
        if liars is not None:
            chosen = [position for position in range(len(places)) if position not in liars][:needed]
            own = [places[position] for position in chosen]
            decoded = coding.decode(np.ascontiguousarray(answers[:, chosen]), own, moduli)
            told |= {
                "chosen": chosen, "weights": tensor(coding.weights(moduli, own)),
                "results": [[str(value) for value in row] for row in decoded.tolist()],
            }  # fmt: skip
        return told

    def edges(moduli: Sequence[int], images: int = 1) -> NDArray[np.int64]:
        half = math.prod(moduli) // 2
        return np.array([[0, 1, -1, half, -half, half // 3 + image] for image in range(images)], np.int64)

    for count in range(1, 7):
        moduli = coding.PRIMES[:count]
        yield case(
            f"the smallest and largest integers that {count} primes hold", moduli, 2, 1, (1, 2, 3), edges(moduli)
        )
    two = coding.PRIMES[:2]
    yield case("small primes", (17, 19, 23), 2, 1, (1, 2, 3), edges((17, 19, 23)))
    yield case("servers 1, 3 and 4 answered", two, 2, 1, (2, 4, 5), edges(two))
    yield case("sixteen servers, of which three decode", two, 2, 1, tuple(range(1, 17)), edges(two))
    yield case("sixteen servers, of which seven may collude", two, 2, 7, tuple(range(1, 17)), edges(two))
    yield case("degree 1", two, 1, 2, (1, 2, 3), edges(two))
    yield case("degree 4", two, 4, 1, (1, 2, 3, 4, 5), edges(two))
    yield case("degree 8", two, 8, 1, tuple(range(3, 12)), edges(two))
    yield case("three images", two, 2, 1, (1, 2, 3), edges(two, 3))
    five, seven = (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6, 7)
    yield case("one of five lies, in one number of one prime", two, 2, 1, five, edges(two), [(0, 0, 1)])
    yield case("one of four lies, and it cannot be told who", two, 2, 1, five[:4], edges(two), [(0, 0, 0)])
    yield case("one of three lies, and nothing shows it", two, 2, 1, five[:3], edges(two), [(0, 0, 0)])
    yield case("two of five lie, and it cannot be told who", two, 2, 1, five, edges(two), [(0, 0, 0), (0, 1, 0)])
    yield case("two of seven lie", two, 2, 1, seven, edges(two), [(0, 2, 0), (0, 6, 1)])
    yield case("two of five lie, about one image each", two, 2, 1, five, edges(two, 2), [(0, 1, 0), (1, 4, 0)])
    yield case(
        "three of five lie, about one image each, and too few are left", two, 2, 1, five, edges(two, 3),
        [(0, 1, 0), (1, 4, 0), (2, 2, 1)],
    )  # fmt: skip
    yield case("the last of six lies, of which five decode", two, 4, 1, (*five, 6), edges(two), [(0, 5, 0)])


def partitions() -> Vectors:
    for key in ("00" * 16, "00112233445566778899aabbccddeeff", "FF" * 16):
        for family, count in (("000102030405060708090a0b0c0d0e0f", 5), ("f" * 32, 65536), ("0" * 32, 2)):
            found = UserKey(key).partition(KeySpec(partitions=count, family=family))
            yield {
                "name": f"key {key[:4]}…, {count} partitions", "section": "4.2", "key": key, "family": family,
                "partitions": count, "partition": found,
            }  # fmt: skip


def _noise(label: str, size: int) -> bytes:
    return hashlib.shake_256(label.encode()).digest(size)


def _answers(
    label: str, moduli: Sequence[int], degree: int, places: Sequence[int], results: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Points of random polynomials of a degree whose values at 0 are the results."""
    batch, outputs = results.shape
    answers = np.empty((batch, len(places), len(moduli), outputs), np.int8)
    for column, prime in enumerate(moduli):
        random = drawn(f"{label} {prime}", (degree, batch, outputs), 127).astype(np.int64)
        for position, place in enumerate(places):
            total = np.zeros_like(results)
            for coefficient in (*random, results):
                total = (total * place + coefficient) % prime
            answers[:, position, column] = coding.centred(total, prime)
    return answers
