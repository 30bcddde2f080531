"""Budgets and repeats: what is sent, what is not, and under which key."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privdfs import Bundle, ConfigError, NotEnoughAnswersError, Queries, QueryBudgetError, UserKey
from privdfs.testing import FakeServer, Fault
from tests.sdk.drivers import Driver


@pytest.fixture
def keyed_fakes(keyed_release: Path) -> Iterator[list[FakeServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer.for_release(keyed_release, i)) for i in range(3)]


def keys(bundle: Bundle) -> tuple[UserKey, UserKey]:
    """Of two users with different partitions."""
    first = UserKey(bytes(16))
    others = (UserKey(bytes([i] * 16)) for i in range(1, 99))
    return first, next(key for key in others if bundle.partition(key) != bundle.partition(first))


def sent(fakes: list[FakeServer]) -> list[int]:
    return [sum(len(shares) for shares in fake.received) for fake in fakes]


def test_a_repeated_image_is_answered_without_being_sent(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, queries=Queries())
    first, again, other = (client.predict(image) for image in (images[0], images[0].copy(), images[1]))
    assert sent(fakes) == [2, 2, 2]
    assert (first.repeated, again.repeated, other.repeated) == (False, True, False)
    assert again.label == first.label
    assert (again.probabilities == first.probabilities).all()
    assert (again.answered, again.bytes_up) == (first.answered, (0, 0, 0))
    assert again.timings.servers_ms == (None, None, None)


def test_batches_keep_their_order_and_send_every_image_once(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    plain = connect(release / "client", endpoints).predict_batch(images)
    for fake in fakes:
        fake.received.clear()
    client = connect(release / "client", endpoints, queries=Queries())
    client.predict(images[3])
    batch = [*images, images[0], images[9]]
    results = client.predict_batch(batch)
    assert sent(fakes) == [10, 10, 10]
    assert [result.label for result in results] == [result.label for result in [*plain, plain[0], plain[9]]]
    assert [i for i, result in enumerate(results) if result.repeated] == [3, 10, 11]
    assert all(result.repeated for result in client.predict_batch(batch))


def test_a_spent_budget_sends_nothing(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    queries = Queries(budget=3)
    client = connect(release / "client", endpoints, queries=queries)
    client.predict_batch(images[:2])
    with pytest.raises(QueryBudgetError, match="2 of 3") as caught:
        client.predict_batch(images[2:4])
    assert (caught.value.spent, caught.value.budget) == (2, 3)
    client.predict(images[2])
    client.predict(images[1])  # a repeat is free
    with pytest.raises(QueryBudgetError):
        client.predict(images[3])
    assert sent(fakes) == [3, 3, 3]
    assert queries.spent == {None: 3}
    after = connect(release / "client", endpoints, queries=Queries(budget=3, spent=queries.spent))
    with pytest.raises(QueryBudgetError, match="3 of 3"):
        after.predict(images[0])


def test_a_failed_image_may_be_asked_again_at_no_cost(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    queries = Queries(budget=1)
    client = connect(release / "client", endpoints, queries=queries)
    fakes[1].fault = Fault(status="INVALID_ARGUMENT")
    for _ in range(2):
        with pytest.raises(NotEnoughAnswersError):
            client.predict(images[0])
    lenient = client.with_options(min_answers=2)
    assert lenient.predict(images[0]).answered == (True, False, True)
    assert lenient.predict(images[0]).repeated
    fakes[1].fault = None
    assert client.predict(images[0]).answered == (True, True, True)  # two answers are not enough for this one
    assert queries.spent == {None: 1}


def test_users_of_one_device_share_the_record_and_no_image_goes_out_under_two_keys(
    connect: Callable[..., Driver], keyed_release: Path, keyed_fakes: list[FakeServer], images: np.ndarray
) -> None:
    bundle, places = (
        Bundle.open(keyed_release / "client", allow_unsigned=True),
        [fake.endpoint for fake in keyed_fakes],
    )
    queries = Queries(budget=2)
    one, two = (connect(bundle, places, key=key, queries=queries) for key in keys(bundle))
    first = one.predict(images[0])
    assert two.predict(images[0]).repeated
    assert two.predict(images[0]).label == first.label
    assert sent(keyed_fakes) == [1, 1, 1]
    keyed_fakes[0].fault = Fault(status="INVALID_ARGUMENT")
    with pytest.raises(NotEnoughAnswersError):
        one.predict(images[1])
    keyed_fakes[0].fault = None
    before = sent(keyed_fakes)
    with pytest.raises(QueryBudgetError, match="another user's key"):
        two.predict(images[1])
    assert sent(keyed_fakes) == before
    two.predict_batch(images[2:4])  # each key has its own budget
    with pytest.raises(QueryBudgetError, match="2 of 2"):
        one.predict(images[4])
    assert sorted(queries.spent.values()) == [2, 2]


def test_releases_are_told_apart(
    connect: Callable[..., Driver], release: Path, other_release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    queries = Queries()
    connect(release / "client", endpoints, queries=queries).predict(images[0])
    with ExitStack() as stack:
        others = [stack.enter_context(FakeServer.for_release(other_release, i)) for i in range(3)]
        client = connect(other_release / "client", [fake.endpoint for fake in others], queries=queries)
        assert not client.predict(images[0]).repeated


def test_the_oldest_images_are_forgotten(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    queries = Queries(repeats=2)
    client = connect(release / "client", endpoints, queries=queries)
    for position in (0, 1, 0, 2):
        client.predict(images[position])
    assert client.predict(images[0]).repeated
    assert not client.predict(images[1]).repeated
    assert queries.spent == {None: 4}
    none = connect(release / "client", endpoints, queries=Queries(repeats=0))
    assert not any(none.predict(images[0]).repeated for _ in range(2))


def test_many_threads_share_one_budget(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, queries=Queries(budget=5), timeout=30)
    refused: list[int] = []

    def work(position: int) -> None:
        try:
            client.predict(images[position])
        except QueryBudgetError:
            refused.append(position)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert sent(fakes) == [5, 5, 5]


def test_nothing_of_an_image_is_kept_or_shown(release: Path, images: np.ndarray) -> None:
    queries = Queries(budget=7)
    asked = queries.ask("tiny-1", 5, images[:1], 1)
    assert repr(queries) == "Queries(budget=7, repeats=256, canary_rate=0)"
    shown = repr(asked) + repr(queries._seen)
    pixels = images[0].tobytes()
    assert pixels.hex() not in shown
    assert repr(pixels[:8])[2:-1] not in shown
    assert Queries().ask("tiny-1", 5, images[:1], 1).digests != asked.digests  # nobody can look an image up


@pytest.mark.parametrize(
    "options",
    [{"budget": 0}, {"budget": 1.5}, {"repeats": -1}, {"repeats": 10**9}, {"spent": {None: -1}}, {"spent": {None: 1.0}},
     {"spent": {None: True}}, {"spent": {True: 1}}, {"spent": {-1: 1}}, {"spent": {"-1": 1}}, {"spent": {"05": 1}},
     {"spent": {"None": 1}}, {"spent": {"5\n": 1}}, {"spent": {"٣": 1}}, {"spent": {5.0: 1}}, {"spent": {5: 1, "5": 1}},
     {"spent": {None: 1, "null": 1}}, {"spent": [5]}, {"spent": '{"5": 1}'}, {"spent": 5}],
)  # fmt: skip
def test_numbers_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Queries(**options)


# ---------------------------------------------------------------------------------------------------- after a restart


WAYS: dict[str, Callable[[Queries, Path], Queries]] = {
    "as it is": lambda before, _: Queries(budget=5, spent=before.spent),
    "json": lambda before, _: Queries(budget=5, spent=json.loads(json.dumps(before.spent))),
    "file": lambda _, path: Queries.load(path, budget=5),
}


def goes_on(ask: Callable[[Queries, slice], object], fakes: list[FakeServer], path: Path, way: str) -> None:
    """Four of five images are asked for, the process starts again, and one is left."""
    before = Queries(budget=5)
    ask(before, slice(0, 4))
    before.save(path)
    after = WAYS[way](before, path)
    assert after.spent == before.spent
    assert sum(after.spent.values()) == 4
    with pytest.raises(QueryBudgetError):
        ask(after, slice(4, 6))
    assert sent(fakes) == [4, 4, 4]
    ask(after, slice(4, 5))


@pytest.mark.parametrize("way", WAYS)
def test_a_budget_goes_on_after_a_restart(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], images: np.ndarray, tmp_path: Path, way: str
) -> None:
    endpoints = [fake.endpoint for fake in fakes]

    def ask(queries: Queries, part: slice) -> object:
        return connect(release / "client", endpoints, queries=queries).predict_batch(images[part])

    goes_on(ask, fakes, tmp_path / "counts.json", way)


@pytest.mark.parametrize("way", WAYS)
def test_the_budget_of_a_key_goes_on_after_a_restart(
    connect: Callable[..., Driver],
    keyed_release: Path,
    keyed_fakes: list[FakeServer],
    images: np.ndarray,
    tmp_path: Path,
    way: str,
) -> None:
    endpoints = [fake.endpoint for fake in keyed_fakes]

    def ask(queries: Queries, part: slice) -> object:
        client = connect(keyed_release / "client", endpoints, queries=queries, key=UserKey(bytes(16)))
        return client.predict_batch(images[part])

    goes_on(ask, keyed_fakes, tmp_path / "counts.json", way)


def test_the_file_of_counts_is_small_private_and_written_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "counts.json"
    assert Queries.load(path).spent == {}, "there is none yet"
    assert not path.exists()
    queries = Queries(spent={None: 3, 0: 1, 4294967295: 7})
    queries.ask("tiny-1", 5, np.full((2, 4, 4, 3), 77, np.uint8), 1)
    queries.save(path)
    queries.save(str(path))
    assert json.loads(path.read_text()) == {
        "privdfs_queries": 1,
        "spent": {"null": 3, "0": 1, "4294967295": 7, "5": 1},
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    was = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(ConfigError, match="cannot be written"):
            Queries().save(path)
    assert path.read_bytes() == was
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b'{"spent": {"5": 1}}', b'{"privdfs_queries": 2, "spent": {}}',
     b'{"privdfs_queries": 1, "spent": {"5": 1}, "more": 1}', b'{"privdfs_queries": 1, "spent": {"x": 1}}',
     b'{"privdfs_queries": 1, "spent": {"5": -1}}', b'{"privdfs_queries": 1, "spent": {"5": 1', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_file_of_counts_is_no_new_budget(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "counts.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="spent"):
        Queries.load(path)


def test_a_file_of_counts_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Queries.load(tmp_path / "none" / "counts.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        Queries().save(tmp_path / "none" / "counts.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        Queries.load(tmp_path)
