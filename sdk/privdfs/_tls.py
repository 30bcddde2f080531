"""How a server is known, and how this device is known to it: small frozen values that check themselves.

What they hold is read from files with every new connection, so certificates can be replaced while a client runs: a
changed file is noticed within `RELOAD_AFTER_S`, and a new connection is made with it. Files that do not fit together,
as in the middle of a replacement, leave the old connection in use.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from privdfs._errors import ConfigError

Pem: TypeAlias = "str | PathLike[str] | bytes | None"

_HEADER = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,127}$")
_TOKEN = re.compile(r"^[!-~](?:[ -~]{0,8190}[!-~])?$")


@dataclass(frozen=True, repr=False)
class Pems:
    """What gRPC is given, in PEM form; `pinned` are the pinned certificates in DER form."""

    roots: bytes | None
    cert: bytes | None
    key: bytes | None
    pinned: frozenset[bytes]


@dataclass(frozen=True, repr=False)
class TLS:
    """How to trust a server, and how to be trusted by it. Every field is a PEM file, or the bytes of one.

    Attributes:
        ca: certificates that may sign the server's; the system's when None.
        cert: this device's certificate chain for mutual TLS.
        key: the private key of `cert`, without a password.
        pin: the server's own certificate, in the place of `ca`; no other is accepted, whoever signed it. Several: one
            for each replica, or the next one beside the present one.

    Raises:
        ConfigError: `cert` without `key` or the other way round, or `ca` together with `pin`.
    """

    ca: Pem = None
    cert: Pem = None
    key: Pem = None
    pin: Pem = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise ConfigError(f"TLS has `{given}` but no `{missing}`: mutual TLS needs both, server-only TLS neither")
        if self.ca is not None and self.pin is not None:
            raise ConfigError("TLS has `ca` and `pin`: a pinned certificate is trusted by itself, so drop one of them")

    def __repr__(self) -> str:
        key = "None" if self.key is None else "…"
        return f"TLS(ca={_shown(self.ca)}, cert={_shown(self.cert)}, key={key}, pin={_shown(self.pin)})"

    def read(self) -> Pems:
        """Read the files and check that they fit together.

        Raises:
            ConfigError: one cannot be read, is not PEM or not what it stands for, or `key` is not that of `cert`.
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
    """What a server asks for besides a certificate: it travels as a header with every call.

    Attributes:
        value: the token, or a function that gives the present one and is called, quickly, with every call.
        header: lower case. With "authorization" the token goes as "Bearer <value>"; for a secret of Triton's
            --grpc-restricted-protocol it is "triton-grpc-protocol-<key>", and the token goes as it is.

    Raises:
        ConfigError: a header that is none, or a token that is empty, too long, or not printable ASCII.
    """

    value: str | Callable[[], str]
    header: str = "authorization"

    def __post_init__(self) -> None:
        if not _HEADER.match(self.header) or self.header.startswith("grpc-") or self.header.endswith("-bin"):
            raise ConfigError(
                f"{self.header!r} is not a header that a token can travel in: use lower case, as in HTTP/2"
            )
        if not callable(self.value):
            _check_token(self.value)

    def __repr__(self) -> str:
        return f"Token(…, header={self.header!r})"

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The header and its present value.

        Raises:
            ConfigError: the function gives something that is no token.
        """
        value = _check_token(self.value() if callable(self.value) else self.value)
        return ((self.header, f"Bearer {value}" if self.header == "authorization" else value),)


def _check_token(value: object) -> str:
    if not isinstance(value, str) or not _TOKEN.match(value):  # the message does not show it
        raise ConfigError(
            "the token is empty, too long, or holds what is not printable ASCII: look at where it is from"
        )
    return value


def _read_pem(name: str, source: Pem) -> bytes | None:
    if source is None:
        return None
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"TLS {name}: {source!s} cannot be read ({type(error).__name__}): check the path and its permissions"
            ) from error
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
        raise ConfigError("TLS key has a password, which gRPC cannot ask for: decrypt it (openssl pkey)") from None
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
    return "…" if isinstance(source, bytes) else repr(None if source is None else str(source))
