"""Local gateways: an nginx in front of each tritonserver, as `deploy/nginx.conf.template` sets it up."""

import http.client
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from privdfs_export.errors import NginxFailedError, NginxMissingError, ServeError
from privdfs_export.repository import Repository
from privdfs_export.serve.authority import Authority
from privdfs_export.serve.nginx import DEFAULT_RATE, NginxSettings, check_origin, nginx_config, secret_line
from privdfs_export.serve.processes import Kept, all_ready, find_program, place, ports, start
from privdfs_export.serve.tritonserver import RunningServer

_ONE_PROCESS = "daemon off; master_process off;"


@dataclass(frozen=True)
class Gateway:
    """What local gateways let in.

    Attributes:
        origins: web pages of these origins may call.
        rate: calls that one address may make in a second.
        cert: PEM file of the certificate; without it an authority is made for this run.
        key: PEM file of its private key.
        tls: False for a page on this machine, whose browser does not know a certificate that was made for this run.

    Raises:
        ServeError: an origin is not one, or `cert` comes without `key` or the other way round.
    """

    origins: tuple[str, ...] = ()
    rate: int = DEFAULT_RATE
    cert: Path | None = None
    key: Path | None = None
    tls: bool = True

    def __post_init__(self) -> None:
        for origin in self.origins:
            check_origin(origin)
        if (self.cert is None) != (self.key is None):
            msg = "a gateway needs a certificate and its key: give both, or neither for ones made for this run"
            raise ServeError(msg)


@dataclass(frozen=True)
class RunningGateway(Kept):
    """One nginx.

    Attributes:
        server: the tritonserver behind it.
        endpoint: "https://127.0.0.1:PORT", "http://…" without TLS.
        ca: PEM file of the authority that signed its certificate; None where the certificate was given.
        metrics: "http://127.0.0.1:PORT/metrics", None where it is not asked for.
        calls: log of the calls.
        model: name of one model.
    """

    failure: ClassVar = NginxFailedError

    server: RunningServer
    endpoint: str
    ca: Path | None
    metrics: str | None
    calls: Path
    model: str


def find_nginx() -> Path:
    """Find nginx: that on PATH, else that of `make nginx` in the project's folder or the current one.

    Raises:
        NginxMissingError: there is none.
    """
    found = find_program("nginx", ".nginx/usr/sbin")
    if found is None:
        msg = "no nginx found: run `make nginx` in the project's folder, or install nginx 1.22 or newer"
        raise NginxMissingError(msg)
    return found


@contextmanager
def gateways(
    gateway: Gateway,
    repositories: Sequence[Repository],
    servers: Sequence[RunningServer],
    first_port: int | None = None,
) -> Iterator[list[RunningGateway]]:
    """Gateways of servers that are ready, and that have the first ports; ready inside the `with`, and gone after it."""
    program, authority = find_nginx(), None if gateway.cert is not None else Authority(servers[0].log.parent)
    wanted = ports(first_port, len(servers), len(servers))
    begin = [
        partial(_start, program, gateway, authority, repository, server, port)
        for repository, server, port in zip(repositories, servers, wanted, strict=True)
    ]
    with all_ready(begin, _is_ready) as found:
        yield found


def _start(
    program: Path,
    gateway: Gateway,
    authority: Authority | None,
    repository: Repository,
    server: RunningServer,
    wanted: int | None,
) -> RunningGateway:
    held: list[socket.socket] = []
    listen, log = place(held, wanted), server.log.with_suffix(".gateway.log")
    calls = server.log.with_suffix(".calls.log")
    metrics = None if server.metrics is None else place(held)

    def fill(folder: Path) -> list[str]:
        certificate, key = gateway.cert or folder / "certificate.pem", gateway.key or folder / "key.pem"
        if authority is not None:
            authority.issue(certificate, key)
        secret = folder / "secret.conf"
        secret.write_text(secret_line(server.secret), encoding="ascii")
        settings = NginxSettings(
            listen=listen,
            tls=gateway.tls,
            certificate=str(certificate.absolute()),
            key=str(key.absolute()),
            upstream=(server.behind or server.http or "").removeprefix("http://"),
            secret_file=str(secret),
            origins=gateway.origins,
            rate=gateway.rate,
            status=metrics or f"unix:{folder}/status",
            access_log=str(calls.absolute()),
        )
        (folder / "nginx.conf").write_text(nginx_config(repository, settings), encoding="utf-8")
        # One process: workers would outlive a master that was killed.
        return [str(program.absolute()), "-p", str(folder), "-c", "nginx.conf", "-e", "stderr", "-g", _ONE_PROCESS]

    of = f"the configuration of a gateway to {repository.path}"
    folder, keeper = start("privdfs-gateway-", log, fill, of, held)
    ca = None if authority is None else authority.ca
    url = None if metrics is None else f"http://{metrics}/metrics"
    what, model = f"nginx in front of {repository.path}", repository.models[0].name
    endpoint = f"{'https' if gateway.tls else 'http'}://{listen}"
    return RunningGateway(what, folder, log, keeper, held, server, endpoint, ca, url, calls, model)


def _is_ready(gateway: RunningGateway) -> bool:
    """Ask it whether the model behind it is ready; only this gateway knows the server's secret."""
    scheme, address = gateway.endpoint.split("://")
    if scheme == "https":
        # Which certificate is right is for clients to say: the given one may be for another name.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001
        connection = http.client.HTTPSConnection(address, timeout=2, context=context)
    else:
        connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", f"/v2/models/{gateway.model}/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
