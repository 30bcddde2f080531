"""`privdfs-export keygen KEY.pem`: make the pair of keys that releases are signed with and devices trust.

`KEY.pem` is the private key (Ed25519, PKCS#8, readable by its owner alone), `KEY.pub.pem` the public one. A file
that is there already is never overwritten.
"""

import argparse
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from privdfs._signature import key_id
from privdfs_export.errors import ExportError
from privdfs_export.sign import read_password

DESCRIPTION = "Make a key to sign releases with, and the public key that devices trust."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("key", type=Path, metavar="KEY.pem", help="the private key; KEY.pub.pem is the public one")
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="encrypt the private key with its first line"
    )


def run(options: argparse.Namespace) -> None:
    """Make the keys, and print what to do with them.

    Args:
        options: Of the command line.

    Raises:
        ExportError: A file exists already or cannot be written; nothing was changed.
    """
    password = None if options.password_file is None else read_password(options.password_file)
    public, name = make_keys(options.key, password)
    print(f"{options.key}: private key {name}. Keep it off devices and servers, and keep a copy in a safe place.")
    print(f'{public}: public key. Give it to devices: trust="{public.name}".')
    print(f"next: privdfs-export sign RELEASE --key {options.key}")


def make_keys(path: Path, password: bytes | None = None) -> tuple[Path, str]:
    """Make a pair of keys.

    Args:
        path: Of the private key.
        password: Encrypts it; None leaves it unencrypted.

    Returns:
        The path of the public key, and the id by which signatures name it.

    Raises:
        ExportError: The password is empty, or a file exists already or cannot be written; nothing was changed.
    """
    if password == b"":
        raise ExportError("the password is empty. Put one into the first line of its file, or leave the option out.")
    key = Ed25519PrivateKey.generate()
    locked = NoEncryption() if password is None else BestAvailableEncryption(password)
    public = path.with_name(f"{path.name.removesuffix('.pem')}.pub.pem")
    _write_new(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked), 0o600)
    try:
        _write_new(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    except BaseException:
        path.unlink()
        raise
    return public, key_id(key.public_key())


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is not there yet, whole or not at all."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ExportError(f"{path} exists already, and a key is never overwritten. Choose another name.") from error
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}. Check the folder and its permissions.") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink()
        raise ExportError(f"cannot write {path}: {error.strerror}. Free some disk space.") from error
