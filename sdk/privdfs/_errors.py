"""Every error the SDK raises on purpose.

    Error                            catch this one to catch them all
    ├── ConfigError                  the call itself is wrong: servers, TLS, timeouts, a closed client
    ├── ImageError                   the picture cannot be used (nothing was sent)
    ├── BundleError                  the release on disk cannot be used (nothing was sent)
    │   ├── BundleVersionError       its manifest has a format this version of privdfs does not read
    │   ├── BundleFormatError        the manifest or a graph does not have the promised shape
    │   ├── BundleIntegrityError     a file is missing, changed, or not listed
    │   ├── BundleSignatureError     no trusted key has signed it
    │   ├── BundleStoreError         a store of bundles is empty, full or damaged, or a download failed
    │   ├── LeakageError             it leaks more than `max_leakage_db`, or that was not measured
    │   └── SelfTestError            the golden examples do not give the recorded results
    ├── QueryBudgetError             the key has asked for too much already (nothing was sent)
    ├── DeadlineExceededError        the time ran out on the device, before anything was sent
    ├── ServerError                  one server gave no usable answer (`.server` says which)
    │   ├── ServerTimeoutError       it did not answer before the deadline
    │   ├── ServerUnavailableError   it could not be reached, or refused the request
    │   │   └── ServerBusyError      its queue is full: it said so at once
    │   ├── ServerMismatchError      it serves another release, or it is another server of this one
    │   └── AnswerError              its answer is not a valid one
    ├── CanaryError                  an image whose answer is known came back with another one: a server lies
    ├── NotEnoughAnswersError        fewer servers than asked for answered (`.causes` says why, by server)
    ├── ContradictingAnswersError    coded shares: a server lies, and it cannot be told which (`.answered` has them all)
    └── RandomnessError              coded shares: the system's random generator failed (nothing of that round was sent)

Catch `NotEnoughAnswersError` to retry or to fall back; catch `ImageError` to skip one picture; the others are for the
person who deploys the application. `ServerError` and its children are found inside `NotEnoughAnswersError.causes`.

Every error can be pickled with its fields, says in its message what to do next, and never holds a tensor, a share or
an image.
"""

from collections.abc import Mapping


class Error(Exception):
    """Base of every error of this package.

    Subclasses pass all constructor arguments to `Exception`, in order; this makes them picklable.
    """

    def __init__(self, message: str, *fields: object) -> None:
        super().__init__(message, *fields)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(Error):
    """The arguments of a call or of a client are wrong; nothing was sent."""


class ImageError(Error):
    """The image cannot be used; nothing was sent."""


class BundleError(Error):
    """The bundle, or a server's folder, cannot be used. Base of the errors about releases on disk."""


class BundleVersionError(BundleError):
    """The manifest has a format version that this version of privdfs does not read."""

    def __init__(self, message: str, found: object, supported: int) -> None:
        super().__init__(message, found, supported)
        self.found = found
        self.supported = supported


class BundleFormatError(BundleError):
    """The manifest, a graph or the golden file does not have the shape that the format promises."""


class BundleIntegrityError(BundleError):
    """A file is missing, differs from what the manifest lists, or is not listed.

    Attributes:
        file: path relative to the folder of the manifest.
        expected: the SHA-256 that the manifest lists (hex), None for a file that it does not list.
        actual: the SHA-256 of the file found (hex), None when it was not read.
    """

    def __init__(self, message: str, file: str, expected: str | None = None, actual: str | None = None) -> None:
        super().__init__(message, file, expected, actual)
        self.file = file
        self.expected = expected
        self.actual = actual


class BundleSignatureError(BundleError):
    """No trusted key has signed the manifest.

    Attributes:
        key: id of the key that the signature names, None where there is no signature.
    """

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message, key)
        self.key = key


class BundleStoreError(BundleError):
    """A bundle cannot be fetched, or a store of bundles cannot be read or written; the bundle in use is whole."""


class LeakageError(BundleError):
    """The release leaks more than `max_leakage_db` allows, or its manifest does not say how much.

    Attributes:
        measured: dB above the class mean, of the worst minority coalition; None: not measured.
        allowed: what `max_leakage_db` was.
    """

    def __init__(self, message: str, measured: float | None = None, allowed: float | None = None) -> None:
        super().__init__(message, measured, allowed)
        self.measured = measured
        self.allowed = allowed


class SelfTestError(BundleError):
    """On this device the golden examples do not give the recorded results."""


class QueryBudgetError(Error):
    """`Queries` refuses to send this image: the budget of its key is spent, or it was sent under another key.

    Attributes:
        spent: images that the key has asked for; None where the budget is not the reason.
        budget: how many it may.
    """

    def __init__(self, message: str, spent: int | None = None, budget: int | None = None) -> None:
        super().__init__(message, spent, budget)
        self.spent = spent
        self.budget = budget


class DeadlineExceededError(Error):
    """The time ran out on the device, before anything was sent."""


class ServerError(Error):
    """One server gave no usable answer.

    Attributes:
        server: index of the server in the release, 0..N-1.
    """

    def __init__(self, message: str, server: int) -> None:
        super().__init__(message, server)
        self.server = server


class ServerTimeoutError(ServerError):
    """The server did not answer before the deadline."""


class ServerUnavailableError(ServerError):
    """The server could not be reached, or refused the request."""


class ServerBusyError(ServerUnavailableError):
    """The server runs, and refused the request at once, because its queue is full."""


class ServerMismatchError(ServerError):
    """The endpoint serves another release, or another server of this one; it was sent no share.

    But for one that passed the check, and unloaded its model before the share came.
    """


class AnswerError(ServerError):
    """The server answered with a wrong tensor: its name, type, shape or values cannot be an answer."""


class CanaryError(Error):
    """An image whose answer is known came back with another one: a server lies or is faulty, and it is unknown which.

    Attributes:
        answered: indices of the servers, one or more of which gave the wrong answer.
    """

    def __init__(self, message: str, answered: tuple[int, ...] = ()) -> None:
        super().__init__(message, answered)
        self.answered = answered


class NotEnoughAnswersError(Error):
    """Fewer servers answered than the call asked for.

    Attributes:
        causes: what went wrong, by server index.
        answered: indices of the servers that did answer.
        needed: how many answers the call asked for.
    """

    def __init__(self, message: str, causes: Mapping[int, ServerError], answered: tuple[int, ...], needed: int) -> None:
        super().__init__(message, dict(causes), answered, needed)
        self.causes: dict[int, ServerError] = dict(causes)
        self.answered = answered
        self.needed = needed


class ContradictingAnswersError(Error):
    """Answers of a coded release contradict each other, and too few servers answered to tell which of them lie.

    Or too few are left to decode from without the servers that gave wrong answers in earlier rounds of the call.

    Attributes:
        answered: indices of the servers that answered; at least one of them lies or is faulty.
        round: counted from 1. Nothing of a later round was sent.
    """

    def __init__(self, message: str, answered: tuple[int, ...], round: int) -> None:  # noqa: A002 - the field's word
        super().__init__(message, answered, round)
        self.answered = answered
        self.round = round


class RandomnessError(Error):
    """The system's random generator failed while shares were made; they were not sent."""
