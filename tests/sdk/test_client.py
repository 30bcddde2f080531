"""Both clients against real gRPC servers on loopback that fail as they are told to."""

import asyncio
import copy
import math
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from PIL import Image

from privdfs import (
    TLS,
    AnswerError,
    AsyncClient,
    Bundle,
    BundleError,
    Client,
    ConfigError,
    DeadlineExceededError,
    Error,
    ImageError,
    NotEnoughAnswersError,
    Server,
    ServerBusyError,
    ServerMismatchError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from privdfs._chunk import Chunk, Decoded, Share
from privdfs._config import WireName
from privdfs._core import Call
from privdfs._kinds import Sent
from privdfs._masked import Masked
from privdfs.testing import FakeServer, Fault
from tests.sdk.certificates import credentials, scheme
from tests.sdk.drivers import HANG_S, Driver
from tests.sdk.tiny_release import MAX_BATCH


@pytest.fixture
def dead_port(wire: WireName) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound, but nobody listens
        yield f"{'http://' if wire == 'http' else ''}127.0.0.1:{listener.getsockname()[1]}"


def causes_of(caught: pytest.ExceptionInfo[NotEnoughAnswersError]) -> dict[int, type[Error]]:
    return {server: type(cause) for server, cause in caught.value.causes.items()}


# ------------------------------------------------------------------------------------------------------- right answers


def test_a_prediction_carries_everything(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    result = connect(bundle, endpoints).predict(images[0])
    assert result.label == bundle.classes[result.index]
    assert result.index == int(result.probabilities.argmax())
    assert result.probability == pytest.approx(float(result.probabilities[result.index]))
    assert result.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert result.answered == (True, True, True)
    assert result.bytes_up == (5, 6, 7)
    assert result.top(1) == [(result.label, result.probability)]
    assert [name for name, _ in result.top(99)] == sorted(
        bundle.classes, key=lambda name: -result.probabilities[bundle.classes.index(name)]
    )
    with pytest.raises(ConfigError):
        result.top(0)
    timings = result.timings
    parts = [timings.decode_ms, timings.encode_ms, timings.fusion_ms, *(ms for ms in timings.servers_ms if ms)]
    assert len(parts) == 6
    assert all(part > 0 for part in parts)
    assert max(parts) < timings.total_ms
    assert "array" not in repr(result)


@pytest.mark.parametrize("missing", [None, 0, 1, 2])
def test_the_answers_are_fused_as_the_release_says(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    missing: int | None,
) -> None:
    answers = np.random.default_rng(4).normal(size=(3, 4)).astype(np.float32)
    for i, fake in enumerate(fakes):
        fake.fault = Fault(logits=lambda logits, i=i: np.tile(answers[i], (len(logits), 1)))
    if missing is not None:
        fakes[missing].fault = Fault(status="UNAVAILABLE")
    # What the tiny fusion graph is built to do, in numpy.
    weights = np.array([0 if i == missing else i + 1 for i in range(3)], dtype=np.float32)
    mean = weights @ answers / weights.sum()
    expected = np.exp(mean) / np.exp(mean).sum()
    for result in connect(release / "client", endpoints, min_answers=2).predict_batch(images[:3]):
        np.testing.assert_allclose(result.probabilities, expected, rtol=1e-5)


def test_local_mode_gives_what_the_servers_give(
    connect: Callable[..., Driver],
    connect_local: Callable[..., Driver],
    release: Path,
    endpoints: list[str],
    images: np.ndarray,
) -> None:
    remote = connect(release / "client", endpoints).predict_batch(images)
    local = connect_local(release).predict_batch(images)
    assert len({result.label for result in remote}) > 1
    for one, other in zip(remote, local, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        assert (one.label, one.answered, one.bytes_up) == (other.label, other.answered, other.bytes_up)


@pytest.mark.parametrize("count", [1, 4, 5, 10])
def test_a_batch_is_split_and_keeps_its_order(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    count: int,
) -> None:
    client = connect(release / "client", endpoints)
    results = client.predict_batch(images[:count])
    alone = [client.predict(image) for image in images[:count]]
    for together, single in zip(results, alone, strict=True):
        np.testing.assert_allclose(together.probabilities, single.probabilities, rtol=1e-6)
    parts = [len(shares) for shares in fakes[0].received[: math.ceil(count / 4)]]
    assert sum(parts) == count
    assert max(parts) <= 4


def test_every_server_gets_its_own_share_and_nothing_else(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints)
    expected = client.encode(images[0])
    assert not any(fake.received for fake in fakes)
    client.predict(images[0])
    for fake, share in zip(fakes, expected, strict=True):
        assert [received.tobytes() for received in fake.received] == [share.tobytes()]


def test_a_request_has_the_same_length_whatever_the_image(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str]
) -> None:
    client = connect(release / "client", endpoints)
    for value in (0, 127, 255):
        client.predict(np.full((30, 20, 3), value, dtype=np.uint8))
    for fake, length in zip(fakes, (5, 6, 7), strict=True):
        assert [received.shape for received in fake.received] == [(1, length)] * 3


def test_any_form_of_image(connect: Callable[..., Driver], release: Path, endpoints: list[str], tmp_path: Path) -> None:
    client = connect(release / "client", endpoints)
    path = tmp_path / "picture.png"
    picture = Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    picture.save(path)
    forms = (picture, np.asarray(picture), path, str(path), path.read_bytes())
    assert len({client.predict(form).probabilities.tobytes() for form in forms}) == 1


def test_the_release_is_checked_once_for_each_server(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints)
    for _ in range(3):
        client.predict(images[0])
    assert [fake.checks for fake in fakes] == [1, 1, 1]


def test_use_from_many_threads(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=30)
    expected = [result.probabilities.tobytes() for result in map(client.predict, images)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(client.predict, [images[i % 10] for i in range(80)]))
    assert [result.probabilities.tobytes() for result in results] == expected * 8


# ------------------------------------------------------------------------------------------------ servers that fail


WRONG_ANSWERS = {
    "one class too many": Fault(logits=lambda logits: np.concatenate([logits, logits[:, :1]], axis=1)),
    "one row too many": Fault(logits=lambda logits: np.concatenate([logits, logits])),
    "an axis too many": Fault(logits=lambda logits: logits[np.newaxis]),
    "float64": Fault(logits=lambda logits: logits.astype(np.float64)),
    "float16": Fault(logits=lambda logits: logits.astype(np.float16)),
    "NaN": Fault(logits=lambda logits: np.where(logits == logits.max(), np.nan, logits).astype(np.float32)),
    "infinity": Fault(logits=lambda logits: np.where(logits == logits.max(), np.inf, logits).astype(np.float32)),
    "absurdly large": Fault(logits=lambda logits: logits * np.float32(1e30)),
    "truncated bytes": Fault(response=lambda r: r.raw_output_contents.__setitem__(0, r.raw_output_contents[0][:-1])),
    "no bytes": Fault(response=lambda r: r.ClearField("raw_output_contents")),
    "no output": Fault(response=lambda r: r.ClearField("outputs")),
    "an empty message": Fault(response=lambda r: r.Clear()),
    "another name": Fault(response=lambda r: setattr(r.outputs[0], "name", "probabilities")),
    "another type name": Fault(response=lambda r: setattr(r.outputs[0], "datatype", "BYTES")),
    "a negative shape": Fault(response=lambda r: r.outputs[0].shape.__setitem__(0, -1)),
    "one output too many": Fault(response=lambda r: r.outputs.add(name="more", datatype="FP32", shape=[1])),
}


@pytest.mark.parametrize("fault", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
def test_a_wrong_answer_is_refused_and_the_others_are_used(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    fault: Fault,
) -> None:
    fakes[1].fault = fault
    strict = connect(release / "client", endpoints)
    with pytest.raises(NotEnoughAnswersError) as caught:
        strict.predict(images[0])
    assert causes_of(caught) == {1: AnswerError}
    assert caught.value.causes[1].server == 1
    assert caught.value.answered == (0, 2)
    assert caught.value.needed == 3
    result = connect(release / "client", endpoints, min_answers=2).predict(images[0])
    assert result.answered == (True, False, True)
    assert result.timings.servers_ms[1] is None
    assert np.isfinite(result.probabilities).all()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("UNAVAILABLE", ServerUnavailableError),
        ("INTERNAL", ServerUnavailableError),
        ("RESOURCE_EXHAUSTED", ServerBusyError),
        ("PERMISSION_DENIED", ServerUnavailableError),
        ("CANCELLED", ServerUnavailableError),
        ("NOT_FOUND", ServerMismatchError),
        ("DEADLINE_EXCEEDED", ServerTimeoutError),
    ],
)
@pytest.mark.parametrize("stage", ["fault", "check_fault"])
def test_every_status_becomes_a_typed_cause(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    status: str,
    kind: type[Any],
    stage: str,
) -> None:
    setattr(fakes[2], stage, Fault(status=status))
    with pytest.raises(NotEnoughAnswersError, match="min_answers") as caught:
        connect(release / "client", endpoints).predict(images[0])
    assert causes_of(caught) == {2: kind}
    assert "told to by the test" not in str(caught.value), "what a server writes does not get into errors"
    assert connect(release / "client", endpoints, min_answers=1).predict(images[0]).answered == (True, True, False)


def test_every_failed_server_is_named(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    dead_port: str,
) -> None:
    fakes[0].fault = Fault(logits=lambda logits: logits[:, :2])
    fakes[1].fault = Fault(delay=HANG_S)
    client = connect(release / "client", [*endpoints[:2], dead_port], min_answers=1)
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.predict(images[0], timeout=1)
    assert causes_of(caught) == {0: AnswerError, 1: ServerTimeoutError, 2: ServerUnavailableError}
    assert all(f"server {i}: " in str(caught.value) for i in range(3))


def test_a_dead_port_fails_fast(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray, dead_port: str
) -> None:
    client = connect(release / "client", [dead_port, *endpoints[1:]], timeout=30)
    started = time.monotonic()
    with pytest.raises(NotEnoughAnswersError, match="cannot be reached") as caught:
        client.predict(images[0])
    assert causes_of(caught) == {0: ServerUnavailableError}
    assert time.monotonic() - started < 15


def test_a_server_that_comes_back_is_used_again(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, min_answers=1)
    fakes[0].fault = Fault(status="UNAVAILABLE")
    assert client.predict(images[0]).answered == (False, True, True)
    fakes[0].fault = None
    assert client.predict(images[0]).answered == (True, True, True)


def test_what_is_no_server_at_all(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, and says nothing
        silent = f"{endpoints[0].rpartition(':')[0]}:{listener.getsockname()[1]}"
        client = connect(release / "client", [silent, *endpoints[1:]])
        with pytest.raises(NotEnoughAnswersError) as caught:
            client.predict(images[0], timeout=1)
        assert set(causes_of(caught)) == {0}


def test_errors_of_a_call_can_be_pickled_and_hold_no_tensor(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    fakes[0].fault = Fault(logits=lambda logits: logits.astype(np.float64))
    fakes[1].fault = Fault(response=lambda r: setattr(r.outputs[0], "name", str(fakes[1].received[-1].tolist())))
    with pytest.raises(NotEnoughAnswersError) as caught:
        connect(release / "client", endpoints).predict(images[0])
    for clone in (pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):  # noqa: S301
        assert str(clone) == str(caught.value)
        assert {i: str(cause) for i, cause in clone.causes.items()} == {
            i: str(cause) for i, cause in caught.value.causes.items()
        }
    data = pickle.dumps(caught.value)
    for fake in fakes[:2]:
        values = fake.received[-1]
        assert values.tobytes() not in data
        assert str(values.tolist()[0])[1:-1] not in str(caught.value)
    assert not re.search(r"-?\d+, -?\d+, -?\d+", str(caught.value))


# ------------------------------------------------------------------------------------------- the right server, no other


def test_servers_in_another_order_get_no_share(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", [endpoints[1], endpoints[0], endpoints[2]], min_answers=1)
    result = client.predict(images[0])
    assert result.answered == (False, False, True)
    assert not fakes[0].received
    assert not fakes[1].received


def test_what_was_sent_is_counted_and_nothing_else(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    dead_port: str,
) -> None:
    client = connect(release / "client", [*endpoints[:2], dead_port])
    with pytest.raises(NotEnoughAnswersError, match="2 of 3 servers passed the release check") as caught:
        client.predict(images[0])
    assert "no share was sent" in str(caught.value)
    assert caught.value.answered == ()
    assert not any(fake.received for fake in fakes)
    assert client.with_options(min_answers=2).predict(images[0]).bytes_up == (5, 6, 0)
    again = iter([Fault(status="UNAVAILABLE"), None])
    real = fakes[1]._model_infer

    def infer(request: Any, context: Any) -> Any:
        fakes[1].fault = next(again)
        return real(request, context)

    fakes[1]._model_infer = infer
    assert client.with_options(min_answers=2).predict(images[0]).bytes_up == (5, 12, 0), "a retry counts"


def test_a_server_of_another_release_gets_no_share(
    connect: Callable[..., Driver],
    release: Path,
    other_release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    wire: WireName,
) -> None:
    with FakeServer.for_release(other_release, 1, wire=wire) as stranger:
        client = connect(release / "client", [endpoints[0], stranger.endpoint, endpoints[2]])
        with pytest.raises(NotEnoughAnswersError, match="serves release 'tiny-2', not tiny-1") as caught:
            client.predict(images[0])
        assert causes_of(caught) == {1: ServerMismatchError}
        assert not stranger.received
    assert not any(fake.received for fake in fakes), "nobody is sent anything when too few pass the check"


@pytest.mark.parametrize(
    "edit",
    [
        lambda config: config.ClearField("parameters"),
        lambda config: setattr(config.parameters["privdfs_server"], "string_value", "0"),
        lambda config: setattr(config.parameters["privdfs_release"], "string_value", "x" * 10_000),
        lambda config: config.input[0].dims.__setitem__(0, 99),
        lambda config: setattr(config.input[0], "name", "image"),
        lambda config: setattr(config.output[0], "data_type", 1),
        lambda config: config.output[0].dims.append(1),
        lambda config: setattr(config, "max_batch_size", 0),
        lambda config: config.Clear(),
    ],
)
def test_a_configuration_that_does_not_fit_gets_no_share(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    edit: Callable[[Any], Any],
) -> None:
    fakes[1].check_fault = Fault(response=lambda response: edit(response.config))
    with pytest.raises(NotEnoughAnswersError) as caught:
        connect(release / "client", endpoints).predict(images[0])
    assert causes_of(caught) == {1: ServerMismatchError}
    assert not fakes[1].received
    assert len(str(caught.value)) < 1000


def test_a_server_that_failed_is_checked_again_before_the_next_share(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, min_answers=2)
    fakes[0].fault = Fault(status="UNAVAILABLE")
    client.predict(images[0])
    fakes[0].fault = None
    fakes[0].check_fault = Fault(response=lambda r: r.config.ClearField("parameters"))
    before = len(fakes[0].received)
    assert client.predict(images[1]).answered == (False, True, True)
    assert len(fakes[0].received) == before


def test_the_next_replica_of_the_same_server_takes_over(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    dead_port: str,
) -> None:
    client = connect(release / "client", [Server([dead_port, endpoints[0]]), *endpoints[1:]], min_answers=2)
    for image in images[:2]:
        assert client.predict(image).answered == (True, True, True)
    expected = [client.encode(image)[0].tobytes() for image in images[:2]]
    assert [received.tobytes() for received in fakes[0].received] == expected


def test_a_share_cannot_be_put_into_another_servers_request(release: Path, endpoints: list[str]) -> None:
    with Client(release / "client", endpoints, allow_unsigned=True) as client:
        channels = client._transport._channels  # pyright: ignore[reportAttributeAccessIssue]
        own, other = (channels[i].replicas.take((), ()) for i in (0, 1))
        with pytest.raises(RuntimeError, match="server 1 was about to be sent to server 0"):
            channels[0].ask_branch(own, Share(1, np.zeros((1, 5), np.int8)), 1, 1)
        with pytest.raises(RuntimeError, match="server 0 was about to be sent to server 1"):
            channels[0].ask_branch(other, Share(0, np.zeros((1, 5), np.int8)), 1, 1)
        with pytest.raises(RuntimeError, match="has not passed the check"):
            channels[0].ask_branch(own, Share(0, np.zeros((1, 5), np.int8)), 1, 1)
        for channel, connection in zip(channels, (own, other), strict=False):
            channel.replicas.give_back(connection, failed=None)


# -------------------------------------------------------------------------------------------------------- the deadline


@pytest.mark.parametrize("stage", ["fault", "check_fault"])
def test_a_server_that_hangs_is_given_up_at_the_deadline(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    stage: str,
) -> None:
    setattr(fakes[1], stage, Fault(delay=HANG_S))
    client = connect(release / "client", endpoints, timeout=0.5)
    started = time.monotonic()
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.predict(images[0])
    elapsed = time.monotonic() - started
    assert causes_of(caught) == {1: ServerTimeoutError}
    assert 0.4 < elapsed < 10


def test_the_answers_that_came_in_time_are_used(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, min_answers=2, timeout=30)
    client.predict(images[0])
    fakes[1].fault = Fault(delay=HANG_S)
    assert client.predict(images[0], timeout=0.5).answered == (True, False, True)


def test_a_call_may_take_longer_than_the_client_when_asked(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=0.2)
    client.predict(images[0], timeout=30)
    fakes[1].fault = Fault(delay=0.6)
    with pytest.raises(NotEnoughAnswersError):
        client.predict(images[0])
    assert client.predict(images[0], timeout=30).answered == (True, True, True)


def test_one_deadline_covers_all_parts_of_a_batch(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=30)
    client.predict(images[0])
    fakes[0].fault = Fault(delay=0.5)  # three parts: 1.5 s
    started = time.monotonic()
    with pytest.raises((NotEnoughAnswersError, DeadlineExceededError)):
        client.predict_batch(images, timeout=0.8)
    assert time.monotonic() - started < 10


def test_a_server_that_hangs_does_not_use_up_the_time_of_later_parts(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, min_answers=2, timeout=30)
    client.predict(images[0])
    fakes[1].fault = Fault(delay=HANG_S)
    results = client.predict_batch(images, timeout=3)
    assert [result.answered for result in results] == [(True, False, True)] * len(images)
    assert len(images) > MAX_BATCH


def test_shares_are_wiped_and_what_encode_gives_is_not(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made, begin = list[np.ndarray](), Masked.begin

    def begun(self: Masked, pixels: np.ndarray) -> Sent:
        sent = begin(self, pixels)
        made.extend(sent.shares)
        return sent

    monkeypatch.setattr(Masked, "begin", begun)
    client = connect(release / "client", endpoints)
    client.predict_batch(images)
    assert any(share.any() for share in client.encode(images[0]))
    fakes[1].fault = Fault(status="UNAVAILABLE")
    with pytest.raises(NotEnoughAnswersError):
        client.predict(images[0], timeout=1)
    assert made
    assert not any(share.any() for share in made)


def test_a_call_that_is_late_before_it_is_sent_sends_nothing(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints)
    client.predict(images[0])
    with pytest.raises(DeadlineExceededError, match="raise `timeout`"):
        client.predict(images[0], timeout=1e-6)
    assert [len(fake.received) for fake in fakes] == [1, 1, 1]


@pytest.mark.parametrize("timeout", [0, -1, math.nan, "1"])
def test_a_timeout_that_makes_no_sense(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray, timeout: Any
) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        connect(release / "client", endpoints, timeout=timeout)
    with pytest.raises(ConfigError, match="timeout"):
        connect(release / "client", endpoints).predict(images[0], timeout=timeout)


# --------------------------------------------------------------------------------------- before anything is sent


@pytest.mark.parametrize(
    "image",
    [b"no image", np.zeros((1, 1, 3), np.uint8), np.full((12, 10, 3), np.nan, np.float32), "none.png", None],
    ids=["bytes", "1x1", "NaN", "path", "None"],
)
def test_a_bad_image_is_refused_before_anything_is_sent(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    image: Any,
) -> None:
    client = connect(release / "client", endpoints)
    with pytest.raises(ImageError):
        client.predict(image)
    with pytest.raises(ImageError, match="image 1 of the batch"):
        client.predict_batch([images[0], image])
    with pytest.raises(ImageError):
        client.encode(image)
    with pytest.raises(ImageError, match="empty"):
        client.predict_batch([])
    assert not any(fake.received or fake.checks for fake in fakes)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_the_number_of_servers_must_fit(connect: Callable[..., Driver], release: Path, count: int) -> None:
    with pytest.raises(ConfigError, match="has 3 servers" if count else "no servers were given"):
        connect(release / "client", [f"127.0.0.1:{port}" for port in range(1, count + 1)])


def test_the_same_endpoint_twice(connect: Callable[..., Driver], release: Path, endpoints: list[str]) -> None:
    with pytest.raises(ConfigError, match="twice"):
        connect(release / "client", [endpoints[0], endpoints[1], endpoints[0]])


def test_plaintext_beyond_this_machine(connect: Callable[..., Driver], release: Path) -> None:
    with pytest.raises(ConfigError, match="TLS"):
        connect(release / "client", ["a.example:1", "b.example:1", "c.example:1"])


@pytest.mark.parametrize("min_answers", [0, 4, 1.5])
def test_min_answers_that_make_no_sense(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], min_answers: Any
) -> None:
    with pytest.raises(ConfigError, match="min_answers"):
        connect(release / "client", endpoints, min_answers=min_answers)


def test_a_bundle_that_is_not_there(connect: Callable[..., Driver], endpoints: list[str], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        connect(tmp_path, endpoints)


def test_a_closed_client_says_so(
    connect: Callable[..., Driver],
    connect_local: Callable[..., Driver],
    release: Path,
    endpoints: list[str],
    images: np.ndarray,
) -> None:
    for client in (connect(release / "client", endpoints), connect_local(release)):
        client.predict(images[0])
        client.close()
        client.close()
        for call in (client.predict, client.predict_batch, client.encode):
            with pytest.raises(ConfigError, match="closed"):
                call(images[0])


def test_closing_while_a_call_waits_ends_the_call(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=HANG_S)
    client.predict(images[0])
    fakes[0].fault = Fault(delay=HANG_S)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.predict, images[0])
        while len(fakes[0].received) < 2:
            time.sleep(0.01)
        client.close()
        with pytest.raises(Error):
            waiting.result(HANG_S)


def test_clients_are_context_managers_with_short_reprs(release: Path, endpoints: list[str], images: np.ndarray) -> None:
    with Client(release / "client", endpoints, allow_unsigned=True) as client:
        assert repr(client) == "Client(release='tiny-1', servers=3)"
        client.predict(images[0])
    with pytest.raises(ConfigError):
        client.predict(images[0])


async def test_the_async_client_in_its_own_loop(
    release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    async with AsyncClient(release / "client", endpoints, allow_unsigned=True) as client:
        assert repr(client) == "AsyncClient(release='tiny-1', servers=3)"
        results = await asyncio.gather(*(client.predict(image) for image in images))
        assert [result.label for result in results] == [r.label for r in await client.predict_batch(images)]
        fakes[0].fault = Fault(delay=HANG_S)
        call = asyncio.ensure_future(client.predict(images[0], timeout=HANG_S))
        before = len(fakes[0].received)
        while len(fakes[0].received) == before:  # noqa: ASYNC110 - it happens in a thread of the server
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        fakes[0].fault = None
        assert (await client.predict(images[0])).answered == (True, True, True)
    with pytest.raises(ConfigError):
        await client.predict(images[0])


@pytest.mark.parametrize(("form", "brief_macs", "in_thread"), [(0, 10**9, False), (0, 0, True), (1, 10**9, True)])
async def test_the_event_loop_waits_for_no_long_encoding(
    form: int,
    brief_macs: int,
    in_thread: bool,  # noqa: FBT001 - of the table
    release: Path,
    endpoints: list[str],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[object] = []
    encode, loop_thread = Call.encode, threading.get_ident()

    def noting(call: Call, decoded: Decoded) -> Chunk:
        threads.append(threading.get_ident())
        return encode(call, decoded)

    monkeypatch.setattr("privdfs._core.BRIEF_MACS", brief_macs)
    monkeypatch.setattr(Call, "encode", noting)
    async with AsyncClient(release / "client", endpoints, allow_unsigned=True) as client:
        await client.predict((images[0], Image.fromarray(images[0]))[form])
    assert [thread != loop_thread for thread in threads] == [in_thread]


def test_the_async_client_refuses_a_second_event_loop(release: Path, endpoints: list[str], images: np.ndarray) -> None:
    client = AsyncClient(release / "client", endpoints, allow_unsigned=True)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        first.run_until_complete(client.predict(images[0]))
        with pytest.raises(ConfigError, match="event loop"):
            second.run_until_complete(client.predict(images[0]))
        first.run_until_complete(client.close())
    finally:
        first.close()
        second.close()


# ----------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def guarded(release: Path, authority: trustme.CA, wire: WireName) -> Iterator[list[FakeServer]]:
    """Three servers that want a client certificate of the authority."""
    own = credentials(authority.issue_cert("127.0.0.1"), authority, wire)
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer.for_release(release, i, wire=wire, credentials=own)) for i in range(3)]


def test_mutual_tls(
    connect: Callable[..., Driver],
    release: Path,
    guarded: list[FakeServer],
    authority: trustme.CA,
    images: np.ndarray,
    tmp_path: Path,
) -> None:
    device = authority.issue_cert("device.example")
    device.private_key_pem.write_to_path(tmp_path / "key.pem")
    device.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    tls = TLS(ca=authority.cert_pem.bytes(), cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    client = connect(release / "client", [Server(fake.endpoint, tls) for fake in guarded], timeout=20)
    assert client.predict(images[0]).answered == (True, True, True)


@pytest.mark.parametrize(
    "case", ["no client certificate", "a stranger's certificate", "another authority", "plaintext"]
)
def test_tls_that_does_not_fit_sends_nothing(
    connect: Callable[..., Driver],
    release: Path,
    guarded: list[FakeServer],
    authority: trustme.CA,
    images: np.ndarray,
    case: str,
) -> None:
    stranger = trustme.CA()
    device = stranger.issue_cert("device.example")
    tls = {
        "no client certificate": TLS(ca=authority.cert_pem.bytes()),
        "a stranger's certificate": TLS(
            ca=authority.cert_pem.bytes(), cert=device.cert_chain_pems[0].bytes(), key=device.private_key_pem.bytes()
        ),
        "another authority": TLS(ca=stranger.cert_pem.bytes()),
        "plaintext": None,
    }[case]
    servers = [Server(scheme(fake.endpoint, tls=tls is not None), tls) for fake in guarded]
    client = connect(release / "client", servers, timeout=3)
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.predict(images[0])
    assert set(causes_of(caught).values()) <= {ServerUnavailableError, ServerTimeoutError}
    assert not any(fake.received or fake.checks for fake in guarded)
