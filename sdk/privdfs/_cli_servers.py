"""Which servers the command line connects to, and how: options, or a file.

Options that describe a server may be given once, for all servers, or once for each, in the order of `--server`. What
does not fit this is written into a file, which `--servers` names:

    {"servers": [
        {"endpoints": ["a1.example:8001", "a2.example:8001"], "ca": "a-ca.pem", "token_file": "a.token"},
        {"endpoints": ["b.example:8001"], "pin": "b.pem", "cert": "device.pem", "key": "device.key"},
        {"endpoints": ["c.example:8001"], "tls": true, "token_env": "C_TOKEN", "token_header": "triton-grpc-protocol-x"}
    ]}

Paths in it are relative to its folder. Tokens come from files or from the environment, never from the command line,
which every user of a machine can read.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from privdfs._config import Server
from privdfs._errors import ConfigError
from privdfs._given import read_file, shown
from privdfs._tls import TLS, Token

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Old option -> new one: `--key` was taken for the user's key.
_RENAMED = {"--cert": "--tls-cert", "--key": "--tls-key", "--key-file": "--user-key"}


class Party(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One server as options or a servers file describe it. Files are PEM, except that of the token."""

    endpoints: list[str]
    tls: bool = False
    insecure: bool = False
    ca: str | None = None
    pin: str | None = None
    cert: str | None = None
    key: str | None = None
    token_file: str | None = None
    token_env: str | None = None
    token_header: str | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A servers file."""

    servers: list[Party]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what a command that connects to servers takes."""
    parser.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="endpoint of a server, host:port (gRPC) or https://host (HTTP); once for every server, in the release's "
        "order (replicas: A:1,B:1)",
    )
    parser.add_argument("--servers", metavar="FILE", help="JSON file that says all this for each server by itself")
    each = parser.add_argument_group("connections", "Those with [*]: once for all servers, or once for each, in order.")
    each.add_argument("--tls", action="store_true", help="connect with TLS and the system's authorities")
    for name, metavar, text in (
        ("--ca", "PEM", "certificates that may sign the server's"),
        ("--pin", "PEM", "the server's own certificate, once for each server"),
        ("--tls-cert", "PEM", "this device's certificate, for mutual TLS"),
        ("--tls-key", "PEM", "the private key of --tls-cert"),
        ("--token-file", "FILE", "a file with the token that the server asks for"),
        ("--token-env", "NAME", "the environment variable with that token"),
    ):
        each.add_argument(name, action="append", default=[], metavar=metavar, help=f"{text} [*]")
    each.add_argument(
        "--token-header", metavar="NAME", help="header of the token (default: authorization), in lower case"
    )
    each.add_argument("--insecure", action="store_true", help="allow plaintext beyond this machine")
    for old, new in _RENAMED.items():
        if new != "--user-key":
            each.add_argument(old, action=Renamed, dest=new[2:].replace("-", "_"), help=argparse.SUPPRESS)


class Renamed(argparse.Action):
    """An option under its old name: it works, and a line on standard error says the new one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Do what the option of the new name does."""
        old = option_string or self.option_strings[0]
        sys.stderr.write(f"{parser.prog}: {old} is now {_RENAMED[old]}; the next version drops the old name\n")
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*before, values] if isinstance(before, list) else values)


def servers_of(options: argparse.Namespace) -> list[Server]:
    """The servers that a command line names.

    Raises:
        ConfigError: options that contradict each other, or a file that cannot be read.
    """
    if options.servers is None:
        return [_server(party, Path()) for party in _from_options(options)]
    described = (
        "server", "tls", "ca", "pin", "tls_cert", "tls_key", "token_file", "token_env", "token_header", "insecure"
    )  # fmt: skip
    also = [name for name in described if getattr(options, name)]
    if also:
        raise ConfigError(
            f"--servers and --{also[0].replace('_', '-')} were both given: write all that is to be said into the file"
        )
    data = read_file(options.servers, "the servers file")
    try:
        parties = msgspec.json.decode(data, type=_File).servers
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        problem = str(error) if isinstance(error, msgspec.DecodeError) else "it is not JSON"
        raise ConfigError(f"the servers file {shown(options.servers)} cannot be used: {problem}") from None
    return [_server(party, Path(options.servers).parent) for party in parties]


def _from_options(options: argparse.Namespace) -> list[Party]:
    count = len(options.server)
    columns = {
        field: _each(f"--{option.replace('_', '-')}", getattr(options, option), count)
        for field, option in (
            ("ca", "ca"), ("pin", "pin"), ("cert", "tls_cert"), ("key", "tls_key"), ("token_file", "token_file"),
            ("token_env", "token_env"),
        )
    }  # fmt: skip
    return [
        Party(
            endpoints.split(","),
            tls=options.tls,
            insecure=options.insecure,
            token_header=options.token_header,
            **{field: column[i] for field, column in columns.items()},
        )
        for i, endpoints in enumerate(options.server)
    ]


def _each(option: str, values: Sequence[str], count: int) -> list[str | None]:
    if len(values) in {0, 1}:
        return [values[0] if values else None] * count
    if len(values) != count:
        raise ConfigError(
            f"{option} was given {len(values)} times for {count} servers: give it once for all, or once for each in "
            "the order of --server, or write a file for --servers"
        )
    return list(values)


def _server(party: Party, folder: Path) -> Server:
    ca, pin, cert, key = (
        None if name is None else folder / name for name in (party.ca, party.pin, party.cert, party.key)
    )
    wants_tls = party.tls or any(name is not None for name in (ca, pin, cert, key))
    tls = TLS(ca=ca, cert=cert, key=key, pin=pin) if wants_tls else None
    return Server(party.endpoints, tls, insecure=party.insecure, token=_token(party, folder))


def _token(party: Party, folder: Path) -> Token | None:
    value = _token_value(party, folder)
    if value is not None:
        return Token(value) if party.token_header is None else Token(value, party.token_header)
    if party.token_header is not None:
        raise ConfigError("a header is named for a token, and no token: add --token-file or --token-env")
    return None


def _token_value(party: Party, folder: Path) -> str | None:
    if party.token_file is not None and party.token_env is not None:
        raise ConfigError("a server has a token file and a token variable: drop one of them")
    if party.token_file is not None:
        return read_file(folder / party.token_file, "the token", secret=True).decode("ascii", "replace").rstrip("\r\n")
    if party.token_env is None:
        return None
    value = os.environ.get(party.token_env) if _VARIABLE.fullmatch(party.token_env) else None
    if value is None:  # what stands in the place of the variable's name may be the token
        raise ConfigError("the environment variable of the token is not set: pass its name, and set it")
    return value
