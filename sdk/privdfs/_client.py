"""The synchronous client."""

import queue
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
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
from privdfs._threads import Ended, Threads
from privdfs._wire import Ask, Link, Reply, branches

if TYPE_CHECKING:
    from typing_extensions import Self


class Transport(Protocol):
    """Brings shares to their servers and answers back."""

    def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        """One outcome for every server."""
        ...

    def health(self, call: Call) -> list[Health]:
        """How every replica does."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class Client(BaseClient[Transport]):
    """Classifies images with the help of servers none of which sees the image.

    A client may be used from several threads at once. It holds one connection to each replica, opened at the first
    call (or by `warmup`); close it, or use it as a context manager. In a forked child
    it refuses every call: make a new one there.

    Args:
        bundle: the client folder of a release, or an opened `Bundle`.
        servers: one `Server` (or "host:port" on this machine) for every server of the release, in its order.
        timeout: seconds that a call may take, from its start to its result.
        min_answers: how many servers must answer; all of them when None.
        wait: "all" waits, within the timeout, for every server; "quorum" ends a call as soon as `min_answers` have
            answered, and cancels the rest.
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

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(self, image: ImageLike, *, timeout: float | None = None) -> Result:
        """Classify one image.

        Args:
            image: PIL image, uint8 array (HW, or HWC with 1, 3 or 4 channels), path, or the bytes of an image file.
            timeout: seconds that this call may take; the client's when None.

        Raises:
            ImageError: the image cannot be used; nothing was sent.
            ConfigError: the timeout makes no sense, or the client is closed.
            QueryBudgetError: `queries` does not let the image be sent.
            DeadlineExceededError: the time was over before anything was sent.
            NotEnoughAnswersError: fewer than `min_answers` servers gave a usable answer in time.
        """
        call = self._call(timeout)
        return self._run(call, call.encode(call.decode_one(image)))[0]

    def predict_batch(self, images: Iterable[ImageLike], *, timeout: float | None = None) -> list[Result]:
        """Classify several images (or a uint8 array [batch, height, width, channels]), in order.

        They travel in parts of at most the release's `max_batch`, one part after the other, all under one deadline.

        Raises:
            Error: as for `predict`; one bad image, or one part without enough answers, fails the whole call.
        """
        call = self._call(timeout)
        results: list[Result] = []
        for part in call.split(call.decode_many(images)):
            results += self._run(call, call.encode(part))
        return results

    def encode(self, image: ImageLike) -> list[npt.NDArray[np.int8]]:
        """Make the shares of one image without sending them.

        Returns:
            N arrays, the i-th int8 [K_i]: exactly the bytes that would travel to server i.

        Raises:
            ImageError: the image cannot be used.
        """
        call = self._call(None)
        return [values[0] for values in call.shares(call.decode_one(image))]

    def health(self, *, timeout: float | None = None) -> list[Health]:
        """Ask every replica of every server whether it serves this release; no image is involved, nothing is raised.

        Raises:
            ConfigError: the timeout makes no sense, or the client is closed.
        """
        return self._transport.health(self._call(timeout))

    def warmup(self, *, timeout: float | None = None) -> list[Health]:
        """Run the graphs once and connect to every replica, so that the first image takes no longer than the next.

        Returns:
            What `health` gives.

        Raises:
            ConfigError: the timeout makes no sense, or the client is closed.
        """
        call = self._call(timeout)
        call.warm_up()
        return self._transport.health(call)

    def close(self) -> None:
        """Close the connections. Calls after this raise `ConfigError`; closing twice does nothing."""
        if self._close():
            self._transport.close()

    @classmethod
    def _connect(cls, manifest: ClientManifest, servers: Sequence[Server]) -> Transport:
        return _GrpcServers(manifest, servers)

    @classmethod
    def _wrap(cls, servers: LocalServers) -> Transport:
        return servers

    def _run(self, call: Call, chunk: Chunk) -> list[Result]:
        return call.finish(chunk, self._transport.exchange(call, chunk) if chunk.size else [])


class _GrpcServers:
    """All servers at once over gRPC."""

    def __init__(self, manifest: ClientManifest, servers: Sequence[Server]) -> None:
        self._links = [
            Link(branch, server, asynchronous=False) for branch, server in zip(branches(manifest), servers, strict=True)
        ]
        self._threads = Threads()
        weakref.finalize(self, self._threads.close)  # for who forgets to close

    def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        trip = Trip(self._links, call, chunk)
        try:
            _carry_out(trip, self._threads)
            return trip.outcomes()
        finally:
            trip.close()

    def health(self, call: Call) -> list[Health]:
        checkup = Checkup(self._links, call)
        _carry_out(checkup, self._threads)
        return checkup.health()

    def close(self) -> None:
        for link in self._links:
            for channel in link.channels:
                channel.close()
        self._threads.close()


def _carry_out(talk: Talk, threads: Threads) -> None:
    """Start what a talk asks, and give it the replies in the order in which they come, until it is done."""
    ended: Ended = queue.SimpleQueue()
    running: dict[Ask, Callable[[], object]] = {}  # with what cancels it
    begin = threads.start if talk.whole else _start_future

    def start(asks: Iterable[Ask]) -> None:
        for ask in asks:
            running[ask] = begin(ask, ended)
        for ask in [ask for ask in running if not ask.wanted]:
            running.pop(ask)()

    try:
        start(talk.begin())
        while not talk.done:
            try:
                ask, reply = ended.get(timeout=max(0.0, talk.wake - time.monotonic()))
            except queue.Empty:
                start(talk.tick())
                continue
            if isinstance(reply, Exception):
                raise reply
            if ask in running:
                del running[ask]
                start(talk.take(ask, reply))
    except ValueError as error:  # grpc's way to say that the channel was closed, by another thread
        raise ConfigError(CLOSED) from error
    finally:
        for cancel in running.values():
            cancel()


def _start_future(ask: Ask, ended: Ended) -> Callable[[], object]:
    """Begin a call that can be cancelled, by what is returned."""
    started = time.perf_counter()

    def note(future: Any) -> None:  # noqa: ANN401 - grpc has no types
        status = future.code().name
        message = future.result() if status == "OK" else None
        ended.put((ask, Reply(message, status, (time.perf_counter() - started) * 1e3)))

    future: Any = ask.method.future(ask.request, timeout=ask.timeout, metadata=ask.metadata)
    future.add_done_callback(note)
    return future.cancel
