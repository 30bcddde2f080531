"""Files of a release, read and compared with the SHA-256 that a manifest lists.

Listed paths are relative, in posix form, and cannot leave the folder of the manifest. Symbolic links are refused.
"""

import hashlib
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from privdfs._errors import BundleFormatError, BundleIntegrityError
from privdfs._format import MANIFEST_NAME, SIGNATURE_NAME
from privdfs._given import check_path, shown

#: Files that describe a folder and therefore cannot be listed in its manifest.
_UNLISTABLE = frozenset({MANIFEST_NAME, SIGNATURE_NAME})
#: A manifest is a few kilobytes; a larger file is refused before it is parsed.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


@contextmanager
def reading(folder: Path) -> Generator[None, None, None]:
    """Errors of the disk, and of permissions, as one of ours."""
    try:
        yield
    except OSError as error:
        path = Path(os.fsdecode(error.filename or folder))
        raise BundleIntegrityError(
            f"{shown(path)} cannot be read ({error.strerror or type(error).__name__}): check its permissions and the "
            "disk",
            path.name,
        ) from error


def read_manifest_bytes(folder: Path) -> bytes:
    """Read the bytes of `manifest.json` in a folder.

    Raises:
        BundleIntegrityError: it is missing, not an ordinary file, or cannot be read.
        BundleFormatError: it is too large to be a manifest.
    """
    path = check_path(folder, "the folder") / MANIFEST_NAME
    if os.path.islink(path) or not os.path.isfile(path):  # noqa: PTH113, PTH114 - those of pathlib raise
        raise _no_manifest(path)
    with reading(path), path.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleFormatError(
            f"{path} is larger than {MAX_MANIFEST_BYTES} bytes and cannot be a manifest: get the release again"
        )
    return data


def _no_manifest(path: Path) -> BundleIntegrityError:
    """What to say where it is not, or not for us to see."""
    folder = path.parent
    with reading(folder):
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):
            path.lstat()
        if folder.is_file():
            advice = f"{shown(folder)} is a file: give the folder that it lies in"
        elif (folder.parent / MANIFEST_NAME).is_file():
            advice = f"{shown(folder.parent)} is one folder of a release: give the release, the folder above it"
        else:
            advice = f"there is no {MANIFEST_NAME} in {shown(folder)}: give the folder that the exporter wrote, whole"
    return BundleIntegrityError(advice, MANIFEST_NAME)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check every listed file of a folder against its SHA-256.

    Args:
        folder: where the manifest lies.
        files: the manifest's `files`: relative posix path -> SHA-256 in hex.

    Raises:
        BundleIntegrityError: a file is missing, changed, a symbolic link or unreadable, or its path leaves the folder.
    """
    with reading(folder):
        for name, expected in files.items():
            _compare(name, expected, sha256_file(_locate(folder, name, expected)))


def read_verified(folder: Path, files: Mapping[str, str]) -> dict[str, bytes]:
    """Read every listed file once and check the very bytes that are returned, so that no later change can slip in.

    Raises:
        BundleIntegrityError: as for `verify_files`.
    """
    contents: dict[str, bytes] = {}
    with reading(folder):
        for name, expected in files.items():
            data = _locate(folder, name, expected).read_bytes()
            check_digest(name, expected, data)
            contents[name] = data
    return contents


def check_digest(name: str, expected: str, data: bytes) -> None:
    """Compare the bytes of a listed file with its SHA-256.

    Raises:
        BundleIntegrityError: they differ.
    """
    _compare(name, expected, hashlib.sha256(data).hexdigest())


def refuse_unlisted(folder: Path, files: Mapping[str, str]) -> None:
    """Check that a folder holds nothing that its manifest does not list.

    Triton serves whatever lies in a model repository (a folder `2/` beside `1/` is a newer version of the model), so
    an added file is as serious as a changed one. It does not start on an empty folder.

    Raises:
        BundleIntegrityError: there is an unlisted file, or an empty folder; or something cannot be read.
    """
    with reading(folder):
        found = [path.relative_to(folder).as_posix() for path in _walk(folder)]
    for name in found:
        if name not in files and name not in _UNLISTABLE:
            raise BundleIntegrityError(
                f"{name} is not listed in the manifest of {folder}: delete it, or get the release again", name
            )


def _walk(folder: Path) -> Iterator[Path]:
    """All files and empty folders below a folder, in a stable order; symbolic links are not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and any(path.iterdir()):
            yield from _walk(path)
        else:
            yield path


def _locate(folder: Path, name: str, expected: str) -> Path:
    """Path of a listed file, which is an ordinary file inside the folder."""
    check_listed_path(name)
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            raise BundleIntegrityError(
                f"{name} is a symbolic link, which releases never contain: get the release again", name, expected
            )
    if not path.is_file():
        raise BundleIntegrityError(f"{name} is missing from {folder}: get the release again, whole", name, expected)
    return path


def _compare(name: str, expected: str, actual: str) -> None:
    if actual != expected:
        raise BundleIntegrityError(
            f"{name} is not the file that the manifest lists (SHA-256 {actual}, expected {expected}): "
            "it was changed or belongs to another release; get the release again",
            name,
            expected,
            actual,
        )


def check_listed_path(name: str) -> None:
    """Refuse a path that is not relative, not in plain posix form, or leaves the folder."""
    path = PurePosixPath(name)
    plain = path.as_posix() == name and not path.is_absolute() and "\\" not in name and ":" not in name
    if not plain or ".." in path.parts or name in {"", "."} or "\0" in name or name in _UNLISTABLE:
        raise BundleIntegrityError(
            f"the manifest lists {name!r}, which is not a plain path inside its folder: get the release again", name
        )
