"""Every error that building, checking or serving a release raises on purpose.

    privdfs.Error
    └── ExportError                        catch this one to catch them all
        ├── ParityError                    a graph or an engine does not compute what it should
        ├── EngineError                    a TensorRT engine cannot be made or used
        │   ├── PrecisionError             unknown precision, or one that the graph cannot have
        │   ├── EngineGraphError           no TensorRT can build an engine of the graph
        │   ├── TensorRTMissingError       TensorRT or a GPU is missing
        │   ├── EngineBuildError           TensorRT refused to build (`.messages` says why)
        │   └── EngineMismatchError        a plan is damaged, or of another TensorRT or GPU
        ├── RepositoryError                a server's folder contradicts itself: configuration, graph, manifest
        └── ServeError                     a release cannot be served here
            ├── TritonserverMissingError   no tritonserver was found
            ├── NginxMissingError          no nginx was found
            └── ProcessFailedError         a process ended, or did not get ready (`.log` says why)
                ├── TritonserverFailedError
                └── NginxFailedError

As in the SDK, every error can be pickled, says what to do next, and never holds a tensor or an image.
"""

from privdfs._errors import Error


class ExportError(Error):
    """Base of the errors of this package."""


class ParityError(ExportError):
    """An exported graph or an engine does not compute what it should; nothing was written.

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


class EngineError(ExportError):
    """A TensorRT engine cannot be made or used."""


class PrecisionError(EngineError):
    """The precision is unknown, or the graph cannot have it."""


class EngineGraphError(EngineError):
    """The graph cannot become an engine: opset, type, batch size or operator."""


class TensorRTMissingError(EngineError):
    """TensorRT cannot be imported, or there is no GPU for it."""


class EngineBuildError(EngineError):
    """TensorRT refused to build an engine.

    Attributes:
        messages: TensorRT's errors.
    """

    def __init__(self, message: str, messages: tuple[str, ...]) -> None:
        super().__init__(message, messages)
        self.messages = messages


class EngineMismatchError(EngineError):
    """A plan is damaged, or was built by another TensorRT or for another GPU."""


class RepositoryError(ExportError):
    """A server's folder contradicts itself: its configuration, graph and manifest do not match."""


class ServeError(ExportError):
    """The release cannot be served here."""


class TritonserverMissingError(ServeError):
    """No tritonserver was found."""


class NginxMissingError(ServeError):
    """No nginx was found."""


class ProcessFailedError(ServeError):
    """A process ended by itself, or did not get ready in time.

    Attributes:
        log: path of its log.
    """

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message, log)
        self.log = log


class TritonserverFailedError(ProcessFailedError):
    """A tritonserver ended by itself, or did not get ready in time."""


class NginxFailedError(ProcessFailedError):
    """An nginx ended by itself, or did not get ready in time."""
