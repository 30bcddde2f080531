"""Which class speaks which wire; the libraries of a wire are imported with the first server that needs them."""

import importlib
from typing import TYPE_CHECKING

from privdfs._errors import ConfigError

if TYPE_CHECKING:
    from privdfs._config import WireName
    from privdfs._wire import Connection


def connection_class(wire: "WireName") -> "type[Connection]":
    """The class of a wire's connections, with all that its first call would otherwise wait for.

    Raises:
        ConfigError: the libraries of the wire are not installed.
    """
    if wire == "http":
        from privdfs._http import HttpConnection

        return HttpConnection
    from privdfs import _messages as messages
    from privdfs._grpc import GrpcConnection

    try:
        importlib.import_module("h2.connection")
        messages.message_class("ModelInferRequest")
    except ImportError as error:
        raise ConfigError(
            "the servers are to be called by gRPC, whose libraries are not installed: pip install 'privdfs[grpc]', or "
            'give the servers\' HTTP endpoints, Server("https://…")'
        ) from error
    return GrpcConnection
