"""The asynchronous client (asyncio): the same calls as `Client`, to be awaited."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from privdfs._base import BaseClient, without_turn
from privdfs._channel import Channels
from privdfs._chunk import Chunk
from privdfs._config import Server
from privdfs._constants import MAX_CALLS_AT_ONCE
from privdfs._core import Call
from privdfs._drive_async import carry_out_async
from privdfs._errors import ConfigError
from privdfs._exchange import Checkup, Trip
from privdfs._images import ImageLike
from privdfs._kinds import Outcome
from privdfs._local import LocalServers
from privdfs._manifest import AnyClientManifest
from privdfs._result import Health, Result
from privdfs._workers import Workers, ended_in_time

if TYPE_CHECKING:
    from typing_extensions import Self


class AsyncTransport(Protocol):
    """Brings shares to their servers and answers back.

    Attributes:
        workers: threads for what would hold up the event loop.
    """

    workers: Workers

    async def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        """One outcome for every server."""
        ...

    async def health(self, call: Call) -> list[Health]:
        """The state of every replica."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class AsyncClient(BaseClient[AsyncTransport]):
    """`Client` for asyncio: same arguments, same results, same errors; the methods are awaited.

    Decoding and encoding run in threads of the client's own, so that the event loop stays free, except where they take
    less time than the way to the thread: an array of the bundle's image size, and a small head. A client belongs to the
    event loop of its first call. Cancelling the task of a call ends it at once; servers may finish what they began.

    Args:
        bundle: the client folder of a release, or an opened `Bundle`.
        servers: one `Server` (or "host:port" on this machine) for every server of the release, in its order.
        timeout: seconds that a call may take, from its start to its result.
        min_answers: how many servers must answer in every round; see `Client`.
        wait: "all" or "quorum"; see `Client`.
        retries: how often a share may be sent to its server, and when it is hedged; `Retries()` when None.
        key: the user's, for a keyed release; the same one for all images of a user. The client does not keep it.
        colluding: of a coded release, how many servers together must learn nothing; the largest minority when None. The
            more servers there are beyond those that this needs, the more of them may be silent or lie.
        queries: a budget of images for each key, and a record of repeats; several clients may share one.
        telemetry: spans and metrics (`privdfs.otel.Telemetry`); none when None.
        max_leakage_db: refuse a release whose manifest says that a minority of the servers can reconstruct images more
            than so many dB better than the class mean, or does not say how well; None accepts any.
        allow_shared_hosts: accept servers that share an address, for development: one host then sees several shares.
        trust: public key of the signer; with a path, this or `allow_unsigned` is needed. See `Bundle.open`.
        allow_unsigned: open a bundle from a path without a signature check, for development.

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
        with self._call(timeout) as call:
            if call.is_brief(image):
                chunk = call.encode(call.decode_one(image))
            else:
                chunk = await self._transport.workers.run(call, lambda: call.encode(call.decode_one(image)))
            return call.with_suspects(await self._run(call, chunk))[0]

    async def predict_batch(self, images: Iterable[ImageLike], *, timeout: float | None = None) -> list[Result]:
        """Classify several images; see `Client.predict_batch`."""
        results: list[Result] = []
        workers = self._transport.workers
        with self._call(timeout) as call:
            for part in call.split(await workers.run(call, lambda: call.decode_many(images))):
                results += await self._run(call, await workers.run(call, partial(call.encode, part)))
            return call.with_suspects(results)

    async def encode(self, image: ImageLike) -> list[npt.NDArray[np.int8]]:
        """Make the shares of one image without sending them; see `Client.encode`."""
        with self._call(None) as call:
            shares = await self._transport.workers.run(call, lambda: call.shares(call.decode_one(image)))
            return [values[0] for values in shares]

    async def health(self, *, timeout: float | None = None) -> list[Health]:
        """Ask every replica of every server whether it serves this release; see `Client.health`."""
        return await self._transport.health(self._call(timeout))

    async def warmup(self, *, timeout: float | None = None) -> list[Health]:
        """Run the graphs once and connect to every replica; see `Client.warmup`."""
        call = self._call(timeout)
        await self._transport.workers.run(call, call.warm_up)
        return await self._transport.health(call)

    async def close(self) -> None:
        """Close the connections. Calls after this raise `ConfigError`; closing twice does nothing."""
        if self._close():
            self._transport.close()
            self._transport.workers.close()

    @classmethod
    def _connect(cls, manifest: AnyClientManifest, servers: Sequence[Server]) -> AsyncTransport:
        return _Servers(manifest, servers)

    @classmethod
    def _wrap(cls, servers: LocalServers) -> AsyncTransport:
        return _LocalInThread(servers)

    async def _run(self, call: Call, chunk: Chunk) -> list[Result]:
        results: list[Result] = []
        for part in chunk.in_order():
            step: Chunk | list[Result] = part
            while isinstance(step, Chunk):
                step = call.proceed(step, await self._transport.exchange(call, step) if step.size else [])
            results += step
        return call.finish(chunk, results)


class _LocalInThread:
    def __init__(self, servers: LocalServers) -> None:
        self._servers = servers
        self.workers = Workers()

    async def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        return await self.workers.finish(lambda: self._servers.exchange(call, chunk))

    async def health(self, call: Call) -> list[Health]:
        return self._servers.health(call)

    def close(self) -> None:
        self._servers.close()


class _Servers:
    """All servers at once, on the event loop."""

    def __init__(self, manifest: AnyClientManifest, servers: Sequence[Server]) -> None:
        self.workers = Workers()
        self._channels = Channels(manifest, servers)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns = asyncio.Semaphore(MAX_CALLS_AT_ONCE)

    async def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        self._refuse_another_loop()
        if not await self._has_turn(call):
            return without_turn(call, chunk)
        trip = Trip(self._channels, call, chunk)
        try:
            await carry_out_async(trip)
            return trip.outcomes()
        finally:
            trip.close()
            self._turns.release()

    async def health(self, call: Call) -> list[Health]:
        self._refuse_another_loop()
        checkup = Checkup(self._channels, call)
        try:
            await carry_out_async(checkup)
            return checkup.health()
        finally:
            checkup.close()

    def close(self) -> None:
        self._channels.close()

    async def _has_turn(self, call: Call) -> bool:
        """Wait for it; whether it came in time."""
        if not self._turns.locked():
            return await self._turns.acquire()  # at once
        turn = asyncio.ensure_future(self._turns.acquire())
        try:
            return await ended_in_time(turn, call.deadline.remaining)
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._turns.release()  # it came together with the cancellation
            raise

    def _refuse_another_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigError("the client was first used in another event loop: make one client for each event loop")
