"""TLS, pinned certificates, tokens, and certificates that are replaced while a client runs. Real handshakes."""

import datetime as dt
import ipaddress
import os
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from privdfs import TLS, Client, ConfigError, NotEnoughAnswersError, Server, Token
from privdfs._config import WireName, check_servers
from privdfs.testing import FakeServer
from tests.sdk.certificates import credentials, scheme
from tests.sdk.drivers import Driver

ALL = (True, True, True)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def leaf(issued: trustme.LeafCert) -> bytes:
    return issued.cert_chain_pems[0].bytes()


@pytest.fixture(scope="module")
def issued(authority: trustme.CA) -> list[trustme.LeafCert]:
    return [authority.issue_cert("127.0.0.1") for _ in range(3)]


@pytest.fixture
def fakes_with_tls(
    release: Path, authority: trustme.CA, issued: list[trustme.LeafCert], wire: WireName
) -> Iterator[list[FakeServer]]:
    """Three servers with a certificate each that want one of the client."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                FakeServer.for_release(release, i, wire=wire, credentials=credentials(issued[i], authority, wire))
            )
            for i in range(3)
        ]


def device_of(authority: trustme.CA, **fields: Any) -> dict[str, bytes]:
    own = authority.issue_cert("device.example", **fields)
    return {"cert": leaf(own), "key": own.private_key_pem.bytes()}


def refused(connect: Callable[..., Driver], release: Path, servers: list[Server], image: np.ndarray) -> None:
    with pytest.raises(NotEnoughAnswersError) as caught:
        connect(release / "client", servers, timeout=3).predict(image)
    assert set(caught.value.causes) == {0, 1, 2}


def test_every_server_is_known_by_its_own_certificate(
    connect: Callable[..., Driver],
    release: Path,
    authority: trustme.CA,
    issued: list[trustme.LeafCert],
    fakes_with_tls: list[FakeServer],
    images: np.ndarray,
) -> None:
    own = device_of(authority)
    servers = [
        Server(fake.endpoint, TLS(pin=leaf(cert), **own)) for fake, cert in zip(fakes_with_tls, issued, strict=True)
    ]
    assert connect(release / "client", servers, timeout=20).predict(images[0]).answered == ALL
    before = [fake.checks for fake in fakes_with_tls]
    # Certificates of the same authority and name, each good in itself, but of other servers.
    shifted = [Server(server.endpoints, TLS(pin=leaf(issued[i - 1]), **own)) for i, server in enumerate(servers)]
    refused(connect, release, shifted, images[0])
    assert [fake.checks for fake in fakes_with_tls] == before


@pytest.mark.parametrize("case", ["expired", "not yet valid", "wrong name"])
def test_a_server_certificate_that_does_not_hold(
    connect: Callable[..., Driver],
    release: Path,
    authority: trustme.CA,
    images: np.ndarray,
    wire: WireName,
    case: str,
) -> None:
    now, day = dt.datetime.now(dt.timezone.utc), dt.timedelta(days=1)
    cert = {
        "expired": lambda: authority.issue_cert("127.0.0.1", not_before=now - 3 * day, not_after=now - day),
        "not yet valid": lambda: authority.issue_cert("127.0.0.1", not_before=now + day, not_after=now + 3 * day),
        "wrong name": lambda: authority.issue_cert("b.example"),
    }[case]()
    with ExitStack() as stack:
        own = credentials(cert, wire=wire)
        fakes = [stack.enter_context(FakeServer.for_release(release, i, wire=wire, credentials=own)) for i in range(3)]
        servers = [Server(fake.endpoint, TLS(ca=authority.cert_pem.bytes())) for fake in fakes]
        refused(connect, release, servers, images[0])
        pinned = [Server(fakes[0].endpoint, TLS(pin=leaf(cert))), *servers[1:]]
        refused(connect, release, pinned, images[0])
        assert not any(fake.checks or fake.received for fake in fakes)


def test_certificates_are_replaced_while_the_client_runs(
    connect: Callable[..., Driver],
    release: Path,
    authority: trustme.CA,
    fakes_with_tls: list[FakeServer],
    images: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("privdfs._channel.RELOAD_AFTER_S", 0.0)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def write(own: dict[str, bytes]) -> None:
        cert.write_bytes(own["cert"])
        key.write_bytes(own["key"])

    stranger = device_of(trustme.CA())
    write(stranger)
    tls = TLS(ca=authority.cert_pem.bytes(), cert=cert, key=key)
    servers = [Server(fake.endpoint, tls) for fake in fakes_with_tls]
    client = connect(release / "client", servers, timeout=5)
    with pytest.raises(NotEnoughAnswersError):
        client.predict(images[0])
    own = device_of(authority)
    cert.write_bytes(own["cert"])  # only one of the two yet
    with pytest.raises(NotEnoughAnswersError):
        client.predict(images[0])
    assert "cannot be used yet" in caplog.text
    write(own)
    assert client.predict(images[0]).answered == ALL
    write(device_of(authority))
    assert client.predict(images[0]).answered == ALL
    write(stranger)
    with pytest.raises(NotEnoughAnswersError):
        client.predict(images[0])


def test_a_token_goes_to_its_server_with_every_call(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], images: np.ndarray
) -> None:
    seen: list[list[tuple[str, str]]] = [[], [], []]
    for fake, headers in zip(fakes, seen, strict=True):
        real = fake._model_infer

        def infer(request: Any, context: Any, real: Any = real, headers: Any = headers) -> Any:
            headers += [tuple(pair) for pair in context.invocation_metadata() if pair[0] != "user-agent"]
            return real(request, context)

        fake._model_infer = infer
    fresh = iter(["one", "two", "three", "four"])
    servers = [
        Server(fakes[0].endpoint, token="secret-0"),
        Server(fakes[1].endpoint, token=Token("secret-1", header="triton-grpc-protocol-key")),
        Server(fakes[2].endpoint, token=Token(lambda: next(fresh))),
    ]
    client = connect(release / "client", servers)
    for image in images[:2]:
        client.predict(image)
    assert seen[0] == [("authorization", "Bearer secret-0")] * 2
    assert seen[1] == [("triton-grpc-protocol-key", "secret-1")] * 2
    assert seen[2] == [("authorization", "Bearer two"), ("authorization", "Bearer three")], "the check had the first"
    assert "secret" not in repr(servers)


@pytest.mark.parametrize(
    "value",
    ["", "zz\nzz", "zzzz\n", "zzzz\r\n", " zzzz", "zzzz ", "zzzzä", "zz\0zz", "z" * 8193, b"zzzz", None, 1234],
)
def test_what_is_no_token(value: Any) -> None:
    with pytest.raises(ConfigError, match="the token") as caught:
        Token(value)
    assert "zz" not in str(caught.value)
    assert "1234" not in str(caught.value)


@pytest.mark.parametrize(
    "header", ["A", "grpc-zz", "zz-bin", "", "zz\n", "zz zz", "zz:", "ZZzz", "z" * 129, b"zz", None]
)
def test_what_is_no_header(header: Any) -> None:
    with pytest.raises(ConfigError, match="the token's header") as caught:
        Token("secret", header)
    assert "zz" not in str(caught.value).lower(), "it may be the token, passed in its place"


def test_a_header_in_upper_case_is_named_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"'triton-grpc-protocol-NAME' has upper-case letters.*in lower case"):
        Token("secret", header="triton-grpc-protocol-NAME")


def test_a_token_may_be_text_a_function_or_a_token() -> None:
    for token in ("one", lambda: "one", Token("one"), Token(lambda: "one")):
        server = Server("127.0.0.1:1", token=token)
        assert server.token is not None
        assert server.token.metadata() == (("authorization", "Bearer one"),)


async def _awaited() -> str:
    return "secret"


@pytest.mark.parametrize("token", [b"secret", 1, ["secret"], _awaited])
def test_anything_else_is_no_token_of_a_server(token: Any) -> None:
    with pytest.raises(ConfigError, match="the token") as caught:
        Server("127.0.0.1:1", token=token)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("given", ["zz\nzz", b"zzzz", None, RuntimeError("zzzz")])
def test_a_token_function_that_fails_at_a_call(
    connect: Callable[..., Driver], release: Path, fakes: list[FakeServer], images: np.ndarray, given: Any
) -> None:
    def token() -> str:
        if isinstance(given, Exception):
            raise given
        return given

    servers = [Server(fake.endpoint, token=token) for fake in fakes]
    with pytest.raises(ConfigError, match="token") as caught:
        connect(release / "client", servers).predict(images[0])
    assert "zz" not in "".join(traceback.format_exception(caught.value))
    assert not any(fake.received for fake in fakes)


def test_tokens_do_not_travel_in_plaintext() -> None:
    with pytest.raises(ConfigError, match="token"):
        Server("a.example:1", insecure=True, token="secret")
    assert Server("127.0.0.1:1", token="secret").token == Token("secret")
    with pytest.raises(ConfigError, match="token"):
        Token(lambda: "").metadata()


# ------------------------------------------------------------------------------------- refused before anything is sent


def test_two_servers_with_one_pinned_certificate(issued: list[trustme.LeafCert]) -> None:
    def server(port: int, *certs: trustme.LeafCert) -> Server:
        return Server(f"127.0.0.1:{port}", TLS(pin=b"".join(map(leaf, certs))))

    check_servers([server(1, issued[0], issued[1]), server(2, issued[2])], 2)
    for allowed in (False, True):  # on loopback, and where hosts may be shared, certificates may not
        with pytest.raises(ConfigError, match="servers 0 and 1 have the same pinned certificate"):
            check_servers([server(1, issued[0], issued[1]), server(2, issued[1])], 2, allow_shared_hosts=allowed)


def test_pairs_that_do_not_fit(authority: trustme.CA, release: Path) -> None:
    one, other = device_of(authority), device_of(authority)
    with pytest.raises(ConfigError, match="is not the private key"):
        TLS(cert=one["cert"], key=other["key"]).read()
    locked = load_pem_private_key(one["key"], None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
    )
    with pytest.raises(ConfigError, match="password"):
        TLS(cert=one["cert"], key=locked).read()
    with pytest.raises(ConfigError, match="no private key"):
        TLS(cert=one["cert"], key=one["cert"]).read()
    with pytest.raises(ConfigError, match="no certificate"):
        TLS(ca=one["key"]).read()
    with pytest.raises(ConfigError, match="damaged"):
        TLS(pin=one["cert"].replace(b"M", b"N", 3)).read()
    with pytest.raises(ConfigError, match="drop one"):
        TLS(ca=one["cert"], pin=one["cert"])
    servers = [Server(f"127.0.0.1:{i + 1}", TLS(cert=one["cert"], key=other["key"])) for i in range(3)]
    with pytest.raises(ConfigError, match="is not the private key"):
        Client(release / "client", servers, allow_unsigned=True)


def test_tls_is_a_frozen_value(authority: trustme.CA) -> None:
    tls = TLS(pin=authority.cert_pem.bytes())
    assert pickle.loads(pickle.dumps(tls)) == tls  # noqa: S301
    assert "BEGIN" not in repr(tls)
    assert "pin=…" in repr(tls)


# ------------------------------------------------------------------------------------- what does not fit is said


def served(
    stack: ExitStack, release: Path, wire: WireName, cert: trustme.LeafCert, wants: trustme.CA | None = None
) -> list[str]:
    """Endpoints of three servers with this certificate."""
    own = credentials(cert, wants, wire)
    fakes = [FakeServer.for_release(release, i, wire=wire, credentials=own) for i in range(3)]
    return [stack.enter_context(fake).endpoint for fake in fakes]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("expired", "has expired"),
        ("not yet valid", "not valid yet"),
        ("another name", "for another name"),
        ("another authority", "that the authorities in TLS(ca=…) did not sign"),
        ("the system's", "that the authorities of this system did not sign"),
        ("another pin", "another certificate than the pinned one"),
        ("an authority's pin", "another certificate than the pinned one"),
        ("plaintext", "use TLS or neither"),
    ],
)
def test_the_error_says_what_does_not_fit(
    connect: Callable[..., Driver],
    release: Path,
    authority: trustme.CA,
    issued: list[trustme.LeafCert],
    images: np.ndarray,
    capfd: pytest.CaptureFixture[str],
    *,
    wire: WireName,
    case: str,
    said: str,
) -> None:
    now, day = dt.datetime.now(dt.timezone.utc), dt.timedelta(days=1)
    ca = TLS(ca=authority.cert_pem.bytes())
    cert, tls = {
        "expired": (authority.issue_cert("127.0.0.1", not_before=now - 3 * day, not_after=now - day), ca),
        "not yet valid": (authority.issue_cert("127.0.0.1", not_before=now + day, not_after=now + 3 * day), ca),
        "another name": (authority.issue_cert("b.example"), ca),
        "another authority": (issued[0], TLS(ca=trustme.CA().cert_pem.bytes())),
        "the system's": (issued[0], TLS()),
        "another pin": (issued[0], TLS(pin=leaf(issued[1]))),
        "an authority's pin": (issued[0], TLS(pin=authority.cert_pem.bytes())),
        "plaintext": (issued[0], None),
    }[case]
    with ExitStack() as stack:
        first, *others = served(stack, release, wire, cert)
        servers = [Server(scheme(first, tls=tls is not None), tls), *(Server(endpoint, ca) for endpoint in others)]
        capfd.readouterr()
        with pytest.raises(NotEnoughAnswersError) as caught:
            connect(release / "client", servers, timeout=20).predict(images[0])
        assert said in caught.value.causes[0].message
        assert "\n" not in str(caught.value)
    ours = [line for line in capfd.readouterr().err.splitlines() if "ssl_transport_security" not in line]
    assert not ours, "the rest is the fake server's"


def test_a_server_without_tls_is_named(
    connect: Callable[..., Driver], release: Path, authority: trustme.CA, endpoints: list[str], images: np.ndarray
) -> None:
    tls = TLS(ca=authority.cert_pem.bytes())
    servers = [Server(scheme(endpoint, tls=True), tls) for endpoint in endpoints]
    with pytest.raises(NotEnoughAnswersError) as caught:
        connect(release / "client", servers, timeout=20).predict(images[0])
    said = {cause.message.partition(" ")[2] for cause in caught.value.causes.values()}
    assert len(said) == 1
    assert "TLS" in said.pop()


@pytest.mark.parametrize("key_type", [trustme.KeyType.RSA, trustme.KeyType.ECDSA])
def test_types_of_keys(
    connect: Callable[..., Driver], release: Path, images: np.ndarray, wire: WireName, key_type: trustme.KeyType
) -> None:
    authority = trustme.CA(key_type=key_type)
    with ExitStack() as stack:
        endpoints = served(stack, release, wire, authority.issue_cert("127.0.0.1", key_type=key_type), authority)
        tls = TLS(ca=authority.cert_pem.bytes(), **device_of(authority, key_type=key_type))
        assert (
            connect(release / "client", [Server(e, tls) for e in endpoints], timeout=20).predict(images[0]).answered
            == ALL
        )


def ed25519(name: str) -> tuple[bytes, bytes]:
    """A self-signed certificate with an Ed25519 key, and the key."""
    key = Ed25519PrivateKey.generate()
    now, day = dt.datetime.now(dt.timezone.utc), dt.timedelta(days=1)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
    built = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(names, critical=False)
        .sign(key, None)
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return built.public_bytes(Encoding.PEM), secret


class EchoingTls(threading.Thread):
    """A TLS server, of Python's ssl, that ends the connection after the handshake."""

    def __init__(self, cert: Path, key: Path) -> None:
        super().__init__(daemon=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(cert, key)
        self.context.set_alpn_protocols(["h2"])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.shaken = 0

    def run(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            with raw, suppress(OSError), self.context.wrap_socket(raw, server_side=True):
                self.shaken += 1


def test_an_ed25519_certificate_is_accepted(
    connect: Callable[..., Driver], release: Path, images: np.ndarray, tmp_path: Path
) -> None:
    cert, key = ed25519("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(cert)
    (tmp_path / "key.pem").write_bytes(key)
    server = EchoingTls(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.start()
    others = [Server(f"127.0.0.1:{port}") for port in (1, 2)]
    client = connect(release / "client", [Server(server.endpoint, TLS(ca=cert)), *others], timeout=5, min_answers=1)
    with pytest.raises(NotEnoughAnswersError) as caught:
        client.predict(images[0])
    server.listener.close()
    assert server.shaken
    # The certificate was good, the server is not: it ends the connection, which the device finds reading or writing.
    assert "the connection" in caught.value.causes[0].message
    assert "shows" not in caught.value.causes[0].message


def test_tls_without_more_trusts_the_authorities_of_the_system(
    release: Path, authority: trustme.CA, issued: list[trustme.LeafCert], wire: WireName, tmp_path: Path
) -> None:
    """The store is what OpenSSL reads: here a file of the test's own, in a process without grpc's variable."""
    store = tmp_path / "system.pem"
    authority.cert_pem.write_to_path(store)
    program = (
        "import sys, numpy as np\n"
        "from privdfs import TLS, Client, Server\n"
        "servers = [Server(endpoint, TLS()) for endpoint in sys.argv[2:]]\n"
        "with Client(sys.argv[1], servers, allow_unsigned=True, timeout=20) as client:\n"
        "    print(client.predict(np.zeros((64, 64, 3), np.uint8)).answered)\n"
    )
    drop = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    plain = {name: value for name, value in os.environ.items() if name not in drop}
    plain["PYTHONPATH"] = os.pathsep.join(sys.path)
    with ExitStack() as stack:
        line = [sys.executable, "-c", program, str(release / "client"), *served(stack, release, wire, issued[0])]

        def run(**more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(line, env=plain | more, capture_output=True, text=True, timeout=60, check=False)

        assert run(SSL_CERT_FILE=str(store)).stdout == "(True, True, True)\n"
        refused = run(SSL_CERT_FILE=str(tmp_path / "none.pem"), GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=str(store))
    assert refused.returncode != 0
    assert "that the authorities of this system did not sign" in refused.stderr
