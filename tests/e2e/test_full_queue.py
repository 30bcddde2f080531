"""A server whose queue is full: real tritonservers refuse at once, and the client says so, over both wires."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from privdfs import AsyncClient, Client, NotEnoughAnswersError, Result, ServerBusyError
from privdfs._config import WireName
from privdfs_export.serve import RunningServer, serve_measured
from privdfs_export.triton import PYTHON_ENGINE
from tests.e2e.wire_release import write_wire_release
from tests.sdk.drivers import AsyncDriver, Driver, SyncDriver
from tests.sdk.tiny_release import HEIGHT, WIDTH

pytestmark = pytest.mark.e2e

#: Server 1 is busy with a batch for as long as a file is there, while two more requests may wait: others are refused.
#: At the other servers any number may wait: full queues at two servers could refuse every call between them.
QUEUE, CALLERS = 2, 12


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("busy") / "busy"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, busy: Path) -> Path:
    script = PYTHON_ENGINE.read_text(encoding="utf-8")
    slow = script.replace("import os\n", "import os\nimport time\n", 1)
    waits = f"        while os.path.exists({str(busy)!r}):\n            time.sleep(0.01)\n"
    slow = slow.replace("        feeds = [\n", f"{waits}        feeds = [\n", 1)
    assert slow.count("time") > script.count("time") + 1
    return write_wire_release(tmp_path_factory.mktemp("queue") / "release", {1: slow}, queues={1: QUEUE})


@pytest.fixture(scope="module")
def servers(release: Path) -> Iterator[list[RunningServer]]:
    with serve_measured([release / f"server-{i}" for i in range(3)], http=True) as running:
        yield running


@pytest.mark.parametrize("wire", ["grpc", "http"])
@pytest.mark.parametrize("made", [Client, AsyncClient])
def test_a_full_queue_is_an_error_at_once_and_those_who_wait_are_answered(
    release: Path, servers: list[RunningServer], busy: Path, wire: WireName, made: type[Client] | type[AsyncClient]
) -> None:
    endpoints = [(one.http or "") if wire == "http" else one.endpoint for one in servers]
    client = made(release / "client", endpoints, allow_unsigned=True, timeout=60)
    driver: Driver = AsyncDriver(client) if isinstance(client, AsyncClient) else SyncDriver(client)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    together = threading.Barrier(CALLERS, timeout=60)

    def call(_: int) -> Result | NotEnoughAnswersError:
        together.wait()
        try:
            return driver.predict(image)
        except NotEnoughAnswersError as error:
            return error

    try:
        driver.warmup()
        busy.touch()
        with ThreadPoolExecutor(CALLERS) as pool:
            calls = [pool.submit(call, number) for number in range(CALLERS)]
            early = [done.result() for done in islice(as_completed(calls, 60), CALLERS - 2 * (QUEUE + 1))]
            assert not any(isinstance(end, Result) for end in early), "they did not wait for those before them"
            busy.unlink()
            ends = [each.result() for each in calls]
        refused = [end for end in ends if isinstance(end, NotEnoughAnswersError)]
        assert len(early) <= len(refused) < CALLERS
        assert all(error.causes.keys() == {1} for error in refused)
        assert all(isinstance(error.causes[1], ServerBusyError) for error in refused)
        assert all(end.answered == (True, True, True) for end in ends if isinstance(end, Result))
        assert driver.predict(image).answered == (True, True, True)
    finally:
        busy.unlink(missing_ok=True)
        driver.stop()
