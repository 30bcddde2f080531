"""How a server is known, and how this device is known to it: small frozen values that check themselves.

What they hold is read from files with every new connection, so certificates can be replaced while a client runs: a
changed file is noticed within `RELOAD_AFTER_S`, and a new connection is made with it. Files that do not fit together,
as in the middle of a replacement, leave the old connection in use.
"""

import os
import re
import ssl
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from privdfs._errors import ConfigError

Pem: TypeAlias = "str | PathLike[str] | bytes | None"

_HEADER = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,127}$")
_TOKEN = re.compile(r"^[!-~](?:[ -~]{0,8190}[!-~])?$")


#: What a server's certificate lacks, to follow the endpoint in a sentence, and what to do about it; by the numbers of
#: OpenSSL's verification errors (x509_vfy.h).
_LACKS = {
    10: ("shows a certificate that has expired", "renew it there, and check this device's clock"),
    9: ("shows a certificate that is not valid yet", "check this device's clock, and the server's"),
    **dict.fromkeys(
        (62, 64),  # host name, address
        (
            "shows a certificate for another name",
            "give the endpoint by a name or an address that the certificate has, or issue one that has it",
        ),
    ),
}
NOT_PINNED = (
    "shows another certificate than the pinned one",
    "pin the server's own certificate, TLS(pin=…), or find out who answers there",
)


@dataclass(frozen=True, repr=False)
class Pems:
    """What the files hold, in PEM form; `pinned` are the pinned certificates in DER form."""

    roots: bytes | None
    cert: bytes | None
    key: bytes | None
    pinned: frozenset[bytes]


@dataclass(frozen=True, repr=False, eq=False)
class Security:
    """TLS made ready for connections.

    Attributes:
        context: OpenSSL's settings: whom to trust, and this device's certificate.
        pinned: the certificates of which the server must show one, in DER form; empty: any that `context` trusts.
        trusts: whose signature on the server's certificate counts, for errors.
        named: whether this device has a certificate of its own.
    """

    context: ssl.SSLContext
    pinned: frozenset[bytes]
    trusts: str
    named: bool


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

    def security(self) -> Security:
        """Read the files and make them ready for connections.

        Raises:
            ConfigError: as `read`.
        """
        pems = self.read()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if pems.roots is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cadata=pems.roots.decode("ascii", "replace"))
        if pems.pinned:  # the server's certificate is trusted by itself, whoever signed it
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if pems.cert is not None and pems.key is not None:
            with _as_file(pems.cert + b"\n" + pems.key) as path:
                try:
                    context.load_cert_chain(path)
                except ssl.SSLError as error:
                    raise ConfigError(
                        f"TLS refuses this device's certificate or key ({error.reason}): use an RSA key of at least "
                        "2048 bits, or an ECDSA or Ed25519 key"
                    ) from None
        trusts = "the authorities of this system" if self.ca is None else "the authorities in TLS(ca=…)"
        return Security(context, pems.pinned, trusts, pems.cert is not None)

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


def explain(error: ssl.SSLError, security: Security) -> tuple[str, str]:
    """What a failed handshake means, to follow the endpoint in a sentence, and what to do about it."""
    reason = error.reason or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        unsigned = (
            f"shows a certificate that {security.trusts} did not sign",
            "give the authority that signed it, TLS(ca=…), or pin the certificate, TLS(pin=…)",
        )
        found = _LACKS.get(error.verify_code, NOT_PINNED if security.pinned else unsigned)
    elif reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}:
        found = "does not speak TLS", "start the server with TLS, or check the port"
    elif "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        ours = "another one" if security.named else "a certificate of this device, TLS(cert=…, key=…)"
        found = (
            f"does not accept this device's certificate ({reason})",
            f"give {ours} that the server's authority signed",
        )
    else:
        found = (
            f"could not agree on TLS ({reason})",
            "check that both sides have a TLS version, a cipher and a type of key in common",
        )
    return found


@contextmanager
def _as_file(data: bytes) -> Generator[str]:
    """A path under which OpenSSL reads a secret; in memory where the system can, else a file that is gone at once."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("privdfs")
        try:
            os.write(descriptor, data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    descriptor, path = tempfile.mkstemp(prefix="privdfs-")  # readable by this user alone
    try:
        os.write(descriptor, data)
        os.close(descriptor)
        yield path
    finally:
        Path(path).unlink()


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
