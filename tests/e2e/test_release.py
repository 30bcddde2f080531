"""Really trained releases on real tritonservers, through the SDK."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from privdfs import AsyncClient, Client, NotEnoughAnswersError, ServerMismatchError
from privdfs_export.serve import serve_release
from tests.trained import IMAGES, shifted_images

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def endpoints(trained_release: Path) -> Iterator[list[str]]:
    with serve_release(trained_release) as running:
        yield list(running)


def test_local_mode_and_tritonservers_agree_on_every_prediction(trained_release: Path, endpoints: list[str]) -> None:
    images, labels = shifted_images(50, seed=5)
    with (
        Client.local(trained_release, timeout=60) as local,
        Client(trained_release / "client", endpoints, allow_unsigned=True, timeout=60) as remote,
    ):
        here = local.predict_batch(images[..., None])
        there = remote.predict_batch(images[..., None])
    assert len(here) == 1000
    assert [result.index for result in here] == [result.index for result in there]
    assert max(abs(one.probability - other.probability) for one, other in zip(here, there, strict=True)) < 1e-4
    assert np.mean([result.index == label for result, label in zip(there, labels, strict=True)]) > 0.5


def test_one_image_at_a_time_gives_what_a_batch_gives(trained_release: Path, endpoints: list[str]) -> None:
    paths = sorted(IMAGES.glob("*.png"))
    with Client(trained_release / "client", endpoints, allow_unsigned=True, timeout=30) as client:
        batch = client.predict_batch(paths)
        single = [client.predict(path) for path in paths]
    assert [result.label for result in single] == [result.label for result in batch]
    assert all(result.answered == (True, True, True) for result in single)
    assert all(result.bytes_up == (12, 12, 12) for result in single)
    assert all(ms is not None and ms > 0 for result in single for ms in result.timings.servers_ms)


async def test_asyncio_client_gives_the_same(trained_release: Path, endpoints: list[str]) -> None:
    paths = sorted(IMAGES.glob("*.png"))
    with Client(trained_release / "client", endpoints, allow_unsigned=True, timeout=30) as client:
        expected = [client.predict(path).label for path in paths]
    async with AsyncClient(trained_release / "client", endpoints, allow_unsigned=True, timeout=30) as client:
        results = await asyncio.gather(*(client.predict(path) for path in paths))
    assert [result.label for result in results] == expected


def test_servers_in_the_wrong_order_are_told_apart_before_a_share_is_sent(
    trained_release: Path, endpoints: list[str]
) -> None:
    swapped = [endpoints[1], endpoints[0], endpoints[2]]
    with (
        Client(trained_release / "client", swapped, allow_unsigned=True, timeout=30) as client,
        pytest.raises(NotEnoughAnswersError) as caught,
    ):
        client.predict(IMAGES / "bag-1.png")
    assert {type(caught.value.causes[server]) for server in (0, 1)} == {ServerMismatchError}


def test_five_servers_work_and_another_release_is_refused(
    trained_release: Path, trained_release_of_five: Path, endpoints: list[str]
) -> None:
    with serve_release(trained_release_of_five) as five:
        with Client(trained_release_of_five / "client", five, allow_unsigned=True, timeout=30) as client:
            result = client.predict(IMAGES / "trouser-1.png")
        assert result.answered == (True,) * 5
        assert len(result.bytes_up) == 5
        with (
            Client(trained_release / "client", five[:3], allow_unsigned=True, timeout=30) as client,
            pytest.raises(NotEnoughAnswersError) as caught,
        ):
            client.predict(IMAGES / "trouser-1.png")
    assert all(isinstance(error, ServerMismatchError) for error in caught.value.causes.values())


def test_with_a_server_gone_the_rest_answer_when_the_caller_allows_it(trained_release: Path) -> None:
    images, _ = shifted_images(1, seed=6)
    with serve_release(trained_release) as running, Client.local(trained_release) as local:
        endpoints = [running[0], "127.0.0.1:9", running[2]]  # nothing listens on the discard port
        with Client(trained_release / "client", endpoints, allow_unsigned=True, timeout=10, min_answers=2) as client:
            result = client.predict(images[0])
        assert result.answered == (True, False, True)
        shares = local.encode(images[0])
        assert [share.dtype for share in shares] == [np.int8] * 3
        with (
            Client(trained_release / "client", endpoints, allow_unsigned=True, timeout=10) as client,
            pytest.raises(NotEnoughAnswersError, match="2 of 3 servers passed the release check, 3 must"),
        ):
            client.predict(images[0])
