import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from privdfs import TLS, Bundle, BundleStore, ConfigError, Queries, Retries, Server, Token
from privdfs._config import check_min_answers, check_retries, check_servers, check_timeout, split_endpoint, wire_of
from tests.sdk.drivers import Driver


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:8001", "localhost:1", "[::1]:65535", "127.3.2.1:80", "LOCALHOST:8001", "[0:0:0:0:0:0:0:1]:8001"],
)
def test_plaintext_is_for_loopback(endpoint: Any) -> None:
    assert Server(endpoint).endpoints == (endpoint,)


@pytest.mark.parametrize(
    "endpoint", ["a.example:8001", "10.0.0.1:8001", "[fe80::1]:8001", "0.0.0.0:8001", "localhost.example:1"]
)
def test_plaintext_beyond_loopback_must_be_asked_for(endpoint: Any) -> None:
    with pytest.raises(ConfigError, match="TLS"):
        Server(endpoint)
    assert Server(endpoint, insecure=True).insecure
    assert Server(endpoint, tls=TLS()).tls == TLS()


def test_tls_and_insecure_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="insecure"):
        Server("a.example:8001", tls=TLS(), insecure=True)


@pytest.mark.parametrize(
    "endpoint",
    ["", "a.example", ":8001", "a.example:", "a.example:0", "a.example:65536", "a.example:http", "https://",
     "https://a.example/v2", "https://a.example//", "https://a.example?x=1", "https://a.example#x", "HTTPS://a.example",
     "https://a.example:0", "https://a.example:65536", "https://:443", "https:// a", "ftp://a.example:21",
     "grpc://a.example", "grpc://a.example:1/", "grpcs://a.example:1", "https://a.example\n", "https://user@a.example",
     "dns:///a:1", "unix:/tmp/socket", "a b:1", "a.example:80 ", "::1:8001", "a.example:٣",
     "a.example:80\n", "a\n.example:80", "a.example:80\0", None, 8001, b"a:1"],
)  # fmt: skip
def test_what_is_no_endpoint(endpoint: Any) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        Server([endpoint], tls=TLS())


@pytest.mark.parametrize(
    ("endpoint", "host", "port", "wire"),
    [
        ("a.example:8001", "a.example", 8001, "grpc"),
        ("grpc://[::1]:8001", "::1", 8001, "grpc"),
        ("http://127.0.0.1:8000", "127.0.0.1", 8000, "http"),
        ("http://localhost/", "localhost", 80, "http"),
        ("https://A.example", "a.example", 443, "http"),
        ("https://[2001:db8::1]:8443/", "2001:db8::1", 8443, "http"),
    ],
)
def test_the_scheme_chooses_the_wire(endpoint: str, host: str, port: int, wire: str) -> None:
    assert (split_endpoint(endpoint), wire_of(endpoint)) == ((host, port), wire)


def test_https_means_tls_and_http_means_none() -> None:
    assert Server("https://a.example").tls == TLS()
    assert Server("https://a.example", TLS(pin=b"-----BEGIN ")).tls == TLS(pin=b"-----BEGIN ")
    assert Server("http://127.0.0.1:8000").tls is None
    assert Server("grpc://127.0.0.1:8001").tls is None
    with pytest.raises(ConfigError, match="write https://"):
        Server("http://a.example:8000")
    assert Server("http://a.example:8000", insecure=True).tls is None
    with pytest.raises(ConfigError, match="drop `tls`"):
        Server("http://127.0.0.1:8000", TLS())
    with pytest.raises(ConfigError, match="insecure"):
        Server("https://a.example", insecure=True)
    with pytest.raises(ConfigError, match="in plaintext: write https://"):
        Server("http://a.example:8000", insecure=True, token="t")


@pytest.mark.parametrize(
    "endpoints",
    [["https://a.example", "b.example:8001"], ["http://127.0.0.1:1", "https://127.0.0.1:2"],
     ["grpc://127.0.0.1:1", "http://127.0.0.1:2"]],
)  # fmt: skip
def test_replicas_are_all_of_one_kind(endpoints: list[str]) -> None:
    with pytest.raises(ConfigError, match="of different kinds"):
        Server(endpoints, TLS())


def test_one_place_under_two_schemes_is_one_place() -> None:
    with pytest.raises(ConfigError, match="named twice"):
        check_servers(["http://127.0.0.1:8000", "grpc://localhost:8000"], 2)
    with pytest.raises(ConfigError, match="named twice"):
        Server(["https://a.example", "https://A.example:443/"])


@pytest.mark.parametrize("header", ["content-length", "transfer-encoding", "host", "inference-header-content-length"])
def test_a_token_is_no_header_of_the_wires(header: str) -> None:
    with pytest.raises(ConfigError, match="HTTP's own"):
        Token("5", header=header)


@pytest.mark.parametrize("endpoints", [None, 8001, b"127.0.0.1:1", {"127.0.0.1:1": 1}, {"127.0.0.1:1"}, object()])
def test_endpoints_of_another_type(endpoints: Any) -> None:
    with pytest.raises(ConfigError, match="endpoints have the type"):
        Server(endpoints)


@pytest.mark.parametrize("tls", ["ca.pem", True, {"ca": "ca.pem"}, b"-----BEGIN ", Path("ca.pem"), TLS])
def test_tls_of_another_type(tls: Any) -> None:
    with pytest.raises(ConfigError, match="tls has the type"):
        Server("a.example:1", tls=tls)


