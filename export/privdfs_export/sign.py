"""`privdfs-export sign DIR --key KEY`: sign a release, or one folder of it, so that devices can check who made it.

Every folder with a manifest gets a `manifest.sig` (`privdfs/_signature.py` has its format). What is signed is checked
first: every file against its manifest, and the folders against each other. `privdfs-export keygen` makes the keys;
keys made by OpenSSL work too.
"""

import argparse
import getpass
import os
import sys
import tempfile
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from privdfs._errors import ConfigError
from privdfs._files import read_manifest_bytes
from privdfs._format import MANIFEST_NAME, SIGNATURE_NAME
from privdfs._given import read_file
from privdfs._signature import check_signature, key_id, signature_line
from privdfs._verify import verify
from privdfs_export.errors import ExportError

#: Never a command that could overwrite a file, least of all the key that was named.
MAKE_ONE = "`privdfs-export keygen` makes a new key, and overwrites nothing."
DESCRIPTION = "Sign a release, or one folder of it, with an Ed25519 key."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("folder", type=Path, metavar="DIR", help="a release, or one folder of it")
    parser.add_argument(
        "--key",
        type=Path,
        required=True,
        metavar="PEM",
        help="Ed25519 private key (PKCS#8, with or without a password)",
    )
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="its password; without it, the terminal is asked"
    )


def run(options: argparse.Namespace) -> None:
    """Sign, and print what was signed.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: The release is not as its manifests say, the key cannot be used, or nothing can be written.
    """
    key = read_private_key(options.key, options.password_file)
    for folder in sign(options.folder, key):
        print(f"{folder}: signed with key {key_id(key.public_key())}")


def sign(path: Path, key: Ed25519PrivateKey) -> list[Path]:
    """Sign every folder of a release, or one folder.

    Args:
        path: A release, or a folder with a manifest.
        key: Whose public key devices trust.

    Returns:
        The folders signed.

    Raises:
        privdfs.BundleError: A file is not what its manifest says; nothing was signed.
        ExportError: A signature cannot be written.
    """
    verify(path)
    folders = [path] if (path / MANIFEST_NAME).exists() else sorted(p.parent for p in path.glob(f"*/{MANIFEST_NAME}"))
    for folder in folders:
        manifest = read_manifest_bytes(folder)
        _write(folder / SIGNATURE_NAME, signature_line(manifest, key))
        check_signature(folder, manifest, key.public_key().public_bytes_raw())
    return folders


def read_private_key(path: Path, password_file: Path | None = None) -> Ed25519PrivateKey:
    """Read a private key.

    Args:
        path: PEM file, PKCS#8.
        password_file: Its first line is the password; None means to ask at the terminal, if the key has one.

    Returns:
        The key.

    Raises:
        ExportError: A file cannot be read, the key is of another kind, or the password is missing or wrong.
    """
    data = _read(path, "the signing key")
    password = None if password_file is None else read_password(password_file)
    if password is None and b"BEGIN ENCRYPTED" in data:
        if not sys.stdin.isatty():
            message = f"{path} has a password, and there is no terminal to ask at. Pass --password-file."
            raise ExportError(message)
        password = getpass.getpass(f"Password of {path}: ").encode()
    try:
        key = load_pem_private_key(data, password)
    except (TypeError, ValueError, UnsupportedAlgorithm):  # their messages are about ASN.1
        message = (
            f"{path} cannot be opened: it is not a private key in PEM form (PKCS#8), or its password is missing, "
            f"wrong, or given without need. Check both files. {MAKE_ONE}"
        )
        raise ExportError(message) from None
    if not isinstance(key, Ed25519PrivateKey):
        message = f"{path} is a key of another kind, and releases are signed with Ed25519. {MAKE_ONE}"
        raise ExportError(message)
    return key


def read_password(path: Path) -> bytes:
    """Read the password of a key.

    Args:
        path: Its first line is the password.

    Returns:
        The password.

    Raises:
        ExportError: The file cannot be read.
    """
    # The password itself may have been given in the place of its file.
    return (_read(path, "the password", secret=True).splitlines() or [b""])[0]


def _read(path: Path, what: str, *, secret: bool = False) -> bytes:
    try:
        return read_file(path, what, secret=secret)
    except ConfigError as error:
        raise ExportError(error.message) from None


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=".manifest-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:  # Ctrl-C too
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}. Free some disk space, or check the permissions."
        raise ExportError(message) from error
