"""A server whose queue is full: real tritonservers refuse at once, and the client says so, over both wires."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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

#: Server 1 takes this long for a batch of what waits, while two more requests may wait: the others are refused.
EXECUTION_S, QUEUE, CALLERS = 1.0, 2, 12


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = PYTHON_ENGINE.read_text(encoding="utf-8")
    slow = script.replace("import os\n", "import os\nimport time\n", 1)
    slow = slow.replace("        feeds = [\n", f"        time.sleep({EXECUTION_S})\n        feeds = [\n", 1)
    assert slow.count("time") > script.count("time") + 1
    return write_wire_release(tmp_path_factory.mktemp("queue") / "release", {1: slow}, queue=QUEUE)


@pytest.fixture(scope="module")
def servers(release: Path) -> Iterator[list[RunningServer]]:
    with serve_measured([release / f"server-{i}" for i in range(3)], http=True) as running:
        yield running


@pytest.mark.parametrize("wire", ["grpc", "http"])
@pytest.mark.parametrize("made", [Client, AsyncClient])
def test_a_full_queue_is_an_error_at_once_and_those_who_wait_are_answered(
    release: Path, servers: list[RunningServer], wire: WireName, made: type[Client] | type[AsyncClient]
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
        with ThreadPoolExecutor(CALLERS) as pool:
            ends = list(pool.map(call, range(CALLERS)))
        refused = [end for end in ends if isinstance(end, NotEnoughAnswersError)]
        assert len(refused) >= CALLERS - 3 * (QUEUE + 1), "no batch is longer than the queue"
        assert len(refused) < CALLERS
        assert all(type(error.causes[1]) is ServerBusyError for error in refused)
        assert all(end.answered == (True, True, True) for end in ends if isinstance(end, Result))
        assert driver.predict(image).answered == (True, True, True)
    finally:
        driver.stop()
