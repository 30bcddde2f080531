"""Connections: checked each for itself, replaced when they are lost or silent, bounded, and gone with the client."""

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from privdfs import (
    AsyncClient,
    Client,
    ConfigError,
    DeadlineExceededError,
    NotEnoughAnswersError,
    Retries,
    Server,
    ServerMismatchError,
    ServerTimeoutError,
)
from privdfs._chunk import Share
from privdfs._config import WireName
from privdfs._constants import BREAKER_FAILURES, MAX_CALLS_AT_ONCE
from privdfs._core import Call
from privdfs.testing import FakeServer, Fault
from tests.sdk.drivers import HANG_S, AsyncDriver, Driver, at
from tests.wire_proxy import Proxies

ALL = (True, True, True)


@pytest.fixture
def doors(fakes: list[FakeServer]) -> Iterator[Proxies]:
    """A proxy before each fake, which can be led elsewhere."""
    with Proxies([fake.endpoint for fake in fakes]) as proxies:
        yield proxies


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def settled(at_most: int = 0) -> int:
    """Open descriptors once the fakes, which are in this process, have noticed what clients closed."""
    until, before = time.monotonic() + 2, -1
    while time.monotonic() < until and (before != open_descriptors() or (at_most and before > at_most)):
        before = open_descriptors()
        time.sleep(0.05)
    return open_descriptors()


# ------------------------------------------------------------------------------------- who answers at an endpoint now


@pytest.mark.parametrize("stranger", ["another server", "another release"])
@pytest.mark.parametrize("drop", [True, False], ids=["connections dropped", "old connection stays"])
def test_whoever_takes_the_place_of_a_checked_server_gets_no_share(
    connect: Callable[..., Driver],
    release: Path,
    other_release: Path,
    fakes: list[FakeServer],
    doors: Proxies,
    images: np.ndarray,
    *,
    wire: WireName,
    stranger: str,
    drop: bool,
) -> None:
    source, index = {"another server": (release, 1), "another release": (other_release, 0)}[stranger]
    client = connect(release / "client", [door.endpoint for door in doors.doors], timeout=20)
    assert client.predict(images[0]).answered == ALL
    with FakeServer.for_release(source, index, wire=wire) as other:
        doors.doors[0].lead_to(other.endpoint)
        if drop:
            doors.drop(0)
            with pytest.raises(NotEnoughAnswersError) as caught:
                client.predict(images[1])
            assert {i: type(cause) for i, cause in caught.value.causes.items()} == {0: ServerMismatchError}
            assert other.checks == 1
        else:  # what was checked is still what answers
            assert client.predict(images[1]).answered == ALL
        assert not other.received
    assert [len(fake.received) for fake in fakes[1:]] == ([1, 1] if drop else [2, 2])


def test_a_server_that_is_restarted_between_two_calls_is_checked_and_answers(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], doors: Proxies, images: np.ndarray
) -> None:
    client = connect(release / "client", [door.endpoint for door in doors.doors], timeout=20)
    client.predict(images[0])
    for index in range(3):
        doors.drop(index)
    assert client.predict(images[1]).answered == ALL, "no call fails"
    assert [fake.checks for fake in fakes] == [2, 2, 2]


def test_a_stranger_that_comes_in_the_middle_of_a_call_gets_no_share(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    doors: Proxies,
    images: np.ndarray,
    wire: WireName,
) -> None:
    client = connect(release / "client", [door.endpoint for door in doors.doors], timeout=20)
    client.predict(images[0])
    with FakeServer.for_release(release, 2, wire=wire) as other:

        def swap(logits: np.ndarray) -> np.ndarray:
            doors.doors[0].lead_to(other.endpoint)
            doors.drop(0)  # before the answer is out
            return logits

        fakes[0].fault = Fault(logits=swap)
        with pytest.raises(NotEnoughAnswersError) as caught:
            client.predict(images[0])
        assert isinstance(caught.value.causes[0], ServerMismatchError)
        assert not other.received


# ---------------------------------------------------------------------------------------------- dead and silent lines


