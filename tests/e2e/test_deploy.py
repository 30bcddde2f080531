"""docs/DEPLOY.md, run step by step: its blocks, in their order, with real certificates and real tritonservers.

A block says after its language who runs it, and some say what it is. Each role has a folder of its own, and what one
gives to another is copied (`GIVEN`). Only lines that end with "# yours", and the parties' endpoints, are replaced.
"""

import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from privdfs_export.serve import find_nginx, find_tritonserver
from tests.ports import free_ports
from tests.trained import IMAGES

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "DEPLOY.md"
RELEASE = ROOT / "model_repository" / "fashion-resnet20"
PARTIES = ("a", "b", "c")
READY_S = 90.0
#: Role and file, to role and file; given as soon as the file is there.
GIVEN = [
    *(("maker", f"server-{i}.tar.gz", party, f"server-{i}.tar.gz") for i, party in enumerate(PARTIES)),
    *(("maker", "release-key.pub.pem", role, "release-key.pub.pem") for role in (*PARTIES, "app")),
    ("maker", "client.tar.gz", "app", "client.tar.gz"),
    *(("app", "devices-ca.pem", party, "devices-ca.pem") for party in PARTIES),
    *((party, "server.pem", "app", f"{party}.pem") for party in PARTIES),
    *((party, "token", "app", f"{party}.token") for party in PARTIES),
    ("a", "next.pem", "app", "a-next.pem"),
]


