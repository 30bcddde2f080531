"""Two signers, and a release's folders signed by one of them."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privdfs._signature import signature_line

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([i] * 32)) for i in (1, 2))
TRUST = KEY.public_key().public_bytes_raw()


def sign(folder: Path, key: Ed25519PrivateKey = KEY) -> None:
    (folder / "manifest.sig").write_bytes(signature_line((folder / "manifest.json").read_bytes(), key))


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
