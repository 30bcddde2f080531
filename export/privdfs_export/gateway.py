"""`privdfs-export gateway SERVER …`: nginx's configuration for the gateway to one server."""

import argparse
from pathlib import Path

from privdfs._command_line import whole_number
from privdfs_export.repository import read_repository
from privdfs_export.serve.nginx import DEFAULT_RATE, NginxSettings, nginx_config

DESCRIPTION = (
    "Print nginx's configuration for the gateway to a server: TLS, the paths that clients of this release need, its "
    "longest message. docs/DEPLOY.md says how to run it."
)
_LARGEST_RATE = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("server", type=Path, metavar="SERVER", help="the server's folder of a release")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="where devices reach the gateway")
    parser.add_argument("--upstream", required=True, metavar="HOST:PORT", help="HTTP of the tritonserver")
    parser.add_argument("--cert", required=True, metavar="FILE", help="certificate, with those that signed it")
    parser.add_argument("--key", required=True, metavar="FILE", help="its private key")
    parser.add_argument(
        "--secret-file",
        required=True,
        metavar="FILE",
        help='nginx\'s line with the secret that tritonserver asks for: proxy_set_header privdfs-gateway "SECRET";',
    )
    parser.add_argument(
        "--origin", action="append", default=[], metavar="ORIGIN", help="web pages of it may call; may be repeated"
    )
    parser.add_argument(
        "--rate",
        type=whole_number(1, _LARGEST_RATE),
        default=DEFAULT_RATE,
        metavar="N",
        help=f"calls that one address may make in a second ({DEFAULT_RATE})",
    )
    parser.add_argument(
        "--status", default=NginxSettings.status, metavar="HOST:PORT", help="figures for monitoring (%(default)s)"
    )
    parser.add_argument(
        "--access-log", default=NginxSettings.access_log, metavar="FILE", help="log of the calls (%(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Print the configuration.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: The folder is not what its manifest says, or nginx cannot take a setting.
    """
    settings = NginxSettings(
        listen=options.listen,
        certificate=options.cert,
        key=options.key,
        upstream=options.upstream,
        secret_file=options.secret_file,
        origins=tuple(options.origin),
        rate=options.rate,
        status=options.status,
        access_log=options.access_log,
    )
    print(nginx_config(read_repository(options.server), settings), end="")
