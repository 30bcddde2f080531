"""Bundles on the device's disk: installed, verified, switched and rolled back, one of them in use.

    STORE/state.json     which folder is in use, and which was before: one file, replaced in one step
    STORE/bundle-…/      one bundle each, never changed once it is named in state.json
    STORE/lock           held while a process installs or rolls back

Guarantees:

- A bundle is in use only after its signature, the digest of every file and its golden examples have been checked, from
  the copy in the store. The signature is checked before the manifest is parsed.
- What is in use changes with the replacement of state.json, in one step. Whatever fails before that (a full disk, a cut
  download, a crash, a loss of power) leaves the bundle in use as it was; what was left half done is removed by the next
  process that installs. Where the disk fails just after that, there is an error too, but the new bundle is in use.
- The bundle that was in use before stays on the disk, for `rollback`.
- What `rollback` left is not put back by `refresh` before another bundle has been in use, only by `install`.
- Processes that install at once do so one after the other; those that open see the old bundle or the new one, whole.

Not guaranteed: that a bundle is the latest. A server can send an older signed one.
"""

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

import msgspec

from privdfs._bundle import Bundle
from privdfs._constants import MAX_BUNDLE_FILE_BYTES, STORE_LOCK_LIMIT_S
from privdfs._errors import BundleError, BundleIntegrityError, BundleStoreError, ConfigError
from privdfs._files import MAX_MANIFEST_BYTES, check_digest
from privdfs._format import MANIFEST_NAME, SIGNATURE_NAME
from privdfs._given import check_flag, check_path, shown
from privdfs._manifest import read_client_manifest
from privdfs._signature import MAX_SIGNATURE_BYTES, Trust, check_signature
from privdfs._source import Fetch, open_source

_STATE, _NEXT_STATE, _LOCK = "state.json", "state.json.next", "lock"
_FOLDER = re.compile(r"bundle-[0-9a-f]{16}")
_LOOK_S = 0.05
#: How often opening starts again because another process has replaced the bundle meanwhile.
_TRIES = 5


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Folders by what they are, in use and in use before; and the SHA-256 of the manifest that `rollback` left."""

    current: str
    previous: str | None = None
    left: str | None = None


class _Named(msgspec.Struct, frozen=True):
    """A manifest of any format, of which only the name counts."""

    release: str


class _Offer(msgspec.Struct, frozen=True):
    """What a source says of its bundle before its files are fetched."""

    manifest: bytes
    signature: bytes | None

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which lists the digests of all files."""
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def release(self) -> str:
        """Its name, where the digest says that the manifest was trusted before, by whatever version of this library."""
        return msgspec.json.decode(self.manifest, type=_Named).release

    def same_as(self, folder: Path) -> bool:
        """Whether a bundle on the disk is this one: the same manifest, and the same signature if any."""
        return (self.manifest, self.signature) == (_content(folder / MANIFEST_NAME), _content(folder / SIGNATURE_NAME))


