"""The command line of `privdfs-serve`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from privdfs._command_line import signals_interrupt, whole_number
from privdfs._errors import Error
from privdfs.coding import MAX_SERVERS
from privdfs_export.serve.gateway import Gateway, RunningGateway, gateways
from privdfs_export.serve.local import check_release, running
from privdfs_export.serve.nginx import DEFAULT_RATE
from privdfs_export.serve.processes import watch
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
            servers = stack.enter_context(running(repositories, options.tritonserver, options.log_dir, services))
            doors: list[RunningGateway] = []
            if options.gateway:
                doors = stack.enter_context(gateways(gateway, repositories, servers))
            release = repositories[0].manifest.release
            if options.json:
                print(json.dumps({"release": release, **_listed(servers, doors)}), flush=True)
            else:
                _show(release, servers, doors)
            watch([*servers, *doors], parent)
    except KeyboardInterrupt:
        return 0
    except Error as error:
        print(f"privdfs-serve: error: {error}", file=sys.stderr)
        return 2
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
    parser.add_argument("--json", action="store_true", help="print endpoints and logs as one line of JSON")
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
    found["logs"] = [str(kept.log) for kept in (*servers, *doors)]
    return found


def _show(release: str, servers: Sequence[RunningServer], doors: Sequence[RunningGateway]) -> None:
    print(f"{'server':<10}  {'endpoint':<21}  log")
    for index, server in enumerate(servers):
        print(f"{server.repository.name:<10}  {server.endpoint:<21}  {server.log}")
        door = doors[index] if doors else None
        if door is not None:
            print(f"{'':<10}  {door.endpoint}  {door.calls}")
        for url in (server.http, server.metrics, door and door.metrics):
            if url is not None:
                print(f"{'':<10}  {url}")
    if doors and doors[0].ca is not None:
        print(f"Clients trust {doors[0].ca}, which was made for this run.")
    print(f"Release {release} is being served; Ctrl-C ends it.", flush=True)
