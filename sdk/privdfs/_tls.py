"""How this device and a server identify each other: small frozen values that check themselves.

Files are read for every new connection, so certificates can be replaced while a client runs: a changed file is noticed
within `RELOAD_AFTER_S`, and a new connection uses it. While files do not match, as in the middle of a replacement, the
old connection stays in use.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from privdfs._errors import ConfigError
from privdfs._given import check_path, is_pem, read_file, shown

Pem: TypeAlias = "str | PathLike[str] | bytes | None"

_HEADER = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
_TOKEN = re.compile(r"[!-~](?:[ -~]{0,8190}[!-~])?")
#: What the wires themselves say in headers; a second one of these could change where a request ends.
WIRES_OWN = frozenset(
    {
        "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "keep-alive",
        "upgrade", "expect", "te", "trailer", "accept-encoding", "user-agent", "inference-header-content-length",
    }
)  # fmt: skip
#: What Triton's --grpc-restricted-protocol looks for; a name follows, which is not a secret.
_TRITON_HEADER = "triton-grpc-protocol-"


@dataclass(frozen=True, repr=False)
class Pems:
    """What the files hold, in PEM form; `pinned` are the pinned certificates in DER form."""

    roots: bytes | None
    cert: bytes | None
    key: bytes | None
    pinned: frozenset[bytes]


@dataclass(frozen=True, repr=False)
class TLS:
    """How to trust a server, and how to be trusted by it. Every field is the path of a PEM file, or what is in one.

    Attributes:
        ca: certificates that may sign the server's; the system's when None.
        cert: this device's certificate chain for mutual TLS.
        key: the private key of `cert`, without a password.
        pin: the server's own certificate, in the place of `ca`; no other is accepted. There may be
            several: one for each replica, or the current one and the next.

    Raises:
        ConfigError: `cert` without `key` or the other way round, `ca` together with `pin`, or a field of another type.
    """

    ca: Pem = None
    cert: Pem = None
    key: Pem = None
    pin: Pem = None

    def __post_init__(self) -> None:
        for name in ("ca", "cert", "key", "pin"):
            object.__setattr__(self, name, _check_pem(name, getattr(self, name)))
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise ConfigError(f"TLS has `{given}` but no `{missing}`: mutual TLS needs both, server-only TLS neither")
        if self.ca is not None and self.pin is not None:
            raise ConfigError("TLS has `ca` and `pin`: a pinned certificate needs no authority, so drop one of them")

    def __repr__(self) -> str:
        key = "None" if self.key is None else "…"
        return f"TLS(ca={_shown(self.ca)}, cert={_shown(self.cert)}, key={key}, pin={_shown(self.pin)})"

    def read(self) -> Pems:
        """Read the files and check that they fit together.

        Raises:
            ConfigError: one cannot be read, is not PEM or not of its kind, or `key` is not that of `cert`.
        """
        ca, cert, key, pin = (
            _read_pem(name, source)
            for name, source in (("ca", self.ca), ("cert", self.cert), ("key", self.key), ("pin", self.pin))
        )
        _certificates("ca", ca)
        pinned = _certificates("pin", pin)
        own = _certificates("cert", cert)
        if key is not None and _public_bytes(_private_key(key).public_key()) != _public_bytes(own[0].public_key()):
            raise ConfigError("TLS `key` is not the private key of the first certificate in `cert`: pass the pair")
        return Pems(pin or ca, cert, key, frozenset(_der(certificate) for certificate in pinned))

    def stamp(self) -> tuple[object, ...]:
        """What changes when one of the files does."""
        return tuple(_stamp(source) for source in (self.ca, self.cert, self.key, self.pin))


@dataclass(frozen=True, repr=False)
class Token:
    """What a server requires besides a certificate: it is sent as a header with every call.

    Attributes:
        value: the token, or a fast function that returns the current one; it runs for every call.
        header: lower case. With "authorization" the token goes as "Bearer <value>"; for a secret of Triton's
            --grpc-restricted-protocol it is "triton-grpc-protocol-<key>", of --http-restricted-api "<key>", and the
            token goes as it is.

    Raises:
        ConfigError: a header that cannot carry a token, or a token that is not text, empty, longer than 8192
            characters, or not printable ASCII.
    """

    value: str | Callable[[], str]
    header: str = "authorization"

    def __post_init__(self) -> None:
        _check_header(self.header)
        if inspect.iscoroutinefunction(self.value):
            raise ConfigError("the token is an async function, which is never awaited: pass one that returns the text")
        if not callable(self.value):
            _check_token(self.value)

    def __repr__(self) -> str:
        return f"Token(…, header={_shown_header(self.header)})"

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The header and its present value.

        Raises:
            ConfigError: the function fails, or gives something that cannot be a token; what it gave, and what it
                raised, is not shown.
        """
        value = _check_token(_call(self.value) if callable(self.value) else self.value)
        return ((self.header, f"Bearer {value}" if self.header == "authorization" else value),)


