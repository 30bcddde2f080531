"""A tiny release on disk, its servers on loopback, and both clients behind one face."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from privdfs import AsyncClient, Bundle, Client
from privdfs._config import WireName
from privdfs.testing import FakeServer
from tests.sdk.drivers import AsyncDriver, Driver, SyncDriver
from tests.sdk.tiny_release import HEIGHT, WIDTH, build_release


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never change it; take `release_copy` for that."""
    return build_release(tmp_path_factory.mktemp("release") / "tiny")


@pytest.fixture(scope="session")
def other_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shapes, another id and other weights."""
    return build_release(tmp_path_factory.mktemp("release") / "other", release="tiny-2", seed=1)


@pytest.fixture(scope="session")
def keyed_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with 64 partitions."""
    return build_release(tmp_path_factory.mktemp("release") / "keyed", release="tiny-keyed", partitions=64)


@pytest.fixture
def release_copy(release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "copy"))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (10, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="session", params=["grpc", "http"])
def wire(request: pytest.FixtureRequest) -> WireName:
    """How the servers of a test are spoken to."""
    return request.param


@pytest.fixture
def fakes(release: Path, wire: WireName) -> Iterator[list[FakeServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer.for_release(release, i, wire=wire)) for i in range(3)]


@pytest.fixture
def endpoints(fakes: list[FakeServer]) -> list[str]:
    return [fake.endpoint for fake in fakes]


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Driver]]:
    """Make a client of either kind; all are closed at the end of the test."""
    with ExitStack() as stack:

        def make(*args: object, **options: object) -> Driver:
            driver: Driver
            if not isinstance(args[0], Bundle):
                options.setdefault("allow_unsigned", "trust" not in options)
            if request.param == "sync":
                driver = SyncDriver(Client(*args, **options))  # pyright: ignore[reportArgumentType]
            else:
                driver = AsyncDriver(AsyncClient(*args, **options))  # pyright: ignore[reportArgumentType]
            stack.callback(driver.stop)
            return driver

        yield make


@pytest.fixture(params=["sync", "async"])
def connect_local(request: pytest.FixtureRequest) -> Iterator[Callable[..., Driver]]:
    """Make a client of either kind in local mode."""
    with ExitStack() as stack:

        def make(release_dir: Path, **options: object) -> Driver:
            driver: Driver
            if request.param == "sync":
                driver = SyncDriver(Client.local(release_dir, **options))  # pyright: ignore[reportArgumentType]
            else:
                driver = AsyncDriver(AsyncClient.local(release_dir, **options))  # pyright: ignore[reportArgumentType]
            stack.callback(driver.stop)
            return driver

        yield make
