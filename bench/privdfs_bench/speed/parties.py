"""The parties of a release, each with replicas: tritonservers to kill, start again, stop and let go on.

And releases in which one party does something else than the release says: it lies, is slow, or has a short queue.
"""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from privdfs import Server
from privdfs._config import WireName
from privdfs._files import sha256_file
from privdfs._format import MANIFEST_NAME, server_folder
from privdfs._manifest import encode_manifest
from privdfs._verify import server_manifest
from privdfs_bench.errors import BenchError
from privdfs_export.repository import read_repository
from privdfs_export.serve import RunningServer, kill, start_at

READY_S = 180.0
_LOOK_S = 0.1
#: Where the engine's script answers and begins, and where the configuration says nothing of a queue.
_ANSWER, _IMPORT = "pb_utils.Tensor(self.output, array)", "import os\n"
_BEGINNING = "        feeds = [\n"
_BATCHING = "dynamic_batching {\n}"


class Replica:
    """The tritonserver of one folder, on ports of its own over every restart."""

    def __init__(self, folder: Path, log: Path, wire: WireName) -> None:
        self._ports = _free_ports(2)
        self._http = wire == "http"
        self.endpoint = f"http://127.0.0.1:{self._ports[1]}" if self._http else f"127.0.0.1:{self._ports[0]}"
        # Read once: what a start allocates must not show in the figures of this process.
        self._repository, self._log = read_repository(folder), log
        self._server: RunningServer | None = None

    @property
    def runs(self) -> bool:
        """Whether it has been started, and neither killed nor ended by itself."""
        return self._server is not None and self._server.keeper.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it listens: Triton does when its models are loaded."""
        return self.runs and all(map(_listens, self._ports[: 1 + self._http]))

    def start(self) -> bool:
        """Start it; it is ready some seconds later.

        Returns:
            Whether it had ended by itself before.
        """
        fell = self._server is not None
        self.kill()  # what is left of it
        self._server = start_at(
            self._repository, self._ports[0], self._log, http_port=self._ports[1] if self._http else None
        )
        return fell

    def kill(self) -> None:
        """Kill it and all that it started, without a warning."""
        if self._server is not None:
            self.signal(signal.SIGCONT)
            kill(self._server)
            self._server = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and all that it started: SIGSTOP makes it silent, SIGCONT lets it go on."""
        if self._server is None:
            return
        keeper = self._server.keeper.pid
        with suppress(OSError):
            for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text(encoding="ascii").split():
                os.killpg(int(child), number)


class Parties:
    """Every party's replicas."""

    def __init__(self, release: Path, servers: int, replicas: int, wire: WireName, logs: Path) -> None:
        self.replicas = [
            [
                Replica(release / server_folder(server), logs / f"{server}-{number}.log", wire)
                for number in range(replicas)
            ]
            for server in range(servers)
        ]

    @property
    def servers(self) -> list[Server]:
        """For a client."""
        return [Server([each.endpoint for each in party]) for party in self.replicas]

    @property
    def all(self) -> list[Replica]:
        """The replicas of all parties."""
        return [each for party in self.replicas for each in party]

    @contextmanager
    def running(self) -> Iterator[None]:
        """All are ready inside the `with`, and gone after it.

        Raises:
            BenchError: one does not get ready.
        """
        try:
            for each in self.all:
                each.start()
            until = time.monotonic() + READY_S
            while not all(each.ready for each in self.all):
                if time.monotonic() > until:
                    raise BenchError("the tritonservers did not get ready: see their logs in the folder of the soak")
                time.sleep(_LOOK_S)
            yield
        finally:
            for each in self.all:
                each.kill()


def lying(release: Path, out: Path, server: int) -> Path:
    """A copy of a release in which one party answers every question with the numbers in another order."""
    lie = _ANSWER.replace("array", "np.roll(array, 1, axis=-1)")
    return _edited(release, out, server, {"model.py": lambda text: _replaced(text, _ANSWER, lie)})


def slow(release: Path, out: Path, server: int, seconds: float, flag: Path, queue: int | None = None) -> Path:
    """A copy of a release in which one party can be made slow: it waits before every batch, and computes nothing more.

    Args:
        release: folder of the release.
        out: the copy's; must not exist.
        server: of the party.
        seconds: how long it waits.
        flag: a file; the party is slow while it is there.
        queue: how many requests may wait there; None: any number.
    """
    beginning = f"        time.sleep({seconds} if os.path.exists({str(flag)!r}) else 0)\n{_BEGINNING}"
    edits: dict[str, Callable[[str], str]] = {
        "model.py": lambda text: _replaced(_replaced(text, _IMPORT, f"{_IMPORT}import time\n"), _BEGINNING, beginning)
    }
    if queue is not None:
        # Without the delay, Triton 2.51 often holds requests back for half a second once there is a policy.
        limit = f"max_queue_delay_microseconds: 100\n  default_queue_policy {{ max_queue_size: {queue} }}"
        policy = f"dynamic_batching {{\n  {limit}\n}}"
        edits["config.pbtxt"] = lambda text: _replaced(text, _BATCHING, policy)
    return _edited(release, out, server, edits)


def _edited(release: Path, out: Path, server: int, edits: Mapping[str, Callable[[str], str]]) -> Path:
    """A copy of a release with other files of one server, which its manifest lists."""
    shutil.copytree(release, out)
    folder = out / server_folder(server)
    manifest = server_manifest(folder)
    for name in manifest.files:
        edit = edits.get(Path(name).name)
        if edit is not None:
            (folder / name).write_text(edit((folder / name).read_text(encoding="utf-8")), encoding="utf-8")
    files = {name: sha256_file(folder / name) for name in manifest.files}
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))
    return out


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise BenchError(f"the engine's files have changed, {old.strip()!r} is not in one of them: adapt parties.py")
    return text.replace(old, new)


def _free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that are free at this moment, all different."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