@dataclass(frozen=True)
class Block:
    """One block of the guide that somebody runs."""

    language: str
    role: str
    kind: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^```(\w+) (\w+)(?: ([\w.-]+))?\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*parts) for parts in found]


@dataclass
class Guide:
    """The roles' folders, their settings, and the servers that run."""

    folder: Path
    endpoints: dict[str, str]
    web: dict[str, str]
    settings: dict[str, dict[str, str]]
    preamble: dict[str, str] = field(default_factory=dict)
    start: str = ""
    probe: str = ""
    given: set[tuple[str, str, str, str]] = field(default_factory=set)
    used: set[tuple[str, str]] = field(default_factory=set)
    running: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    def run(self, block: Block) -> str:
        """Run a block, for each party if it is an operator's; what it prints."""
        return "".join(self._run(block, role) for role in (PARTIES if block.role == "operator" else (block.role,)))

    def _run(self, block: Block, role: str) -> str:
        text = self._mine(block.text, role)
        if block.kind == "settings":
            self.preamble[role] = text
        elif block.kind == "start":
            self.start = block.text
            self._serve(role)
        elif block.kind == "gateway":
            self._serve_beside(role, block.text)
        elif block.kind in {"probe", "gateway-probe"}:
            self.probe = block.text if block.kind == "probe" else self.probe
            self._wait(role, block.text)
        elif block.language == "json":
            (self.folder / role / block.kind).write_text(text)
        elif block.language == "python":
            return self._process([sys.executable, "-c", text], role)
        else:
            told = self._process(["bash", "-euc", self.preamble.get(role, "") + text], role)
            self._give()
            if block.kind == "restart":
                self._end(role)
                self._serve(role)
                self._wait(role, self.probe)
            return told
        return ""

    def _mine(self, text: str, role: str) -> str:
        """The text with this role's settings in the place of the guide's."""

        def setting(match: re.Match[str]) -> str:
            self.used.add((role, match[1]))
            return f"{match[1]}={self.settings[role][match[1]]}"

        text = re.sub(r"^(\w+)=\S+ # yours.*$", setting, text, flags=re.MULTILINE)
        assert "# yours" not in text
        for party, endpoint in self.endpoints.items():
            text = text.replace(f"{party}.example:8001", endpoint).replace(f"{party}.example:8443", self.web[party])
        return text

    def _process(self, line: list[str], role: str) -> str:
        ran = subprocess.run(line, cwd=self.folder / role, capture_output=True, text=True, check=False, timeout=120)
        assert ran.returncode == 0, f"{role}: {line[-1]}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
        return ran.stdout

    def _give(self) -> None:
        for row in GIVEN:
            giver, name, taker, its_name = row
            if row not in self.given and (self.folder / giver / name).exists():
                shutil.copy(self.folder / giver / name, self.folder / taker / its_name)
                self.given.add(row)

    def _serve(self, role: str) -> None:
        self._begin(role, self._mine(self.start, role), role)

    def _serve_beside(self, role: str, text: str) -> None:
        self._begin(role, self._mine(text, role), f"{role}-gateway")

    def _begin(self, role: str, text: str, name: str) -> None:
        script = self.preamble[role] + text
        with (self.folder / role / ("log" if name == role else "gateway.log")).open("wb") as log:
            self.running[name] = subprocess.Popen(
                ["bash", "-euc", script],
                cwd=self.folder / role,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait(self, role: str, probe: str) -> None:
        line = ["bash", "-euc", self.preamble[role] + self._mine(probe, role)]
        until = time.monotonic() + READY_S
        while subprocess.run(line, cwd=self.folder / role, capture_output=True, check=False, timeout=60).returncode:
            log = (self.folder / role / "log").read_text(errors="replace")
            assert self.running[role].poll() is None, log[-3000:]
            assert time.monotonic() < until, log[-3000:]
            time.sleep(0.3)

    def _end(self, *names: str) -> None:
        """All at once: a server waits for the connections that its gateway keeps."""
        processes = [self.running.pop(name) for name in names]
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)

    def stop(self) -> None:
        self._end(*self.running)


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guide]:
    for role in ("maker", "app", *PARTIES):
        (tmp_path / role).mkdir()
    shutil.copytree(RELEASE, tmp_path / "maker" / "mine")
    shutil.copy(IMAGES / "bag-1.png", tmp_path / "app" / "photo.jpg")
    ports, probes, metrics, web, status = (list(part) for part in zip(*[iter(free_ports(15))] * 3, strict=True))
    settings = {
        party: {
            "PART": f"server-{i}",
            "HOST": "localhost",
            "ADDRESS": "127.0.0.1",
            "PORT": str(ports[i]),
            "PROBE_PORT": str(probes[i]),
            "METRICS_PORT": str(metrics[i]),
            "HTTPS_PORT": str(web[i]),
            "STATUS_PORT": str(status[i]),
            "PATH": f'"$PATH:{find_tritonserver().parent}:{find_nginx().parent}"',
        }
        for i, party in enumerate(PARTIES)
    }
    settings["maker"] = {"RELEASE": "mine"}
    settings["app"] = {"PHOTO": "photo.jpg"}
    endpoints = {party: f"localhost:{port}" for party, port in zip(PARTIES, ports, strict=True)}
    # The commands of the environment that runs the tests; a proxy, to show that nothing asks it.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = Guide(tmp_path, endpoints, {party: f"localhost:{web[i]}" for i, party in enumerate(PARTIES)}, settings)
    try:
        yield found
    finally:
        found.stop()


def test_the_guide_works_as_it_stands(guide: Guide) -> None:
    told = [guide.run(block) for block in blocks()]
    assert guide.given == set(GIVEN), "everything that is to be given was made"
    assert guide.used == {(role, name) for role, own in guide.settings.items() for name in own}
    printed = "".join(told)
    assert printed.count(" ok\n") == 6, "three servers, before and after the renewal"
    assert printed.count("3/3 servers") == 2, "over gRPC, and through the gateways"
    assert printed.count("\nnv_inference_request_success{") == printed.count("\nnginx_connections_active ") == 3
    assert "(True, True, True)" in printed
    assert (guide.folder / "app" / "counts.json").stat().st_mode & 0o777 == 0o600
    assert (guide.folder / "maker" / "release-key.pem").stat().st_mode & 0o077 == 0
    shown = ssl.get_server_certificate(("localhost", int(guide.web["a"].rpartition(":")[2])))
    assert shown == (guide.folder / "a" / "server.pem").read_text(), "the gateway took the new certificate"
    for party in PARTIES:
        assert "POST" in (guide.folder / party / "calls.log").read_text()
        assert (guide.folder / party / "server.key").stat().st_mode & 0o077 == 0
        assert not (guide.folder / party / f"server-{(PARTIES.index(party) + 1) % 3}").exists()


def test_every_block_is_run_or_plainly_not_for_running() -> None:
    languages = re.findall(r"^```([^\n]+)$", GUIDE.read_text(), re.MULTILINE)
    assert [line for line in languages if line.split()[0] not in {"sh", "json", "python"}] == ["dockerfile"]
    assert len(blocks()) == len(languages) - 1
    assert {block.role for block in blocks()} == {"maker", "app", "operator", "a"}
