"""A fleet of devices moves from one release to the next, back, and on, while it predicts: real tritonservers.

Every party has a replica of the old release and one of the new, and all devices name both. Every call must be answered,
and rightly; and no server may receive a share of the other release, or of another server.
"""

import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from privdfs import AsyncClient, Bundle, BundleStore, Client, NotEnoughAnswersError, Result, Server, ServerMismatchError
from privdfs._config import WireName
from privdfs._local import open_branches
from privdfs_export.serve import serve_measured
from tests.e2e.wire_release import write_wire_release
from tests.sdk.drivers import HANG_S, AsyncDriver, Driver, SyncDriver
from tests.sdk.signing import TRUST, sign
from tests.sdk.tiny_release import HEIGHT, WIDTH
from tests.thorough import count
from tests.wire_proxy import Proxies

pytestmark = pytest.mark.e2e

DEVICES = count(6, 50)
SERVERS = range(3)
OLD, NEW = 0, 1
RELEASES = ("old-1", "new-2")
WIRES: tuple[WireName, WireName] = ("grpc", "http")
#: Long enough for fifty devices on a small machine: a call that takes longer hangs.
TIMEOUT_S = 30.0
#: Calls of every device in every phase.
CALLS = 8


class Truth:
    """What one release makes of the images: shares of every server, and the right answer."""

    def __init__(self, folder: Path, images: np.ndarray) -> None:
        bundle = Bundle.open(folder / "client", trust=TRUST)
        shares = bundle.encode(images)
        self.shares = [[share[row : row + 1].tobytes() for row in range(len(images))] for share in shares]
        branches = [open_branches(folder, bundle.manifest, server)[0] for server in SERVERS]
        logits = [branch.run({"share": share})[0] for branch, share in zip(branches, shares, strict=True)]
        self._probabilities = bundle.fuse(np.stack(logits, axis=1), np.ones((len(images), len(SERVERS)), np.bool_))

    def agrees(self, image: int, result: Result) -> bool:
        return all(result.answered) and bool(np.abs(result.probabilities - self._probabilities[image]).max() < 1e-4)


class Device:
    """Predicts without a pause; a background task may refresh its bundle meanwhile."""

    def __init__(self, number: int, folder: Path, source: Path, servers: Sequence[Server]) -> None:
        self._store = BundleStore(folder / f"store-{number}", trust=TRUST)
        self._asynchronous, self._servers = number % 4 >= 2, servers
        self._driver = self._connect(self._store.install(source))
        self._next: Driver | None = None
        self._lock = threading.Lock()
        self.calls: dict[str, int] = dict.fromkeys(RELEASES, 0)
        self.wrong = 0
        self.failures: list[Exception] = []

    def refresh(self, source: Path) -> bool:
        """What a background task does."""
        bundle = self._store.refresh(source)
        if bundle is not None:
            with self._lock:
                self._next = self._connect(bundle)
        return bundle is not None

    def predict(self, images: np.ndarray, truths: Sequence[Truth], over: threading.Event) -> None:
        """What the app does, until it is over; the old client is closed between two calls."""
        while not over.is_set():
            for image, pixels in enumerate(images):
                with self._lock:
                    following, self._next = self._next, None
                if following is not None:
                    self._driver.stop()
                    self._driver = following
                release = self._driver.client.bundle.release
                try:
                    result = self._driver.predict(pixels)
                except Exception as error:  # noqa: BLE001 - counted
                    self.failures.append(error)
                    continue
                self.wrong += not truths[RELEASES.index(release)].agrees(image, result)
                self.calls[release] += 1

    def close(self) -> None:
        self._driver.stop()

    def _connect(self, bundle: Bundle) -> Driver:
        if self._asynchronous:
            return AsyncDriver(AsyncClient(bundle, self._servers, timeout=TIMEOUT_S, allow_shared_hosts=True))
        return SyncDriver(Client(bundle, self._servers, timeout=TIMEOUT_S, allow_shared_hosts=True))


