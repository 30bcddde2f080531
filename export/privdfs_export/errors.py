"""Every error that building or serving a release raises on purpose.

    privdfs.Error
    └── ExportError                        catch this one to catch them all
        └── ServeError                     a release cannot be served here, as asked
            ├── TritonserverMissingError   there is no tritonserver to serve it with
            └── TritonserverFailedError    a tritonserver ended, or did not get ready (`.log` says why)

As in the SDK, every error can be pickled, says what to do next, and never holds a tensor or an image.
"""

from privdfs._errors import Error


class ExportError(Error):
    """Base of the errors of this package."""


class ParityError(ExportError):
    """An exported graph does not compute what the trained network computes; nothing was written.

    Attributes:
        graph: which one.
        measured: how far it is off.
        allowed: how far it may be.
    """

    def __init__(self, message: str, graph: str, measured: float, allowed: float) -> None:
        super().__init__(message, graph, measured, allowed)
        self.graph = graph
        self.measured = measured
        self.allowed = allowed


class ServeError(ExportError):
    """The release cannot be served as asked."""


class TritonserverMissingError(ServeError):
    """No tritonserver was found."""


class TritonserverFailedError(ServeError):
    """A tritonserver ended by itself, or did not get ready in time.

    Attributes:
        log: path of the server's log.
    """

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message, log)
        self.log = log
