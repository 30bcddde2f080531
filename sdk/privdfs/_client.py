"""The synchronous client."""

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from privdfs._bundle import Bundle
from privdfs._config import Server, check_servers
from privdfs._constants import DEFAULT_TIMEOUT_S, TRANSPORT_GRACE_S
from privdfs._core import Call, Chunk, Deadline, Outcome, Settings
from privdfs._errors import ConfigError
from privdfs._images import ImageLike
from privdfs._keys import UserKey
from privdfs._local import LocalServers, open_client
from privdfs._manifest import ClientManifest
from privdfs._result import Result
from privdfs._wire import Ask, Exchange, Link, Reply, branches, late, open_replicas

if TYPE_CHECKING:
    from typing_extensions import Self

CLOSED = "the client is closed: make a new one, and close it when the last call has ended"


class Transport(Protocol):
    """Brings shares to their servers and answers back."""

    def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        """One outcome for every server."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class Client:
    """Classifies images with the help of servers none of which sees the image.

    A client may be used from several threads at once. It holds one connection to each server, opened at the first call;
    close it, or use it as a context manager. After a fork, make a new one in the child.

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
        client._begin(settings, LocalServers(release_dir, bundle.manifest))  # noqa: SLF001 - its own class
        return client

    def _begin(self, settings: Settings, transport: Transport) -> None:
        self._settings = settings
        self._transport = transport
        self._closed = False

    def __repr__(self) -> str:
        bundle = self._settings.bundle
        return f"{type(self).__name__}(release={bundle.release!r}, servers={bundle.n_servers})"

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bundle(self) -> Bundle:
        """The client's part of the release."""
        return self._settings.bundle

    def predict(self, image: ImageLike, *, timeout: float | None = None) -> Result:
        """Classify one image.

        Args:
            image: PIL image, uint8 array (HW, or HWC with 1, 3 or 4 channels), path, or the bytes of an image file.
            timeout: seconds that this call may take; the client's when None.

        Raises:
            ImageError: the image cannot be used; nothing was sent.
            ConfigError: the timeout makes no sense, or the client is closed.
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

    def close(self) -> None:
        """Close the connections. Calls after this raise `ConfigError`; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def _call(self, timeout: float | None) -> Call:
        if self._closed:
            raise ConfigError(CLOSED)
        return self._settings.begin(timeout)

    def _run(self, call: Call, chunk: Chunk) -> list[Result]:
        return call.finish(chunk, self._transport.exchange(call, chunk))


class _GrpcServers:
    """All servers at once over gRPC, with futures."""

    def __init__(self, manifest: ClientManifest, servers: Sequence[Server]) -> None:
        self._links = [
            Link(branch, open_replicas(server, asynchronous=False))
            for branch, server in zip(branches(manifest), servers, strict=True)
        ]

    def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        trip = Exchange(self._links, call, chunk)
        trip.take_checks(_fan_out(trip.checks(), call.deadline))
        return trip.take_answers(_fan_out(trip.shares(), call.deadline))

    def close(self) -> None:
        for link in self._links:
            for channel in link.channels:
                channel.close()


def _fan_out(asks: Sequence[Ask], deadline: Deadline) -> list[Reply]:
    """Start all calls at once and wait for each to end, at the latest with the deadline."""
    ended: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()

    def note_end(position: int) -> Callable[[object], None]:
        return lambda _: ended.put((position, time.perf_counter()))

    started: list[float] = []
    futures: list[Any] = []
    replies: dict[int, Reply] = {}
    try:
        for position, (method, request) in enumerate(asks):
            started.append(time.perf_counter())
            futures.append(method.future(request, timeout=deadline.remaining))
            futures[-1].add_done_callback(note_end(position))
        while len(replies) < len(futures):
            position, at = ended.get(timeout=deadline.remaining + TRANSPORT_GRACE_S)
            replies[position] = _reply(futures[position], (at - started[position]) * 1e3)
    except queue.Empty:
        pass
    except ValueError as error:  # grpc's way to say that the channel was closed, by another thread
        raise ConfigError(CLOSED) from error
    finally:
        for position, future in enumerate(futures):
            if position not in replies:
                future.cancel()
    return [replies.get(position) or late(deadline.elapsed_ms) for position in range(len(futures))]


def _reply(future: Any, ms: float) -> Reply:  # noqa: ANN401 - grpcio has no types
    status = future.code().name
    return Reply(future.result() if status == "OK" else None, status, ms)
