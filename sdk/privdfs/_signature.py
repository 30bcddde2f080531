"""Signatures of releases: Ed25519 over `manifest.json`, which lists the SHA-256 of every other file.

`manifest.sig` beside a manifest is one line of ASCII:

    ed25519 <id of the key, 16 hex digits> <signature, 128 hex digits>

The id is the beginning of the SHA-256 of the 32-byte public key. What is signed is `CONTEXT` followed by the bytes of
the manifest, so that a signature made for something else never fits. Guarantees:

- A manifest is parsed after its signature has been checked, and a file after its digest has: no parser, ONNX Runtime
  among them, sees a byte that the key's owner did not sign.
- There is one spelling of a signature file; any other is refused.
- Not guaranteed: that a release is the latest. Whoever can replace files can bring back an older signed one.
"""

import hashlib
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from privdfs._errors import BundleSignatureError, ConfigError
from privdfs._files import reading
from privdfs._format import SIGNATURE_NAME
from privdfs._given import is_pem, read_file, shown

#: A public key: the path of a PEM file, what is in one, or the key's 32 bytes; or several, one of which signed. A file
#: may have several, too, one after the other.
PublicKey: TypeAlias = str | PathLike[str] | bytes
Trust: TypeAlias = PublicKey | Sequence[PublicKey]

CONTEXT = b"privdfs manifest, signature 1\n"
KEY_BYTES = 32
#: More than a line has, so that a longer file is not taken for one.
MAX_SIGNATURE_BYTES = 4096
_END = b"-----END PUBLIC KEY-----"
_LINE = re.compile(rb"ed25519 (?P<key>[0-9a-f]{16}) (?P<signature>[0-9a-f]{128})\n")


def read_trust(trust: Trust) -> dict[str, Any]:
    """Public keys by their id.

    Raises:
        ConfigError: there is none, or one cannot be read or is not an Ed25519 key.
    """
    _check_type(trust, (str, bytes, PathLike, Sequence))
    listed: Sequence[PublicKey] = [trust] if isinstance(trust, (str, bytes, PathLike)) else list(trust)
    if not listed:
        raise ConfigError("no trusted key was given: pass the public key of the signer")
    return {key_id(found): found for key in listed for found in _read_public_keys(key)}


def key_id(public_key: Any) -> str:  # noqa: ANN401 - cryptography's Ed25519PublicKey
    """The id by which a signature names its key."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


def signature_line(manifest: bytes, private_key: Any) -> bytes:  # noqa: ANN401 - cryptography's Ed25519PrivateKey
    """What `manifest.sig` holds for a manifest."""
    signature: bytes = private_key.sign(CONTEXT + manifest)
    return f"ed25519 {key_id(private_key.public_key())} {signature.hex()}\n".encode()


def check_signature(folder: Path, manifest: bytes, trust: Trust, name: str | None = None) -> None:
    """Check that a trusted key signed a manifest.

    Args:
        folder: where `manifest.sig` lies.
        manifest: the bytes of `manifest.json`, as they were read and will be parsed.
        trust: one of these keys must have signed.
        name: what errors call the folder; by default its path.

    Raises:
        BundleSignatureError: there is no signature, or no trusted key made it for these bytes.
        ConfigError: a key cannot be read.
    """
    from cryptography.exceptions import InvalidSignature

    keys = read_trust(trust)
    path, name = folder / SIGNATURE_NAME, name or str(folder)
    if path.is_symlink() or not path.is_file():
        raise BundleSignatureError(
            f"{name} is not signed: get the signed release, or sign it (privdfs-export sign)", None
        )
    with reading(path), path.open("rb") as file:
        match = _LINE.fullmatch(file.read(MAX_SIGNATURE_BYTES))
    if match is None:
        raise BundleSignatureError(f"{name} has no {SIGNATURE_NAME} of this format: get the release again", None)
    named = match["key"].decode()
    if named not in keys:
        raise BundleSignatureError(
            f"{name} is signed with key {named}, which is not trusted here (trusted: {', '.join(keys)}): get the "
            "release from a signer that you trust, or add this key to the trusted ones",
            named,
        )
    try:
        keys[named].verify(bytes.fromhex(match["signature"].decode()), CONTEXT + manifest)
    except InvalidSignature:
        raise BundleSignatureError(
            f"the manifest of {name} is not the one that key {named} signed: it was changed; get the release again",
            named,
        ) from None


def _check_type(key: object, types: tuple[type, ...]) -> None:
    if not isinstance(key, types):
        raise ConfigError(f"the key to trust has the type {type(key).__name__}: pass the path of a public key's file")


def _read_public_keys(key: PublicKey) -> list[Any]:  # cryptography's Ed25519PublicKey
    """One, or those of a file that has several, one after the other."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    _check_type(key, (str, bytes, PathLike))
    if isinstance(key, bytes) and len(key) == KEY_BYTES:
        return [Ed25519PublicKey.from_public_bytes(key)]
    if is_pem(key):
        key = str(key).encode("utf-8", "replace")
    where = "the key to trust" if isinstance(key, bytes) else f"the key to trust, {shown(key)},"
    data = key if isinstance(key, bytes) else read_file(key, "the key to trust")
    if b"PRIVATE KEY-----" in data:
        raise ConfigError(
            f"{where} is a private key, which only signs: pass the public one (`openssl pkey -in KEY -pubout` makes "
            "it), and keep the private one away from devices"
        )
    *blocks, rest = data.split(_END)
    try:
        found = [load_pem_public_key(block + _END) for block in blocks if b"-----BEGIN" not in rest]
    except (ValueError, UnsupportedAlgorithm):
        found = []
    if not found or not all(isinstance(each, Ed25519PublicKey) for each in found):
        raise ConfigError(
            f"{where} is not an Ed25519 public key in PEM form: make it with `openssl pkey -in KEY -pubout`"
        )
    return list(found)
