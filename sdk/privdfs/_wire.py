"""What both wires have in common: a connection that is made once, what is asked on it, and what comes back.

A wire (`_grpc.py`, `_http.py`) turns the values of this module into bytes and bytes into them. Whether they are right
for a server of a release is judged in one place for both (`_branch.py`).

One call runs on a connection at a time. Neither headers nor status texts of a server get into errors: it can write
there what it likes, shares included.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeAlias, TypeVar

from privdfs._config import authority, split_endpoint
from privdfs._constants import IDLE_CONNECTION_S, MAX_CALLS_PER_CONNECTION
from privdfs._dial import Steps, Trouble
from privdfs._security import Security
from privdfs._stream import Stream
from privdfs._values import Value

M = TypeVar("M")

#: How Triton says, with the status UNAVAILABLE, that its queue is full. The wires make it RESOURCE_EXHAUSTED, which
#: cannot be taken for a server that is starting.
QUEUE_FULL = b"Exceeds maximum queue size"

#: Names and values of further headers of a request, such as a token.
Headers: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class TensorType:
    """A model's input or output: its name, its type as KServe spells it ("INT8"), and its shape without the batch."""

    name: str
    datatype: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class ModelConfig:
    """What a server says of a model that it serves: all that the release check looks at."""

    parameters: Mapping[str, str]
    inputs: tuple[TensorType, ...]
    outputs: tuple[TensorType, ...]
    max_batch: int


class Tensor(Value, frozen=True):
    """A tensor in a request or an answer; `raw` are its little-endian bytes, None where they did not come as bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None


class Query(Value, frozen=True):
    """What a model is asked: its inputs, the one output that is wanted, and how long the request may wait there."""

    model: str
    inputs: tuple[Tensor, ...]
    output: str
    timeout_us: int


class Reply(Value, Generic[M], frozen=True):
    """How a call ended: with the name of a gRPC status, or with what happened to the connection.

    Attributes:
        message: what came with the status OK; None if it cannot be read.
        status: by its name in gRPC, on either wire.
        ms: how long it took.
        trouble: what happened to the connection.
    """

    message: M | None
    status: str
    ms: float
    trouble: Trouble | None = None


class Connection(ABC):
    """A connection to one endpoint of a server, and whether it has passed the release check.

    It is made with its first call, and never made again. So what was found out about the other end holds for every
    byte that is sent on it.

    Args:
        server: index of the server that the endpoint belongs to.
        endpoint: as the caller wrote it.
        security: TLS, or None for plaintext.

    Attributes:
        passed: how many of the models that the server must have were found to be right.
        checked: whether all of them were.
    """

    #: What ALPN calls the protocol, and the service that speaks it, for errors.
    protocol: ClassVar[str]
    service: ClassVar[str]

    def __init__(self, server: int, endpoint: str, security: Security | None = None) -> None:
        self.server = server
        self.endpoint = endpoint
        self.security = security
        self.checked = False
        self.passed = 0
        self._stream = Stream(*split_endpoint(endpoint), security, protocol=self.protocol, service=self.service)
        self._authority = authority(endpoint)
        self._made = False
        self._calls = 0
        self._busy = False
        self._leaving = False  # the server said that it will close the connection
        self._used_at = time.monotonic()

    @abstractmethod
    def ask_config(self, model: str, timeout: float, headers: Headers = ()) -> Steps[Reply[ModelConfig]]:
        """Ask for the configuration of a model; a driver that closes these steps cancels the call.

        Args:
            model: its name.
            timeout: seconds after which the server may give up.
            headers: further ones.
        """

    @abstractmethod
    def ask_model(self, query: Query, timeout: float, headers: Headers = ()) -> Steps[Reply[tuple[Tensor, ...]]]:
        """Ask a model; as `ask_config`."""

    @property
    def stage(self) -> str:
        """How far it got, to follow the endpoint in a sentence."""
        return self._stream.stage

    @property
    def reusable(self) -> bool:
        """Whether another call may run on it, as far as is known without looking."""
        return self._stream.is_open and not self._busy and self._calls < MAX_CALLS_PER_CONNECTION

    @property
    def idle_s(self) -> float:
        """Seconds since its last call."""
        return time.monotonic() - self._used_at

    def fit(self) -> bool:
        """Look whether it is still there for another call: the other side may have closed it meanwhile."""
        return self.reusable and self.idle_s <= IDLE_CONNECTION_S and self._look()

    def close(self) -> None:
        """Close it for good."""
        self.checked = False
        self._stream.close()

    def interrupt(self) -> None:
        """End it under a call that runs on it in another thread."""
        self._stream.interrupt()

    def _run(self, exchange: Steps[tuple[str, M | None]]) -> Steps[Reply[M]]:
        """Carry out a call: the steps of an exchange end with a status and, if that is OK, with what was read."""
        started = time.perf_counter()
        self._busy, usable, trouble = True, False, None
        status: str = "UNAVAILABLE"
        message: M | None = None
        try:
            if not self._made:
                yield from self._stream.open()
                self._made = True
            self._calls += 1
            status, message = yield from exchange
            usable = not self._leaving
        except Trouble as caught:
            trouble = caught
        except GeneratorExit:
            usable = self._made and self._stream.is_open and not self._leaving and self._cancel()
            raise
        finally:
            exchange.close()
            if not usable:  # whatever else was raised, such as KeyboardInterrupt, may have left the wire half-way
                self.close()
            self._busy, self._used_at = False, time.monotonic()
        return Reply(message, status, (time.perf_counter() - started) * 1e3, trouble)

    @abstractmethod
    def _look(self) -> bool:
        """Take in what came while no call ran; whether another may."""

    @abstractmethod
    def _cancel(self) -> bool:
        """Give up the answer that is awaited; whether the connection can still be used."""