def _check_header(header: object) -> None:
    """Check the name of a header. It may be the token, passed in its place, so only names of Triton's are shown."""
    if not isinstance(header, str):
        raise ConfigError(
            f"the token's header has the type {type(header).__name__}: pass its name, as text in lower case"
        )
    if _HEADER.fullmatch(header.lower()) and header != header.lower():
        raise ConfigError(
            f"the token's header {_shown_header(header)} has upper-case letters, which HTTP/2 does not allow: write "
            "it in lower case, here and in the server's settings"
        )
    wired = header in WIRES_OWN or header.startswith("grpc-") or header.endswith("-bin")
    if not _HEADER.fullmatch(header) or wired:
        raise ConfigError(
            "the token's header cannot carry a token: use lower-case letters, digits and -_. (1 to "
            "128 of them), not beginning with `grpc-`, not ending with `-bin`, and not a header of HTTP's own"
        )


def _shown_header(header: str) -> str:
    named = header.lower() == "authorization" or header.lower().startswith(_TRITON_HEADER)
    return shown(header) if named else "…"


def _check_token(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(
            f"the token has the type {type(value).__name__}: pass text, a function that returns text, or a Token"
        )
    if not _TOKEN.fullmatch(value):  # the message does not show it
        raise ConfigError(
            "the token is empty, longer than 8192 characters, begins or ends with a space, or holds a line break or "
            "another character that is not printable ASCII: check where it comes from"
        )
    return value


def _call(function: Callable[[], object]) -> object:
    problem = ""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - the caller's function; what it raises may name the token
        problem = type(error).__name__
    raise ConfigError(f"the function that gives the token failed ({problem}): catch and log the error inside it")


def _check_pem(name: str, source: object) -> Pem:
    """A field of `TLS`: PEM text as bytes, anything else as it is."""
    if source is None or isinstance(source, bytes):
        return source
    if is_pem(source):
        return str(source).encode("utf-8", "replace")
    path = check_path(source, f"TLS {name}")
    return source if isinstance(source, str) else path


def _read_pem(name: str, source: Pem) -> bytes | None:
    if source is None:
        return None
    data = source if isinstance(source, bytes) else read_file(source, f"TLS {name}", secret=name == "key")
    if b"-----BEGIN " not in data:
        raise ConfigError(f"TLS {name} is not in PEM form: convert it, or pass the right file")
    return data


def _certificates(name: str, pem: bytes | None) -> list[Any]:
    from cryptography.x509 import load_pem_x509_certificates

    if pem is None:
        return []
    try:
        return list(load_pem_x509_certificates(pem))
    except ValueError:
        raise ConfigError(f"TLS {name} holds no certificate, or a damaged one: pass the right file") from None


def _private_key(pem: bytes) -> Any:  # noqa: ANN401 - any of cryptography's kinds
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        raise ConfigError("TLS key has a password, which cannot be asked for: decrypt it (openssl pkey)") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("TLS key holds no private key, or a damaged one: pass the right file") from None


def _public_bytes(key: Any) -> bytes:  # noqa: ANN401 - any of cryptography's kinds
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _der(certificate: Any) -> bytes:  # noqa: ANN401 - cryptography's Certificate
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _stamp(source: Pem) -> tuple[int, int, int] | None:
    if source is None or isinstance(source, bytes):
        return None
    try:
        status = Path(source).stat()
    except OSError:
        return (0, 0, 0)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _shown(source: Pem) -> str:
    return "…" if isinstance(source, bytes) else shown(source)
