"""PrivDFS edge SDK: classify images with the help of servers none of which can see them.

    from privdfs import TLS, Client, Server

    servers = [Server(f"{host}:8001", tls=TLS(ca="ca.pem")) for host in ("a.example", "b.example", "c.example")]
    with Client("model_repository/fashion/client", servers, timeout=0.5, trust="release-key.pub.pem") as client:
        result = client.predict("photo.jpg")
    print(result.label, result.probability, result.answered, result.timings)

`AsyncClient` is the same for asyncio. `Client.local(release_dir)` runs a whole release in this process, for development
and tests. All errors derive from `Error`; the module `privdfs.testing` has a programmable server for your tests.

The names in `__all__`, and those of `privdfs.testing` and `privdfs.otel`, are the public interface; everything
else may change.
"""

import os
import typing

# ONNX Runtime from 1.29 on reports every session to Microsoft, unless this is set before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from privdfs._bundle import Bundle
from privdfs._client import Client
from privdfs._config import Retries, Server
from privdfs._errors import (
    AnswerError,
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    BundleSignatureError,
    BundleStoreError,
    BundleVersionError,
    CanaryError,
    ConfigError,
    ContradictingAnswersError,
    DeadlineExceededError,
    Error,
    ImageError,
    LeakageError,
    NotEnoughAnswersError,
    QueryBudgetError,
    RandomnessError,
    SelfTestError,
    ServerBusyError,
    ServerError,
    ServerMismatchError,
    ServerTimeoutError,
    ServerUnavailableError,
)
from privdfs._keys import UserKey
from privdfs._queries import Queries
from privdfs._result import Health, Result, RoundTimings, SelfTest, Timings
from privdfs._store import BundleStore
from privdfs._tls import TLS, Token

if typing.TYPE_CHECKING:
    from privdfs._async_client import AsyncClient

__version__ = "0.1.0"

__all__ = [
    "TLS",
    "AnswerError",
    "AsyncClient",
    "Bundle",
    "BundleError",
    "BundleFormatError",
    "BundleIntegrityError",
    "BundleSignatureError",
    "BundleStore",
    "BundleStoreError",
    "BundleVersionError",
    "CanaryError",
    "Client",
    "ConfigError",
    "ContradictingAnswersError",
    "DeadlineExceededError",
    "Error",
    "Health",
    "ImageError",
    "LeakageError",
    "NotEnoughAnswersError",
    "Queries",
    "QueryBudgetError",
    "RandomnessError",
    "Result",
    "Retries",
    "RoundTimings",
    "SelfTest",
    "SelfTestError",
    "Server",
    "ServerBusyError",
    "ServerError",
    "ServerMismatchError",
    "ServerTimeoutError",
    "ServerUnavailableError",
    "Timings",
    "Token",
    "UserKey",
    "__version__",
]


def __getattr__(name: str) -> object:
    """`AsyncClient`, imported when it is first asked for: asyncio is a tenth of a cold start."""
    if name == "AsyncClient":
        from privdfs._async_client import AsyncClient

        globals()[name] = AsyncClient
        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
