"""One local tritonserver: the program, its hardened command line, and whether it is ready."""

import http.client
import secrets
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from privdfs_export.errors import TritonserverFailedError, TritonserverMissingError
from privdfs_export.repository import Repository
from privdfs_export.serve.authority import Authority
from privdfs_export.serve.processes import Kept, find_program, place, start

_ENVIRONMENT_NAME = ".venv-triton"
#: What clients need stays open: health, metadata, model configuration (it names the release), inference.
_RESTRICTED = "shared-memory,model-repository,statistics,trace,logging"
#: What of it a gateway passes on; behind one, all of that asks for the gateway's secret.
_PASSED = "health,metadata,model-config,inference"
_ADMIN = "privdfs-admin"
#: For gRPC clients of servers on this machine: without it they would ask the proxy of `http_proxy` and its like.
LOOPBACK_OPTIONS = (("grpc.enable_http_proxy", 0),)
#: What carries the secret of a server (`RunningServer.admin`), as Triton spells it: gRPC's metadata, HTTP's header.
ADMIN_HEADER = f"triton-grpc-protocol-{_ADMIN}"
HTTP_ADMIN_HEADER = _ADMIN
#: What carries the secret that a gateway and its server share.
GATEWAY_HEADER = "privdfs-gateway"


@dataclass(frozen=True)
class Services:
    """What a tritonserver serves beside gRPC.

    Attributes:
        http: HTTP, to everybody on this machine.
        gateway: HTTP, to a gateway alone.
        metrics: figures about its work, as Prometheus reads them.
        tls: whether gRPC is over TLS, with a certificate made for this run.
    """

    http: bool = False
    gateway: bool = False
    metrics: bool = False
    tls: bool = False


@dataclass(frozen=True)
class RunningServer(Kept):
    """One tritonserver: its repository's folder, where it listens, and the id it answers with.

    Attributes:
        repository: the folder; `copy` is the copy of it that the server reads.
        endpoint: of gRPC, "127.0.0.1:PORT".
        http: "http://127.0.0.1:PORT", None where HTTP is not served, or served to a gateway alone.
        metrics: "http://127.0.0.1:PORT/metrics", None where they are not served.
        token: the id.
        admin: the secret that its restricted calls ask for.
        behind: of HTTP, where it is served to a gateway alone.
        secret: what the gateway has to say then.
        ca: PEM file of the authority that signed gRPC's certificate, None where that is plaintext.
    """

    failure: ClassVar = TritonserverFailedError

    repository: Path
    endpoint: str
    http: str | None
    metrics: str | None
    token: str
    admin: str = field(repr=False)
    behind: str | None
    secret: str = field(repr=False)
    ca: Path | None


def find_tritonserver(program: str | Path | None = None) -> Path:
    """Find the tritonserver to run.

    Args:
        program: a path, or a name on PATH; without it `tritonserver` on PATH, else that of `make triton` in the
            project's folder or the current one.

    Raises:
        TritonserverMissingError: there is none.
    """
    if program is not None:
        found = shutil.which(program)
        if found is None:
            msg = f"{program} is not a program that can be run: give the path of a tritonserver"
            raise TritonserverMissingError(msg)
        return Path(found)
    found = find_program("tritonserver", f"{_ENVIRONMENT_NAME}/bin")
    if found is None:
        msg = "no tritonserver found: run `make triton` in the project's folder, or name one with --tritonserver"
        raise TritonserverMissingError(msg)
    return found


def start_server(
    program: Path,
    repository: Repository,
    log: Path,
    services: Services,
    authority: Authority | None = None,
    *,
    port: int | None = None,
    http_port: int | None = None,
) -> RunningServer:
    """Start a tritonserver for a private copy of a repository, on these ports, or on ones that are free now.

    With an authority, gRPC is over TLS.
    """
    token, admin, secret = f"privdfs-{secrets.token_hex(8)}", secrets.token_hex(16), secrets.token_hex(16)
    held: list[socket.socket] = []
    endpoint = place(held, port)
    web = f"http://{place(held, http_port)}" if services.http or services.gateway else None
    metrics = f"http://{place(held)}/metrics" if services.metrics else None

    def fill(copy: Path) -> list[str]:
        for name, data in repository.files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(data)
        options = [*_grpc(endpoint, admin), *_tls(authority, copy)]
        options += [*_http(web, admin, secret if services.gateway else None), *_metrics(metrics)]
        return command_line(program, repository, copy, token, options)

    copy, keeper = start("privdfs-server-", log, fill, f"a copy of {repository.path}", held)
    public, behind = (None, web) if services.gateway else (web, None)
    what = f"tritonserver of {repository.path}"
    return RunningServer(
        what,
        copy,
        log,
        keeper,
        held,
        repository.path,
        endpoint,
        public,
        metrics,
        token,
        admin,
        behind,
        secret,
        None if authority is None else authority.ca,
    )


