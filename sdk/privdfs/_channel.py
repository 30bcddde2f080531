"""One server as the client sees it: its replicas, the messages that only it may be sent, and what its replies mean.

Guarantees:

- A request to server i holds the share of server i only, raw bytes: int8 [batch, K_i], or in a coded release int8
  [batch, primes, values]; in a keyed release also the index of the partition, int32 [batch, 1]; and the timeout of the
  call; nothing else, and no key. Its length depends on the batch, the release, the round and that timeout, never on the
  content. `ask_branch` refuses what is another server's.
- No share is sent on a connection before the endpoint has said, on that very connection, that it serves this server of
  this release, with the models of all rounds. A connection is never made twice, so no other server can take the place
  of a checked one.
- Errors carry the name of a status, never a server's text, which could hold anything, shares included.
"""

import logging
import os
import time
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from privdfs._branch import Branch, branches, judge_config, read_tensor
from privdfs._chunk import Share
from privdfs._config import Server, wire_of
from privdfs._constants import BREAKER_FAILURES, BREAKER_LAST_S, RELOAD_AFTER_S
from privdfs._drive import Ask
from privdfs._errors import (
    AnswerError,
    ConfigError,
    ServerBusyError,
    ServerError,
    ServerMismatchError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from privdfs._format import SHARE
from privdfs._manifest import AnyClientManifest
from privdfs._onnx import partition_feed
from privdfs._routing import Replicas
from privdfs._security import make_security
from privdfs._wire import Connection, ModelConfig, Query, Reply, Tensor
from privdfs._wires import connection_class

#: Statuses after which trying the same replica again may help. An inference changes nothing on the server,
#: and the same share tells it nothing new, so asking again is always safe. After other statuses it would not help.
_PASSING = frozenset({"UNAVAILABLE", "ABORTED", "INTERNAL", "UNKNOWN"})
#: Status of a server that has more to do than it can: asking it again within the same call would add to its load.
_BUSY = "RESOURCE_EXHAUSTED"

_log = logging.getLogger("privdfs")


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed, and whether trying the same replica again may help."""

    error: ServerError
    again: bool


class ServerChannel:
    """One server: its replicas, and the messages that only it may be sent.

    Args:
        branch: what the server must be.
        server: where it is.

    Raises:
        ConfigError: a TLS file cannot be read.
    """

    def __init__(self, branch: Branch, server: Server) -> None:
        self._branch = branch
        self._config = server
        self._stamp: tuple[object, ...] = (
            () if server.tls is None else server.tls.stamp()
        )  # before the files are read: no change is missed
        self._connection = connection_class(wire_of(server.endpoints[0]))  # all replicas have the same wire
        self._security = None if server.tls is None else make_security(server.tls, self._connection.protocol)
        self._looked_at = time.monotonic()
        self._mismatches: dict[str, ServerMismatchError] = {}  # endpoints that serve something else
        self.replicas = Replicas(branch.server, server.endpoints, self._open, self._usable)

    @property
    def server(self) -> int:
        """Index of the server."""
        return self._branch.server

    def take(self, avoid: Collection[str], busy: Collection[str]) -> Connection | None:
        """A connection for one attempt, or None; see `Replicas.take`."""
        self._look_after_certificates()
        return self.replicas.take(avoid, busy)

    def take_from(self, endpoint: str) -> Connection:
        """A connection to one endpoint, for one attempt."""
        self._look_after_certificates()
        return self.replicas.take_from(endpoint)

    def ask_config(self, connection: Connection, remaining: float) -> Ask:
        """Ask an endpoint what it serves: the first of the models that have not been judged on this connection."""
        if connection.checked:  # it is asked once more, from the start
            connection.checked, connection.passed = False, 0
        model = self._branch.models[connection.passed]
        return Ask(connection.ask_config(model.name, remaining, self._headers()))

    def ask_branch(self, connection: Connection, share: Share, remaining: float, timeout: float) -> Ask:
        """Ask an endpoint for the answer to this server's share.

        Args:
            connection: to one of this server's replicas; it has passed the check.
            share: of this server.
            remaining: seconds after which the server may give up.
            timeout: of the whole call, after which Triton may drop the request from its queue. Not the remaining time:
                that would change the length of the message.

        Raises:
            RuntimeError: the share or the replica is another server's, or the connection has not passed the check. No
                input leads here; it would be a fault of this package.
        """
        model = self._branch.models[share.round]
        batch, *sizes = share.values.shape
        fits = tuple(sizes) == model.inputs[0].sizes and share.values.dtype == np.int8
        if not share.server == connection.server == self.server or not fits:
            raise RuntimeError(f"a share of server {share.server} was about to be sent to server {connection.server}")
        if not connection.checked:
            raise RuntimeError("a share was about to be sent on a connection that has not passed the check")
        if len(model.inputs) != (1 if share.partition is None else 2):
            raise RuntimeError("a share of a keyed release was about to be sent without its partition, or another with")
        inputs = [Tensor(SHARE, "INT8", share.values.shape, share.values.tobytes())]
        for name, feed in partition_feed(share.partition, batch).items():
            inputs.append(Tensor(name, "INT32", feed.shape, feed.astype("<i4").tobytes()))
        query = Query(model.name, tuple(inputs), model.output.name, round(timeout * 1e6))
        return Ask(connection.ask_model(query, remaining, self._headers()))

    def read_config(self, connection: Connection, reply: Reply[ModelConfig]) -> Failure | None:
        """Judge an endpoint by the configuration of a model it serves.

        None: it fits. Once all models do, the connection is `checked`, and shares may be sent on it; until then there
        is more to ask.
        """
        model = self._branch.models[connection.passed]
        failure = self._failure(connection, reply, model.name)
        if failure is None:
            error = judge_config(self._branch, model, connection.endpoint, reply.message)
            failure = None if error is None else Failure(error, again=False)
        connection.passed = connection.passed + 1 if failure is None else 0
        connection.checked = connection.passed == len(self._branch.models)
        if failure is not None and isinstance(failure.error, ServerMismatchError):
            self._mismatches[connection.endpoint] = failure.error
        else:
            self._mismatches.pop(connection.endpoint, None)
        return failure

    def read_answer(
        self, connection: Connection, share: Share, reply: Reply[tuple[Tensor, ...]]
    ) -> "npt.NDArray[Any] | Failure":
        """Judge the answer to a share: logits or residues, or why there are none.

        A server that failed is checked again before it is sent another share; one that is busy has not failed.
        """
        model = self._branch.models[share.round]
        failure = self._failure(connection, reply, model.name)
        if failure is None:
            try:
                return read_tensor(self.server, model, len(share.values), reply.message)
            except AnswerError as problem:
                failure = Failure(problem, again=False)
        if not isinstance(failure.error, ServerBusyError):
            connection.checked, connection.passed = False, 0
        return failure

    def too_late(self, connection: Connection) -> ServerError:
        """The error of an endpoint that had not answered at the deadline.

        Its connection is closed, and so are the idle ones beside it, which may have the same fault.
        """
        stage = connection.stage
        connection.close()
        self.replicas.drop_idle(connection.endpoint)
        return ServerTimeoutError(
            f"{connection.endpoint} {stage} in time: raise `timeout`, or check the network and the server's load; "
            "the next call makes a new connection",
            self.server,
        )

    def clearest(self, error: ServerError) -> ServerError:
        """The error to report: while the parties roll a release, old replicas end, and new ones say what to do."""
        if isinstance(error, ServerUnavailableError) and not isinstance(error, ServerBusyError):
            return next(iter(self._mismatches.values()), error)
        return error

    def all_paused(self) -> ServerError:
        """The error of a server whose replicas are all paused."""
        return ServerUnavailableError(
            f"{', '.join(self._config.endpoints)} failed {BREAKER_FAILURES} times in a row and is not tried for up to "
            f"{BREAKER_LAST_S:g} s: check the server's log",
            self.server,
        )

    def _headers(self) -> tuple[tuple[str, str], ...]:
        token = self._config.token
        return () if token is None else token.metadata()

    def _open(self, endpoint: str) -> Connection:
        return self._connection(self.server, endpoint, self._security)

    def _usable(self, connection: Connection) -> bool:
        """Whether another call may run on an idle connection."""
        return connection.security is self._security and connection.fit()

    def _look_after_certificates(self) -> None:
        """Use replaced certificates; keep the old ones while the new files do not match."""
        tls = self._config.tls
        if tls is None or (now := time.monotonic()) - self._looked_at < RELOAD_AFTER_S:
            return
        self._looked_at = now
        stamp = tls.stamp()
        if stamp == self._stamp:
            return
        try:
            self._security, self._stamp = make_security(tls, self._connection.protocol), stamp
        except ConfigError as error:
            _log.warning("the certificates of server %d changed but cannot be used yet: %s", self.server, error.message)
        else:
            self.replicas.forgive()

    def _failure(self, connection: Connection, reply: Reply[Any], model: str) -> Failure | None:
        """Why a reply holds no message; None for one that does, even if it cannot be read."""
        trouble = reply.trouble
        if trouble is None and reply.status == "OK":
            return None
        if trouble is None:
            return Failure(self._error(connection.endpoint, reply.status, model), again=reply.status in _PASSING)
        error = ServerUnavailableError(f"{connection.endpoint} {trouble.what}: {trouble.advice}", self.server)
        return Failure(error, again=trouble.again)

    def _error(self, where: str, status: str, model: str) -> ServerError:
        """The error of a server that answered with a status."""
        own = self._config.token is not None
        token = "check the token and its header" if own else "give the token that it may need, Server(…, token=…)"
        if status == "DEADLINE_EXCEEDED":
            return ServerTimeoutError(
                f"{where} gave up at the deadline: raise `timeout`, or check the server's load", self.server
            )
        if status == "UNAVAILABLE":  # Triton's answer to a missing token too
            wait = "wait until it has started and see its log"
            return ServerUnavailableError(
                f"{where} runs but does not serve this call now (UNAVAILABLE): "
                f"{f'{token}, or {wait}' if own else f'{wait}, or {token}'}",
                self.server,
            )
        if status == _BUSY:
            return ServerBusyError(
                f"{where} has a full queue: try again later, with growing waits; its operator needs more replicas",
                self.server,
            )
        if status == "NOT_FOUND":
            return ServerMismatchError(
                f"{where} serves no model {model!r}: install the new bundle if the parties have moved on, or give the "
                f"endpoint of server {self.server} of release {self._branch.release}",
                self.server,
            )
        if status in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
            return ServerUnavailableError(f"{where} refuses this device ({status}): {token}", self.server)
        return ServerUnavailableError(f"{where} refused the request ({status}): check the server's log", self.server)


class Channels(Sequence[ServerChannel]):
    """A channel to each server of a release, in its order; nothing is connected before the first call.

    Raises:
        ConfigError: a TLS file cannot be read.
    """

    def __init__(self, manifest: AnyClientManifest, servers: Sequence[Server]) -> None:
        pairs = zip(branches(manifest, len(servers)), servers, strict=True)
        self._channels = [ServerChannel(branch, server) for branch, server in pairs]
        self._pid = os.getpid()

    @overload
    def __getitem__(self, index: int) -> ServerChannel: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[ServerChannel]: ...

    def __getitem__(self, index: int | slice) -> ServerChannel | Sequence[ServerChannel]:
        return self._channels[index]

    def __len__(self) -> int:
        return len(self._channels)

    def close(self) -> None:
        """Close every connection. Calls that run on one end at once, those that still dial by their deadline."""
        for channel in self._channels:
            channel.replicas.close()

    def __del__(self) -> None:
        """Close what a client that was dropped without `close` left open, and say so."""
        channels: list[ServerChannel] = getattr(self, "_channels", [])
        if os.getpid() != getattr(self, "_pid", None):  # a forked child: the connections are its parent's
            return
        if any(channel.replicas.connected for channel in channels):
            self.close()
            warnings.warn("a privdfs client was dropped without close()", ResourceWarning, stacklevel=1)
