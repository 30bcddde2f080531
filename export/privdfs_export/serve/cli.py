"""The command line of `privdfs-serve`."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from privdfs._command_line import explain, signals_interrupt, whole_number
from privdfs._errors import Error
from privdfs._format import CLIENT_FOLDER, SIGNATURE_NAME
from privdfs.coding import MAX_SERVERS
from privdfs_export.serve.gateway import Gateway, RunningGateway, gateways
from privdfs_export.serve.local import check_release, running
from privdfs_export.serve.nginx import DEFAULT_RATE, LARGEST_PORT
from privdfs_export.serve.processes import ended, failed
from privdfs_export.serve.tritonserver import RunningServer, Services

_LARGEST_RATE = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `privdfs-serve`: serve a release until Ctrl-C, SIGTERM, SIGHUP, or the end of whatever started it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.gateway and (options.origin or options.cert or options.key or options.rate != DEFAULT_RATE):
        parser.error("--origin, --rate, --cert and --key are for --gateway")

    parent = os.getppid()
    try:
        with signals_interrupt(), ExitStack() as stack:
            gateway = Gateway(tuple(options.origin), options.rate, options.cert, options.key)
            repositories = check_release(options.release, options.servers)
            services = Services(options.http, options.gateway, options.metrics)
            servers = stack.enter_context(
                running(repositories, options.tritonserver, options.log_dir, services, options.port)
            )
            doors: list[RunningGateway] = []
            if options.gateway:
                doors = stack.enter_context(gateways(gateway, repositories, servers, options.port))
            release = repositories[0].manifest.release
            if options.json:
                print(json.dumps({"release": release, **_listed(servers, doors)}), flush=True)
            else:
                _show(options.release, release, servers, doors)
            _watch(servers, doors, parent, keep_going=options.keep_going)
    except KeyboardInterrupt:
        return 0
    except Error as error:
        print(f"privdfs-serve: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        return explain("privdfs-serve", error)
    return 0


def _parser() -> argparse.ArgumentParser:
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
    parser.add_argument(
        "--port",
        type=whole_number(1, LARGEST_PORT),
        metavar="P",
        help="port of the first server's gRPC; those of the others follow, then HTTP or HTTPS (default: free ones)",
    )
    parser.add_argument(
        "--keep-going", action="store_true", help="when a server ends, go on with the others, until the last has ended"
    )
    web = parser.add_mutually_exclusive_group()
    web.add_argument("--http", action="store_true", help="serve HTTP too, on a port of its own, for clients of that")
    web.add_argument(
        "--gateway", action="store_true", help="serve HTTPS too, by an nginx in front of each server, also for browsers"
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="https://app.example",
        help="of --gateway: web pages of this origin may call; may be repeated",
    )
    parser.add_argument(
        "--rate",
        type=whole_number(1, _LARGEST_RATE),
        default=DEFAULT_RATE,
        metavar="N",
        help=f"of --gateway: calls that one address may make in a second ({DEFAULT_RATE})",
    )
    parser.add_argument(
        "--cert", type=Path, metavar="FILE", help="of --gateway: certificate; without it an authority is made"
    )
    parser.add_argument("--key", type=Path, metavar="FILE", help="of --gateway: the private key of --cert")
    parser.add_argument(
        "--metrics", action="store_true", help="serve figures for monitoring too; they hold nothing about images"
    )
    parser.add_argument("--json", action="store_true", help="print endpoints, process ids and logs as one line of JSON")
    parser.add_argument("--tritonserver", metavar="PATH", help="the tritonserver to run")
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="where the servers' logs go")
    return parser


def _listed(servers: Sequence[RunningServer], doors: Sequence[RunningGateway]) -> dict[str, object]:
    """What --json prints; a key is there when what it lists is."""
    found: dict[str, object] = {"endpoints": [server.endpoint for server in servers]}
    if servers[0].http is not None:
        found["http"] = [server.http for server in servers]
    if doors:
        found["https"] = [door.endpoint for door in doors]
        if doors[0].ca is not None:
            found["ca"] = str(doors[0].ca)
    if servers[0].metrics is not None:
        found["metrics"] = [server.metrics for server in servers]
        if doors:
            found["gateway_metrics"] = [door.metrics for door in doors]
    found["pids"] = [kept.pid for kept in (*servers, *doors)]
    found["logs"] = [str(kept.log) for kept in (*servers, *doors)]
    return found


def _show(folder: Path, release: str, servers: Sequence[RunningServer], doors: Sequence[RunningGateway]) -> None:
    """The same as a table, and a call to copy."""
    rows = [("server", "kind", "address", "pid")]
    for index, server in enumerate(servers):
        door = doors[index] if doors else None
        rows.append((server.repository.name, "gRPC", server.endpoint, str(server.pid)))
        rows += [
            ("", kind, address, pid)
            for kind, address, pid in (
                ("HTTP", server.http, ""),
                ("metrics", server.metrics, ""),
                ("HTTPS", door and door.endpoint, str(door and door.pid)),
                ("gateway's metrics", door and door.metrics, ""),
            )
            if address is not None
        ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    print(f"\nTheir logs are in {servers[0].log.parent}. A call:\n")
    client = folder / CLIENT_FOLDER
    trust = "--trust KEY" if (client / SIGNATURE_NAME).exists() else "--allow-unsigned"
    call = [f"privdfs predict {shlex.quote(str(client))} IMAGE {trust}"]
    if doors and doors[0].ca is not None:
        call.append(f"--ca {shlex.quote(str(doors[0].ca))}")
    elif doors:
        call.append("--ca AUTHORITY")
    addresses = [door.endpoint for door in doors] or [server.http or server.endpoint for server in servers]
    print(" \\\n    ".join([*call, *(f"--server {address}" for address in addresses)]))
    print(f"\nRelease {release} is being served; Ctrl-C ends it.", flush=True)


def _watch(servers: Sequence[RunningServer], doors: Sequence[RunningGateway], parent: int, *, keep_going: bool) -> None:
    """Return when the parent has ended.

    Raises:
        ProcessFailedError: a process ended by itself; of those that keep going, the last server.
    """
    for kept, status in ended([*servers, *doors], parent):
        if not keep_going or all(server.keeper.poll() is not None for server in servers):
            raise failed(kept, f"ended by itself with status {status}")
        print(f"the {kept.what} ended (status {status}); the others go on", file=sys.stderr, flush=True)
