"""`deploy/nginx.conf.template`, filled in: for local gateways, and for operators by `privdfs-export gateway`."""

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

from privdfs_export.errors import ServeError
from privdfs_export.repository import Repository
from privdfs_export.serve.tritonserver import GATEWAY_HEADER

TEMPLATE = Path(__file__).parents[3] / "deploy" / "nginx.conf.template"
#: Calls that one address may make in a second, and as many at once beyond that.
DEFAULT_RATE = 100
#: What a message holds beside its tensors: a few hundred bytes of JSON, more or less, as each SDK writes it.
_JSON_ROOM = 1024
_BYTES = {"TYPE_INT8": 1, "TYPE_UINT8": 1, "TYPE_INT32": 4, "TYPE_FP32": 4}
_PLACEHOLDER = re.compile(r"\$\{([A-Z_]+)\}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?")
_NO_DEFAULT_PORT = re.compile(r"(?!http://.*:80\Z|https://.*:443\Z).*")
LARGEST_PORT = 65_535
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}|unix:/[^\s;{}\"'\\$]+")
_MAX_SOCKET_PATH = 107  # of Linux
_MODEL = re.compile(r"[A-Za-z0-9_-]+")
_SECRET = re.compile(r"[!#-\[\]-~]+")


@dataclass(frozen=True)
class NginxSettings:
    """What an operator decides, in nginx's words.

    Attributes:
        listen: address and port for devices.
        certificate: file of the certificate and those that signed it, PEM.
        key: file of its private key.
        upstream: address and port of the tritonserver's HTTP.
        secret_file: what `secret_line` wrote.
        origins: web pages of these origins may call.
        rate: calls that one address may make in a second.
        status: address and port of the figures for monitoring.
        access_log: file.
        tls: False for pages on this machine alone.
    """

    listen: str
    certificate: str
    key: str
    upstream: str
    secret_file: str
    origins: tuple[str, ...] = ()
    rate: int = DEFAULT_RATE
    status: str = "127.0.0.1:9113"
    access_log: str = "/dev/stdout"
    tls: bool = True


def nginx_config(repository: Repository, settings: NginxSettings) -> str:
    """The configuration of a gateway to the server of this folder.

    Args:
        repository: The server's folder of a release, checked: it decides the paths and the longest message.
        settings: What the operator decides.

    Raises:
        ServeError: A setting is not what nginx can take, or two addresses are one.
    """
    addresses = [settings.listen, settings.upstream, settings.status]
    if len(set(addresses)) < len(addresses):
        msg = (
            f"devices at {settings.listen}, tritonserver at {settings.upstream} and figures at {settings.status}: "
            "these are three addresses, each for itself"
        )
        raise ServeError(msg)
    models = [model.name for model in repository.models]
    values = {
        "LISTEN": _address(settings.listen) + (" ssl http2" if settings.tls else ""),
        "CERTIFICATE": _path(settings.certificate),
        "KEY": _path(settings.key),
        "UPSTREAM": _address(settings.upstream),
        "SECRET_FILE": _included(settings.secret_file),
        "ORIGINS": "\n".join(
            f'        "{each}" "{each}";' for each in map(check_origin, dict.fromkeys(settings.origins))
        ),
        "RATE": str(settings.rate),
        "MODELS": "|".join(_checked(name, _MODEL, "is not a model's name") for name in models),
        "MAX_BODY": str(longest_message(repository)),
        "BODY_BUFFER": str(longest_message(repository) + 1),
        "STATUS": _address(settings.status),
        "ACCESS_LOG": _path(settings.access_log),
    }
    return _PLACEHOLDER.sub(lambda found: values[found[1]], TEMPLATE.read_text(encoding="utf-8"))


def longest_message(repository: Repository) -> int:
    """Bytes of the longest request of any of its models: the largest batch, and the JSON before it."""
    sizes = []
    for config in (model.config for model in repository.models):
        one = sum(prod(tensor.dims) * _BYTES[_type_name(tensor)] for tensor in config.input)
        sizes.append(max(config.max_batch_size, 1) * one)
    return max(sizes) + _JSON_ROOM


def secret_line(secret: str) -> str:
    """What the file of `NginxSettings.secret_file` holds: the header that tritonserver asks the gateway for.

    Raises:
        ServeError: The secret has characters that a header or nginx cannot have.
    """
    if not _SECRET.fullmatch(secret) or "$" in secret:
        msg = "the gateway's secret has blanks, quotes, $ or backslashes: make one with `openssl rand -hex 32`"
        raise ServeError(msg)
    return f'proxy_set_header {GATEWAY_HEADER} "{secret}";\n'


def check_origin(origin: str) -> str:
    """An origin as browsers send it.

    Raises:
        ServeError: It is not one.
    """
    _checked(origin, _ORIGIN, "is not an origin: write https://app.example, in lower case, without a path")
    return _checked(origin, _NO_DEFAULT_PORT, "has the port of its scheme, which browsers leave out: leave it out too")


def _type_name(tensor: object) -> str:
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2.DataType.Name(tensor.data_type)  # pyright: ignore[reportAttributeAccessIssue]


def _checked(text: str, form: re.Pattern[str], what: str) -> str:
    if not form.fullmatch(text):
        msg = f"{text!r} {what}"
        raise ServeError(msg)
    return text


def _address(text: str) -> str:
    """HOST:PORT, or a socket's path, which the kernel takes up to a length alone."""
    _checked(text, _ADDRESS, "is not HOST:PORT")
    port = "1" if text.startswith("unix:") else text.rpartition(":")[2]
    if not 1 <= int(port) <= LARGEST_PORT:
        msg = f"{text!r} has no port from 1 to {LARGEST_PORT}: name another"
        raise ServeError(msg)
    if text.startswith("unix:") and len(text.removeprefix("unix:").encode()) > _MAX_SOCKET_PATH:
        msg = (
            f"{text!r} is longer than the {_MAX_SOCKET_PATH} bytes of a socket's path: name a shorter one, or set "
            "TMPDIR to a folder with a shorter name"
        )
        raise ServeError(msg)
    return text


def _path(text: str) -> str:
    """A path as nginx reads it, between quotes."""
    if any(each in '"\\$\n\r' for each in text) or not text:
        msg = f"{text!r} has a character that a path in nginx's configuration cannot have: give it another name"
        raise ServeError(msg)
    return f'"{text}"'


def _included(text: str) -> str:
    """A path behind `include`, which takes a pattern too, and nothing where it fits no file."""
    if any(each in "*?[" for each in text):
        msg = f"{text!r} has *, ? or [, which nginx reads as a pattern: give it another name"
        raise ServeError(msg)
    return _path(text)
