"""The store of bundles: what is in use is whole and signed, whatever happened on the way."""

import errno
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import trustme

from privdfs import (
    Bundle,
    BundleError,
    BundleIntegrityError,
    BundleSignatureError,
    BundleStore,
    BundleStoreError,
    Client,
    ConfigError,
    SelfTestError,
)
from privdfs._cli import main
from privdfs._store import is_store
from tests.conformance.form import RELEASES
from tests.conformance.releases import SIGNER
from tests.sdk.signing import KEY, OTHER, TRUST, pem, sign
from tests.sdk.tiny_release import build_release


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Signed client folders of the releases tiny-0, tiny-1 and tiny-2."""
    folder = tmp_path_factory.mktemp("sources")
    for i in range(3):
        sign(build_release(folder / str(i), release=f"tiny-{i}", seed=i) / "client")
    return [folder / str(i) / "client" for i in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "store", trust=TRUST)


def bundles(store: BundleStore) -> int:
    return len(list(store._folder.glob("bundle-*")))


def test_installing_switching_and_rolling_back(store: BundleStore, sources: list[Path]) -> None:
    with pytest.raises(BundleStoreError, match="holds no bundle yet"):
        store.open()
    assert not is_store(store._folder)
    for i in range(3):
        assert store.install(sources[i]).release == store.open().release == f"tiny-{i}"
        assert bundles(store) == min(i + 1, 2)
    assert is_store(store._folder)
    assert store.rollback().release == store.open().release == "tiny-1"
    assert bundles(store) == 1
    with pytest.raises(BundleStoreError, match="no earlier bundle"):
        store.rollback()
    bundle = store.open()
    bundle.selftest()
    with Client(bundle, [f"127.0.0.1:{i + 1}" for i in range(3)]) as client:
        assert client.bundle.release == "tiny-1"


@pytest.mark.parametrize("name", ["masked", "keyed", "coded", "coded-rounds"])
def test_every_kind_of_release_can_be_installed(name: str, tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "store", trust=SIGNER.public_key().public_bytes_raw())
    installed = store.install(RELEASES / name / "client")
    assert store.open().manifest == installed.manifest
    installed.selftest()


def test_installing_what_is_in_use_keeps_the_one_before(store: BundleStore, sources: list[Path]) -> None:
    for source in (sources[0], sources[1], sources[1], sources[1]):
        store.install(source)
    assert bundles(store) == 2
    assert store.rollback().release == "tiny-0"


def test_only_what_a_trusted_key_signed_gets_in(store: BundleStore, sources: list[Path], tmp_path: Path) -> None:
    store.install(sources[0])
    unsigned = build_release(tmp_path / "unsigned", release="unsigned") / "client"
    with pytest.raises(BundleSignatureError, match="not signed"):
        store.install(unsigned)
    sign(unsigned, OTHER)
    with pytest.raises(BundleSignatureError, match="not trusted"):
        store.install(unsigned)
    BundleStore(tmp_path / "development", allow_unsigned=True).install(unsigned)
    for both in ({}, {"trust": TRUST, "allow_unsigned": True}):
        with pytest.raises(ConfigError, match="either"):
            BundleStore(tmp_path, **both)
    assert (store.open().release, bundles(store)) == ("tiny-0", 1)


@pytest.mark.parametrize("fault", ["changed", "missing", "no manifest", "symbolic link", "does not work here"])
def test_a_source_that_is_not_whole_changes_nothing(
    store: BundleStore, sources: list[Path], tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.install(sources[0])
    source = Path(shutil.copytree(sources[1], tmp_path / "source"))
    if fault == "changed":
        (source / "fusion.onnx").write_bytes(b"x")
    elif fault == "missing":
        (source / "encoder.onnx").unlink()
    elif fault == "no manifest":
        (source / "manifest.json").unlink()
    elif fault == "symbolic link":
        (source / "encoder.onnx").unlink()
        (source / "encoder.onnx").symlink_to(sources[1] / "encoder.onnx")
    else:

        def fail(bundle: Bundle) -> None:
            raise SelfTestError("comes out differently")

        monkeypatch.setattr(Bundle, "selftest", fail)
    with pytest.raises(BundleError):
        store.install(source)
    assert (store.open().release, bundles(store)) == ("tiny-0", 1)


def test_a_bundle_damaged_in_the_store_is_refused_and_repaired(store: BundleStore, sources: list[Path]) -> None:
    for source in sources[:2]:
        store.install(source)
    state = msgspec.json.decode((store._folder / "state.json").read_bytes())
    (store._folder / state["current"] / "encoder.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleIntegrityError):
        store.open()
    store.install(sources[1])  # the damaged one is nothing to go back to
    assert store.open().release == "tiny-1"
    assert store.rollback().release == "tiny-0"


@pytest.mark.parametrize("state", [b"", b"{}", b'{"current": "../elsewhere"}', b'{"current": 1}', b"\xff"])
def test_a_damaged_state_is_an_error_that_installing_repairs(
    store: BundleStore, sources: list[Path], state: bytes
) -> None:
    store.install(sources[0])
    (store._folder / "state.json").write_bytes(state)
    for call in (store.open, store.rollback):
        with pytest.raises(BundleStoreError, match="damaged"):
            call()
    assert store.install(sources[1]).release == store.open().release == "tiny-1"
    assert bundles(store) == 1


def test_refreshing_puts_a_new_bundle_into_use_and_is_cheap_when_there_is_none(
    store: BundleStore, sources: list[Path], tmp_path: Path
) -> None:
    published = tmp_path / "published"
    shutil.copytree(sources[0], published)
    with pytest.raises(BundleStoreError, match="install one"):
        store.refresh(published)
    assert not store._folder.exists()
    store.install(published)
    for path in published.iterdir():
        if path.name not in {"manifest.json", "manifest.sig"}:
            path.unlink()  # what is not read need not be there
    assert store.refresh(published) is None
    shutil.copytree(sources[1], published, dirs_exist_ok=True)
    bundle = store.refresh(published.as_uri())
    assert bundle is not None
    assert bundle.release == store.open().release == "tiny-1"
    assert store.refresh(published) is None
    shutil.copytree(sources[0], published, dirs_exist_ok=True)  # the maker goes back for everybody
    back = store.refresh(published)
    assert back is not None
    assert back.release == store.open().release == "tiny-0"
    assert bundles(store) == 2


def test_what_was_rolled_back_comes_back_by_installing_only(store: BundleStore, sources: list[Path]) -> None:
    for source in sources[:2]:
        store.install(source)
    assert store.rollback().release == "tiny-0"
    for _ in range(2):
        assert store.refresh(sources[1]) is None
    assert store.open().release == "tiny-0"
    following = store.refresh(sources[2])
    assert following is not None
    assert following.release == "tiny-2"
    store.rollback()
    assert store.install(sources[2]).release == store.open().release == "tiny-2"


@pytest.mark.parametrize("fault", ["half published", "unsigned", "unreachable"])
def test_a_refresh_that_fails_keeps_the_bundle_and_may_be_tried_again(
    store: BundleStore, sources: list[Path], tmp_path: Path, fault: str
) -> None:
    store.install(sources[0])
    source = tmp_path / "source"
    if fault != "unreachable":
        shutil.copytree(sources[1], source)
    if fault == "half published":  # the new manifest, and a file of the old release
        shutil.copy(sources[0] / "encoder.onnx", source)
    elif fault == "unsigned":
        (source / "manifest.sig").unlink()
    for _ in range(2):
        with pytest.raises(BundleError) as caught:
            store.refresh(source)
        expected = {"half published": BundleIntegrityError, "unsigned": BundleSignatureError}
        assert type(caught.value) is expected.get(fault, BundleStoreError)
        assert (store.open().release, bundles(store)) == ("tiny-0", 1)
    shutil.copytree(sources[1], source, dirs_exist_ok=True)
    assert store.refresh(source) is not None
    assert store.open().release == "tiny-1"


class PowerLoss(BaseException):
    """Nothing runs after it, so nothing may count on cleaning up."""


def test_a_crash_at_any_write_leaves_the_old_bundle_or_the_new_one(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync
    finished = False
    crashes = 0
    while not finished:
        store = BundleStore(tmp_path / str(crashes), trust=TRUST)
        store.install(sources[0])
        left = crashes

        def counted(descriptor: int) -> None:
            nonlocal left
            if left == 0:
                raise PowerLoss
            left -= 1
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", counted)
        try:
            store.install(sources[1])
            finished = True
        except PowerLoss:
            crashes += 1
        monkeypatch.setattr(os, "fsync", sync)
        assert store.open().release in {"tiny-0", "tiny-1"}
        assert store.install(sources[2]).release == "tiny-2"
        assert bundles(store) == 2
    assert crashes >= 7  # five files, the folder, the store, the state: at every one of them


def test_a_disk_that_fails_at_any_write_leaves_a_bundle_in_use(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also at the last one, when the new bundle has been named already."""
    sync = os.fsync
    failures = 0
    while True:
        store = BundleStore(tmp_path / str(failures), trust=TRUST)
        store.install(sources[0])
        store.install(sources[1])
        left = failures

        def failing(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(errno.EIO, "Input/output error")
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)
        try:
            store.install(sources[2])
            break
        except BundleStoreError:
            failures += 1
        finally:
            monkeypatch.setattr(os, "fsync", sync)
        assert store.open().release in {"tiny-1", "tiny-2"}
        assert store.rollback().release in {"tiny-0", "tiny-1"}
    assert failures >= 7