def command_line(program: Path, repository: Repository, copy: Path, token: str, services: Sequence[str]) -> list[str]:
    """The hardened command line of one tritonserver, for the private copy of a repository."""
    trusted = any(plan.version_compatible for plan in repository.plans)
    return [
        str(program.absolute()),
        f"--model-repository={copy}",
        f"--id={token}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--strict-readiness=true",
        "--exit-on-error=true",
        "--exit-timeout-secs=3",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        *services,
        "--trace-config=level=OFF",
        "--log-verbose=0",
        f"--backend-config=python,shm-region-prefix-name={copy.name}",
        # Such plans carry code of their own; these are the ones that this server's operator built.
        *(["--backend-config=tensorrt,version-compatible=true"] if trusted else []),
    ]


def _grpc(endpoint: str, admin: str) -> list[str]:
    address, port = endpoint.split(":")
    return [
        "--allow-grpc=true",
        f"--grpc-address={address}",
        f"--grpc-port={port}",
        "--reuse-grpc-port=false",
        f"--grpc-restricted-protocol={_RESTRICTED}:{_ADMIN}={admin}",
    ]


def _tls(authority: Authority | None, folder: Path) -> list[str]:
    """A certificate for gRPC, in the server's own folder; Triton looks at the folders in it alone."""
    if authority is None:
        return []
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    authority.issue(certificate, key)
    return ["--grpc-use-ssl=true", f"--grpc-server-cert={certificate}", f"--grpc-server-key={key}"]


def _http(endpoint: str | None, admin: str, secret: str | None) -> list[str]:
    if endpoint is None:
        return ["--allow-http=false"]
    address, port = endpoint.removeprefix("http://").split(":")
    return [
        "--allow-http=true",
        f"--http-address={address}",
        f"--http-port={port}",
        "--reuse-http-port=false",
        f"--http-restricted-api={_RESTRICTED}:{HTTP_ADMIN_HEADER}={admin}",
        *([] if secret is None else [f"--http-restricted-api={_PASSED}:{GATEWAY_HEADER}={secret}"]),
    ]


def _metrics(url: str | None) -> list[str]:
    if url is None:
        return ["--allow-metrics=false"]
    address, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
    return ["--allow-metrics=true", f"--metrics-address={address}", f"--metrics-port={port}"]


def is_ready(server: RunningServer) -> bool:
    """Ask over gRPC, over HTTP, and for the metrics; another program's server on the same port does not count."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    address, port = server.endpoint.split(":")
    try:
        socket.create_connection((address, int(port)), timeout=1).close()
    except OSError:
        return False
    ca = None if server.ca is None else str(server.ca)
    options: dict[str, Any] = {"ssl": ca is not None, "root_certificates": ca, "channel_args": list(LOOPBACK_OPTIONS)}
    with InferenceServerClient(server.endpoint, **options) as client:
        try:
            metadata = client.get_server_metadata(as_json=True, client_timeout=2) or {}
            ready = metadata.get("name") == server.token and bool(client.is_server_ready(client_timeout=2))
        except InferenceServerException:
            return False
    web = server.http or server.behind
    # Triton starts to serve its metrics last, and ends where it cannot.
    return (
        ready and (web is None or _says_over_http(web, server)) and (server.metrics is None or _counts(server.metrics))
    )


def _says_over_http(endpoint: str, server: RunningServer) -> bool:
    headers = {GATEWAY_HEADER: server.secret} if server.behind else {}
    return f'"name":"{server.token}"'.encode() in _get(f"{endpoint}/v2", headers)


def _counts(url: str) -> bool:
    """Whether its metrics are served; they name no server, but the system gives the port to no other."""
    return b"nv_inference_count" in _get(url, {})


def _get(url: str, headers: dict[str, str]) -> bytes:
    """What a page says; nothing, where there is none."""
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", f"/{path}", headers=headers)
        return connection.getresponse().read(1 << 16)
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()
