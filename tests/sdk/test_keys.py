"""Keyed releases: a user's key picks the partition; the key itself goes nowhere."""

import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from privdfs import Bundle, BundleFormatError, Client, ConfigError, NotEnoughAnswersError, ServerMismatchError, UserKey
from privdfs._cli import main
from privdfs._config import WireName
from privdfs.testing import FakeServer, Fault
from tests.sdk.drivers import Driver
from tests.sdk.tiny_release import FAMILY

SECRET = bytes(range(0xA0, 0xB0))
KEY = UserKey(SECRET)


@pytest.fixture
def keyed_fakes(keyed_release: Path, wire: WireName) -> Iterator[list[FakeServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer.for_release(keyed_release, i, wire=wire)) for i in range(3)]


def other_key(bundle: Bundle) -> UserKey:
    """A key that picks another partition than KEY."""
    return next(
        key
        for key in (UserKey(number.to_bytes(16, "big")) for number in range(99))
        if bundle.partition(key) != bundle.partition(KEY)
    )


def test_the_partition_is_the_documented_hash_of_the_key(keyed_release: Path) -> None:
    bundle = Bundle.open(keyed_release / "client", allow_unsigned=True)
    digest = hmac.new(SECRET, b"privdfs partition" + bytes.fromhex(FAMILY), hashlib.sha256).digest()
    expected = int.from_bytes(digest[:8], "big") % 64
    assert bundle.partition(KEY) == bundle.partition(SECRET) == bundle.partition(UserKey(SECRET.hex())) == expected
    # 2000 keys over 64 partitions: every one is picked, and none far too often.
    picked = np.bincount([bundle.partition(i.to_bytes(16, "big")) or 0 for i in range(2000)], minlength=64)
    assert picked.min() > 8
    assert picked.max() < 70


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"", "0 bytes, not 16"),
        (SECRET[:15], "15 bytes, not 16"),
        (SECRET + b"1", "17 bytes, not 16"),
        (SECRET.hex()[:-2], "not 32 hexadecimal digits"),
        (SECRET.hex() + "\n", "not 32 hexadecimal digits"),
        (SECRET.hex() + "zz", "not 32 hexadecimal digits"),
        (bytearray(SECRET), "not bytearray"),
        (7, "not int"),
    ],
)
def test_something_that_is_no_key_is_refused_before_anything_is_sent(
    connect: Callable[..., Driver], keyed_release: Path, keyed_fakes: list[FakeServer], bad: Any, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        UserKey(bad)
    assert caught.value.__cause__ is None
    assert SECRET.hex()[:8] not in str(caught.value) + repr(caught.value)
    with pytest.raises(ConfigError, match=problem):
        connect(keyed_release / "client", [fake.endpoint for fake in keyed_fakes], key=bad)
    assert [fake.checks for fake in keyed_fakes] == [0, 0, 0]


def test_a_keyed_release_needs_a_key_and_another_takes_none(
    connect: Callable[..., Driver], connect_local: Callable[..., Driver], keyed_release: Path, release: Path
) -> None:
    endpoints = [f"127.0.0.1:{port}" for port in (1, 2, 3)]
    with pytest.raises(ConfigError, match="needs the user's key"):
        connect(keyed_release / "client", endpoints)
    with pytest.raises(ConfigError, match="needs the user's key"):
        connect_local(keyed_release)
    with pytest.raises(ConfigError, match="leave `key` out"):
        connect(release / "client", endpoints, key=KEY)
    with pytest.raises(ConfigError, match="leave `key` out"):
        connect_local(release, key=KEY)


def test_share_and_partition_travel_and_nothing_else(
    connect: Callable[..., Driver],
    connect_local: Callable[..., Driver],
    keyed_release: Path,
    keyed_fakes: list[FakeServer],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[bytes] = []
    infer = FakeServer._model_infer
    monkeypatch.setattr(
        FakeServer,
        "_model_infer",
        lambda self, request, context: sent.append(request.SerializeToString()) or infer(self, request, context),
    )
    client = connect(keyed_release / "client", [fake.endpoint for fake in keyed_fakes], key=KEY)
    results = client.predict_batch(images[:6])  # two requests to each server: at most four images go together
    partition = client.client.bundle.partition(KEY)
    expected = client.client.bundle.encode(images[:6], partition=partition)
    for fake, share in zip(keyed_fakes, expected, strict=True):
        assert np.concatenate(fake.received).tobytes() == share.tobytes()
        np.testing.assert_array_equal(np.concatenate(fake.partitions), np.full((6, 1), partition))
    assert len(sent) == 6
    assert not any(SECRET in request or SECRET.hex().encode() in request for request in sent)
    assert results[0].bytes_up == (9, 10, 11)
    local = connect_local(keyed_release, key=SECRET).predict_batch(images[:6])
    for one, other in zip(results, local, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_one_key_always_gives_the_same_bytes_and_another_key_others(
    connect_local: Callable[..., Driver], keyed_release: Path, images: np.ndarray
) -> None:
    bundle = Bundle.open(keyed_release / "client", allow_unsigned=True)
    first, again = (connect_local(keyed_release, key=key) for key in (KEY, UserKey(SECRET)))
    other = connect_local(keyed_release, key=other_key(bundle))
    one = b"".join(share.tobytes() for share in first.encode(images[0]))
    assert one == b"".join(share.tobytes() for share in first.encode(images[0]))
    assert one == b"".join(share.tobytes() for share in again.encode(images[0]))
    dealt = b"".join(share.tobytes() for share in other.encode(images[0]))
    assert one != dealt
    assert sorted(one) == sorted(dealt)  # the same values, dealt to the servers in another way


def test_the_answer_depends_on_the_partition_that_the_server_is_told(
    keyed_fakes: list[FakeServer], keyed_release: Path, images: np.ndarray
) -> None:
    bundle = Bundle.open(keyed_release / "client", allow_unsigned=True)
    (share, *_), partition = bundle.encode(images[:1], partition=3), np.array([[3]], np.int32)
    assert not np.array_equal(keyed_fakes[0]._answer(share, partition), keyed_fakes[0]._answer(share, partition + 1))


def test_a_server_without_the_partition_input_is_sent_nothing(
    connect: Callable[..., Driver], keyed_release: Path, keyed_fakes: list[FakeServer], images: np.ndarray
) -> None:
    keyed_fakes[1].check_fault = Fault(response=lambda reply: reply.config.input.pop())
    client = connect(keyed_release / "client", [fake.endpoint for fake in keyed_fakes], key=KEY)
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.predict(images[0])
    assert {server: type(cause) for server, cause in caught.value.causes.items()} == {1: ServerMismatchError}
    assert not any(fake.received for fake in keyed_fakes)


def test_the_key_is_nowhere_to_be_read(
    keyed_release: Path, images: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), Client.local(keyed_release, key=KEY) as client:
        client.predict(images[0])
        # What a client holds: of the key, only which partition it picks.
        held = repr(vars(client._settings)) + repr(vars(client)) + repr(vars(client._transport))
    assert repr(KEY) == str(KEY) == "UserKey(…)"
    for text in (caplog.text, held, repr(KEY)):
        assert SECRET.hex() not in text
        assert repr(SECRET)[2:-1] not in text
    assert not any(isinstance(value, UserKey) for value in vars(client._settings).values())


@pytest.mark.parametrize("partition", [None, -1, 64, True, 1.0, "3"])
def test_encode_takes_a_partition_of_the_release(keyed_release: Path, images: np.ndarray, partition: Any) -> None:
    with pytest.raises(ConfigError, match="partitions 0 to 63"):
        Bundle.open(keyed_release / "client", allow_unsigned=True).encode(images, partition=partition)


def test_encode_of_a_release_without_keys_takes_none(release: Path, images: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="leave `partition` out"):
        Bundle.open(release / "client", allow_unsigned=True).encode(images, partition=0)


def test_the_self_test_replays_several_partitions(keyed_release: Path) -> None:
    bundle = Bundle.open(keyed_release / "client", allow_unsigned=True)
    outcome = bundle.selftest()
    assert (outcome.images, outcome.differing_values) == (6, 0)
    assert "64 partitions" in bundle.describe()
    assert "9 + 10 + 11 = 30" in bundle.describe()  # what a call reports to have sent


def test_manifests_without_keys_are_as_they_were_and_keyed_ones_say_so(release: Path, keyed_release: Path) -> None:
    for folder in ("client", "server-0"):
        assert "keys" not in json.loads((release / folder / "manifest.json").read_bytes())
        keys = json.loads((keyed_release / folder / "manifest.json").read_bytes())["keys"]
        assert keys == {"partitions": 64, "family": FAMILY}


@pytest.mark.parametrize(
    "keys", [{"partitions": 1, "family": FAMILY}, {"partitions": 64, "family": "xyz"}, {"partitions": 64}, None, 64]
)
def test_a_manifest_with_keys_that_make_no_sense_is_refused(keyed_release: Path, tmp_path: Path, keys: Any) -> None:
    fields = json.loads((keyed_release / "client" / "manifest.json").read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(fields | {"keys": keys}))
    with pytest.raises(BundleFormatError):
        Bundle.open(tmp_path, allow_unsigned=True)


def test_the_command_takes_a_key_file(
    keyed_release: Path, tmp_path: Path, images: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    good, short, binary = (tmp_path / name for name in ("good", "short", "binary"))
    good.write_text(SECRET.hex() + "\n")
    short.write_text(SECRET.hex()[:30])
    binary.write_bytes(SECRET)
    command = ["predict", "--local", str(keyed_release), str(tmp_path / "image.png")]
    assert main([*command, "--user-key", str(good)]) == 0
    for path, problem in (
        (short, "not 32 hexadecimal digits"),
        (binary, "not 32 hexadecimal digits"),
        (tmp_path / "missing", "cannot be read"),
        (tmp_path, "cannot be read"),
    ):
        assert main([*command, "--user-key", str(path)]) == 2
        error = capsys.readouterr().err
        assert problem in error
        assert SECRET.hex()[:8] not in error
    assert main(command) == 2
    assert "needs the user's key" in capsys.readouterr().err
