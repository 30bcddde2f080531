"""The synchronous client."""

from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from privdfs._base import BaseClient, without_turn
from privdfs._channel import Channels
from privdfs._chunk import Chunk
from privdfs._config import Server
from privdfs._constants import MAX_CALLS_AT_ONCE
from privdfs._core import Call
from privdfs._drive import carry_out
from privdfs._exchange import Checkup, Trip
from privdfs._images import ImageLike
from privdfs._kinds import Outcome
from privdfs._local import LocalServers
from privdfs._manifest import AnyClientManifest
from privdfs._result import Health, Result

if TYPE_CHECKING:
    from typing_extensions import Self


class Transport(Protocol):
    """Brings shares to their servers and answers back."""

    def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        """One outcome for every server."""
        ...

    def health(self, call: Call) -> list[Health]:
        """The state of every replica."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class Client(BaseClient[Transport]):
    """Classifies images with the help of servers none of which sees the image.

    A client may be used from several threads at once. It keeps as many connections to each replica as calls ran at
    once, opened at the first call (or by `warmup`); close it, or use it as a context manager. In a forked child it
    refuses every call: make a new one there.

    Args:
        bundle: the client folder of a release, or an opened `Bundle`.
        servers: one `Server` (or "host:port" on this machine) for every server of the release, in its order.
        timeout: seconds that a call may take, from its start to its result.
        min_answers: how many servers must answer, in every round; when None, all of them, or in a coded release as many
            as decode the answers. Two more correct one lie.
        wait: "all" waits, within the timeout, for every server; "quorum" ends a call as soon as `min_answers` have
            answered; the rest may finish what they began.
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

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(self, image: ImageLike, *, timeout: float | None = None) -> Result:
        """Classify one image.

        Args:
            image: PIL image, uint8 array (HW, or HWC with 1, 3 or 4 channels), path, open binary file, or the bytes of
                an image file.
            timeout: seconds that this call may take; the client's when None.

        Raises:
            ImageError: the image cannot be used; nothing was sent.
            ConfigError: the timeout makes no sense, or the client is closed.
            QueryBudgetError: `queries` refuses to send the image.
            DeadlineExceededError: the time ran out before anything was sent.
            NotEnoughAnswersError: fewer than `min_answers` servers gave a usable answer in time.
            ContradictingAnswersError: of a coded release, a server lies, and it cannot be told which.
            CanaryError: a canary that `queries` sent came back with another answer than the known one.
            RandomnessError: of a coded release, the system's random generator failed.
        """
        with self._call(timeout) as call:
            return call.with_suspects(self._run(call, call.encode(call.decode_one(image))))[0]

    def predict_batch(self, images: Iterable[ImageLike], *, timeout: float | None = None) -> list[Result]:
        """Classify several images (a list, or a uint8 array NHWC or NHW), in order.

        They travel in parts of at most the release's `max_batch`, one part after the other, all under one deadline.

        Raises:
            Error: as for `predict`; one bad image, or one part without enough answers, fails the whole call.
        """
        results: list[Result] = []
        with self._call(timeout) as call:
            for part in call.split(call.decode_many(images)):
                results += self._run(call, call.encode(part))
            return call.with_suspects(results)

    def encode(self, image: ImageLike) -> list[npt.NDArray[np.int8]]:
        """Make the shares of one image without sending them.

        A coded release shares the image anew each time, and this is the first round's sharing.

        Returns:
            N arrays, the i-th int8 [K_i], or in a coded release int8 [primes, values]: exactly the bytes that would be
            sent to server i.

        Raises:
            ImageError: the image cannot be used.
        """
        with self._call(None) as call:
            return [values[0] for values in call.shares(call.decode_one(image))]

    def health(self, *, timeout: float | None = None) -> list[Health]:
        """Ask every replica of every server whether it serves this release; no image is involved, nothing is raised.

        Raises:
            ConfigError: the timeout makes no sense, or the client is closed.
        """
        return self._transport.health(self._call(timeout))

    def warmup(self, *, timeout: float | None = None) -> list[Health]:
        """Run the graphs once and connect to every replica, so that the first image is as fast as the next.

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
    def _connect(cls, manifest: AnyClientManifest, servers: Sequence[Server]) -> Transport:
        return _Servers(manifest, servers)

    @classmethod
    def _wrap(cls, servers: LocalServers) -> Transport:
        return servers

    def _run(self, call: Call, chunk: Chunk) -> list[Result]:
        results: list[Result] = []
        for part in chunk.in_order():
            step: Chunk | list[Result] = part
            while isinstance(step, Chunk):
                step = call.proceed(step, self._transport.exchange(call, step) if step.size else [])
            results += step
        return call.finish(chunk, results)


class _Servers:
    """All servers at once, in the thread of the call."""

    def __init__(self, manifest: AnyClientManifest, servers: Sequence[Server]) -> None:
        self._channels = Channels(manifest, servers)
        # A semaphore's work, in C: Python's own takes a dozen steps of the interpreter for every call.
        self._turns: SimpleQueue[None] = SimpleQueue()
        for _ in range(MAX_CALLS_AT_ONCE):
            self._turns.put(None)

    def exchange(self, call: Call, chunk: Chunk) -> list[Outcome]:
        try:
            self._turns.get(timeout=call.deadline.remaining)
        except Empty:
            return without_turn(call, chunk)
        try:
            trip = Trip(self._channels, call, chunk)
            try:
                carry_out(trip)
                return trip.outcomes()
            finally:
                trip.close()
        finally:
            self._turns.put(None)

    def health(self, call: Call) -> list[Health]:
        checkup = Checkup(self._channels, call)
        try:
            carry_out(checkup)
            return checkup.health()
        finally:
            checkup.close()

    def close(self) -> None:
        self._channels.close()
