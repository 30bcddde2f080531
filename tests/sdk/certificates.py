"""What a fake server is given to speak TLS, over either wire."""

import ssl
from typing import Any

import grpc
import trustme

from privdfs._config import WireName


def credentials(issued: trustme.LeafCert, authority: trustme.CA | None = None, wire: WireName = "grpc") -> Any:
    """A server's credentials; with an authority it wants a client certificate of that one."""
    if wire == "http":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        issued.configure_cert(context)
        if authority is not None:
            authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context
    pair = issued.private_key_pem.bytes(), b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    roots = None if authority is None else authority.cert_pem.bytes()
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=authority is not None)


def scheme(endpoint: str, *, tls: bool) -> str:
    """An HTTP endpoint that says whether TLS is spoken there; gRPC's do not say so."""
    name, separator, rest = endpoint.rpartition("://")
    return f"{('https' if tls else 'http') if name else ''}{separator}{rest}"