@pytest.mark.parametrize("value", ["no", "false", 0, 1, None, "yes"])
def test_switches_are_true_or_false(value: Any, tmp_path: Path) -> None:
    """Text such as "no" is true for Python, and each of these switches protection off."""
    with pytest.raises(ConfigError, match="insecure"):
        Server("a.example:1", insecure=value)
    with pytest.raises(ConfigError, match="allow_shared_hosts"):
        check_servers(["127.0.0.1:1"], 1, allow_shared_hosts=value)
    with pytest.raises(ConfigError, match="allow_unsigned"):
        Bundle.open(tmp_path, allow_unsigned=value)
    with pytest.raises(ConfigError, match="allow_unsigned"):
        BundleStore(tmp_path, allow_unsigned=value)


@pytest.mark.parametrize("retries", [3, "3", Retries, {"attempts": 3}, [Retries()]])
def test_retries_of_another_type(retries: Any) -> None:
    with pytest.raises(ConfigError, match="retries has the type"):
        check_retries(retries)


@pytest.mark.parametrize("options", [{"queries": 1000}, {"queries": Queries}, {"telemetry": print}])
def test_what_a_client_is_given_is_of_the_right_type(
    connect: Callable[..., Driver], release: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="has the type"):
        connect(release / "client", [f"127.0.0.1:{port}" for port in (1, 2, 3)], **options)


def test_a_server_without_an_endpoint() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Server([])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001"),
        ("127.0.0.1:8001", "localhost:8001"),
        ("[::1]:8001", "localhost:8001"),
        ("[::1]:8001", "[0:0:0:0:0:0:0:1]:08001"),
    ],
)
def test_the_same_endpoint_twice(first: str, second: str) -> None:
    with pytest.raises(ConfigError, match="twice"):
        Server([first, second])
    with pytest.raises(ConfigError, match="twice"):
        check_servers([first, "127.0.0.1:9", second], 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [("A.example:1", "a.EXAMPLE:1"), ("a.example:1", "a.example:01"), ("10.0.0.1:1", "[::ffff:10.0.0.1]:1")],
)
def test_the_same_name_in_another_spelling(first: str, second: str) -> None:
    with pytest.raises(ConfigError, match="twice"):
        check_servers([Server(first, tls=TLS()), Server(second, tls=TLS())], 2)


def test_a_replica_that_is_also_another_server() -> None:
    with pytest.raises(ConfigError, match="another party"):
        check_servers([Server(["127.0.0.1:1", "127.0.0.1:2"]), "127.0.0.1:3", "127.0.0.1:2"], 3)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_fewer_or_more_servers_than_the_release_has(count: int) -> None:
    problem = f"the release has 3 servers, {count} were given" if count else "no servers were given"
    with pytest.raises(ConfigError, match=problem):
        check_servers([f"127.0.0.1:{port}" for port in range(1, count + 1)], 3)


@pytest.mark.parametrize("servers", ["127.0.0.1:1", Server("127.0.0.1:1")])
def test_one_server_where_a_list_is_expected(servers: Any) -> None:
    with pytest.raises(ConfigError, match="list of 3"):
        check_servers(servers, 3)


@pytest.mark.parametrize(
    "servers", [None, 3, b"127.0.0.1:1", {"127.0.0.1:1": 0}, [None] * 3, [TLS()] * 3, [b"a:1"] * 3]
)
def test_servers_of_another_type(servers: Any) -> None:
    with pytest.raises(ConfigError, match="the type"):
        check_servers(servers, 3)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 3601, 10**400, "1", True, None])
def test_timeouts_that_make_no_sense(timeout: Any) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        check_timeout(timeout)


@pytest.mark.parametrize("min_answers", [0, -1, 4, 1.0, "2", True])
def test_min_answers_that_make_no_sense(min_answers: Any) -> None:
    with pytest.raises(ConfigError, match="min_answers"):
        check_min_answers(min_answers, 3)
    assert check_min_answers(None, 3) == 3
    assert check_min_answers(2, 3) == 2


@pytest.mark.parametrize("half", [{"cert": "c.pem"}, {"key": "k.pem"}, {"ca": "ca.pem", "cert": b"-----BEGIN "}])
def test_half_of_a_client_certificate(half: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="mutual TLS needs both"):
        TLS(**half)


def test_tls_files_are_read_from_paths_and_bytes(tmp_path: Path) -> None:
    pem = trustme.CA().cert_pem.bytes()
    path = tmp_path / "ca.pem"
    path.write_bytes(pem)
    assert TLS(ca=path).read() == TLS(ca=str(path)).read() == TLS(ca=pem).read()
    assert TLS(ca=pem).read().roots == pem
    with pytest.raises(ConfigError, match="cannot be read"):
        TLS(ca=tmp_path / "none.pem").read()
    path.write_bytes(b"\x30\x82")
    with pytest.raises(ConfigError, match="PEM"):
        TLS(ca=path).read()


def test_reprs_hide_the_key() -> None:
    tls = TLS(ca="ca.pem", cert=b"-----BEGIN CERTIFICATE", key="/secret/key.pem")
    shown = repr(Server("a.example:8001", tls=tls))
    assert "a.example:8001" in shown
    assert "ca.pem" in shown
    assert "secret" not in shown
    assert "BEGIN" not in shown


def test_servers_are_frozen_values() -> None:
    server = Server(["127.0.0.1:1", "127.0.0.1:2"])
    assert server == Server(("127.0.0.1:1", "127.0.0.1:2"))
    assert len({server, Server(["127.0.0.1:1", "127.0.0.1:2"])}) == 1
    assert pickle.loads(pickle.dumps(server)) == server  # noqa: S301
    with pytest.raises(dataclasses.FrozenInstanceError):
        server.insecure = True  # pyright: ignore[reportAttributeAccessIssue]
