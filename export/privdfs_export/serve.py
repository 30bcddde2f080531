"""Local tritonservers for a release: `privdfs-serve RELEASE`, and `serve` for programs.

Each server of the release gets a tritonserver process of its own, as if it belonged to another party:

- It serves a private copy of the files that its manifest lists, made from the very bytes that were checked. What else
  lies in the folder is never looked at, and nothing is ever written there.
- It listens on 127.0.0.1 only, speaks gRPC, and HTTP where that is asked for, loads nothing but what it started with,
  completes no configuration, keeps no cache and no trace. The calls that clients do not need (shared memory, model
  repository, statistics, trace, logging) ask for a secret that only the program that started the servers knows.
- It ends with the process that asked for it, however that process ends.
"""

import argparse
import http.client
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from privdfs._coded_format import CodedManifest
from privdfs._command_line import signals_interrupt, whole_number
from privdfs._config import WireName
from privdfs._errors import BundleIntegrityError, Error
from privdfs._files import read_manifest_bytes
from privdfs._format import CLIENT_FOLDER, server_folder
from privdfs._manifest import read_client_manifest
from privdfs._verify import server_folders
from privdfs.coding import MAX_SERVERS
from privdfs_export._keeper import remove
from privdfs_export.errors import ServeError, TritonserverFailedError, TritonserverMissingError
from privdfs_export.repository import Repository, read_repository
from privdfs_export.verify import check_repository

#: Longest that a server may take to load its models and warm them up.
READY_LIMIT_S = 120.0
#: Longest that a server may take to end: a little more than its keeper gives it.
_STOP_LIMIT_S = 12.0
#: How often another port is tried when somebody took the one that was free a moment ago.
_PORT_ATTEMPTS = 5
_LOOK_S = 0.05
_LOG_TAIL_LINES = 12
_ENVIRONMENT_NAME = ".venv-triton"
_PORT_TAKEN = re.compile(r"(already in use|Address already in use|Failed to bind)", re.IGNORECASE)
#: What clients need stays open: health, metadata, model configuration (it names the release), inference.
_RESTRICTED = "shared-memory,model-repository,statistics,trace,logging"
_ADMIN = "privdfs-admin"
#: For gRPC clients of servers on this machine: without it they would ask the proxy of `http_proxy` and its like.
LOOPBACK_OPTIONS = (("grpc.enable_http_proxy", 0),)
#: What carries the secret of a server (`RunningServer.admin`), as Triton spells it: gRPC's metadata, HTTP's header.
ADMIN_HEADER = f"triton-grpc-protocol-{_ADMIN}"
HTTP_ADMIN_HEADER = _ADMIN


@dataclass(frozen=True)
class RunningServer:
    """One tritonserver: its repository's folder, where it listens, its log, its keeper, and the id it answers with.

    `http` is the endpoint of its HTTP service, None where it has none. `copy` is the copy of the folder that it reads,
    `admin` the secret that its restricted calls ask for.
    """

    repository: Path
    endpoint: str
    http: str | None
    copy: Path
    log: Path
    keeper: "subprocess.Popen[bytes]"
    token: str
    admin: str = field(repr=False)


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
    tritonserver: str | Path | None = None,
    log_dir: Path | None = None,
) -> Iterator[list[RunningServer]]:
    """`serve`, for programs that also ask the servers for their statistics, and that compare them with others.

    Args:
        repositories: as for `serve`.
        foreign: repositories with a manifest that do not belong to a release: only their files are checked.
        http: whether they serve HTTP too.
        tritonserver: as for `serve`.
        log_dir: as for `serve`.

    Yields:
        The servers, with the secret that such calls ask for (`ADMIN_HEADER`), in the order of the repositories.
    """
    checked = [*map(_check, repositories), *map(read_repository, foreign)]
    with _running(checked, tritonserver, log_dir, http=http) as servers:
        yield servers


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
    with _running(_check_release(Path(release_dir)), tritonserver, log_dir, http=wire == "http") as servers:
        yield _endpoints(servers)


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
    checked = _check(repository) if isinstance(repository, Path) else repository
    return _start(find_tritonserver(), checked, log, port=port, http_port=http_port)


def kill(server: RunningServer) -> None:
    """Kill a server and wait until it is gone; it can end nothing in good order."""
    server.keeper.kill()  # and with it, by the kernel, the tritonserver
    _end(server)


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
    places = [Path(__file__).parents[2], Path.cwd()]
    for candidate in ("tritonserver", *(place / _ENVIRONMENT_NAME / "bin" / "tritonserver" for place in places)):
        found = shutil.which(candidate)
        if found is not None:
            return Path(found)
    msg = "no tritonserver found: run `make triton` in the project's folder, or name one with --tritonserver"
    raise TritonserverMissingError(msg)


def _check(path: Path) -> Repository:
    """Read a server's folder, check it against its manifest, and check that its parts fit each other."""
    repository = read_repository(path)
    check_repository(repository)
    return repository


