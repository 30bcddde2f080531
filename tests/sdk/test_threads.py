"""The threads in which the blocking client waits: reused, and gone with the client."""

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from privdfs import Client, NotEnoughAnswersError, Retries
from privdfs._threads import Threads
from privdfs.testing import FakeServer, Fault

NAME = "privdfs-call"
HANG_S = 60


def calling() -> int:
    return sum(thread.name == NAME for thread in threading.enumerate())


def settle(expected: int) -> int:
    """Wait until so many threads are left, or a while."""
    end = time.monotonic() + 10
    while calling() != expected and time.monotonic() < end:
        time.sleep(0.01)
    return calling()


def connect(release: Path, endpoints: list[str], timeout: float = HANG_S) -> Client:
    return Client(release / "client", endpoints, allow_unsigned=True, timeout=timeout)


def test_calls_one_after_the_other_share_their_threads(release: Path, endpoints: list[str], images: np.ndarray) -> None:
    before = calling()
    with connect(release, endpoints) as client:
        for image in images:
            client.predict(image)
        assert calling() - before == len(endpoints)
    assert settle(before) == before


def test_calls_at_once_wait_for_nobody(
    release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    with connect(release, endpoints) as client, ThreadPoolExecutor(1) as pool:
        client.predict(images[0])
        fakes[0].fault = Fault(delay=HANG_S)
        hanging = pool.submit(client.predict, images[0], timeout=2)
        while len(fakes[0].received) < 2:
            time.sleep(0.01)
        fakes[0].fault = None
        for image in images:
            assert all(client.predict(image).answered)
        with pytest.raises(NotEnoughAnswersError):
            hanging.result(HANG_S)


def test_a_client_that_is_dropped_leaves_no_thread(release: Path, endpoints: list[str], images: np.ndarray) -> None:
    before = calling()
    client = connect(release, endpoints)
    client.predict(images[0])
    assert calling() > before
    del client
    gc.collect()
    assert settle(before) == before


def test_a_call_that_may_be_cut_short_takes_no_thread_of_its_own(
    release: Path, fakes: list[FakeServer], endpoints: list[str], images: np.ndarray
) -> None:
    before = calling()
    with connect(release, endpoints) as client:
        quorum = client.with_options(min_answers=2, wait="quorum")
        quorum.predict(images[0])
        fakes[0].fault = Fault(delay=HANG_S)
        assert quorum.predict(images[0]).answered == (False, True, True)
        hedged = client.with_options(min_answers=2, retries=Retries(hedge_after=0.01), timeout=0.3)
        assert hedged.predict(images[0]).answered == (False, True, True)
        assert calling() == before


def test_what_a_job_raises_reaches_its_waiter(release: Path, endpoints: list[str], images: np.ndarray) -> None:
    with connect(release, endpoints) as client:
        client.predict(images[0])
        for link in client._transport._links:  # pyright: ignore[reportAttributeAccessIssue]
            for line in link.replicas.lines:
                line.model_infer = lambda *_args, **_options: 1 / 0
        with pytest.raises(ZeroDivisionError):
            client.predict(images[0])


def test_closing_twice_ends_every_thread_once() -> None:
    threads = Threads()
    threads.close()
    threads.close()
    assert threads._jobs.empty()


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
