"""TLS settings for connections, and plain explanations of failed handshakes."""

import os
import ssl
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from privdfs._errors import ConfigError
from privdfs._tls import TLS

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
    "pin the server's own certificate, TLS(pin=…), or find out which server answers there",
)


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


def make_security(tls: TLS, protocol: str) -> Security:
    """Read the files of a `TLS` and make them ready for connections on which this protocol is asked for by ALPN.

    Raises:
        ConfigError: as `TLS.read`; or OpenSSL does not take this device's certificate.
    """
    pems = tls.read()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # HTTP/2 forbids it (RFC 9113, 9.2.1)
    context.set_alpn_protocols([protocol])  # here and not for each connection: threads share the context
    if pems.roots is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(cadata=pems.roots.decode("ascii", "replace"))
    if pems.pinned:  # the server's certificate itself is trusted, whoever signed it
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
    trusts = "the authorities of this system" if tls.ca is None else "the authorities in TLS(ca=…)"
    return Security(context, pems.pinned, trusts, pems.cert is not None)


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