def _check_release(path: Path, count: int | None = None) -> list[Repository]:
    """Read the servers' folders of a release, or the first ones, and check that they belong together."""
    client = read_client_manifest(read_manifest_bytes(path / CLIENT_FOLDER))
    folders = server_folders(path, client)
    if count is not None:
        if not isinstance(client, CodedManifest):
            msg = f"{path} is a masked release, which needs all its {len(folders)} servers: leave out --servers"
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
def _running(
    repositories: Sequence[Repository], tritonserver: str | Path | None, log_dir: Path | None, *, http: bool
) -> Iterator[list[RunningServer]]:
    """Servers that are ready inside the `with`, and gone after it."""
    program = find_tritonserver(tritonserver)
    try:
        logs = log_dir or Path(tempfile.mkdtemp(prefix="privdfs-logs-"))
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot write logs into {log_dir or tempfile.gettempdir()} ({error}): name another folder with --log-dir"
        raise ServeError(msg) from error
    servers: list[RunningServer] = []
    failed = False
    try:
        for index, repository in enumerate(repositories):
            servers.append(_start(program, repository, logs / f"{index}-{repository.path.name}.log", http=http))
        deadline = time.monotonic() + READY_LIMIT_S
        for index, repository in enumerate(repositories):
            servers[index] = _make_ready(program, repository, servers[index], deadline)
        yield servers
    except Exception:  # not Ctrl-C, nor the end of the program: those are not failures
        failed = True
        raise
    finally:
        try:
            _stop(servers)
        finally:
            if log_dir is None and not failed:
                shutil.rmtree(logs, ignore_errors=True)


def _endpoints(servers: Sequence[RunningServer]) -> list[str]:
    """Of HTTP where there is any, else of gRPC."""
    return [server.http or server.endpoint for server in servers]


def _start(
    program: Path,
    repository: Repository,
    log: Path,
    *,
    port: int | None = None,
    http: bool = False,
    http_port: int | None = None,
) -> RunningServer:
    """Start a tritonserver for a private copy of a repository, on that port, or on one that is free at this moment."""
    token, admin = f"privdfs-{secrets.token_hex(8)}", secrets.token_hex(16)
    endpoint = f"127.0.0.1:{_free_port() if port is None else port}"
    web = f"http://127.0.0.1:{http_port or _free_port()}" if http or http_port else None
    copy = None
    try:
        copy = Path(tempfile.mkdtemp(prefix="privdfs-server-"))
        for name, data in repository.files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(data)
        keeper = [sys.executable, "-I", "-S", str(Path(__file__).parent / "_keeper.py"), str(os.getpid()), str(copy)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*keeper, *_command(program, repository, copy, token, [*_grpc(endpoint, admin), *_http(web, admin)])],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=copy,
            )
    except BaseException as error:  # Ctrl-C too: only a keeper that runs removes the copy
        if copy is not None:
            shutil.rmtree(copy, ignore_errors=True)
        if isinstance(error, OSError):
            msg = f"cannot write a copy of {repository.path} and its log ({error}): free some space, or set TMPDIR"
            raise ServeError(msg) from error
        raise
    return RunningServer(repository.path, endpoint, web, copy, log, process, token, admin)


def _grpc(endpoint: str, admin: str) -> list[str]:
    address, port = endpoint.split(":")
    return [
        "--allow-grpc=true",
        f"--grpc-address={address}",
        f"--grpc-port={port}",
        "--reuse-grpc-port=false",
        f"--grpc-restricted-protocol={_RESTRICTED}:{_ADMIN}={admin}",
    ]


def _http(endpoint: str | None, admin: str) -> list[str]:
    if endpoint is None:
        return ["--allow-http=false"]
    address, port = endpoint.removeprefix("http://").split(":")
    return [
        "--allow-http=true",
        f"--http-address={address}",
        f"--http-port={port}",
        "--reuse-http-port=false",
        f"--http-restricted-api={_RESTRICTED}:{HTTP_ADMIN_HEADER}={admin}",
    ]


def _command(program: Path, repository: Repository, copy: Path, token: str, services: Sequence[str]) -> list[str]:
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
        "--allow-metrics=false",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        *services,
        "--trace-config=level=OFF",
        "--log-verbose=0",
        f"--backend-config=python,shm-region-prefix-name={copy.name}",
        # Such plans carry code of their own; these are the ones that this server's operator built.
        *(["--backend-config=tensorrt,version-compatible=true"] if trusted else []),
    ]


def _make_ready(program: Path, repository: Repository, server: RunningServer, deadline: float) -> RunningServer:
    """Wait until a server is ready; one that lost its port to another program is started again."""
    for _ in range(_PORT_ATTEMPTS):
        if _wait_until_ready(server, deadline):
            return server
        status = _end(server)
        if not _PORT_TAKEN.search(_read_log(server.log)):
            raise _failed(server, f"ended with status {status} before it was ready")
        server = _start(program, repository, server.log, http=server.http is not None)
    raise _failed(server, f"lost its port to another program {_PORT_ATTEMPTS} times")


