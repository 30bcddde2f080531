"""What a caller passes: quoted in errors without secrets, and files read by name.

A key may be passed where its file is expected, a token where an endpoint is, an image where a number is. An error must
repeat none of them. Nor may the errors chained to it: the system's errors name the file. So whatever an error
quotes goes through `shown`, and files are read by `read_file`.
"""

import contextlib
import os
import re
import tempfile
from os import PathLike
from pathlib import Path
from typing import cast

from privdfs._errors import ConfigError

HIDDEN = "(not shown, it may be a secret)"
#: Keys, tokens, servers files and counts are far smaller.
MAX_GIVEN_BYTES = 1 << 20

_MAX_SHOWN = 200
#: What Linux allows; the system's error about a longer one would repeat it.
_MAX_PATH_BYTES, _MAX_NAME_BYTES = 4095, 255
_PEM = "-----BEGIN "
#: In addresses, what stands before an @ or in a query, and words that look random: hexadecimal, or a mix of both cases
#: and digits.
_CREDENTIALS = re.compile(r":.*@|^[^/\\]*@|:/+.*[?#]")
_RANDOM = re.compile(r"[0-9a-fA-F-]{16,}|(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])(?=[^0-9]*[0-9])[A-Za-z0-9+=_~-]{20,}")


def shown(value: object) -> str:
    """A value as errors quote it; what may be a secret, a tensor or an image is not quoted."""
    if value is None or type(value) in {bool, float}:
        return repr(value)
    if type(value) is int:
        return repr(value) if value.bit_length() <= 64 else "a huge number"
    text = _path_text(value)
    if text is None:
        return f"a value of type {type(value).__name__}"
    plain = text.isprintable() and len(text) <= _MAX_SHOWN and _PEM not in text and not _CREDENTIALS.search(text)
    if not plain or any(_RANDOM.fullmatch(word) for word in re.split(r"[/\\.,:;\s]", text)):
        return HIDDEN
    return repr(text)


def is_pem(value: object) -> bool:
    """Whether a text is a key or a certificate itself, where its file could also be named."""
    return isinstance(value, str) and _PEM in value


def check_path(path: object, what: str) -> Path:
    """A path that the system can be asked for.

    Raises:
        ConfigError: another type, or text that cannot be the name of a file.
    """
    text = _path_text(path)
    if text is None:
        raise ConfigError(f"{what} has the type {type(path).__name__}: pass the path of the file or folder")
    if not _is_path(text):
        raise ConfigError(f"{what} cannot be the name of a file: pass the path of the file or folder")
    return Path(text)


def check_flag(value: object, name: str) -> bool:
    """Check a switch: text such as "no" is true in Python, and would turn protection off.

    Raises:
        ConfigError: it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} has the type {type(value).__name__}: pass True or False")
    return value


def read_file(path: object, what: str, *, secret: bool = False) -> bytes:
    """Read a small file that a caller named.

    Args:
        path: of the file.
        what: its name in errors.
        secret: it holds a secret, which may have been passed in place of the path; so the path is not shown.

    Raises:
        ConfigError: it cannot be read, or is too large; without the system's error, which names the path.
    """
    checked = check_path(path, what)
    data, problem = b"", ""
    try:
        with checked.open("rb") as file:
            data = file.read(MAX_GIVEN_BYTES + 1)
    except OSError as error:
        problem = type(error).__name__
    where = "the file" if secret else f"the file {shown(checked)}"
    if problem:
        raise ConfigError(f"{what}: {where} cannot be read ({problem}): check the path and its permissions")
    if len(data) > MAX_GIVEN_BYTES:
        raise ConfigError(f"{what}: {where} has more than {MAX_GIVEN_BYTES} bytes: pass the right file")
    return data


def write_file(path: object, what: str, data: bytes) -> None:
    """Write a file that only this user can read, whole or not at all, down to the disk.

    Raises:
        ConfigError: it cannot be written; what was there before still is.
    """
    checked = check_path(path, what)
    problem = ""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{checked.name[:100]}-", dir=checked.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(checked)
        except OSError:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
        folder = os.open(checked.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        problem = type(error).__name__
    if problem:
        raise ConfigError(
            f"{what}: the file {shown(checked)} cannot be written ({problem}): check its folder, the permissions and "
            "the disk"
        )


def _path_text(value: object) -> str | None:
    """A text, or a path as text; None for anything else."""
    return os.fsdecode(cast("str | PathLike[str]", value)) if isinstance(value, (str, PathLike)) else None


def _is_path(text: str) -> bool:
    try:
        data = os.fsencode(text)
    except UnicodeError:
        return False
    lengths = map(len, data.split(b"/"))
    return b"\0" not in data and 0 < len(data) <= _MAX_PATH_BYTES and max(lengths) <= _MAX_NAME_BYTES
