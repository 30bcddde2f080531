"""A quorum over real tritonservers: who answers too late, again and again, goes on serving."""

from pathlib import Path

import pytest

from privdfs import AsyncClient, Client
from privdfs._config import WireName
from privdfs_export.serve import serve_release
from tests.sdk.drivers import AsyncDriver, Driver, SyncDriver

pytestmark = pytest.mark.e2e

IMAGE = next((Path(__file__).parents[2] / "examples" / "images").glob("*.png"))
#: tritonserver 2.51 ended within a few hundred calls that were reset over gRPC.
CALLS = 800


@pytest.mark.parametrize("wire", ["grpc", "http"])
@pytest.mark.parametrize("made", [Client, AsyncClient])
def test_servers_that_answer_too_late_stay(
    trained_release: Path, wire: WireName, made: type[Client] | type[AsyncClient]
) -> None:
    with serve_release(trained_release, wire=wire) as endpoints:
        client = made(trained_release / "client", endpoints, allow_unsigned=True, min_answers=2, wait="quorum")
        driver: Driver = AsyncDriver(client) if isinstance(client, AsyncClient) else SyncDriver(client)
        try:
            answered = [driver.predict(IMAGE).answered for _ in range(CALLS)]
        finally:
            driver.stop()
        assert sum(map(sum, answered)) < 3 * CALLS, "nobody was too late"
        with Client(trained_release / "client", endpoints, allow_unsigned=True, min_answers=3) as patient:
            assert patient.predict(IMAGE).answered == (True, True, True)
