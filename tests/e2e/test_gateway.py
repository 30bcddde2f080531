"""Local gateways: real nginx in front of real tritonservers, as deploy/nginx.conf.template sets it up."""

import asyncio
import base64
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import pytest
import trustme

from privdfs import TLS, AsyncClient, Client, Error, Server
from privdfs._http_messages import infer_json
from privdfs._wire import Query, Tensor
from privdfs_export.errors import NginxFailedError, NginxMissingError, ServeError
from privdfs_export.repository import read_repository
from privdfs_export.serve import Gateway, RunningGateway, find_nginx, nginx, processes, serve_gateways
from privdfs_export.serve import gateway as gateway_module
from privdfs_export.serve.nginx import longest_message
from privdfs_export.serve.tritonserver import GATEWAY_HEADER
from tests.e2e.processes import descendants, listening, wait_until_gone
from tests.e2e.tiny_release import MAX_BATCH, SHARE_LENGTH, write_release
from tests.ports import take_a_port
from tests.trained import IMAGES

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
MASKED = ROOT / "model_repository" / "fashion-resnet20"
CODED = ROOT / "model_repository" / "fashion-coded"
APP = "https://app.example"
LOCAL_APP = "http://localhost:5173"
INFER = "/v2/models/branch/infer"
CONFIG = "/v2/models/branch/config"
READY = "/v2/models/branch/ready"
#: What the share of the tests looks like; no log may have it.
MARK = b"nobodymaylog"
ENDED_S = 12.0


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("tiny1"), 1)


@pytest.fixture(scope="module")
def gateway(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    settings = Gateway(origins=(APP, LOCAL_APP))
    with serve_gateways(release, settings, metrics=True, log_dir=tmp_path_factory.mktemp("logs")) as (found,):
        yield found


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    gateway: RunningGateway,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | Iterator[bytes] | None = None,
) -> Answer:
    """One request, over HTTP/1.1 and a checked certificate."""
    context = ssl.create_default_context(cafile=str(gateway.ca))
    connection = http.client.HTTPSConnection(gateway.endpoint.removeprefix("https://"), timeout=10, context=context)
    try:
        connection.request(method, path, body, dict(headers or {}), encode_chunked=not isinstance(body, bytes | None))
        got = connection.getresponse()
        return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read())
    finally:
        connection.close()


def message(batch: int = 1, share: bytes = MARK) -> tuple[bytes, dict[str, str]]:
    """What the SDK sends of so many shares, and its header."""
    assert len(share) == SHARE_LENGTH
    tensor = Tensor("share", "INT8", (batch, SHARE_LENGTH), share * batch)
    text = infer_json(Query("branch", (tensor,), "logits", 1_000_000))
    return text + share * batch, {"Inference-Header-Content-Length": str(len(text))}


def curl(gateway: RunningGateway, *more: str) -> str:
    line = ["curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", str(gateway.ca), *more]
    return subprocess.run(line, capture_output=True, text=True, check=True, timeout=30).stdout


# ----------------------------------------------------------------------------------------------------------- clients


@pytest.mark.parametrize("release", [MASKED, CODED], ids=["masked", "coded"])
def test_both_clients_predict_through_gateways(release: Path, tmp_path: Path) -> None:
    image = IMAGES / "bag-1.png"

    async def predict(servers: list[Server]) -> str:
        async with AsyncClient(release / "client", servers, allow_unsigned=True) as client:
            return (await client.predict(image)).label

    with serve_gateways(release, Gateway(), log_dir=tmp_path) as doors:
        servers = [Server(door.endpoint, TLS(ca=str(door.ca))) for door in doors]
        with Client(release / "client", servers, allow_unsigned=True) as client:
            result = client.predict(image)
            assert result.label == "Bag"
            assert all(result.answered)
            many = client.predict_batch([image] * 64)  # the largest batch passes
            assert {each.label for each in many} == {"Bag"}
        assert asyncio.run(predict(servers)) == "Bag"
        with (
            pytest.raises(Error),
            Client(release / "client", [Server(door.endpoint) for door in doors], allow_unsigned=True) as distrusting,
        ):
            distrusting.predict(image)


