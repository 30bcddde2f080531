"""Local servers of a release: checked, started, ready inside a `with`, and gone after it."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from privdfs import coding
from privdfs._coded_format import CodedManifest, largest_degree
from privdfs._config import WireName
from privdfs._errors import BundleIntegrityError
from privdfs._files import read_manifest_bytes
from privdfs._format import CLIENT_FOLDER, server_folder
from privdfs._manifest import read_client_manifest
from privdfs._verify import server_folders
from privdfs_export.errors import ServeError
from privdfs_export.repository import Repository, read_repository
from privdfs_export.serve.authority import Authority
from privdfs_export.serve.gateway import Gateway, RunningGateway, gateways
from privdfs_export.serve.processes import all_ready, ports
from privdfs_export.serve.tritonserver import RunningServer, Services, find_tritonserver, is_ready, start_server
from privdfs_export.verify import check_repository


@contextmanager
def serve(
    repositories: Sequence[Path],
    *,
    wire: WireName = "grpc",
    tritonserver: str | Path | None = None,
    log_dir: Path | None = None,
) -> Iterator[list[str]]:
    """Run one local tritonserver for each repository; they are ready inside the `with`, and gone after it.

    Args:
        repositories: servers' folders of releases (`server-0`, `baseline`, …), each with its manifest.
        wire: which endpoints are wanted; HTTP is served only then.
        tritonserver: the program; without it that on PATH, else that of `make triton`.
        log_dir: where the servers' logs go; without it a temporary folder, which is kept only after an error.

    Yields:
        The endpoints, "127.0.0.1:PORT" or "http://127.0.0.1:PORT", in the order of the repositories.

    Raises:
        privdfs.BundleError: a folder is not what its manifest says.
        RepositoryError, EngineError, ParityError: its parts do not fit each other; see `verify`.
        TritonserverMissingError: no tritonserver was found.
        TritonserverFailedError: a server ended or did not become ready.
    """
    with serve_measured(repositories, http=wire == "http", tritonserver=tritonserver, log_dir=log_dir) as servers:
        yield _endpoints(servers)


@contextmanager
def serve_measured(
    repositories: Sequence[Path],
    *,
    foreign: Sequence[Path] = (),
    http: bool = False,
    tls: bool = False,
    tritonserver: str | Path | None = None,
    log_dir: Path | None = None,
) -> Iterator[list[RunningServer]]:
    """`serve`, for programs that also ask the servers for their statistics, and that compare them with others.

    Args:
        repositories: as for `serve`.
        foreign: repositories with a manifest that do not belong to a release: only their files are checked.
        http: whether they serve HTTP too.
        tls: whether their gRPC is over TLS, with certificates of an authority made for this run.
        tritonserver: as for `serve`.
        log_dir: as for `serve`.

    Yields:
        The servers, with the secret that such calls ask for (`ADMIN_HEADER`), in the order of the repositories.
    """
    checked = [*map(_check, repositories), *map(read_repository, foreign)]
    with running(checked, tritonserver, log_dir, Services(http=http, tls=tls)) as servers:
        yield servers


@contextmanager
def gateways_before(servers: Sequence[RunningServer], gateway: Gateway) -> Iterator[list[RunningGateway]]:
    """Run gateways before servers that may be asked without them too, so that the two ways can be compared.

    Args:
        servers: which serve HTTP to everybody on this machine.
        gateway: what the gateways let in.

    Yields:
        The gateways, in the order of the servers.

    Raises:
        NginxMissingError: no nginx was found.
        NginxFailedError: an nginx ended or did not become ready.
    """
    with gateways(gateway, [read_repository(server.repository) for server in servers], servers) as found:
        yield found


@contextmanager
def serve_release(
    release_dir: Path,
    *,
    wire: WireName = "grpc",
    tritonserver: str | Path | None = None,
    log_dir: Path | None = None,
) -> Iterator[list[str]]:
    """Run local tritonservers for all servers of a release; see `serve`.

    Yields:
        The endpoints of server 0..N-1, in order.
    """
    services = Services(http=wire == "http")
    with running(check_release(Path(release_dir)), tritonserver, log_dir, services) as servers:
        yield _endpoints(servers)


@contextmanager
def serve_gateways(
    release_dir: Path,
    gateway: Gateway,
    *,
    metrics: bool = False,
    tritonserver: str | Path | None = None,
    log_dir: Path | None = None,
) -> Iterator[list[RunningGateway]]:
    """Run local tritonservers for all servers of a release, each behind an nginx of its own.

    Args:
        release_dir: as for `serve_release`.
        gateway: what the gateways let in.
        metrics: whether servers and gateways show figures about their work.
        tritonserver: as for `serve`.
        log_dir: as for `serve`.

    Yields:
        The gateways of server 0..N-1, in order.

    Raises:
        NginxMissingError: no nginx was found.
        NginxFailedError: an nginx ended or did not become ready.
    """
    repositories, services = check_release(Path(release_dir)), Services(gateway=True, metrics=metrics)
    with (
        running(repositories, tritonserver, log_dir, services) as servers,
        gateways(gateway, repositories, servers) as found,
    ):
        yield found


def start_at(repository: Path | Repository, port: int, log: Path, *, http_port: int | None = None) -> RunningServer:
    """Start the tritonserver of one repository on a chosen port; it is ready some seconds later.

    Args:
        repository: The server's folder of a release, which is checked; or what was read from it and checked before.
        port: On 127.0.0.1.
        log: File of its log, overwritten.
        http_port: The same of HTTP; None: it serves gRPC alone.

    Raises:
        privdfs.BundleError: The folder is not what its manifest says.
        ServeError: The server cannot be started.
    """
    services = Services(http=http_port is not None)
    checked = _check(repository) if isinstance(repository, Path) else repository
    return start_server(find_tritonserver(), checked, log, services, port=port, http_port=http_port)


def _check(path: Path) -> Repository:
    """Read a server's folder, check it against its manifest, and check that its parts fit each other."""
    repository = read_repository(path)
    check_repository(repository)
    return repository


