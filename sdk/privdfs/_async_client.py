"""The asynchronous client (asyncio): the same calls as `Client`, to be awaited."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from privdfs._bundle import Bundle
from privdfs._client import CLOSED
from privdfs._config import Server, check_servers
from privdfs._constants import DEFAULT_TIMEOUT_S, TRANSPORT_GRACE_S
from privdfs._core import Call, Chunk, Deadline, Outcome, Settings
from privdfs._errors import ConfigError
from privdfs._images import ImageLike
from privdfs._keys import UserKey
from privdfs._local import LocalServers, open_client
from privdfs._manifest import ClientManifest
from privdfs._result import Result
from privdfs._wire import Ask, Exchange, Link, Reply, branches, late, load_libraries, open_replicas

if TYPE_CHECKING:
    from typing_extensions import Self


class AsyncTransport(Protocol):
    """Brings shares to their servers and answers back."""

    async def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        """One outcome for every server."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class AsyncClient:
    """`Client` for asyncio: same arguments, same results, same errors; the methods are awaited.

    Decoding and encoding run in a thread, so that the event loop stays free. A client belongs to the event loop of its
    first call. Cancelling the task of a call cancels its requests.

    Args:
        bundle: the client folder of a release, or an opened `Bundle`.
        servers: one `Server` (or "host:port" on this machine) for every server of the release, in its order.
        timeout: seconds that a call may take, from its start to its result.
        min_answers: how many servers must answer; all of them when None.
        key: the user's, for a keyed release; the same one for all images of a user. The client does not keep it.

    Raises:
        ConfigError: the servers, the timeout, `min_answers` or the key make no sense. Nothing is sent.
        BundleError: the bundle cannot be used.
    """

    def __init__(
        self,
        bundle: str | PathLike[str] | Bundle,
        servers: Sequence[Server | str],
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        min_answers: int | None = None,
        key: UserKey | bytes | None = None,
    ) -> None:
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        checked = check_servers(servers, opened.n_servers)
        settings = Settings.check(opened, timeout, min_answers, key)
        self._begin(settings, _GrpcServers(opened.manifest, checked))

    @classmethod
    def local(
        cls,
        release_dir: str | PathLike[str],
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        min_answers: int | None = None,
        key: UserKey | bytes | None = None,
    ) -> "Self":
        """Make a client that runs the branches of a whole release folder in this process.

        For development and tests only: one process holds all shares, so nothing is private.

        Raises:
            ConfigError: the timeout, `min_answers` or the key makes no sense.
            BundleError: a folder of the release is missing, changed, or does not fit the others.
        """
        bundle = open_client(release_dir)
        settings = Settings.check(bundle, timeout, min_answers, key)
        client = cls.__new__(cls)
        transport = _LocalInThread(LocalServers(release_dir, bundle.manifest))
        client._begin(settings, transport)  # noqa: SLF001 - its own class
        return client

    def _begin(self, settings: Settings, transport: AsyncTransport) -> None:
        self._settings = settings
        self._transport = transport
        self._closed = False

    def __repr__(self) -> str:
        bundle = self._settings.bundle
        return f"{type(self).__name__}(release={bundle.release!r}, servers={bundle.n_servers})"

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def bundle(self) -> Bundle:
        """The client's part of the release."""
        return self._settings.bundle

    async def predict(self, image: ImageLike, *, timeout: float | None = None) -> Result:
        """Classify one image; see `Client.predict`."""
        call = self._call(timeout)
        chunk = await asyncio.to_thread(lambda: call.encode(call.decode_one(image)))
        return (await self._run(call, chunk))[0]

    async def predict_batch(self, images: Iterable[ImageLike], *, timeout: float | None = None) -> list[Result]:
        """Classify several images; see `Client.predict_batch`."""
        call = self._call(timeout)
        results: list[Result] = []
        for part in call.split(await asyncio.to_thread(call.decode_many, images)):
            results += await self._run(call, await asyncio.to_thread(call.encode, part))
        return results

    async def encode(self, image: ImageLike) -> list[npt.NDArray[np.int8]]:
        """Make the shares of one image without sending them; see `Client.encode`."""
        call = self._call(None)
        shares = await asyncio.to_thread(lambda: call.shares(call.decode_one(image)))
        return [values[0] for values in shares]

    async def close(self) -> None:
        """Close the connections. Calls after this raise `ConfigError`; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            await self._transport.close()

    def _call(self, timeout: float | None) -> Call:
        if self._closed:
            raise ConfigError(CLOSED)
        return self._settings.begin(timeout)

    async def _run(self, call: Call, chunk: Chunk) -> list[Result]:
        return call.finish(chunk, await self._transport.exchange(call, chunk))


class _LocalInThread:
    def __init__(self, servers: LocalServers) -> None:
        self._servers = servers

    async def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        return await asyncio.to_thread(self._servers.exchange, call, chunk)

    async def close(self) -> None:
        self._servers.close()


class _GrpcServers:
    """All servers at once over gRPC, with tasks."""

    def __init__(self, manifest: ClientManifest, servers: Sequence[Server]) -> None:
        self._manifest = manifest
        self._servers = servers
        self._links: list[Link] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        load_libraries()

    async def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        trip = Exchange(self._connect(), call, chunk)
        trip.take_checks(await _fan_out(trip.checks(), call.deadline))
        return trip.take_answers(await _fan_out(trip.shares(), call.deadline))

    def _connect(self) -> list[Link]:
        """Channels belong to the event loop that they are opened in, hence not before the first call."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._links = [
                Link(branch, open_replicas(server, asynchronous=True))
                for branch, server in zip(branches(self._manifest), self._servers, strict=True)
            ]
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigError("the client was first used in another event loop: make one client for each event loop")
        return self._links

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for link in self._links for channel in link.channels))


async def _fan_out(asks: Sequence[Ask], deadline: Deadline) -> list[Reply]:
    """Start all calls at once and wait for each to end, at the latest with the deadline."""
    tasks = [asyncio.ensure_future(_reply(method, request, deadline)) for method, request in asks]
    if not tasks:
        return []
    try:
        await asyncio.wait(tasks, timeout=deadline.remaining + TRANSPORT_GRACE_S)
    finally:
        for task in tasks:
            task.cancel()  # does nothing to those that have ended
    return [_ended(task, deadline) for task in tasks]


def _ended(task: "asyncio.Future[Reply]", deadline: Deadline) -> Reply:
    if not task.done():
        return late(deadline.elapsed_ms)
    # Closing a channel cancels the calls on it.
    return Reply(None, "CANCELLED", deadline.elapsed_ms) if task.cancelled() else task.result()


async def _reply(method: Any, request: Any, deadline: Deadline) -> Reply:  # noqa: ANN401 - grpcio has no types
    import grpc.aio  # pyright: ignore[reportMissingTypeStubs]

    errors: Any = grpc.aio
    started = time.perf_counter()
    try:
        message, status = await method(request, timeout=deadline.remaining), "OK"
    except errors.AioRpcError as error:
        message, status = None, error.code().name
    except errors.UsageError as error:
        raise ConfigError(CLOSED) from error
    return Reply(message, status, (time.perf_counter() - started) * 1e3)
