"""Where a bundle is installed from: a folder, or an https address. Both give the bytes of one file by its name.

Guarantees: no more than the limit is ever taken into memory; a download is https from end to end (plaintext on loopback
excepted), redirections included, and ends within `DOWNLOAD_LIMIT_S`; an error shows no user name, password or query of
an address.

A download goes through the proxy that https_proxy names, if any, except to what no_proxy lists and to loopback: a
bundle is public, the proxy passes TLS on without seeing into it, and what arrives is checked against the signature.
Shares never go through one, whatever the environment says.
"""

import stat
import time
from collections.abc import Callable
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from privdfs._config import is_loopback
from privdfs._constants import DOWNLOAD_LIMIT_S, DOWNLOAD_STALL_S
from privdfs._errors import BundleStoreError, ConfigError
from privdfs._given import check_path, shown

#: Name of a file and the most bytes it may have -> its bytes; None where there is no such file.
Fetch: TypeAlias = Callable[[str, int], "bytes | None"]

_NOT_FOUND = frozenset({404, 410})
_PIECE = 1 << 16


def open_source(source: str | PathLike[str]) -> Fetch:
    """What reads the files of a bundle.

    Args:
        source: its folder, or the address of its folder: https://…, file:///…, or http:// on loopback.

    Raises:
        ConfigError: an address of another kind.
    """
    if not isinstance(source, str) or "://" not in source:
        return _folder(check_path(source, "the source"))
    from urllib.parse import unquote, urlsplit

    parts = None
    with suppress(ValueError):  # its text may quote the address
        parts = urlsplit(source) if source.isprintable() else None
    if parts is None:
        raise ConfigError("the address of the bundle is not a URL: pass https://host/path/client, or a folder")
    host = parts.hostname or ""
    if parts.scheme == "file" and host in {"", "localhost"}:
        return _folder(check_path(unquote(parts.path), "the source"))
    if "@" in parts.netloc:
        raise ConfigError(
            "the address of a bundle holds a user name or a password, which is never sent: serve bundles without a "
            "login (they are public and signed), or copy the folder and install it from there"
        )
    if parts.query or parts.fragment:
        raise ConfigError("the address of a bundle is that of its folder: pass it without `?` and `#`")
    if not _allowed(source):
        raise ConfigError(
            f"bundles are not downloaded from {shown(f'{parts.scheme}://{host}')}: pass https://…, or a folder "
            "(http:// is accepted on loopback only)"
        )
    return _Download(source)


def _folder(folder: Path) -> Fetch:
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except PermissionError as error:
        raise BundleStoreError(f"{shown(folder)} cannot be read: check its permissions") from error
    except (OSError, ValueError):
        is_folder = False
    if not is_folder:
        raise BundleStoreError(
            f"{shown(folder)} is not a folder: give the client folder of a release, or an https address"
        )

    def fetch(name: str, limit: int) -> bytes | None:
        path = folder
        for part in Path(name).parts:
            path = path / part
            if path.is_symlink():
                raise BundleStoreError(f"{path} is a symbolic link, which releases never contain: get the bundle again")
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise BundleStoreError(
                f"{path} cannot be read ({type(error).__name__}): check its permissions and the disk"
            ) from error
        return _bounded(name, data, limit)

    return fetch


class _Download:
    """Reads files below one address, all within one time."""

    def __init__(self, address: str) -> None:
        import ssl
        from urllib.parse import urlsplit
        from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, build_opener

        class Redirect(HTTPRedirectHandler):
            def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:  # noqa: ANN401 - as in urllib
                if not _allowed(newurl):
                    raise BundleStoreError("the download was redirected away from https: ask its operator")
                return super().redirect_request(req, fp, code, msg, headers, newurl)

        class Proxies(ProxyHandler):
            def proxy_open(self, req: Any, proxy: str, type: str) -> Any:  # noqa: A002, ANN401 - as in urllib
                local = is_loopback(urlsplit(str(req.full_url)).hostname or "")
                return None if local else super().proxy_open(req, proxy, type)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]

        self._address = address.rstrip("/")
        self._host = urlsplit(address).hostname or ""
        # Certificates are the system's; SSL_CERT_FILE names others.
        self._opener = build_opener(HTTPSHandler(context=ssl.create_default_context()), Redirect(), Proxies())
        self._end = time.monotonic() + DOWNLOAD_LIMIT_S

    def __call__(self, name: str, limit: int) -> bytes | None:
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.parse import quote

        try:
            with self._opener.open(f"{self._address}/{quote(name)}", timeout=DOWNLOAD_STALL_S) as response:
                return _bounded(name, self._read(response, limit), limit)
        except HTTPError as error:
            error.close()
            if error.code in _NOT_FOUND:
                return None
            raise BundleStoreError(
                f"{self._host} refused to send {name} (HTTP {error.code}): check the address and the permissions there"
            ) from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise BundleStoreError(
                f"{name} cannot be downloaded from {self._host}{_by_proxy(self._host)} ({type(reason).__name__}): "
                "check the address, the network and the server's certificate, and try again"
            ) from None

    def _read(self, response: Any, limit: int) -> bytes:  # noqa: ANN401 - http.client's response
        pieces: list[bytes] = []
        size = 0
        while size <= limit and (piece := response.read(_PIECE)):
            if time.monotonic() > self._end:
                raise BundleStoreError(
                    f"the download from {self._host} took more than {DOWNLOAD_LIMIT_S:g} s: try a faster network"
                )
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)


def _allowed(address: str) -> bool:
    from urllib.parse import urlsplit

    parts = urlsplit(address)
    host = parts.hostname or ""
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


def _by_proxy(host: str) -> str:
    """Says that a failed download went through a proxy; the variable itself may hold a password."""
    from urllib.request import getproxies, proxy_bypass

    return "" if is_loopback(host) or proxy_bypass(host) or "https" not in getproxies() else " through https_proxy"


def _bounded(name: str, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise BundleStoreError(
            f"{name} is larger than {limit} bytes, too large for a file of a bundle: check the source"
        )
    return data