def check_release(path: Path, count: int | None = None) -> list[Repository]:
    """Read the servers' folders of a release, or the first ones, and check that they belong together."""
    client = read_client_manifest(read_manifest_bytes(path / CLIENT_FOLDER))
    folders = server_folders(path, client)
    if count is not None:
        if not isinstance(client, CodedManifest):
            msg = f"{path} is a masked release, which needs all its {len(folders)} servers: leave out --servers"
            raise ServeError(msg)
        degree = largest_degree(client)
        fewest = coding.needed_answers(degree, 1)
        if count < fewest:
            msg = (
                f"no client can use {count} servers of {client.release}: its rounds have degree {degree}, so at "
                f"least {fewest} answers decode them; pass --servers {fewest} or more"
            )
            raise ServeError(msg)
        if count > len(folders):
            msg = (
                f"{path} has folders for {len(folders)} servers, not {count}: add some with "
                f"`privdfs-export servers {path} --servers {count}`"
            )
            raise ServeError(msg)
        folders = folders[:count]
    repositories = [_check(folder) for folder in folders]
    for index, repository in enumerate(repositories):
        manifest = repository.manifest
        if (manifest.release, manifest.server) != (client.release, index):
            msg = (
                f"{repository.path} holds server {manifest.server} of release {manifest.release}, expected server "
                f"{index} of {client.release}: get the release again, whole"
            )
            raise BundleIntegrityError(msg, server_folder(index))
    return repositories


@contextmanager
def running(
    repositories: Sequence[Repository],
    tritonserver: str | Path | None = None,
    log_dir: Path | None = None,
    services: Services | None = None,
    first_port: int | None = None,
) -> Iterator[list[RunningServer]]:
    """Servers that are ready inside the `with`, and gone after it; from a first port on, gRPC's come before HTTP's."""
    program, services = find_tritonserver(tritonserver), services or Services()
    count = len(repositories)
    grpc, web = ports(first_port, 0, count), ports(first_port if services.http else None, count, count)
    try:
        logs = log_dir or Path(tempfile.mkdtemp(prefix="privdfs-logs-"))
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot write logs into {log_dir or tempfile.gettempdir()} ({error}): name another folder with --log-dir"
        raise ServeError(msg) from error
    authority = Authority(logs) if services.tls else None
    begin = [
        partial(
            start_server,
            program,
            repository,
            logs / f"{index}-{repository.path.name}.log",
            services,
            authority,
            port=grpc[index],
            http_port=web[index],
        )
        for index, repository in enumerate(repositories)
    ]
    failed = False
    try:
        with all_ready(begin, is_ready) as servers:
            yield servers
    except Exception:  # not Ctrl-C, nor the end of the program: those are not failures
        failed = True
        raise
    finally:
        if log_dir is None and not failed:
            shutil.rmtree(logs, ignore_errors=True)


def _endpoints(servers: Sequence[RunningServer]) -> list[str]:
    """Of HTTP where there is any, else of gRPC."""
    return [server.http or server.endpoint for server in servers]
