"""What becomes of work that nobody waits for: real tritonservers, one of which is slow and takes notes."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privdfs import AsyncClient, Bundle, Client, NotEnoughAnswersError, Retries, Server
from privdfs._config import WireName
from privdfs_export.serve import serve_release
from tests.e2e.wire_release import write_wire_release
from tests.sdk.tiny_release import CLASSES, HEIGHT, WIDTH

pytestmark = pytest.mark.e2e

#: How long the slow server works on a share unless somebody tells it to stop.
WORK_S = 20.0
#: Stands in the place of the scripts of servers 0 and 1: the one works until it is cancelled, the other answers once
#: the first has begun. A warm-up's zeros are answered at once.
SCRIPT = """
import os
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        share = pb_utils.get_input_tensor_by_name(request, "share").as_numpy()
        if share.any():
            self.work(request, time.monotonic() + {work})
        logits = np.zeros((len(share), {classes}), np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits)])

    def work(self, request, end):
        if {server} == 1:
            while not os.path.exists({notes!r}) and time.monotonic() < end:
                time.sleep(0.01)
            return
        self.note("started")
        while time.monotonic() < end and not request.is_cancelled():
            time.sleep(0.01)
        self.note("cancelled" if request.is_cancelled() else "finished")

    def note(self, what):
        with open({notes!r}, "a") as notes:
            notes.write(what + "\\n")
"""


class Slow:
    """Servers of which the first is slow, and what it noted."""

    def __init__(self, bundle: Bundle, endpoints: list[str], notes: Path) -> None:
        self.bundle, self.servers, self.file = bundle, [Server(endpoint) for endpoint in endpoints], notes

    def notes(self) -> list[str]:
        return self.file.read_text(encoding="utf-8").split() if self.file.exists() else []

    def wait_for(self, number: int) -> list[str]:
        until = time.monotonic() + WORK_S / 2  # earlier than it would finish by itself
        while len(self.notes()) < number and time.monotonic() < until:
            time.sleep(0.02)
        return self.notes()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    with serve_slow(tmp_path_factory.mktemp("slow"), WORK_S, "grpc") as served:
        yield served


@contextmanager
def serve_slow(folder: Path, work_s: float, wire: WireName) -> Iterator[Slow]:
    notes = folder / "notes.txt"
    scripts = {i: SCRIPT.format(server=i, work=work_s, classes=len(CLASSES), notes=str(notes)) for i in (0, 1)}
    release = write_wire_release(folder / "release", scripts)
    with serve_release(release, wire=wire) as endpoints:
        yield Slow(Bundle.open(release / "client", allow_unsigned=True), endpoints, notes)


@pytest.fixture
def slow(world: Slow) -> Slow:
    world.file.unlink(missing_ok=True)
    return world


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def test_a_quorum_lets_late_servers_finish_and_closing_the_client_stops_them(slow: Slow, image: np.ndarray) -> None:
    """It resets nothing: tritonserver 2.51 ends by a reset that meets its answer."""
    with Client(
        slow.bundle, slow.servers, timeout=WORK_S, min_answers=2, wait="quorum", allow_shared_hosts=True
    ) as client:
        client.warmup()
        assert client.predict(image).answered == (False, True, True)
        assert slow.notes() == ["started"]
    assert slow.wait_for(2) == ["started", "cancelled"]


@pytest.mark.parametrize("retries", [Retries(), Retries(hedge_after=5.0)], ids=["threads", "futures"])
def test_the_deadline_of_a_call_is_the_servers_too(slow: Slow, image: np.ndarray, retries: Retries) -> None:
    with Client(slow.bundle, slow.servers, timeout=1.0, retries=retries, allow_shared_hosts=True) as client:
        client.warmup(timeout=WORK_S)
        with pytest.raises(NotEnoughAnswersError):
            client.predict(image)
        assert slow.wait_for(2) == ["started", "cancelled"]


def test_closing_the_client_of_a_cancelled_task_stops_its_servers(slow: Slow, image: np.ndarray) -> None:
    async def run() -> None:
        async with AsyncClient(slow.bundle, slow.servers, timeout=WORK_S, allow_shared_hosts=True) as client:
            await client.warmup()
            task = asyncio.ensure_future(client.predict(image))
            assert await asyncio.to_thread(slow.wait_for, 1) == ["started"]
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert slow.notes() == ["started"]

    asyncio.run(run())
    assert slow.wait_for(2) == ["started", "cancelled"]


def test_over_http_a_server_finishes_what_it_began_and_the_device_does_not_wait(
    tmp_path: Path, image: np.ndarray
) -> None:
    """Triton 2.51 does not look at HTTP's connections while a model runs: a closed one stops nothing."""
    with ExitStack() as stack:
        slow = stack.enter_context(serve_slow(tmp_path, 3.0, "http"))
        options: Any = {"timeout": 1.0, "min_answers": 2, "allow_shared_hosts": True}
        client = stack.enter_context(Client(slow.bundle, slow.servers, **options))
        client.warmup(timeout=WORK_S)
        assert client.predict(image).answered == (False, True, True)
        assert slow.wait_for(1) == ["started"], "it still works when the call has ended"
        assert slow.wait_for(2) == ["started", "finished"]
        assert client.predict(image, timeout=WORK_S).answered == (True, True, True), "on a new connection"
