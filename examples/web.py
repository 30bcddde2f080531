"""`make web`: the page that shows what PrivDFS is, on this machine alone.

    .venv/bin/python examples/web.py [RELEASE …] [--port N]

It starts the tritonservers of the first RELEASE, each behind an nginx that lets this page in, and serves the page of
`sdk-js/web` with the SDK, the runtime and the bundles that it needs. Servers of the other releases start when the page
asks for them. The page talks to the servers itself: nothing about a picture passes through here.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

try:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from privdfs import Bundle, Error
    from privdfs._coded_format import CodedManifest
    from privdfs._command_line import signals_interrupt, whole_number
    from privdfs_export.repository import Repository
    from privdfs_export.serve import Gateway, RunningGateway, RunningServer
    from privdfs_export.serve.gateway import gateways
    from privdfs_export.serve.local import check_release, running
    from privdfs_export.serve.tritonserver import Services
    from privdfs_export.sign import sign
except ModuleNotFoundError as missing:
    print(f"web: {missing.name} is not installed here: run `make web`, which installs what it needs", file=sys.stderr)
    raise SystemExit(2) from None

ROOT = Path(__file__).resolve().parents[1]
SDK = ROOT / "sdk-js"
PAGE = SDK / "web"
SAMPLES = ROOT / "examples" / "images"
DEFAULT_RELEASES = [
    ROOT / "model_repository" / name for name in ("fashion-resnet20", "fashion-coded", "cifar10-resnet20")
]
DEFAULT_PORT = 8642
#: What the page loads, by the beginning of its path.
FOLDERS = {
    "sdk/": SDK / "dist",
    "noble/ed25519/": SDK / "node_modules" / "@noble" / "ed25519",
    "noble/hashes/": SDK / "node_modules" / "@noble" / "hashes",
    "onnxruntime/": SDK / "node_modules" / "onnxruntime-web" / "dist",
    "images/": SAMPLES,
    "": PAGE,
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".wasm": "application/wasm",
    ".png": "image/png",
    ".json": "application/json",
    ".onnx": "application/octet-stream",
    ".safetensors": "application/octet-stream",
    ".sig": "application/octet-stream",
}
_NAMES = {"fashion-mnist": "Clothes", "cifar10": "Photographs"}
MAX_BODY = 4096
EXIT_ERROR = 2


class Served:
    """A release, its signed bundle for the page, and its servers, which start when they are first asked for."""

    def __init__(self, folder: Path, signed: Path, key: Ed25519PrivateKey, origin: str, stack: ExitStack) -> None:
        """Copy and sign the bundle; nothing is started yet."""
        self.name, self._folder, self._stack = folder.resolve().name, folder, stack
        self._gateway = Gateway(origins=(origin,), tls=False)
        self._lock = threading.Lock()
        #: Empty until they are first asked for.
        self.repositories: list[Repository] = []
        self.running: list[RunningServer] = []
        self._doors: list[tuple[RunningGateway, ExitStack] | str] = []
        self.client = signed / self.name
        shutil.copytree(folder / "client", self.client)
        sign(self.client, key)
        self.bundle = Bundle.open(self.client, trust=key.public_key().public_bytes_raw())

    def about(self) -> dict[str, Any]:
        """What the page says of it."""
        manifest, classes = self.bundle.manifest, list(self.bundle.classes)
        data = _NAMES.get(manifest.accuracy.data.split(",")[0], manifest.accuracy.data)
        coded = isinstance(manifest, CodedManifest)
        servers = sum(1 for _ in self._folder.glob("server-*"))
        kinds = ", ".join(classes[:3]).lower()
        options = {"colluding": 1} if coded else {"minAnswers": servers // 2 + 1}
        return {
            "name": self.name,
            "title": f"{data}, {'coded' if coded else 'masked'}",
            "about": f"{kinds} and {len(classes) - 3} more; {servers} servers, {manifest.accuracy.fused:.1%} right",
            "grey": manifest.image.channels == 1,
            "samples": [*json.loads((SAMPLES / "labels.json").read_text())] if data == _NAMES["fashion-mnist"] else [],
            "options": options,
        }

    def servers(self) -> list[dict[str, Any]]:
        """Where they are; they are started first, if they are not running."""
        with self._lock:
            if not self.running:
                self.repositories = check_release(self._folder)
                self.running = self._stack.enter_context(running(self.repositories, services=Services(gateway=True)))
                self._doors = [self._open(server) for server in range(len(self.running))]
            return [
                {"url": door, "on": False} if isinstance(door, str) else {"url": door[0].endpoint, "on": True}
                for door in self._doors
            ]

    def switch(self, server: int, *, on: bool) -> list[dict[str, Any]]:
        """Take a server off the network, or put it back, at another port."""
        self.servers()
        with self._lock:
            door = self._doors[server]
            if isinstance(door, str):
                self._doors[server] = self._open(server) if on else door
            elif not on:
                door[1].close()
                self._doors[server] = door[0].endpoint
        return self.servers()

    def _open(self, server: int) -> tuple[RunningGateway, ExitStack]:
        stack = self._stack.enter_context(ExitStack())
        found = stack.enter_context(gateways(self._gateway, [self.repositories[server]], [self.running[server]]))
        return found[0], stack


class Web(ThreadingHTTPServer):
    """The page's server: files that are named above, and a little JSON."""

    daemon_threads = True

    def __init__(self, port: int, releases: Sequence[Path], stack: ExitStack) -> None:
        """Listen, and make the bundles ready."""
        super().__init__(("127.0.0.1", port), Handler)
        self.origin = f"http://127.0.0.1:{self.server_port}"
        key = Ed25519PrivateKey.generate()
        self.trust = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        signed = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="privdfs-web-")))
        served = [Served(folder, signed, key, self.origin, stack) for folder in releases]
        self.releases = {release.name: release for release in served}
        self.policy = page_policy((PAGE / "index.html").read_text(encoding="utf-8"))

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as in the base class
        """Browsers end connections as they like; anything else is a fault of this program."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def page_policy(page: str) -> str:
    """The Content-Security-Policy: nothing but this page's own files, and servers on this machine.

    The one script in the page is its import map, which is allowed by its digest.
    """
    found = re.search(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(found[1].encode() if found else b"").digest()).decode()
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' 'wasm-unsafe-eval' 'sha256-{digest}'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self' http://127.0.0.1:*",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


class Handler(BaseHTTPRequestHandler):
    """One request. Whatever does not come from the page itself is refused: other pages can reach this port, too."""

    protocol_version = "HTTP/1.1"
    server: Web  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        """Files, the releases, and where the servers of one are."""
        if not self._is_ours():
            return
        if not self.path.startswith("/api/"):
            self._file(self.path.partition("?")[0].removeprefix("/") or "index.html")
        elif self.path == "/api/releases":
            releases = [release.about() for release in self.server.releases.values()]
            self._answer(lambda: {"trust": self.server.trust, "releases": releases})
        else:
            name = self.path.removeprefix("/api/servers/")
            self._answer(lambda: self.server.releases[name].servers())  # noqa: PLW0108 - an unknown name is answered

    def do_POST(self) -> None:
        """Switch a server on or off."""
        if not self._is_ours(origin=True):
            return
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(min(length, MAX_BODY))
        if self.path != "/api/switch":
            self._json(404, {"error": "there is nothing at this address"})
            return

        def switch() -> list[dict[str, Any]]:
            asked = json.loads(body)
            return self.server.releases[asked["release"]].switch(int(asked["server"]), on=asked["on"] is True)

        self._answer(switch)

    def _is_ours(self, *, origin: bool = False) -> bool:
        """Refuse another name for this machine, which could be another page's, and other pages' commands."""
        host = self.headers.get("Host") == self.server.origin.removeprefix("http://")
        if host and (not origin or self.headers.get("Origin") == self.server.origin):
            return True
        self.close_connection = True
        self._json(403, {"error": f"open {self.server.origin}/"})
        return False

    def _answer(self, make: Callable[[], Any]) -> None:
        try:
            self._json(200, make())
        except (KeyError, IndexError, TypeError, ValueError):
            self._json(400, {"error": "this page and its server do not fit each other: load the page again"})
        except Error as error:
            self._json(500, {"error": f"the servers do not start: {error}"})

    def _file(self, path: str) -> None:
        begin = next(begin for begin in ("releases/", *FOLDERS) if path.startswith(begin))
        name = path.removeprefix(begin)
        if begin == "releases/":
            release, _, name = name.partition("/")
            folder = self.server.releases[release].client if release in self.server.releases else PAGE
        else:
            folder = FOLDERS[begin]
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()) or file.suffix not in TYPES or not file.is_file():
            self._json(404, {"error": "there is nothing at this address"})
            return
        self._send(200, file.read_bytes(), TYPES[file.suffix])

    def _json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode(), TYPES[".json"])

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Content-Security-Policy": self.server.policy,
            "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-cache",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Keep the terminal for what matters."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code: 0 stopped, 2 an error that the message explains."""
    parser = argparse.ArgumentParser(prog="web", description="Serve the demonstration page on this machine.")
    parser.add_argument("releases", nargs="*", type=Path, default=DEFAULT_RELEASES, metavar="RELEASE")
    parser.add_argument("--port", type=whole_number(0, 65_535), default=DEFAULT_PORT, help="0: any that is free")
    options = parser.parse_args(arguments)
    try:
        with signals_interrupt(), ExitStack() as stack:
            names = [release.name for release in options.releases]
            if len(set(names)) < len(names):
                parser.error("every RELEASE has a name of its own, and two of these have the same")
            web = stack.enter_context(Web(options.port, options.releases, stack))
            first = next(iter(web.releases.values()))
            print(f"Starting the servers of {first.name} …", flush=True)
            first.servers()
            print(f"Open {web.origin}/ in a browser; Ctrl-C ends it.", flush=True)
            web.serve_forever()
    except KeyboardInterrupt:
        print("web: stopped; the servers have ended", file=sys.stderr)
    except OSError as error:
        what = f"port {options.port}" if error.filename is None else error.filename
        print(f"web: {what} cannot be used ({error.strerror}): name another", file=sys.stderr)
        return EXIT_ERROR
    except Error as error:
        print(f"web: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