class Fleet:
    """Devices, their threads, and the doors before the servers of both releases."""

    def __init__(self, folder: Path, releases: Sequence[Path], doors: Proxies, stack: ExitStack) -> None:
        self._doors, self._source = doors, folder / "published"
        shutil.copytree(releases[OLD] / "client", self._source)
        self._releases = releases
        images = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)
        self.truths = [Truth(release, images) for release in releases]
        self.devices = [Device(i, folder, self._source, self.servers(WIRES[i % 2])) for i in range(DEVICES)]
        over = self.over = threading.Event()
        threads = [threading.Thread(target=each.predict, args=(images, self.truths, over)) for each in self.devices]
        for device in self.devices:
            stack.callback(device.close)
        for thread in threads:
            stack.callback(thread.join, HANG_S)
        stack.callback(over.set)
        for thread in threads:
            thread.start()

    def servers(self, wire: WireName) -> list[Server]:
        """Both replicas of every party."""
        doors = self._doors.doors
        return [Server([doors[door(wire, which, server)].endpoint for which in (OLD, NEW)]) for server in SERVERS]

    def publish(self, which: int) -> None:
        """What the maker does."""
        shutil.rmtree(self._source)
        shutil.copytree(self._releases[which] / "client", self._source)

    def move_all(self) -> None:
        """One after the other, while all predict."""
        for device in self.devices:
            assert device.refresh(self._source)
            assert not device.refresh(self._source)

    def predict_on(self, which: int) -> None:
        """Wait until every device has made some more calls with a release."""
        before = [device.calls[RELEASES[which]] for device in self.devices]
        waiting, still = threading.Event(), True
        for _ in range(int(count(4, 20) * HANG_S / 0.1)):
            assert not any(device.failures for device in self.devices), self.devices[0].failures
            still = any(
                device.calls[RELEASES[which]] < calls + CALLS
                for device, calls in zip(self.devices, before, strict=True)
            )
            if not still:
                break
            waiting.wait(0.1)
        assert not still, "a device makes no calls"

    def judge(self) -> None:
        """Shares came to their own servers of their own release, over both wires, and to nobody else."""
        records = [(owner, bytes(record)) for door in self._doors.doors for owner, record in door.sent]
        for which in (OLD, NEW):
            for server in SERVERS:
                owners = {
                    owner
                    for owner, record in records
                    if any(share in record for share in self.truths[which].shares[server])
                }
                assert owners == {len(SERVERS) * which + server}
        assert not any(device.failures or device.wrong for device in self.devices)


def door(wire: WireName, which: int, server: int) -> int:
    return (WIRES.index(wire) * 2 + which) * len(SERVERS) + server


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("rolling")
    written = [write_wire_release(folder / name, release=name, seed=seed) for seed, name in enumerate(RELEASES)]
    for release in written:
        sign(release / "client")
    return written


@pytest.fixture
def doors() -> Iterator[Proxies]:
    with Proxies([f"{scheme}127.0.0.1:1" for scheme in ("", "http://") for _ in range(2 * len(SERVERS))]) as proxies:
        yield proxies


def serve(stack: ExitStack, release: Path, which: int, doors: Proxies) -> None:
    """Start the replicas of one release, behind their doors."""
    folders = [release / f"server-{server}" for server in SERVERS]
    for server, running in enumerate(stack.enter_context(serve_measured(folders, http=True))):
        for wire, endpoint in zip(WIRES, (running.endpoint, running.http or ""), strict=True):
            doors.doors[door(wire, which, server)].lead_to(endpoint, len(SERVERS) * which + server)


@pytest.mark.timeout(count(300, 3600))
def test_a_fleet_moves_to_the_next_release_and_back_while_it_predicts(
    releases: list[Path], doors: Proxies, tmp_path: Path
) -> None:
    with ExitStack() as old, ExitStack() as new, ExitStack() as stack:
        serve(old, releases[OLD], OLD, doors)
        fleet = Fleet(tmp_path, releases, doors, stack)
        fleet.predict_on(OLD)  # nobody listens yet where the new replicas will be
        serve(new, releases[NEW], NEW, doors)
        fleet.predict_on(OLD)
        for which in (NEW, OLD, NEW):  # there, back, and there again
            fleet.publish(which)
            fleet.move_all()
            fleet.predict_on(which)
        old.close()
        fleet.predict_on(NEW)
        fleet.over.set()
        fleet.judge()
        late = Bundle.open(releases[OLD] / "client", trust=TRUST)
        for wire in WIRES:
            with (
                Client(late, fleet.servers(wire), timeout=TIMEOUT_S, allow_shared_hosts=True) as client,
                pytest.raises(NotEnoughAnswersError, match="install the new bundle") as caught,
            ):
                client.predict(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
            assert {type(cause) for cause in caught.value.causes.values()} == {ServerMismatchError}