def test_devices_ask_again_what_is_served_after_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what runs behind a gateway a device learns on a new connection alone; here a minute has a second."""
    shorter = tmp_path / "template"
    text = nginx.TEMPLATE.read_text(encoding="utf-8")
    assert text.count("keepalive_time 1m;") == 1
    shorter.write_text(text.replace("keepalive_time 1m;", "keepalive_time 1s;"), encoding="utf-8")
    monkeypatch.setattr(nginx, "TEMPLATE", shorter)
    with serve_gateways(MASKED, Gateway(), log_dir=tmp_path) as doors:
        servers = [Server(door.endpoint, TLS(ca=str(door.ca))) for door in doors]
        with Client(MASKED / "client", servers, allow_unsigned=True, timeout=10) as client:
            for _ in range(2):  # the second one is the last on its connection
                assert all(client.predict(IMAGES / "bag-1.png").answered)
                time.sleep(1.2)
            assert all(client.predict(IMAGES / "bag-1.png").answered)
        for door in doors:
            paths = [line.split('"')[1] for line in door.calls.read_text().splitlines() if '"' in line]
            assert [path for path in paths if path != READY] == [CONFIG, INFER, INFER, CONFIG, INFER]


def test_the_longest_message_is_that_of_the_largest_batch(release: Path) -> None:
    body, _ = message(MAX_BATCH)
    assert len(body) <= longest_message(read_repository(release / "server-0")) < len(body) + 1024


# ------------------------------------------------------------------------------------------------------ what passes


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_the_three_paths_over_both_versions_of_http(gateway: RunningGateway, tmp_path: Path, version: str) -> None:
    body, headers = message()
    (tmp_path / "body").write_bytes(body)
    send = ["--data-binary", f"@{tmp_path / 'body'}", "--header", "Content-Type: application/octet-stream"]
    send += [part for name, value in headers.items() for part in ("--header", f"{name}: {value}")]
    show = ["--output", str(tmp_path / "answer"), "--write-out", "%{http_code} %{http_version}"]
    want = "200 2" if version == "--http2" else "200 1.1"
    assert curl(gateway, version, *show, *send, gateway.endpoint + INFER) == want
    assert len((tmp_path / "answer").read_bytes()) > 4 * 4
    assert curl(gateway, version, *show, gateway.endpoint + CONFIG) == want
    assert json.loads((tmp_path / "answer").read_text())["parameters"]["privdfs_server"] == {"string_value": "0"}
    assert curl(gateway, version, *show, gateway.endpoint + READY) == want


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v2", "/v2/health/ready", "/v2/health/live", "/v2/models/branch", "/v2/models/branch/stats",
        "/v2/models/stats", "/v2/models/branch/versions/1/infer", "/v2/models/branch/generate",
        "/v2/models/other/config",
        "/v2/models/branch-1/config", "/v2/repository/index", "/v2/systemsharedmemory/status", "/v2/trace/setting",
        "/v2/logging", "/metrics", "/stub_status", f"{CONFIG}?x=1", f"{CONFIG}/", f"{CONFIG}%0A",
        f"{CONFIG}%00", f"{CONFIG}%2F..%2Fstats", f"{CONFIG};x", "/V2/models/branch/config",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_every_other_path_is_refused(gateway: RunningGateway, path: str, method: str) -> None:
    answer = ask(gateway, method, path)
    assert answer.status == (400 if "%00" in path else 404)
    assert b"nginx" in answer.body, "Triton was not asked"


def test_other_spellings_of_a_path_lead_to_the_path_itself(gateway: RunningGateway) -> None:
    wanted = ask(gateway, "GET", CONFIG).body
    for path in ("//v2/models//branch/config", "/v2/models/branch/stats/../config", "/v2/models/branch/conf%69g"):
        assert ask(gateway, "GET", path).body == wanted
    assert ask(gateway, "GET", f"{CONFIG}/../stats").status == 404


@pytest.mark.parametrize(("method", "path"), [("GET", INFER), ("PUT", INFER), ("POST", CONFIG), ("DELETE", READY)])
def test_other_methods_are_refused(gateway: RunningGateway, method: str, path: str) -> None:
    assert ask(gateway, method, path).status == 405


def test_a_longer_body_is_refused(gateway: RunningGateway, release: Path) -> None:
    longest = longest_message(read_repository(release / "server-0"))
    body, headers = message()
    assert ask(gateway, "POST", INFER, headers, body + bytes(longest - len(body) + 1)).status == 413
    assert ask(gateway, "POST", INFER, headers, body + bytes(longest - len(body))).status == 400  # Triton's word
    assert ask(gateway, "POST", INFER, headers, iter([body])).status == 411


@pytest.mark.parametrize(
    "body",
    [
        ["--http1.1", "--data-binary", "hello"],
        ["--http1.1", "--data-binary", "hello", "--header", "Transfer-Encoding: chunked"],
        ["--http2", "--data-binary", "hello"],
        ["--http2", "--data-binary", "hello", "--header", "Content-Length:"],
    ],
    ids=["1.1", "1.1 in chunks", "2", "2 without its length"],
)
@pytest.mark.parametrize("path", [CONFIG, READY])
def test_a_body_that_belongs_to_no_call_is_not_announced_to_triton(
    gateway: RunningGateway, path: str, body: list[str]
) -> None:
    told = curl(gateway, "--request", "GET", *body, "--max-time", "5", "--include", gateway.endpoint + path)
    assert told.split()[1] == "200"
    assert ask(gateway, "GET", CONFIG).status == 200


def test_a_longer_body_of_unknown_length_is_refused_before_it_is_on_the_disk(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template"
    template.write_text(nginx.TEMPLATE.read_text().replace("error_log stderr error;", "error_log stderr warn;"))
    monkeypatch.setattr(nginx, "TEMPLATE", template)
    (tmp_path / "body").write_bytes(bytes(longest_message(read_repository(release / "server-0")) + 1))
    with serve_gateways(release, Gateway(), log_dir=tmp_path / "logs") as (warning,):
        send = ["--http2", "--header", "Content-Length:", "--data-binary", f"@{tmp_path / 'body'}"]
        assert curl(warning, "--write-out", " %{http_code}", *send, warning.endpoint + INFER).endswith(" 413")
        assert "temporary file" not in warning.log.read_text()


def test_what_browsers_and_proxies_add_does_not_reach_triton(gateway: RunningGateway) -> None:
    body, headers = message()
    more = {"Cookie": "a=b", GATEWAY_HEADER: "wrong", "privdfs-admin": "guess", "Content-Encoding": "gzip"}
    assert ask(gateway, "POST", INFER, {**headers, **more}, body).status == 200


def test_only_the_gateway_reaches_triton_over_http(gateway: RunningGateway) -> None:
    server = gateway.server
    assert server.http is None
    assert server.behind is not None
    assert server.secret not in repr(gateway)
    address = server.behind.removeprefix("http://")
    for path in ("/v2", "/v2/health/ready", CONFIG, INFER):
        statuses = []
        for headers in ({}, {GATEWAY_HEADER: "wrong"}):
            connection = http.client.HTTPConnection(address, timeout=10)
            connection.request("POST" if path == INFER else "GET", path, headers=headers)
            statuses.append(connection.getresponse().status)
            connection.close()
        assert statuses == [403, 403], path


def test_every_port_is_on_loopback(gateway: RunningGateway) -> None:
    pids = descendants(gateway.keeper.pid) | descendants(gateway.server.keeper.pid)
    found = [address for pid in pids for address in listening(pid)]
    assert len(found) == 5  # gRPC, HTTP, HTTPS, and the metrics of both
    assert [address for address in found if not address.partition(":")[0].endswith("0100007F")] == []


# -------------------------------------------------------------------------------------------------------------- CORS


@pytest.mark.parametrize("origin", [APP, LOCAL_APP])
@pytest.mark.parametrize(("path", "method"), [(INFER, "POST"), (CONFIG, "GET"), (READY, "GET")])
def test_a_preflight_of_a_named_origin(gateway: RunningGateway, origin: str, path: str, method: str) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
    }
    answer = ask(gateway, "OPTIONS", path, asked)
    assert answer.status == 204
    told = {name.removeprefix("access-control-"): value for name, value in answer.headers.items()}
    assert told["allow-origin"] == origin
    assert method in told["allow-methods"].split(", ")
    assert told["allow-headers"] == "authorization, content-type, inference-header-content-length"
    assert told["max-age"] == "7200"
    assert told["vary"] == "Origin"
    assert "allow-credentials" not in told


@pytest.mark.parametrize("token", ["authorization", "triton-grpc-protocol-privdfs", "x-app_token.2"])
def test_a_page_with_a_token_may_call(gateway: RunningGateway, token: str) -> None:
    asked = f"{token},inference-header-content-length"
    told = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    preflight = ask(gateway, "OPTIONS", INFER, told)
    assert preflight.status == 204
    allowed = {each.strip() for each in preflight.headers["access-control-allow-headers"].split(",")}
    assert set(asked.split(",")) <= allowed
    body, headers = message()
    answer = ask(gateway, "POST", INFER, {**headers, "Origin": APP, token: "Bearer hunter2"}, body)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, APP)


@pytest.mark.parametrize("asked", ["*", "a b", "a,,b", 'a"', "a;b", "a, " * 30, "x" * 129, "a:b", "ä"])
def test_a_preflight_for_what_is_no_header_gets_those_of_the_sdks(gateway: RunningGateway, asked: str) -> None:
    told = {"Origin": APP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    answer = ask(gateway, "OPTIONS", INFER, told)
    assert answer.headers["access-control-allow-headers"] == (
        "authorization, content-type, inference-header-content-length"
    )


def test_a_preflight_over_http2(gateway: RunningGateway) -> None:
    asked = ("--request", "OPTIONS", "--header", f"Origin: {APP}", "--header", "Access-Control-Request-Method: POST")
    told = curl(gateway, "--http2", "--include", *asked, gateway.endpoint + INFER).splitlines()
    assert told[0].split()[:2] == ["HTTP/2", "204"]
    assert f"access-control-allow-origin: {APP}" in told
    assert "access-control-max-age: 7200" in told


def test_a_named_origin_may_read_answers_and_errors(gateway: RunningGateway) -> None:
    body, headers = message()
    for text, status in ((body, 200), (b"{}", 400), (body + bytes(10_000), 413)):
        answer = ask(gateway, "POST", INFER, {**headers, "Origin": APP}, text)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, APP)
        assert answer.headers["access-control-expose-headers"] == "inference-header-content-length"
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "origin",
    [
        "https://other.example", "https://app.example.evil", "http://app.example", f"{APP}:444", "null", f"{APP}|", "|",
        f"x{APP}",
    ],
)  # fmt: skip
def test_a_foreign_origin_is_refused(gateway: RunningGateway, origin: str) -> None:
    body, headers = message()
    for method, path in (("OPTIONS", INFER), ("POST", INFER), ("GET", CONFIG)):
        answer = ask(gateway, method, path, {**headers, "Origin": origin}, body if method == "POST" else None)
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers


# -------------------------------------------------------------------------------------------------------------- logs


def test_no_log_has_a_body_a_header_or_an_address(gateway: RunningGateway) -> None:
    body, headers = message()
    secrets = {"Authorization": "Bearer hunter2", "Cookie": "hunter2", "User-Agent": "hunter2", "Referer": "hunter2"}
    assert ask(gateway, "POST", INFER, {**headers, **secrets}, body).status == 200
    assert ask(gateway, "POST", f"{INFER}?hunter2", secrets, body).status == 404
    calls = gateway.calls.read_text()
    assert f'POST "{INFER}" 200' in calls
    logs = b"".join(path.read_bytes() for path in gateway.calls.parent.iterdir())
    for word in (MARK, base64.b64encode(MARK), MARK.hex().encode(), b"hunter2", gateway.server.secret.encode()):
        assert word not in logs
    assert "127.0.0.1" not in calls
    temporary = [path for folder in gateway.copy.glob("*_temp") for path in folder.rglob("*")]
    assert temporary == [], "bodies stay in memory"


def test_the_configuration_and_the_secret_are_for_their_owner_alone(gateway: RunningGateway) -> None:
    assert gateway.copy.stat().st_mode & 0o077 == 0


# ------------------------------------------------------------------------------------------------------------ limits


def test_calls_beyond_the_rate_are_told_so(release: Path, tmp_path: Path) -> None:
    with serve_gateways(release, Gateway(rate=2), log_dir=tmp_path) as (slow,):
        statuses = [ask(slow, "GET", CONFIG).status for _ in range(12)]
    assert statuses[0] == 200
    assert 429 in statuses
    assert set(statuses) == {200, 429}


# ------------------------------------------------------------------------------------------------- the command, faults


def _command(release: Path, scratch: Path, *more: str) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", "privdfs_export.serve", str(release), "--json", *more]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_lists_gateways_and_leaves_nothing(release: Path, tmp_path: Path, number: signal.Signals) -> None:
    given = trustme.CA().issue_cert("gateway.example")
    given.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    given.private_key_pem.write_to_path(tmp_path / "key.pem")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = ["--gateway", "--origin", APP, "--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")]
    with _command(release, scratch, *options, "--metrics") as started:
        assert started.stdout is not None
        found = json.loads(started.stdout.readline())
        assert [len(found[name]) for name in ("https", "metrics", "gateway_metrics", "logs")] == [1, 1, 1, 2]
        assert "http" not in found
        assert "ca" not in found, "the certificate was given"
        host, port = found["https"][0].removeprefix("https://").split(":")
        assert ssl.get_server_certificate((host, int(port))).strip() in given.cert_chain_pems[0].bytes().decode()
        below = descendants(started.pid)
        started.send_signal(number)
        started.wait(ENDED_S)
        assert wait_until_gone(below, ENDED_S) == set()
    if number == signal.SIGTERM:
        assert list(scratch.iterdir()) == []


def test_the_table_lines_up_and_names_a_call(release: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "privdfs_export.serve", str(release), "--gateway", "--metrics"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment) as started:
        assert started.stdout is not None
        said = list(takewhile(lambda told: "Ctrl-C" not in told, started.stdout))
        started.terminate()
    head, table = said[0], said[1:5]
    assert [row[head.index("kind") :].split("  ")[0] for row in table] == [
        "gRPC",
        "metrics",
        "HTTPS",
        "gateway's metrics",
    ]
    assert all("127.0.0.1:" in row[head.index("address") : head.index("pid")] for row in table)
    assert all(len(row) <= 80 for row in said[:5])
    https = table[2][head.index("address") :].split()[0]
    call = "".join(said[5:])
    assert f"privdfs predict {release}/client IMAGE --allow-unsigned" in call
    assert f"--ca {tmp_path}/privdfs-logs-" in call
    assert f"--server {https}" in call


def test_a_killed_nginx_ends_the_command(release: Path) -> None:
    # A socket's path is limited, and pytest's folders have long names.
    with TemporaryDirectory() as scratch, _command(release, Path(scratch), "--gateway") as started:
        assert started.stdout is not None
        started.stdout.readline()
        below = descendants(started.pid)
        # The first: its worker has the same program, and would be started again.
        nginx = min(pid for pid in below if Path(f"/proc/{pid}/exe").readlink().name.startswith("nginx"))
        os.kill(nginx, signal.SIGKILL)
        _, said = started.communicate(timeout=2 * ENDED_S)
    assert started.returncode == 2
    assert "nginx in front of" in said
    assert wait_until_gone(below, ENDED_S) == set()


@pytest.mark.parametrize("service", range(2), ids=["calls", "metrics"])
def test_a_port_of_nginx_taken_in_the_meantime_is_replaced(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: int
) -> None:
    thieves = take_a_port(monkeypatch, gateway_module, service)
    with serve_gateways(release, Gateway(), metrics=True, log_dir=tmp_path / "logs") as (found,):
        (thief,) = thieves
        with thief:
            page = urlsplit(found.metrics or "")
            assert thief.getsockname()[1] not in {page.port, urlsplit(found.endpoint).port}
            assert ask(found, "GET", READY).status == 200
            connection = http.client.HTTPConnection(page.netloc, timeout=10)
            connection.request("GET", page.path)
            assert b"nginx_connections_active" in connection.getresponse().read()
            connection.close()


def test_a_certificate_that_nginx_cannot_read_is_named(release: Path, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nothing")
    settings = Gateway(cert=tmp_path / "cert.pem", key=tmp_path / "cert.pem")
    with pytest.raises(NginxFailedError, match="cannot load certificate") as failed:
        serve_gateways(release, settings, log_dir=tmp_path / "logs").__enter__()
    assert Path(failed.value.log).exists()


@pytest.mark.parametrize(
    "origin", ["app.example", "https://app.example/", "https://App.example", "*", 'https://a" 1; }', "https://a;b"]
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ServeError, match="not an origin"):
        Gateway(origins=(origin,))


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="give both"):
        Gateway(cert=tmp_path / "cert.pem")


def test_a_missing_nginx_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "_PROJECT", tmp_path)
    with pytest.raises(NginxMissingError, match="make nginx"):
        find_nginx()


@pytest.mark.parametrize("arguments", [["--origin", APP], ["--rate", "5"], ["--gateway", "--http"]])
def test_options_that_do_not_go_together(release: Path, tmp_path: Path, arguments: list[str]) -> None:
    with _command(release, tmp_path, *arguments) as started:
        _, said = started.communicate(timeout=30)
    assert started.returncode == 2
    assert "--gateway" in said
