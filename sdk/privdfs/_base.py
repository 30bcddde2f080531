"""What the two clients have in common: arguments, settings, and who owns the connections."""

import os
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Generic, TypeVar

from privdfs._bundle import Bundle
from privdfs._chunk import Chunk
from privdfs._coded import Coded
from privdfs._config import Retries, Server, Wait, check_servers
from privdfs._constants import DEFAULT_TIMEOUT_S, MAX_CALLS_AT_ONCE
from privdfs._core import Call, Observer, Settings
from privdfs._errors import ConfigError, DeadlineExceededError, ServerTimeoutError
from privdfs._format import ClientManifest
from privdfs._keys import UserKey
from privdfs._kinds import Kind, Outcome
from privdfs._leakage import refuse_leakage
from privdfs._local import LocalServers, open_client
from privdfs._manifest import AnyClientManifest
from privdfs._masked import Masked, refuse_colluding
from privdfs._queries import Queries
from privdfs._signature import Trust
from privdfs._suspects import Suspects

if TYPE_CHECKING:
    from typing_extensions import Self

CLOSED = "the client is closed: make a new one, and close it when the last call has ended"

FORKED = (
    "the client was made before this process was forked, and its connections and threads did not come along: open the "
    "bundle and make the client in the child process"
)

T = TypeVar("T")


class Shared(Generic[T]):
    """What a client shares with the copies that `with_options` makes of it."""

    def __init__(self, transport: T) -> None:
        self.transport = transport
        self.closed = False
        self.pid = os.getpid()


def without_turn(call: Call, chunk: Chunk) -> list[Outcome]:
    """What became of shares that waited for their turn until the deadline: nothing, and of a later round that is said.

    Raises:
        DeadlineExceededError: nothing of this part was sent in an earlier round either.
    """
    why = (
        f"{MAX_CALLS_AT_ONCE} other calls of this client were on their way for all of the {call.deadline.timeout:g} s "
        "that this one had: raise `timeout`, or make fewer calls at a time"
    )
    if not chunk.past:
        raise DeadlineExceededError(why)
    return [
        Outcome(each.server, 0.0, error=ServerTimeoutError(f"was not asked: {why}", each.server))
        for each in chunk.shares
    ]


def _kind(bundle: Bundle, servers: int, key: UserKey | bytes | None, colluding: int | None) -> Kind:
    """How the release's shares are made.

    Raises:
        ConfigError: the key or `colluding` does not fit the release, or the servers are too few.
    """
    manifest = bundle.manifest
    if isinstance(manifest, ClientManifest):
        refuse_colluding(colluding)
        return Masked(bundle, bundle.partition(key), Suspects(manifest))
    if key is not None:
        raise ConfigError("a key was given for a coded release, which has none: a minority learns nothing without keys")
    return Coded.check(bundle.coded, manifest, servers, colluding)


class BaseClient(Generic[T]):
    """Base of `Client` and `AsyncClient`, where the arguments are described."""

    def __init__(  # noqa: PLR0913 - each by its name
        self,
        bundle: str | PathLike[str] | Bundle,
        servers: Sequence[Server | str],
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        min_answers: int | None = None,
        wait: Wait = "all",
        retries: Retries | None = None,
        key: UserKey | bytes | None = None,
        colluding: int | None = None,
        queries: Queries | None = None,
        telemetry: Observer | None = None,
        max_leakage_db: float | None = None,
        allow_shared_hosts: bool = False,
        trust: Trust | None = None,
        allow_unsigned: bool = False,
    ) -> None:
        if isinstance(bundle, Bundle):
            if trust is not None or allow_unsigned:
                raise ConfigError("the bundle is open already: give `trust` or `allow_unsigned` to Bundle.open instead")
            opened = bundle
        else:
            opened = Bundle.open(bundle, trust=trust, allow_unsigned=allow_unsigned)
        refuse_leakage(opened.manifest, max_leakage_db)
        # Of a coded release there are as many servers as are given.
        count = opened.n_servers if isinstance(opened.manifest, ClientManifest) else None
        checked = check_servers(servers, count, allow_shared_hosts=allow_shared_hosts)
        settings = Settings.check(
            opened,
            _kind(opened, len(checked), key, colluding),
            timeout=timeout,
            min_answers=min_answers,
            wait=wait,
            retries=retries,
            queries=queries,
            telemetry=telemetry,
        )
        self._begin(settings, Shared(self._connect(opened.manifest, checked)), owner=True)

    @classmethod
    def local(
        cls,
        release_dir: str | PathLike[str],
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        min_answers: int | None = None,
        key: UserKey | bytes | None = None,
        colluding: int | None = None,
        max_leakage_db: float | None = None,
    ) -> "Self":
        """Make a client that runs the branches of a whole release folder in this process.

        For development and tests only: one process holds all shares, so nothing is private. Of a coded release all
        servers that have a folder take part.

        Raises:
            ConfigError: the timeout, `min_answers`, the key, `colluding` or `max_leakage_db` makes no sense.
            BundleError: a folder of the release is missing, changed, or does not fit the others; or it leaks more than
                `max_leakage_db`.
        """
        bundle = open_client(release_dir)
        refuse_leakage(bundle.manifest, max_leakage_db)
        servers = LocalServers(release_dir, bundle.manifest)
        kind = _kind(bundle, servers.count, key, colluding)
        settings = Settings.check(bundle, kind, timeout=timeout, min_answers=min_answers, wait="all", retries=None)
        client = cls.__new__(cls)
        client._begin(settings, Shared(cls._wrap(servers)), owner=True)  # noqa: SLF001
        return client

    def with_options(
        self,
        *,
        timeout: float | None = None,
        min_answers: int | None = None,
        wait: Wait | None = None,
        retries: Retries | None = None,
    ) -> "Self":
        """Make a copy with other settings for some calls, for example `client.with_options(timeout=2).predict(image)`.

        The copy uses the connections of this client and is closed with it; closing the copy leaves them open.

        Raises:
            ConfigError: a setting makes no sense.
        """
        settings = self._settings.change(timeout=timeout, min_answers=min_answers, wait=wait, retries=retries)
        copy = type(self).__new__(type(self))
        copy._begin(settings, self._shared, owner=False)  # noqa: SLF001 - its own class
        return copy

    def __repr__(self) -> str:
        return f"{type(self).__name__}(release={self.bundle.release!r}, servers={self._settings.kind.servers})"

    @property
    def bundle(self) -> Bundle:
        """The client's part of the release."""
        return self._settings.bundle

    @classmethod
    def _connect(cls, manifest: AnyClientManifest, servers: Sequence[Server]) -> T:
        """The transport to real servers."""
        raise NotImplementedError

    @classmethod
    def _wrap(cls, servers: LocalServers) -> T:
        """The transport to branches in this process."""
        raise NotImplementedError

    def _begin(self, settings: Settings, shared: Shared[T], *, owner: bool) -> None:
        self._settings = settings
        self._shared = shared
        self._owner = owner
        self._closed = False

    @property
    def _transport(self) -> T:
        return self._shared.transport

    def _close(self) -> bool:
        """Refuse further calls; whether the connections are to be closed now."""
        self._closed = True
        last = self._owner and not self._shared.closed
        self._shared.closed |= self._owner
        return last

    def _call(self, timeout: float | None) -> Call:
        if self._closed or self._shared.closed:
            raise ConfigError(CLOSED)
        if os.getpid() != self._shared.pid:
            raise ConfigError(FORKED)
        return self._settings.begin(timeout)