def test_a_connection_that_went_silent_costs_two_calls_at_most(
    connect: Callable[..., Driver], release: Path, doors: Proxies, images: np.ndarray
) -> None:
    client = connect(release / "client", [door.endpoint for door in doors.doors], timeout=20)
    client.predict(images[0])
    before = len(doors.doors[1].sent)
    doors.forget(1)  # what is sent on its connections vanishes, and nobody says so
    failed, cause = 0, None
    for image in images[:4]:
        try:
            client.predict(image, timeout=0.5 if failed < 1 else 20)
        except NotEnoughAnswersError as error:
            failed += 1
            cause = error.causes[1]
    assert failed == 1
    assert isinstance(cause, ServerTimeoutError)
    assert "did not answer in time" in cause.message
    assert "new connection" in cause.message
    assert len(doors.doors[1].sent) == before + 1


def test_health_does_not_use_a_connection_that_went_silent(
    connect: Callable[..., Driver], release: Path, doors: Proxies
) -> None:
    client = connect(release / "client", [door.endpoint for door in doors.doors], timeout=20)
    client.warmup()
    doors.forget(1)
    assert [row.ok for row in client.health(timeout=0.5)] == [True, False, True]
    assert [row.ok for row in client.health(timeout=20)] == [True] * 3


def test_all_idle_connections_of_a_silent_line_are_replaced_at_once(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], doors: Proxies, images: np.ndarray
) -> None:
    client = connect(release / "client", [door.endpoint for door in doors.doors], timeout=30)
    client.warmup()
    fakes[1].fault = Fault(delay=0.5)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(client.predict, images[:6]))
    fakes[1].fault = None
    assert len(doors.doors[1].sent) > 3
    doors.forget(1)
    with pytest.raises(NotEnoughAnswersError):
        client.predict(images[0], timeout=0.5)
    assert client.predict(images[0]).answered == ALL


def test_the_only_endpoint_of_a_party_is_used_again_soon_after_it_is_back(
    connect: Callable[..., Driver], release: Path, doors: Proxies, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privdfs._routing.BREAKER_FIRST_S", 600.0)  # the pause of a replica that has others beside it
    endpoints = [door.endpoint for door in doors.doors]
    client = connect(release / "client", endpoints, retries=Retries(attempts=1), min_answers=2)
    client.predict(images[0])
    doors.doors[2].trouble = "refused"
    doors.drop(2)
    for _ in range(BREAKER_FAILURES + 2):
        assert client.predict(images[0]).answered == (True, True, False)
    doors.doors[2].trouble = "none"
    until = time.monotonic() + HANG_S
    while client.predict(images[0]).answered != ALL:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_health_clears_what_calls_have_seen(
    connect: Callable[..., Driver], release: Path, doors: Proxies, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BREAKER_FIRST_S", "BREAKER_LAST_S"):
        monkeypatch.setattr(f"privdfs._routing.{name}", 600.0)
    endpoints = [door.endpoint for door in doors.doors]
    client = connect(release / "client", endpoints, retries=Retries(attempts=1), min_answers=2)
    doors.doors[2].trouble = "refused"
    for _ in range(BREAKER_FAILURES + 1):
        client.predict(images[0])
    doors.doors[2].trouble = "none"
    assert client.predict(images[0]).answered == (True, True, False)
    assert [row.ok for row in client.health()] == [True] * 3
    assert client.predict(images[0]).answered == ALL


# ---------------------------------------------------------------------------------------------- threads, descriptors


def test_threads_and_descriptors_are_bounded_while_servers_fail(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        start = endpoints[0].rpartition(":")[0]
        those = [endpoints[0], *(f"{start}:{sock.getsockname()[1]}" for sock in (silent, dead))]
        client = connect(release / "client", those, timeout=0.05, min_answers=1)
        client.with_options(wait="quorum").predict(images[0], timeout=10)  # without the silent one
        with suppress(NotEnoughAnswersError):
            client.predict(images[0])  # all three are tried
        before = threading.active_count(), open_descriptors()
        for _ in range(40):
            with suppress(NotEnoughAnswersError):
                client.predict(images[0])
        assert threading.active_count() <= before[0] + 1
        assert open_descriptors() <= before[1] + 6


def test_a_blocking_call_needs_no_thread(release: Path, endpoints: list[str], images: np.ndarray) -> None:
    with Client(release / "client", endpoints, allow_unsigned=True) as client:
        before = {thread.name for thread in threading.enumerate()}
        for retries in (Retries(), Retries(hedge_after=0.01)):
            client.with_options(retries=retries).predict(images[0])
        new = {thread.name for thread in threading.enumerate()} - before
        assert not [name for name in new if name.startswith("privdfs")]


def test_connections_are_as_many_as_calls_run_at_once(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], doors: Proxies, images: np.ndarray
) -> None:
    client = connect(release / "client", [door.endpoint for door in doors.doors], timeout=30)
    for image in images:
        client.predict(image)
    assert [len(door.sent) for door in doors.doors] == [1, 1, 1]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client.predict, [images[i % 10] for i in range(40)]))
    assert all(len(door.sent) <= 4 for door in doors.doors)


