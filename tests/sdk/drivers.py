"""One blocking face for both clients, so that every test runs against both."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from privdfs import AsyncClient, Client, Health, Result

T = TypeVar("T")

#: A test that waits longer than this hangs.
HANG_S = 60


def at(host: str, endpoint: str) -> str:
    """The port of an endpoint, spoken to in the same way, at another host."""
    scheme, separator, _ = endpoint.rpartition("://")
    return f"{scheme}{separator}{host}:{endpoint.rpartition(':')[2]}"


class AsyncDriver:
    """`AsyncClient` on an event loop of its own thread, called from any thread."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def predict(self, image: Any, *, timeout: float | None = None) -> Result:
        return self._wait(self.client.predict(image, timeout=timeout))

    def predict_batch(self, images: Any, *, timeout: float | None = None) -> list[Result]:
        return self._wait(self.client.predict_batch(images, timeout=timeout))

    def encode(self, image: Any) -> list[np.ndarray]:
        return self._wait(self.client.encode(image))

    def health(self, *, timeout: float | None = None) -> list[Health]:
        return self._wait(self.client.health(timeout=timeout))

    def warmup(self) -> list[Health]:
        return self._wait(self.client.warmup())

    def occupy(self, work: Callable[[], object]) -> None:
        """Keep every thread of the event loop's default executor busy with this, as an application may."""

        async def begin() -> None:
            for _ in range(64):
                asyncio.get_running_loop().run_in_executor(None, work)

        self._wait(begin())

    def with_options(self, **options: Any) -> "AsyncDriver":
        """A driver on the same loop; only the first is to be stopped."""
        copy = object.__new__(AsyncDriver)
        copy.client, copy._loop, copy._thread = self.client.with_options(**options), self._loop, self._thread
        return copy

    def close(self) -> None:
        self._wait(self.client.close())

    def stop(self) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG_S)
        self._loop.close()

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(HANG_S)


class SyncDriver:
    """`Client` as it is."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.predict = client.predict
        self.predict_batch = client.predict_batch
        self.encode = client.encode
        self.health = client.health
        self.warmup = client.warmup
        self.close = client.close

    def with_options(self, **options: Any) -> "SyncDriver":
        return SyncDriver(self.client.with_options(**options))

    def stop(self) -> None:
        self.client.close()


Driver = SyncDriver | AsyncDriver
