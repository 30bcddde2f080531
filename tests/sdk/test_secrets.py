"""What a caller passes in the wrong place is in no error: not in its text, its arguments, or what it is chained to."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from privdfs import TLS, Bundle, BundleStore, Client, ConfigError, Error, Queries, Retries, Server, Token, UserKey
from privdfs._config import check_min_answers, check_servers, check_timeout, check_wait
from privdfs._given import shown
from privdfs._leakage import refuse_leakage

_SIGNER = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PRIVATE = _SIGNER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
PUBLIC = _SIGNER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

#: Text that a caller may pass where something else is expected, and the part of it that no error may hold.
SECRETS = {
    "private key": (PRIVATE, PRIVATE.splitlines()[1]),
    "its inside": (PRIVATE.splitlines()[1], PRIVATE.splitlines()[1]),
    "user key": ("00112233445566778899aabbccddeeff", "8899aabb"),
    "token": ("ghp_A1b2C3d4E5f6G7h8I9j0K1l2M3n4", "C3d4E5f6"),
    "password": ("user:zz-secret@a.example:8001", "zz-secret"),
    "address": ("https://user:zz-secret@a.example/client", "zz-secret"),
    "token as a user": ("https://zz-secret@a.example:8001", "zz-secret"),
    "password with a slash": ("https://user:zz/secret@a.example", "secret@"),
    "query": ("https://a.example/?token=zz-secret", "zz-secret"),
    "two lines": ("zz\nzz", "zz\nzz"),
    "NUL": ("zz\0zz", "zz\0"),
    "not UTF-8": ("zz\ud800", "zz\ud800"),
    "image": ("data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 40, "iVBORw0KGgo"),
}

#: Every place that takes text and can refuse it.
PLACES: dict[str, Callable[[Any, Path], object]] = {
    "TLS ca": lambda text, _: TLS(ca=text).read(),
    "TLS pin": lambda text, _: TLS(pin=text).read(),
    "TLS cert": lambda text, _: TLS(cert=text, key=trustme.CA().issue_cert("a").private_key_pem.bytes()).read(),
    "TLS key": lambda text, _: TLS(cert=trustme.CA().cert_pem.bytes(), key=text).read(),
    "TLS key path": lambda text, _: TLS(cert=trustme.CA().cert_pem.bytes(), key=Path(text)).read(),
    "header": lambda text, _: Token("a", header=text + "A\n"),
    "endpoint": lambda text, _: Server(text, tls=TLS()),
    "server": lambda text, _: check_servers([text, text], 2),
    "tls": lambda text, _: Server("a.example:1", text),
    "insecure": lambda text, _: Server("a.example:1", insecure=text),
    "trust": lambda text, release: Bundle.open(release / "client", trust=text),
    "trust in a list": lambda text, release: Bundle.open(release / "client", trust=[text]),
    "trust path": lambda text, release: Bundle.open(release / "client", trust=Path(text)),
    "allow_unsigned": lambda text, release: Bundle.open(release / "client", allow_unsigned=text),
    "bundle": lambda text, _: Bundle.open(text, allow_unsigned=True),
    "release": lambda text, _: Client.local(text),
    "store": lambda text, _: BundleStore(text, allow_unsigned=True).open(),
    "source": lambda text, release: BundleStore(release.parent / "store", allow_unsigned=True).install(text),
    "image": lambda text, release: Client.local(release).predict(text),
    "images": lambda text, release: Client.local(release).predict_batch([text]),
    "user key": lambda text, _: UserKey(text + "0"),
    "user key's file": lambda text, _: UserKey.read(text),
    "timeout": lambda text, _: check_timeout(text),
    "min_answers": lambda text, _: check_min_answers(text, 3),
    "wait": lambda text, _: check_wait(text),
    "attempts": lambda text, _: Retries(attempts=text),
    "hedge_after": lambda text, _: Retries(hedge_after=text),
    "hedge_budget": lambda text, _: Retries(hedge_budget=text),
    "budget": lambda text, _: Queries(budget=text),
    "repeats": lambda text, _: Queries(repeats=text),
    "canary_rate": lambda text, _: Queries(canary_rate=text),
    "spent": lambda text, _: Queries(spent=text),
    "a key of spent": lambda text, _: Queries(spent={text: 1}),
    "the file of counts": lambda text, _: Queries.load(Path("none") / text),
    "where counts are saved": lambda text, _: Queries().save(Path("none") / text),
    "max_leakage_db": lambda text, release: refuse_leakage(
        Bundle.open(release / "client", allow_unsigned=True).manifest, text
    ),
}


def everything(error: BaseException | None) -> str:
    """All that an error, and those it came of, would print or log, whether Python hides them or not."""
    told = ""
    while error is not None:
        told += "".join(traceback.format_exception(error)[-1:]) + repr(error) + str(error) + repr(error.args)
        error = error.__cause__ or error.__context__
    return told


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("secret", SECRETS)
def test_no_error_repeats_what_may_be_a_secret(release: Path, tmp_path: Path, place: str, secret: str) -> None:
    text, inside = SECRETS[secret]
    with pytest.raises(Error) as caught:
        PLACES[place](text, release)
    told = everything(caught.value)
    assert inside not in told
    assert repr(inside)[1:-1] not in told


def test_values_that_are_no_text_are_not_shown_either(release: Path, images: np.ndarray) -> None:
    for value in (images, [1.5] * 9, b"zzzz", {"zzzz": 1}, 10**5000, object()):
        for place in ("timeout", "min_answers", "wait", "attempts", "repeats", "insecure", "tls", "endpoint", "trust"):
            with pytest.raises(ConfigError) as caught:
                PLACES[place](value, release)
            assert len(str(caught.value)) < 250
            assert "zzzz" not in everything(caught.value)


def test_keys_and_certificates_may_be_given_as_text(release: Path) -> None:
    own = trustme.CA().issue_cert("device.example")
    cert, key = own.cert_chain_pems[0].bytes(), own.private_key_pem.bytes()
    text = TLS(ca=cert.decode(), cert=cert.decode(), key=key.decode())
    assert text == TLS(ca=cert, cert=cert, key=key)
    assert text.read() == TLS(ca=cert, cert=cert, key=key).read()
    assert TLS(pin=cert.decode()).read().pinned
    assert "BEGIN" not in repr(Server("a.example:1", text))
    with pytest.raises(Error, match="not signed"):  # the key was read
        Bundle.open(release / "client", trust=PUBLIC)


def test_a_private_key_to_trust_is_refused_as_what_it_is(release: Path, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(PRIVATE)
    for key in (PRIVATE, PRIVATE.encode(), tmp_path / "key.pem"):
        with pytest.raises(ConfigError, match="is a private key"):
            Bundle.open(release / "client", trust=key)


def test_names_of_files_are_shown(tmp_path: Path) -> None:
    for name in ("ca.pem", "/etc/ssl/certs/ca-certificates.crt", "C:\\Users\\me\\release-key.pub.pem",
                 "model_repository/fashion-resnet20-keyed/client", str(tmp_path / "none.pem"), "/run/secrets/ca",
                 "bundle-0123456789abcdef", "größe.pem", "a b.pem", "https://a.example/releases/7/client"):  # fmt: skip
        assert shown(name) == shown(Path(name)).replace("https:/", "https://") == repr(name)
    assert "none.pem" in repr(TLS(ca=tmp_path / "none.pem"))


@pytest.mark.parametrize("field", ["ca", "cert", "key", "pin"])
@pytest.mark.parametrize("value", ["", "a\0b", "a" * 300, 5, True, ["ca.pem"], bytearray(b"-----BEGIN ")])
def test_fields_of_tls_are_checked_when_it_is_made(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"TLS {field}"):
        TLS(**{field: value})