def test_a_call_that_hangs_holds_up_no_other(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=HANG_S)
    with ThreadPoolExecutor(1) as pool:
        client.predict(images[0])
        fakes[0].fault = Fault(delay=HANG_S)
        hanging = pool.submit(client.predict, images[0], timeout=2)
        while len(fakes[0].received) < 2:
            time.sleep(0.01)
        fakes[0].fault = None
        for image in images:
            assert client.predict(image).answered == ALL
        with pytest.raises(NotEnoughAnswersError):
            hanging.result(HANG_S)


def test_more_calls_than_may_run_at_once_wait_for_their_turn_until_their_deadline(
    connect: Callable[..., Driver],
    release: Path,
    fakes: list[FakeServer],
    endpoints: list[str],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("_client", "_async_client"):
        monkeypatch.setattr(f"privdfs.{module}.MAX_CALLS_AT_ONCE", 2)
    client = connect(release / "client", endpoints, timeout=HANG_S, min_answers=2)
    client.predict(images[0])
    fakes[0].fault = Fault(delay=HANG_S)
    with ThreadPoolExecutor(2) as pool:
        hanging = [pool.submit(client.predict, images[0], timeout=2) for _ in range(2)]
        while len(fakes[0].received) < 3:
            time.sleep(0.01)
        with pytest.raises(DeadlineExceededError, match="fewer calls at a time"):
            client.predict(images[1], timeout=0.1)
        sent = {share.tobytes() for fake in fakes for share in fake.received}
        assert not sent & {share.tobytes() for share in client.encode(images[1])}
        fakes[0].fault = None
        assert client.predict(images[1]).answered == ALL
        assert [future.result(HANG_S).answered for future in hanging] == [(False, True, True)] * 2


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_dropped_clients_leave_no_descriptor_and_say_so(
    release: Path, endpoints: list[str], images: np.ndarray, kind: type
) -> None:
    def use_and_drop() -> None:
        client = kind(release / "client", endpoints, allow_unsigned=True)
        if kind is AsyncClient:
            asyncio.run(client.predict(images[0]))
        else:
            client.predict(images[0])
        del client
        gc.collect()

    with pytest.warns(ResourceWarning, match="dropped without close"):
        use_and_drop()
    first = settled()
    for _ in range(4):
        with pytest.warns(ResourceWarning, match="dropped without close"):
            use_and_drop()
    assert settled(first) <= first


def test_closed_clients_say_nothing(release: Path, endpoints: list[str], images: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = Client(release / "client", endpoints, allow_unsigned=True)
        client.predict(images[0])
        client.close()
        del client
        gc.collect()


def test_cancelled_tasks_leave_no_descriptor_and_no_thread(
    release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    async def run() -> tuple[list[int], list[int]]:
        descriptors, threads = [], []
        async with AsyncClient(release / "client", endpoints, allow_unsigned=True, timeout=HANG_S) as client:
            await client.predict(images[0])
            fakes[0].fault = Fault(delay=HANG_S)
            for _ in range(30):
                task = asyncio.ensure_future(client.predict(images[0]))
                await asyncio.sleep(0.02)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                descriptors.append(open_descriptors())
                threads.append(threading.active_count())
        return descriptors, threads

    descriptors, threads = asyncio.run(run())
    assert max(descriptors[5:]) <= descriptors[5] + 3
    assert max(threads[5:]) <= threads[5] + 30  # those of the fake, which keeps one for every call that hangs


@pytest.mark.parametrize("after", [0.0, 0.0003, 0.001, 0.003])
def test_a_cancellation_is_never_swallowed(
    release: Path, fakes: list[FakeServer], endpoints: list[str], after: float
) -> None:
    async def run() -> int:
        lost = 0
        async with AsyncClient(release / "client", endpoints, allow_unsigned=True, timeout=HANG_S) as client:
            image = np.zeros((80, 80, 3), np.uint8)  # decoded in a thread
            await client.predict(image)
            for _ in range(40):
                task = asyncio.ensure_future(client.predict(image))
                await asyncio.sleep(after)
                asked = task.cancel()  # False where it has ended already
                with suppress(asyncio.CancelledError):
                    await task
                lost += asked and not task.cancelled()
            await client.predict(image)
        return lost

    assert asyncio.run(run()) == 0


def test_a_turn_that_comes_with_a_cancellation_is_not_lost(
    release: Path, endpoints: list[str], images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privdfs._async_client.MAX_CALLS_AT_ONCE", 1)

    async def run() -> None:
        async with AsyncClient(release / "client", endpoints, allow_unsigned=True, timeout=HANG_S) as client:
            for _ in range(20):
                tasks = [asyncio.ensure_future(client.predict(images[0])) for _ in range(4)]
                await asyncio.sleep(0.002)
                for task in tasks[1:]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            assert (await client.predict(images[0], timeout=20)).answered == ALL

    asyncio.run(run())


@pytest.mark.parametrize("end", ["", "client.close()\n"])
def test_a_program_ends_while_a_server_hangs(
    release: Path, fakes: list[FakeServer], endpoints: list[str], end: str
) -> None:
    program = (
        "import sys, threading, numpy as np, time\n"
        "from privdfs import Client\n"
        f"client = Client(sys.argv[1], sys.argv[2:], allow_unsigned=True, timeout={HANG_S})\n"
        "image = np.zeros((64, 64, 3), np.uint8)\n"
        "threading.Thread(target=client.predict, args=(image,), daemon=True).start()\n"
        f"time.sleep(1)\n{end}"
    )
    fakes[0].fault = Fault(delay=HANG_S)
    done = subprocess.run(
        [sys.executable, "-c", program, str(release / "client"), *endpoints],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=HANG_S / 2,
        check=False,
    )
    assert done.returncode == 0
    assert fakes[0].received


# ------------------------------------------------------------------------------------------ names, proxies, executors


def test_a_call_keeps_its_deadline_while_the_default_executor_is_busy(
    release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    driver = AsyncDriver(AsyncClient(release / "client", endpoints, allow_unsigned=True, timeout=HANG_S / 2))
    released = threading.Event()
    try:
        driver.predict(images[0])
        driver.occupy(partial(released.wait, HANG_S))  # longer than any call may take
        large = np.zeros((300, 300, 3), np.uint8)  # not of the bundle's size: decoded in a thread
        assert driver.predict(large).answered == ALL
        assert len(driver.predict_batch([large, large])) == 2
        assert len(driver.encode(large)) == 3
        assert all(row.ok for row in driver.warmup())
    finally:
        released.set()
        driver.stop()


@pytest.mark.parametrize("call", ["predict", "predict_batch", "encode", "warmup"])
def test_what_runs_in_a_thread_ends_at_the_deadline_too(
    release: Path, fakes: list[FakeServer], endpoints: list[str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    released = threading.Event()

    async def run() -> None:
        async with AsyncClient(release / "client", endpoints, allow_unsigned=True, timeout=0.1) as client:
            image = np.zeros((300, 300, 3), np.uint8)
            started = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                await {
                    "predict": lambda: client.predict(image),
                    "predict_batch": lambda: client.predict_batch([image]),
                    "encode": lambda: client.encode(image),
                    "warmup": client.warmup,
                }[call]()
            assert time.monotonic() - started < HANG_S / 2
            released.set()

    for name in ("decode_one", "decode_many", "warm_up"):
        monkeypatch.setattr(f"privdfs._core.Call.{name}", lambda *_: released.wait(HANG_S))
    asyncio.run(run())
    assert not any(fake.received for fake in fakes)


def test_jobs_that_wait_for_a_thread_while_the_client_is_closed_are_not_cancelled(
    release: Path, endpoints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> list[object]:
        client = AsyncClient(release / "client", endpoints, allow_unsigned=True, timeout=HANG_S)
        image = np.zeros((300, 300, 3), np.uint8)
        calls = [asyncio.ensure_future(client.predict_batch([image])) for _ in range(20)]
        await asyncio.sleep(0.1)
        await client.close()
        return await asyncio.gather(*calls, return_exceptions=True)

    decode = Call.decode_many

    def slow(call: Call, images: object) -> object:
        time.sleep(0.3)
        return decode(call, images)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr("privdfs._core.Call.decode_many", slow)
    # Some wait for a thread to decode in; those that were decoded find no thread to encode in.
    assert {(type(end), "closed" in str(end)) for end in asyncio.run(run())} == {(ConfigError, True)}


def test_nothing_of_a_call_is_kept(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    client = connect(release / "client", endpoints, timeout=20)
    client.predict(images[0])
    gc.collect()
    others = {id(each) for each in gc.get_objects() if type(each) is Share}  # such as those of a test that failed
    gc.disable()
    try:
        client.predict(images[0])
        time.sleep(0.1)  # until the event loop has let go of it too
        assert not [each for each in gc.get_objects() if type(each) is Share and id(each) not in others]
    finally:
        gc.enable()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], None]:
    """Names that stand for this machine, each after so many seconds."""
    real = socket.getaddrinfo

    def install(known: dict[str, float]) -> None:
        def look_up(host: str, port: int, *args: object, **options: object) -> object:
            if host not in known or options.get("flags"):
                return real(host, port, *args, **options)  # pyright: ignore[reportArgumentType, reportCallIssue]
            time.sleep(known[host])
            return real("127.0.0.1", port, type=socket.SOCK_STREAM)

        monkeypatch.setattr("socket.getaddrinfo", look_up)

    return install


def test_no_proxy_of_the_environment_ever_gets_a_share(
    connect: Callable[..., Driver],
    release: Path,
    endpoints: list[str],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    names: Callable[[dict[str, float]], None],
) -> None:
    names({"a.example": 0.0, "b.example": 0.0, "c.example": 0.0})
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.2)
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            for spelling in (name, name.upper()):
                monkeypatch.setenv(spelling, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        servers = [
            Server(at(f"{name}.example", endpoint), insecure=True)
            for name, endpoint in zip("abc", endpoints, strict=True)
        ]
        client = connect(release / "client", servers, allow_shared_hosts=True, timeout=20)
        assert client.predict(images[0]).answered == ALL
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_a_name_server_that_is_slow_keeps_one_thread_for_each_name(
    connect: Callable[..., Driver],
    release: Path,
    endpoints: list[str],
    images: np.ndarray,
    names: Callable[[dict[str, float]], None],
) -> None:
    names({"slow.example": 2.0})
    servers = [*endpoints[:2], Server(at("slow.example", endpoints[2]), insecure=True)]
    client = connect(release / "client", servers, allow_shared_hosts=True, timeout=0.1, min_answers=2)
    for _ in range(8):
        with suppress(NotEnoughAnswersError):  # where this machine has no time for the others within 0.1 s either
            assert client.predict(images[0]).answered == (True, True, False)
    assert sum(thread.name == "privdfs-lookup" for thread in threading.enumerate()) == 1
    assert all(row.ok for row in client.health(timeout=20))
    assert client.with_options(min_answers=3, timeout=20).predict(images[0]).answered == ALL


def test_a_name_server_that_is_slow_keeps_no_descriptor_for_each_call(
    connect: Callable[..., Driver],
    release: Path,
    endpoints: list[str],
    images: np.ndarray,
    names: Callable[[dict[str, float]], None],
) -> None:
    names({"slower.example": 3.0})
    servers = [*endpoints[:2], Server(at("slower.example", endpoints[2]), insecure=True)]
    client = connect(release / "client", servers, allow_shared_hosts=True, timeout=0.1, min_answers=2)
    client.with_options(wait="quorum", timeout=20).predict(images[0])  # connects to the others
    before = open_descriptors()
    for _ in range(10):
        with suppress(NotEnoughAnswersError):  # where this machine has no time for the others within 0.1 s either
            client.predict(images[0])
    assert open_descriptors() <= before + 3


@pytest.mark.parametrize("lacking", ["socket.socketpair", "threading.Thread"])
def test_a_lookup_for_which_there_is_no_descriptor_or_thread_fails_for_its_server_alone(
    release: Path, endpoints: list[str], images: np.ndarray, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise {"socket.socketpair": OSError(24, "too many"), "threading.Thread": RuntimeError("no thread")}[lacking]

    servers = [*endpoints[:2], Server(at("nowhere.invalid", endpoints[2]), insecure=True)]
    with Client(release / "client", servers, allow_unsigned=True, min_answers=2, timeout=20) as client:
        with monkeypatch.context() as patch:
            module, name = lacking.split(".")
            patch.setattr(f"privdfs._dial.{module}", SimpleNamespace(**vars(sys.modules[module]) | {name: refuse}))
            assert client.predict(images[0]).answered == (True, True, False)
        # and the next call looks the name up again, instead of waiting for a lookup that never began
        with pytest.raises(NotEnoughAnswersError, match="cannot be found"):
            client.with_options(min_answers=3).predict(images[0])


def test_a_name_with_an_empty_or_long_part_is_named(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    for name in ("a..b", "a" * 70 + ".example"):
        client = connect(
            release / "client", [*endpoints[:2], Server(at(name, endpoints[2]), insecure=True)], timeout=20
        )
        with pytest.raises(NotEnoughAnswersError, match="cannot be found"):
            client.predict(images[0])


def test_a_name_that_does_not_resolve_is_named(
    connect: Callable[..., Driver], release: Path, endpoints: list[str], images: np.ndarray
) -> None:
    servers = [*endpoints[:2], Server(at("nowhere.invalid", endpoints[2]), insecure=True)]
    with pytest.raises(NotEnoughAnswersError, match="cannot be found"):
        connect(release / "client", servers, timeout=20).predict(images[0])


def test_the_next_address_of_a_host_is_tried_when_the_first_does_not_answer(
    connect: Callable[..., Driver],
    release: Path,
    endpoints: list[str],
    images: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = socket.getaddrinfo

    def two(host: str, port: int, *args: object, **options: object) -> list[object]:
        if host != "two.example":
            return list(real(host, port, *args, **options))  # pyright: ignore[reportArgumentType, reportCallIssue]
        if options.get("flags"):
            raise socket.gaierror
        first = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))  # nobody listens there
        return [first, *real("127.0.0.1", port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr("socket.getaddrinfo", two)
    servers = [*endpoints[:2], Server(at("two.example", endpoints[2]), insecure=True)]
    client = connect(release / "client", servers, allow_shared_hosts=True, timeout=20)
    assert client.predict(images[0]).answered == ALL


def test_many_calls_of_an_asyncio_client_at_once(release: Path, endpoints: list[str], images: np.ndarray) -> None:
    async def run() -> list[tuple[bool, ...]]:
        async with AsyncClient(release / "client", endpoints, allow_unsigned=True, timeout=HANG_S) as client:
            calls = [client.predict(images[i % 10]) for i in range(3 * MAX_CALLS_AT_ONCE)]
            return [result.answered for result in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == [ALL] * (3 * MAX_CALLS_AT_ONCE)