def _wait_until_ready(server: RunningServer, deadline: float) -> bool:
    """True when the server is ready, False when it has ended."""
    while server.keeper.poll() is None:
        if _is_ready(server):
            return True
        if time.monotonic() > deadline:
            _end(server)
            raise _failed(server, f"was not ready after {READY_LIMIT_S:.0f} s")
        time.sleep(_LOOK_S)
    return False


def _is_ready(server: RunningServer) -> bool:
    """Ask over gRPC; another program's server on the same port does not count."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    address, port = server.endpoint.split(":")
    try:
        socket.create_connection((address, int(port)), timeout=1).close()
    except OSError:
        return False
    with InferenceServerClient(server.endpoint, channel_args=list(LOOPBACK_OPTIONS)) as client:
        try:
            metadata = client.get_server_metadata(as_json=True, client_timeout=2) or {}
            ready = metadata.get("name") == server.token and bool(client.is_server_ready(client_timeout=2))
        except InferenceServerException:
            return False
    return ready and (server.http is None or _says_over_http(server.http, server.token))


def _says_over_http(endpoint: str, token: str) -> bool:
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=2)
    try:
        connection.request("GET", "/v2")
        return f'"name":"{token}"'.encode() in connection.getresponse().read(1 << 16)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    """A TCP port of 127.0.0.1 that is free at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _stop(servers: Sequence[RunningServer]) -> None:
    """End all servers at once, and wait for them."""
    for server in servers:
        if server.keeper.stdin is not None:
            server.keeper.stdin.close()
    for server in servers:
        _end(server)


def _end(server: RunningServer) -> int:
    """End a server; its exit status."""
    if server.keeper.stdin is not None:
        server.keeper.stdin.close()
    try:
        return server.keeper.wait(_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        server.keeper.kill()
        return server.keeper.wait()
    finally:
        remove(server.copy)  # by now, unless the keeper was killed, there is nothing left


def _failed(server: RunningServer, what: str) -> TritonserverFailedError:
    lines = _read_log(server.log).splitlines()
    # Triton prints wide tables; the lines of its messages say what went wrong.
    told = [line[:300] for line in lines if line.strip() and not line.startswith(("+", "|"))][-_LOG_TAIL_LINES:]
    msg = f"the tritonserver of {server.repository} {what}. Its log is {server.log}; it ends with:\n" + "\n".join(told)
    return TritonserverFailedError(msg, str(server.log))


def _read_log(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `privdfs-serve`: serve a release until Ctrl-C, SIGTERM, SIGHUP, or the end of whatever started it."""
    parser = argparse.ArgumentParser(
        prog="privdfs-serve",
        description="Run local tritonservers for a release, one for each of its servers, on 127.0.0.1. "
        "They end on Ctrl-C, SIGTERM or SIGHUP, and when the process that started this command ends. Without --log-dir "
        "their logs are kept only after a failure.",
    )
    parser.add_argument(
        "release", type=Path, metavar="RELEASE", help="folder of the release, with client and server-0 …"
    )
    parser.add_argument(
        "--servers",
        type=whole_number(1, MAX_SERVERS),
        metavar="N",
        help="of a coded release: serve the first N servers alone",
    )
    parser.add_argument("--http", action="store_true", help="serve HTTP too, on a port of its own, for clients of that")
    parser.add_argument("--json", action="store_true", help="print endpoints and logs as one line of JSON")
    parser.add_argument("--tritonserver", metavar="PATH", help="the tritonserver to run")
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="where the servers' logs go")
    options = parser.parse_args(arguments)

    parent = os.getppid()
    try:
        with signals_interrupt():
            repositories = _check_release(options.release, options.servers)
            with _running(repositories, options.tritonserver, options.log_dir, http=options.http) as servers:
                _show(repositories[0].manifest.release, servers, as_json=options.json)
                _watch(servers, parent)
    except KeyboardInterrupt:
        return 0
    except Error as error:
        print(f"privdfs-serve: error: {error}", file=sys.stderr)
        return 2
    return 0


def _show(release: str, servers: Sequence[RunningServer], *, as_json: bool) -> None:
    if as_json:
        found = {
            "release": release,
            "endpoints": [server.endpoint for server in servers],
            **({} if servers[0].http is None else {"http": [server.http for server in servers]}),
            "logs": [str(server.log) for server in servers],
        }
        print(json.dumps(found), flush=True)
        return
    print(f"{'server':<10}  {'endpoint':<21}  log")
    for server in servers:
        print(f"{server.repository.name:<10}  {server.endpoint:<21}  {server.log}")
        if server.http is not None:
            print(f"{'':<10}  {server.http}")
    print(f"Release {release} is being served; Ctrl-C ends it.", flush=True)


def _watch(servers: Sequence[RunningServer], parent: int) -> None:
    """Return when the parent has ended.

    Raises:
        TritonserverFailedError: a server ended by itself.
    """
    while os.getppid() == parent:
        for server in servers:
            status = server.keeper.poll()
            if status is not None:
                raise _failed(server, f"ended by itself with status {status}")
        time.sleep(0.25)


if __name__ == "__main__":
    sys.exit(main())
