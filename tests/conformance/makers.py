"""Every file of vectors: what it is about, and what makes it."""

from collections.abc import Callable, Iterable
from typing import Any

from tests.conformance import (
    make_answers,
    make_bundles,
    make_calls,
    make_graphs,
    make_numbers,
    make_pixels,
    make_releases,
    make_suspects,
)
from tests.conformance.form import dumped

Maker = Callable[[], Iterable[dict[str, Any]]]

MAKERS: dict[str, tuple[str, Maker]] = {
    "pixels": (make_pixels.PIXELS, make_pixels.pixels),
    "resize": (make_pixels.RESIZE, make_pixels.resize),
    "partitions": (make_numbers.PARTITIONS, make_numbers.partitions),
    "randomness": (make_numbers.RANDOMNESS, make_numbers.randomness),
    "powers": (make_numbers.POWERS, make_numbers.powers),
    "suspects": (make_suspects.ABOUT, make_suspects.make),
    "decoding": (make_numbers.DECODING, make_numbers.decoding),
    "signatures": (make_bundles.SIGNATURES, make_bundles.signatures),
    "bundles": (make_bundles.BUNDLES, make_bundles.bundles),
    "graphs": (make_graphs.ABOUT, make_graphs.make),
    "configs": (make_calls.CONFIGS, make_calls.configs),
    "releases": (make_releases.ABOUT, make_releases.make),
    "answers": (make_answers.ANSWERS, make_answers.answers),
    "checks": (make_answers.CHECKS, make_answers.checks),
    "calls": (make_calls.ABOUT, make_calls.make),
}


def made(name: str) -> bytes:
    """A file of vectors, made from the releases that lie beside it."""
    about, make = MAKERS[name]
    return dumped(about, list(make()))
