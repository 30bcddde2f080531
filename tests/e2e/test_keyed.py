"""A keyed release, really trained, on real tritonservers."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from privdfs import AsyncClient, Client, UserKey
from privdfs_export.serve import serve_release
from tests.trained import shifted_images

pytestmark = pytest.mark.e2e

KEYS = [UserKey(bytes([number] * 16)) for number in range(4)]


@pytest.fixture(scope="module")
def endpoints(keyed_trained_release: Path) -> Iterator[list[str]]:
    with serve_release(keyed_trained_release) as running:
        yield list(running)


def test_users_with_different_keys_get_what_local_mode_gives_them(
    keyed_trained_release: Path, endpoints: list[str]
) -> None:
    images, _ = shifted_images(4, seed=5)
    for key in KEYS:
        with (
            Client.local(keyed_trained_release, timeout=60, key=key) as local,
            Client(keyed_trained_release / "client", endpoints, allow_unsigned=True, timeout=60, key=key) as remote,
        ):
            here, there = local.predict_batch(images[..., None]), remote.predict_batch(images[..., None])
        assert [result.index for result in here] == [result.index for result in there]
        assert max(np.abs(a.probabilities - b.probabilities).max() for a, b in zip(here, there, strict=True)) < 1e-4
        assert there[0].bytes_up == (16, 16, 16)


async def test_one_server_answers_users_of_different_partitions_at_the_same_time(
    keyed_trained_release: Path, endpoints: list[str]
) -> None:
    images, _ = shifted_images(1, seed=6)
    expected = []
    for key in KEYS:
        with Client.local(keyed_trained_release, timeout=60, key=key) as local:
            expected.append([result.probabilities for result in local.predict_batch(images[..., None])])
    clients = [
        AsyncClient(keyed_trained_release / "client", endpoints, allow_unsigned=True, timeout=60, key=key)
        for key in KEYS
    ]
    try:
        # All at once, so that Triton runs requests with different partitions as one batch.
        calls = [client.predict(image) for client in clients for image in images]
        results = await asyncio.gather(*calls)
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    np.testing.assert_allclose(
        np.stack([result.probabilities for result in results]), np.concatenate(expected), atol=1e-4
    )
