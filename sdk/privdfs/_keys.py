"""User keys: which partition of a keyed release a user's images are split with.

A keyed release has a public family of partitions. Each deals the same values to the servers in another way. A user's
key picks one of them:

    partition = HMAC-SHA256(key, "privdfs partition" || family id), its first 8 bytes as a big-endian number, mod P

with the family id as its 16 bytes. The bias of that remainder is below P / 2**64. Guarantees:

- The index of the partition is sent, since a server needs it to put values back in place. The key is never sent. The
  index reveals at most log2 P bits, of the hash and not of the key.
- One key and one image always give the same shares, so asking again teaches a server nothing more.
- A key is in no log line, repr or error. A client keeps the index alone.

docs/THREAT_MODEL.md says what this protects from, and what it does not.
"""

import hashlib
import hmac
import re
from os import PathLike
from typing import TYPE_CHECKING

from privdfs._errors import ConfigError
from privdfs._format import KeySpec
from privdfs._given import read_file

if TYPE_CHECKING:
    from typing_extensions import Self

KEY_BYTES = 16
_CONTEXT = b"privdfs partition"
_DIGITS = re.compile(rf"[0-9A-Fa-f]{{{2 * KEY_BYTES}}}")


class UserKey:
    """The secret of one user, 128 bits. Make it once with `secrets.token_bytes(16)` and keep it with the user's data.

    Args:
        secret: the 16 bytes, or 32 hexadecimal digits.

    Raises:
        ConfigError: another type or length, or a string that is not hexadecimal.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes | str) -> None:
        self._secret = _check_secret(secret)

    @classmethod
    def read(cls, path: str | PathLike[str]) -> "Self":
        """Read a key from a file of 32 hexadecimal digits.

        Raises:
            ConfigError: the file cannot be read or holds no key; the path is not shown, since it may be the key.
        """
        data = read_file(path, "the user key", secret=True)
        return cls(data.decode("ascii", "replace").strip())

    def __repr__(self) -> str:
        return "UserKey(…)"

    def partition(self, keys: KeySpec) -> int:
        """Index of the partition that this key picks of a family."""
        digest = hmac.digest(self._secret, _CONTEXT + bytes.fromhex(keys.family), hashlib.sha256)
        return int.from_bytes(digest[:8], "big") % keys.partitions


def partition_of(key: UserKey | bytes | None, keys: KeySpec | None) -> int | None:
    """The partition that a user's images are split with; None for a release without keys.

    Args:
        key: the user's, as a `UserKey` or its bytes.
        keys: what the release says of its family.

    Raises:
        ConfigError: a keyed release and no key, a key for a release without keys, or an invalid key.
    """
    if keys is None:
        if key is not None:
            raise ConfigError("the release has no keys, but a user key was given: leave `key` out")
        return None
    if key is None:
        raise ConfigError(
            f"the release has {keys.partitions} partitions and needs the user's key: pass key=UserKey(…), always the "
            "same for one user"
        )
    return (key if isinstance(key, UserKey) else UserKey(key)).partition(keys)


def check_partition(partition: object, keys: KeySpec | None) -> None:
    """Check a partition index against a release.

    Raises:
        ConfigError: an index for a release without keys, none for a keyed one, or one outside the family.
    """
    if keys is None:
        if partition is not None:
            raise ConfigError("the release has no keys: leave `partition` out")
    elif type(partition) is not int or not 0 <= partition < keys.partitions:
        raise ConfigError(
            f"the release has partitions 0 to {keys.partitions - 1}: pass one of them, as Bundle.partition gives it"
        )


def _check_secret(secret: object) -> bytes:
    """The 16 bytes of a key."""
    if isinstance(secret, str):
        if not _DIGITS.fullmatch(secret):
            raise ConfigError(
                f"the user key is text, but not {2 * KEY_BYTES} hexadecimal digits: pass those, or {KEY_BYTES} bytes, "
                "or read a file of them with UserKey.read"
            )
        return bytes.fromhex(secret)
    if not isinstance(secret, bytes):
        raise ConfigError(f"a user key is bytes or text, not {type(secret).__name__}: pass {KEY_BYTES} bytes")
    if len(secret) != KEY_BYTES:
        raise ConfigError(
            f"the user key has {len(secret)} bytes, not {KEY_BYTES}: make one with secrets.token_bytes({KEY_BYTES})"
        )
    return secret