def test_a_full_disk_is_a_typed_error_and_what_was_in_use_stays(store: BundleStore, sources: list[Path]) -> None:
    store.install(sources[0])
    size = max(path.stat().st_size for path in sources[1].iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # what is written beyond it fails as on a full disk
    for limit in (size - 1, 100, 1, 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with pytest.raises(BundleStoreError, match="free some space"):
                store.install(sources[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (store.open().release, bundles(store)) == ("tiny-0", 1)


def test_a_store_that_cannot_be_written(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(BundleStoreError):
        BundleStore(tmp_path / "file", trust=TRUST).install(sources[0])


WORKER = """
import sys
from privdfs import BundleStore
store = BundleStore(sys.argv[1], trust=bytes.fromhex(sys.argv[2]))
for i in range(int(sys.argv[3])):
    store.install(sys.argv[4 + i % (len(sys.argv) - 4)])
    assert store.open().release.startswith("tiny-")
"""


def test_processes_that_install_at_once_while_others_open(store: BundleStore, sources: list[Path]) -> None:
    store.install(sources[0])
    line = [sys.executable, "-c", WORKER, str(store._folder), TRUST.hex()]
    workers = [subprocess.Popen([*line, "3", *map(str, order)]) for order in (sources, sources[::-1])]
    killed = subprocess.Popen([*line, "1000", *map(str, sources)])
    opened = 0
    while any(worker.poll() is None for worker in workers):
        assert store.open().release.startswith("tiny-")
        opened += 1
        if opened == 10:
            killed.kill()
    killed.kill()
    killed.wait()
    assert [worker.returncode for worker in workers] == [0, 0]
    store.install(sources[0])
    assert bundles(store) <= 2


def test_a_store_that_somebody_else_is_using(
    store: BundleStore, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privdfs._store.STORE_LOCK_LIMIT_S", 0.1)
    store.install(sources[0])
    with store._locked(), pytest.raises(BundleStoreError, match="another process"):
        BundleStore(store._folder, trust=TRUST).install(sources[1])
    assert store.open().release == "tiny-0"


# ------------------------------------------------------------------------------------------------------------ downloads


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; some paths do something else."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", "http://example.com" + self.path)
            self.end_headers()
        elif self.path.startswith("/forbidden/"):
            self.send_error(403)
        elif self.path.startswith("/cut/") and self.path.endswith("encoder.onnx"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"only this")
        else:
            self.path = self.path.removeprefix("/cut")
            super().do_GET()


@pytest.fixture(params=["http", "https"])
def address(
    request: pytest.FixtureRequest, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(sources[0].parents[1]))) as server:
        if request.param == "https":
            authority = trustme.CA()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            authority.cert_pem.write_to_path(tmp_path / "ca.pem")
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"{request.param}://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_downloads(store: BundleStore, address: str) -> None:
    assert store.install(f"{address}/0/client").release == "tiny-0"
    assert store.install(f"{address}/1/client/").release == store.open().release == "tiny-1"
    with pytest.raises(BundleIntegrityError, match=r"no manifest\.json"):
        store.install(f"{address}/0")
    with pytest.raises(BundleStoreError, match="HTTP 403"):
        store.install(f"{address}/forbidden/0/client")
    with pytest.raises(BundleStoreError, match="redirected away"):
        store.install(f"{address}/moved/0/client")
    with pytest.raises(BundleError):
        store.install(f"{address}/cut/2/client")
    assert (store.open().release, bundles(store)) == ("tiny-1", 2)


def test_a_server_that_is_not_trusted_or_not_there(
    store: BundleStore, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
    if address.startswith("https"):
        with pytest.raises(BundleStoreError, match="certificate"):
            store.install(f"{address}/0/client")
    with pytest.raises(BundleStoreError, match="cannot be downloaded"):
        store.install("http://127.0.0.1:1/client")


def test_a_file_without_an_end_is_cut_off(
    store: BundleStore, address: str, monkeypatch: pytest.MonkeyPatch, sources: list[Path]
) -> None:
    monkeypatch.setattr("privdfs._store.MAX_BUNDLE_FILE_BYTES", 10)
    for source in (f"{address}/0/client", sources[0]):
        with pytest.raises(BundleStoreError, match="larger than 10 bytes"):
            store.install(source)


class Proxy(BaseHTTPRequestHandler):
    """Notes what it is asked for; tunnels lead to one server, whatever their name says."""

    asked: ClassVar[list[str]] = []
    target: ClassVar[tuple[str, int] | None] = None

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(502)

    def do_CONNECT(self) -> None:
        self.asked.append(self.path)
        if self.target is None:
            self.send_error(407)
            return
        self.send_response(200)
        self.end_headers()
        with socket.create_connection(self.target) as onward:
            back = threading.Thread(target=_copy, args=(onward, self.connection))
            back.start()
            _copy(self.connection, onward)
            back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Proxy]]:
    """A proxy that the environment names for everything."""
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Proxy, "asked", [])
    monkeypatch.setattr(Proxy, "target", None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://user:zz-secret@127.0.0.1:{server.server_port}")
        yield Proxy
        server.shutdown()


def test_what_comes_from_loopback_goes_through_no_proxy(store: BundleStore, address: str, proxy: type[Proxy]) -> None:
    assert store.install(f"{address}/0/client").release == "tiny-0"
    with pytest.raises(BundleStoreError) as caught:
        store.install("http://localhost:1/client")
    assert "https_proxy" not in str(caught.value)
    assert proxy.asked == []


def test_a_download_goes_through_the_proxy_and_is_checked_like_any_other(
    store: BundleStore, sources: list[Path], proxy: type[Proxy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleStoreError, match=r"from bundles\.example through https_proxy") as caught:
        store.install("https://bundles.example/0/client")
    assert "zz-secret" not in "".join(traceback.format_exception(caught.value))
    assert proxy.asked == ["bundles.example:443"]
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("bundles.example").configure_cert(context)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(sources[0].parents[1]))) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(proxy, "target", server.server_address)
        assert store.install("https://bundles.example/0/client").release == "tiny-0"
        server.shutdown()
    assert set(proxy.asked) == {"bundles.example:443"}, "it saw the name, and TLS"


@pytest.mark.parametrize(
    "source",
    [
        "http://example.com/client",
        "ftp://example.com/client",
        "https:///client",
        "https://user:secret@[/client",
        "https://user:secret@example.com/client",
        "https://secret@example.com/client",
        "https://example.com/client\n",
        "https://exam\nple.com/client",
        "file:///cli%00ent",
        "https://user:secret@example.com/client?token=secret",
        "file://example.com/client",
    ],
)
def test_addresses_that_bundles_are_not_fetched_from(store: BundleStore, source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        store.install(source)
    assert "secret" not in str(caught.value)


def test_a_file_address_and_what_is_no_folder(store: BundleStore, sources: list[Path], tmp_path: Path) -> None:
    assert store.install(sources[0].as_uri()).release == "tiny-0"
    with pytest.raises(BundleStoreError, match="is not a folder"):
        store.install(tmp_path / "none")


# -------------------------------------------------------------------------------------------------------------- command


def test_the_command(sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, key = str(tmp_path / "store"), tmp_path / "key.pem"
    key.write_bytes(pem(KEY))
    trust = ["--trust", str(key)]
    for i in range(2):
        assert main(["install", store, str(sources[i]), *trust]) == 0
        assert capsys.readouterr().out == f"ok: release tiny-{i} is in use, signed by a trusted key\n"
    for source, said in (
        (sources[1], "nothing new; release tiny-1 stays in use"),
        (sources[0], "release tiny-0 is in use"),
        (sources[1], "release tiny-1 is in use"),
    ):
        assert main(["refresh", store, str(source), *trust]) == 0
        assert capsys.readouterr().out == f"ok: {said}, signed by a trusted key\n"
    assert main(["describe", store, *trust]) == 0
    assert "tiny-1" in capsys.readouterr().out
    assert main(["rollback", store, *trust, "--json"]) == 0
    assert '"tiny-0"' in capsys.readouterr().out
    assert main(["refresh", store, str(sources[1]), *trust]) == 0, "which was rolled back"
    assert "tiny-1 was rolled back" in (said := capsys.readouterr().out)
    assert "release tiny-0 stays in use" in said
    assert main(["selftest", store]) == 0
    assert main(["install", store, str(sources[0])]) == 2
    assert "--trust KEY, or --allow-unsigned" in capsys.readouterr().err
    shutil.copytree(sources[2], unsigned := tmp_path / "unsigned")
    (unsigned / "manifest.sig").unlink()
    assert main(["refresh", store, str(unsigned), *trust]) == 2
    assert "the source is not signed" in capsys.readouterr().err
    picture = str(Path(__file__).parents[2] / "examples" / "images" / "bag-1.png")
    servers = [word for i in range(3) for word in ("--server", f"127.0.0.1:{i + 1}")]
    capsys.readouterr()
    assert main(["predict", store, picture, *servers, *trust, "--timeout", "1"]) == 2
    assert "0 of 3 servers" in capsys.readouterr().err
