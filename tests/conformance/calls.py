"""Whole calls of a client against servers that replay: run by the maker of the vectors, and by the test of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from privdfs import AsyncClient, Bundle, Client, Error, Result, Retries, Server, Token, _exchange, coding
from privdfs import NotEnoughAnswersError as NotEnough
from tests.conformance.replay import Answerer, ReplayServer, Request
from tests.sdk.drivers import AsyncDriver, Driver, SyncDriver

Randomness = Iterator[NDArray[np.int8]]


@dataclass(frozen=True)
class Ended:
    """How a call ended, and what every server received of it."""

    results: list[Result]
    error: Error | None
    received: list[list[Request]]


def run(
    bundle: Bundle,
    answerers: Sequence[Answerer],
    images: NDArray[np.uint8],
    options: Mapping[str, Any],
    token: Token | None = None,
    *,
    attempts: int = 1,
    asynchronous: bool = False,
) -> Ended:
    """Classify images with a client of its own, whose options are given; every share is sent so often at most."""
    with ExitStack() as stack:
        # On a busy machine the answers to a call that has failed already may take longer than it waits for them.
        stack.enter_context(mock.patch.object(_exchange, "FAIL_GRACE_S", 10.0))
        stack.enter_context(mock.patch.object(_exchange, "BACKOFF_FIRST_S", 0.001))
        servers = [stack.enter_context(ReplayServer(answer)) for answer in answerers]
        endpoints = [Server(server.endpoint, token=token) for server in servers]
        kind = AsyncClient if asynchronous else Client
        client = kind(bundle, endpoints, retries=Retries(attempts=attempts), **options)
        driver: Driver = AsyncDriver(client) if isinstance(client, AsyncClient) else SyncDriver(client)
        stack.callback(driver.stop)
        results, error = list[Result](), None
        try:
            results = driver.predict_batch(images)
        except Error as caught:
            error = caught
        for fault in [fault for server in servers for fault in server.faults]:
            raise fault  # of the replay itself
        return Ended(results, error, [list(server.received) for server in servers])


@contextmanager
def fixed_randomness(draws: Callable[..., NDArray[np.int8]]) -> Iterator[None]:
    """Sharings take these residues, where a product draws them from the system's generator."""
    with mock.patch.object(coding, "draw", draws):
        yield


def described(ended: Ended) -> dict[str, Any]:
    """The end of a call as a vector states it."""
    error = ended.error
    if error is None:
        first = ended.results[0]
        rows = [[float(value) for value in result.probabilities] for result in ended.results]
        return {
            "probabilities": rows,
            "labels": [result.label for result in ended.results],
            "answered": list(first.answered),
            "suspects": list(first.suspects),
            "corrected": list(first.corrected),
            "bytes_up": list(first.bytes_up),
            "bytes_down": list(first.bytes_down),
            "expected_accuracy": first.expected_accuracy,
        }
    told: dict[str, Any] = {"error": type(error).__name__}
    if isinstance(error, NotEnough):
        told["causes"] = {str(server): type(cause).__name__ for server, cause in sorted(error.causes.items())}
    for name in ("answered", "needed", "round"):
        if hasattr(error, name):
            value = getattr(error, name)
            told[name] = list(value) if isinstance(value, tuple) else value
    return told
