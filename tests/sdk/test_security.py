"""What a failed handshake is said to mean, and where OpenSSL reads a secret."""

import os
import ssl
from pathlib import Path

import pytest

from privdfs._security import Security, _as_file, explain


def failure(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "handshake failed")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("reason", "named", "meaning", "advice"),
    [
        ("WRONG_VERSION_NUMBER", False, "does not speak TLS", "start the server with TLS"),
        ("HTTP_REQUEST", False, "does not speak TLS", "check the port"),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", False, "does not accept", "a certificate of this device, TLS(cert="),
        ("TLSV1_ALERT_UNKNOWN_CA", True, "does not accept", "give another one"),
        ("NO_SHARED_CIPHER", False, "could not agree on TLS (NO_SHARED_CIPHER)", "a cipher"),
    ],
)
def test_a_failed_handshake_is_explained(reason: str, named: bool, meaning: str, advice: str) -> None:  # noqa: FBT001
    security = Security(ssl.create_default_context(), frozenset(), "the authorities of this system", named)
    said, told = explain(failure(reason), security)
    assert meaning in said
    assert advice in told


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_secret_can_be_read_by_this_user_alone_and_is_gone_afterwards(
    in_memory: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if not in_memory:
        monkeypatch.delattr(os, "memfd_create")
    with _as_file(b"secret") as path:
        assert Path(path).read_bytes() == b"secret"
        files = list(tmp_path.iterdir())
        assert [file.stat().st_mode & 0o777 for file in files] == ([] if in_memory else [0o600])
    assert list(tmp_path.iterdir()) == []
    assert not Path(path).exists()
