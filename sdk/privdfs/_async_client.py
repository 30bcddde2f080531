"""The asynchronous client (asyncio): the same calls as `Client`, to be awaited."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from privdfs._base import CLOSED, BaseClient
from privdfs._config import Server
from privdfs._core import Call, Chunk, Outcome
from privdfs._errors import ConfigError
from privdfs._exchange import Checkup, Talk, Trip
from privdfs._images import ImageLike
from privdfs._local import LocalServers
from privdfs._manifest import ClientManifest
from privdfs._result import Health, Result
from privdfs._wire import Ask, Link, Reply, branches, load_libraries

if TYPE_CHECKING:
    from typing_extensions import Self


class AsyncTransport(Protocol):
    """Brings shares to their servers and answers back."""

    async def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        """One outcome for every server."""
        ...

    async def health(self, call: Call) -> list[Health]:
        """How every replica does."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class AsyncClient(BaseClient[AsyncTransport]):
    """`Client` for asyncio: same arguments, same results, same errors; the methods are awaited.

    Decoding and encoding run in a thread, so that the event loop stays free, except where they take less time than the
    way to the thread: an array of the bundle's image size, and a small head. A client belongs to the event loop of its
    first call. Cancelling the task of a call cancels its requests.

    Args:
        bundle: the client folder of a release, or an opened `Bundle`.
        servers: one `Server` (or "host:port" on this machine) for every server of the release, in its order.
        timeout: seconds that a call may take, from its start to its result.
        min_answers: how many servers must answer; all of them when None.
        wait: "all" or "quorum"; see `Client`.
        retries: how often a share may be sent to its server, and when it is hedged; `Retries()` when None.
        key: the user's, for a keyed release; the same one for all images of a user. The client does not keep it.
        queries: a budget of images for each key, and a record of repeats; several clients may share one.
        telemetry: spans and metrics (`privdfs.otel.Telemetry`); none when None.
        max_leakage_db: refuse a release whose manifest says that a minority of the servers can reconstruct images more
            than so many dB better than the class mean, or does not say how well; None takes any.
        allow_shared_hosts: accept servers that share an address, for development: one host then sees several shares.
        trust: public key of the releases' signer; with a path, this or `allow_unsigned` is needed. See `Bundle.open`.
        allow_unsigned: open a bundle from a path without asking who made it, for development.

    Raises:
        ConfigError: the servers, the timeout, `min_answers` or another argument make no sense. Nothing is sent.
        BundleError: the bundle cannot be used; a `LeakageError` when it leaks more than `max_leakage_db`.
    """

    async def __aenter__(self) -> "Self":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def predict(self, image: ImageLike, *, timeout: float | None = None) -> Result:
        """Classify one image; see `Client.predict`."""
        call = self._call(timeout)
        if call.is_brief(image):
            chunk = call.encode(call.decode_one(image))
        else:
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

    async def health(self, *, timeout: float | None = None) -> list[Health]:
        """Ask every replica of every server whether it serves this release; see `Client.health`."""
        return await self._transport.health(self._call(timeout))

    async def warmup(self, *, timeout: float | None = None) -> list[Health]:
        """Run the graphs once and connect to every replica; see `Client.warmup`."""
        call = self._call(timeout)
        await asyncio.to_thread(call.warm_up)
        return await self._transport.health(call)

    async def close(self) -> None:
        """Close the connections. Calls after this raise `ConfigError`; closing twice does nothing."""
        if self._close():
            await self._transport.close()

    @classmethod
    def _connect(cls, manifest: ClientManifest, servers: Sequence[Server]) -> AsyncTransport:
        return _GrpcServers(manifest, servers)

    @classmethod
    def _wrap(cls, servers: LocalServers) -> AsyncTransport:
        return _LocalInThread(servers)

    async def _run(self, call: Call, chunk: Chunk) -> list[Result]:
        return call.finish(chunk, await self._transport.exchange(call, chunk) if chunk.size else [])


class _LocalInThread:
    def __init__(self, servers: LocalServers) -> None:
        self._servers = servers

    async def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        return await asyncio.to_thread(self._servers.exchange, call, chunk)

    async def health(self, call: Call) -> list[Health]:
        return self._servers.health(call)

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
        trip = Trip(self._connect(), call, chunk)
        try:
            await _carry_out(trip)
            return trip.outcomes()
        finally:
            trip.close()

    async def health(self, call: Call) -> list[Health]:
        checkup = Checkup(self._connect(), call)
        await _carry_out(checkup)
        return checkup.health()

    def _connect(self) -> list[Link]:
        """Channels belong to the event loop that they are opened in, hence not before the first call."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._links = [
                Link(branch, server, asynchronous=True)
                for branch, server in zip(branches(self._manifest), self._servers, strict=True)
            ]
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigError("the client was first used in another event loop: make one client for each event loop")
        return self._links

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for link in self._links for channel in link.channels))


async def _carry_out(talk: Talk) -> None:
    """Start what a talk asks, and give it the replies in the order in which they come, until it is done."""
    running: dict[Ask, asyncio.Future[Reply]] = {}

    def start(asks: Iterable[Ask]) -> None:
        running.update((ask, asyncio.ensure_future(_reply(ask))) for ask in asks)
        for ask in [ask for ask in running if not ask.wanted]:
            running.pop(ask).cancel()

    try:
        start(talk.begin())
        while not talk.done:
            left = max(0.0, talk.wake - time.monotonic())
            if running:
                await asyncio.wait(running.values(), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(left)
            ended = [ask for ask, task in running.items() if task.done()]
            for ask in ended:
                # What an earlier reply made unwanted has been taken out meanwhile.
                if (task := running.pop(ask, None)) is not None:
                    start(talk.take(ask, _ended(task)))
            if not ended:
                start(talk.tick())
    finally:
        for task in running.values():
            task.cancel()


def _ended(task: "asyncio.Future[Reply]") -> Reply:
    # Closing a channel cancels the calls on it.
    return Reply(None, "CANCELLED", 0.0) if task.cancelled() else task.result()


async def _reply(ask: Ask) -> Reply:
    import grpc.aio  # pyright: ignore[reportMissingTypeStubs]

    errors: Any = grpc.aio
    started = time.perf_counter()
    try:
        message, status = await ask.method(ask.request, timeout=ask.timeout, metadata=ask.metadata), "OK"
    except errors.AioRpcError as error:
        message, status = None, error.code().name
    except errors.UsageError as error:
        raise ConfigError(CLOSED) from error
    return Reply(message, status, (time.perf_counter() - started) * 1e3)
