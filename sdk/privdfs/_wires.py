"""Which class speaks which wire; the libraries of a wire are imported with the first server that needs them."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privdfs._config import WireName
    from privdfs._wire import Connection


def connection_class(wire: "WireName") -> "type[Connection]":
    """The class of a wire's connections, with all that its first call would otherwise wait for."""
    if wire == "http":
        from privdfs._http import HttpConnection

        return HttpConnection
    from privdfs import _messages as messages
    from privdfs._grpc import GrpcConnection

    importlib.import_module("h2.connection")
    messages.message_class("ModelInferRequest")
    return GrpcConnection