class BundleStore:
    """A folder that holds the bundle in use and the one before it; see `install`, `open` and `rollback`.

    May be used by several processes and threads at once. It is for local disks: locks of network file systems differ.

    Args:
        folder: of the store; made by the first `install`.
        trust: public key of the signer, as for `Bundle.open`.
        allow_unsigned: accept unsigned bundles, for development.

    Raises:
        ConfigError: neither `trust` nor `allow_unsigned` was given, or both.
    """

    def __init__(
        self, folder: str | PathLike[str], *, trust: Trust | None = None, allow_unsigned: bool = False
    ) -> None:
        if (trust is not None) == check_flag(allow_unsigned, "allow_unsigned"):
            raise ConfigError(
                "a bundle store needs either trust=<public key of the signer>, or allow_unsigned=True for development"
            )
        self._folder = check_path(folder, "the store")
        self._trust = trust
        self._allow_unsigned = allow_unsigned

    def __repr__(self) -> str:
        return f"BundleStore({shown(self._folder)})"

    def install(self, source: str | PathLike[str]) -> Bundle:
        """Fetch a bundle, verify it, and put it into use; the one before it is kept for `rollback`.

        A bundle that is in use already is left as it is. After an error, the bundle in use is unchanged, unless the
        disk failed at the very last step.

        Args:
            source: the client folder of a release, or its address: https://host/path/client, or file:///….

        Returns:
            The bundle, open.

        Raises:
            BundleError: it is not signed by a trusted key, changed, incomplete, or does not work on this device.
            BundleStoreError: it cannot be fetched or written (a full disk, the network), or another process installs.
            ConfigError: an address that bundles are not fetched from.
        """
        fetch = open_source(source)
        with _disk(self._folder), self._locked():
            try:
                state = self._read_state()
            except BundleStoreError:  # damaged: this install repairs it
                state = None
            offer = _read_offer(fetch)
            current = None if state is None else self._try_open(self._folder / state.current)
            if current is not None and state is not None and offer.same_as(self._folder / state.current):
                return current
            # A damaged bundle is nothing to roll back to; then the one before it stays.
            kept = None if state is None else state.previous if current is None else state.current
            return self._put_into_use(fetch, offer, state, kept)

    def refresh(self, source: str | PathLike[str]) -> Bundle | None:
        """Put the bundle that a source offers into use, if it is another one than now; for a background task.

        Where nothing is new, this costs the download of a manifest. What `rollback` left is not put back into use,
        however often a source offers it, until another bundle has been installed; `install` does that. Clients that are
        open keep their bundle; make a new client with the new one, and close the old one when its last call has ended.

        Args:
            source: as for `install`.

        Returns:
            The new bundle, open; None if there is nothing new.

        Raises:
            BundleError: as for `install`; the bundle in use stays in use, so it can be tried again later.
            BundleStoreError: as for `install`; or nothing has been installed yet.
            ConfigError: an address that bundles are not fetched from.
        """
        found = self.try_refresh(source)
        return found if isinstance(found, Bundle) else None

    def try_refresh(self, source: str | PathLike[str]) -> Bundle | str | None:
        """Do as `refresh` does, and tell apart why nothing was put into use.

        Args:
            source: as for `install`.

        Returns:
            The new bundle, open; the id of the release that is offered, where `rollback` left it; None if there is
            nothing new.

        Raises:
            BundleError: as for `refresh`.
            BundleStoreError: as for `refresh`.
            ConfigError: as for `refresh`.
        """
        fetch = open_source(source)
        with _disk(self._folder):
            self._state()  # before a folder is made for the lock
            with self._locked():
                state = self._state()
                offer = _read_offer(fetch)
                if offer.digest == state.left:
                    return offer.release
                if offer.same_as(self._folder / state.current):
                    return None
                kept = state.previous if self._try_open(self._folder / state.current) is None else state.current
                return self._put_into_use(fetch, offer, state, kept)

    def open(self) -> Bundle:
        """Open the bundle in use, with every check of `Bundle.open`.

        Raises:
            BundleStoreError: nothing has been installed yet, or the store is damaged.
            BundleError: the bundle was changed on the disk; `rollback` and `install` repair that.
        """
        with _disk(self._folder):
            for _ in range(_TRIES):
                state = self._state()
                try:
                    return self._open(self._folder / state.current)
                except (BundleError, OSError):  # it may just have been replaced and removed
                    if self._state() == state:
                        raise
            raise BundleStoreError(
                f"the bundle in {self._folder} keeps being replaced: check which processes install there"
            )

    def rollback(self) -> Bundle:
        """Put the bundle that was in use before back into use, and remove the present one.

        Returns:
            The bundle, open.

        Raises:
            BundleStoreError: there is none, or the state cannot be written.
            BundleError: it was changed on the disk; the present one stays in use.
        """
        with _disk(self._folder), self._locked():
            state = self._state()
            if state.previous is None:
                raise BundleStoreError(f"{self._folder} holds no earlier bundle: install one")
            bundle = self._open(self._folder / state.previous)
            manifest = _content(self._folder / state.current / MANIFEST_NAME)
            after = _State(state.previous, left=None if manifest is None else hashlib.sha256(manifest).hexdigest())
            self._write_state(after)
            self._switch_state()
            self._remove_all_but(after)
            return bundle

    # -------------------------------------------------------------------------------------------------------- bundles

    def _open(self, folder: Path) -> Bundle:
        return Bundle.open(folder, trust=self._trust, allow_unsigned=self._allow_unsigned)

    def _try_open(self, folder: Path) -> Bundle | None:
        try:
            return self._open(folder)
        except BundleError:
            return None

    def _put_into_use(self, fetch: Fetch, offer: _Offer, state: _State | None, kept: str | None) -> Bundle:
        """Fetch a bundle into a new folder, check it there, and name it in the state; on an error nothing changes.

        Args:
            fetch: of the source.
            offer: what it says of the bundle.
            state: the present one.
            kept: the folder to roll back to.
        """
        self._remove_all_but(state)
        target = self._folder / f"bundle-{secrets.token_hex(8)}"
        try:
            self._fetch(fetch, offer, target)
            bundle = self._open(target)
            bundle.selftest()
            after = _State(target.name, kept)
            self._write_state(after)
        except Exception:
            shutil.rmtree(target, ignore_errors=True)  # after a crash, the next install does it
            raise
        self._switch_state()  # whatever fails from here on: the new bundle may be in use
        self._remove_all_but(after)
        return bundle

    def _fetch(self, fetch: Fetch, offer: _Offer, target: Path) -> None:
        """Write a bundle into a new folder, signature first, and every file only after its digest was compared."""
        target.mkdir()
        if offer.signature is not None:
            _write(target / SIGNATURE_NAME, offer.signature)
        if self._trust is not None:
            check_signature(target, offer.manifest, self._trust, "the source")
        for name, expected in read_client_manifest(offer.manifest).files.items():
            data = fetch(name, MAX_BUNDLE_FILE_BYTES)
            if data is None:
                raise BundleIntegrityError(
                    f"{name} is missing from the source: get the release again, whole", name, expected
                )
            check_digest(name, expected, data)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _write(target / name, data)
        _write(target / MANIFEST_NAME, offer.manifest)
        for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
            _sync_folder(folder)

    # ---------------------------------------------------------------------------------------------------------- state

    def _state(self) -> _State:
        state = self._read_state()
        if state is None:
            raise BundleStoreError(f"{shown(self._folder)} holds no bundle yet: install one (privdfs install)")
        return state

    def _read_state(self) -> _State | None:
        try:
            data = (self._folder / _STATE).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            state = msgspec.json.decode(data, type=_State, strict=True)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            state = _State("")
        if not all(_FOLDER.fullmatch(name) for name in (state.current, state.previous) if name is not None):
            raise BundleStoreError(f"{self._folder / _STATE} is damaged: install a bundle again to repair it")
        return state

    def _write_state(self, state: _State) -> None:
        """Write the next state down; `_switch_state` makes it the present one."""
        _sync_folder(self._folder)  # the bundle's folder is there before it is named
        _write(self._folder / _NEXT_STATE, msgspec.json.encode(state) + b"\n")

    def _switch_state(self) -> None:
        (self._folder / _NEXT_STATE).replace(self._folder / _STATE)
        _sync_folder(self._folder)

    def _remove_all_but(self, state: _State | None) -> None:
        kept: set[str | None] = set() if state is None else {state.current, state.previous}
        for path in self._folder.iterdir():
            if _FOLDER.fullmatch(path.name) and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Generator[None, None, None]:
        """Hold the store's lock; the system releases it when the process ends."""
        import fcntl

        self._folder.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + STORE_LOCK_LIMIT_S
        with (self._folder / _LOCK).open("wb") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise BundleStoreError(
                            f"another process has been installing into {self._folder} for {STORE_LOCK_LIMIT_S:g} s: "
                            "wait for it, or end it"
                        ) from None
                    time.sleep(_LOOK_S)
            yield


def is_store(folder: Path) -> bool:
    """Whether a folder is a store that something has been installed into."""
    return (folder / _STATE).is_file()


def _read_offer(fetch: Fetch) -> _Offer:
    """The manifest of a source's bundle, and its signature if it has one; neither has been checked."""
    manifest = fetch(MANIFEST_NAME, MAX_MANIFEST_BYTES)
    if manifest is None:
        raise BundleIntegrityError(
            f"the source has no {MANIFEST_NAME}: give the client folder of a release, or its address", MANIFEST_NAME
        )
    return _Offer(manifest, fetch(SIGNATURE_NAME, MAX_SIGNATURE_BYTES))


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _write(path: Path, data: bytes) -> None:
    """Write a file down to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk(folder: Path) -> Generator[None, None, None]:
    """Errors of the disk as one of ours."""
    try:
        yield
    except OSError as error:
        raise BundleStoreError(
            f"the bundle store {shown(folder)} cannot be used ({error.strerror or type(error).__name__}): free "
            "some space, and check its permissions; the bundle in use is whole"
        ) from error
