"""What a pod of deploy/kubernetes would run, run here: the check of the release, tritonserver, the probes.

Words and options are those of the rendered manifests. What a cluster would provide is replaced: mounted volumes by
folders, secrets by values, ports by free ones, all addresses by loopback. Triton's image is not here, so it is the
tritonserver of `make triton`, and the release is one for its Python backend; plans of TensorRT need a GPU.
"""

import http.client
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from privdfs import TLS, Client, Server, Token
from privdfs_export.cli import main as export
from privdfs_export.serve import find_nginx, find_tritonserver
from tests.deploy.rendering import FOLDER, VARIANTS, Object, overlay, pick, pod, rendered, server
from tests.ports import free_ports
from tests.trained import IMAGES

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

RELEASE = Path(__file__).parents[2] / "model_repository" / "fashion-resnet20"
READY_S = 90.0
HEADER = "triton-grpc-protocol-privdfs"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed release; the public key lies beside it."""
    folder = tmp_path_factory.mktemp("signed")
    shutil.copytree(RELEASE, folder / "release")
    assert export(["keygen", str(folder / "release-key.pem")]) == 0
    assert export(["sign", str(folder / "release"), "--key", str(folder / "release-key.pem")]) == 0
    return folder / "release"


@dataclass
class Pod:
    """One pod's place on this machine: a folder for each volume, a free port for each of its ports."""

    objects: list[Object]
    volumes: dict[str, Path]
    ports: dict[str, int]
    secrets: dict[str, str]

    def line(self, container: Object, words: list[str]) -> list[str]:
        """Words of a container as they are here."""
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        return [self._here(word, mounts) for word in words]

    def _here(self, word: str, mounts: dict[str, Object]) -> str:
        for name, value in self.secrets.items():
            word = word.replace(f"$({name})", value)
        for port, here in self.ports.items():
            word = re.sub(rf"\b{port}\b", str(here), word)
        places = {path: self.volumes[mount["name"]] / mount.get("subPath", "") for path, mount in mounts.items()}
        word = re.sub(
            rf"(?<![\w/])({'|'.join(map(re.escape, places))})(?![\w-])", lambda found: str(places[found[0]]), word
        )
        return word.replace("0.0.0.0", "127.0.0.1").replace("prefix-name=privdfs", f"prefix-name={self.ports['8001']}")  # noqa: S104  what it listens on there

    def probed(self, probe: str) -> bool:
        words = server(self.objects)[probe]["exec"]["command"]
        return subprocess.run(self.line(server(self.objects), words), capture_output=True, check=False).returncode == 0

    def verify(self) -> None:
        """The first init container."""
        first = pod(self.objects)["spec"]["initContainers"][0]
        line = self.line(first, first["command"])
        told = subprocess.run(
            [str(Path(sys.executable).with_name(line[0])), *line[1:]], capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stderr
        assert "signed by a trusted key" in told.stdout


@contextmanager
def running(one: Pod, container: Object, program: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """One of its containers."""
    line = one.line(container, container["args"])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program), *line], stdout=output, stderr=subprocess.STDOUT, cwd=one.volumes["tmp"]
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def place(objects: list[Object], folder: Path, release: Path, index: int, authority: trustme.CA) -> Pod:
    """Folders for the volumes of one party, as its cluster would fill them."""
    volumes = {volume["name"]: folder / volume["name"] for volume in pod(objects)["spec"]["volumes"]}
    shutil.copytree(release / f"server-{index}", volumes.pop("release"))
    for volume in volumes.values():
        volume.mkdir()
    volumes["release"] = folder / "release"
    if "planned" in volumes:  # what the init container `plan` would leave there; here there is no GPU to plan for
        shutil.copytree(release / f"server-{index}", volumes["planned"] / "models")
    shutil.copy(release.parent / "release-key.pub.pem", volumes["trust"])
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(volumes["tls"] / "tls.key")
    (volumes["tls"] / "tls.crt").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(volumes["devices"] / "devices-ca.pem")
    ports: dict[str, int] = dict(zip(("8000", "8001", "8002", "8443", "9113"), free_ports(5), strict=True))
    names = re.findall(r"\$\((\w+)\)", " ".join(server(objects)["args"]))
    return Pod(objects, volumes, ports, {name: f"{name.lower()}-of-{index}" for name in names})


@contextmanager
def parties(objects: list[Object], folder: Path, release: Path, authority: trustme.CA) -> Iterator[list[Pod]]:
    """A pod of each of three parties, ready as its startup probe has it."""
    pods = []
    with ExitStack() as stack:
        for index in range(3):
            (folder / str(index)).mkdir()
            pods.append(place(objects, folder / str(index), release, index, authority))
            pods[-1].verify()
        processes = [
            stack.enter_context(running(one, server(objects), find_tritonserver(), folder / f"{index}.log"))
            for index, one in enumerate(pods)
        ]
        until = time.monotonic() + READY_S
        for index, (one, process) in enumerate(zip(pods, processes, strict=True)):
            while not one.probed("startupProbe"):
                told = (folder / f"{index}.log").read_text(errors="replace")
                assert process.poll() is None, told[-3000:]
                assert time.monotonic() < until, told[-3000:]
                time.sleep(0.3)
        yield pods
        for process in processes:  # at once, and not one after another
            process.terminate()


def ask(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_rendered_command_lines_answer(variant: str, tmp_path: Path, release: Path) -> None:
    objects, authority = rendered(FOLDER / variant), trustme.CA()
    device = authority.issue_cert("device.example")
    tls = TLS(ca=authority.cert_pem.bytes(), cert=device.cert_chain_pems[0].bytes(), key=device.private_key_pem.bytes())
    with parties(objects, tmp_path, release, authority) as pods:
        servers = [
            Server(f"127.0.0.1:{one.ports['8001']}", tls, token=Token(one.secrets["TOKEN"], header=HEADER))
            for one in pods
        ]
        trust = release.parent / "release-key.pub.pem"
        with Client(release / "client", servers, trust=trust, allow_shared_hosts=True, timeout=10) as client:
            result = client.predict(IMAGES / "bag-1.png")
        assert (result.label, result.answered) == ("Bag", (True, True, True))
        for one in pods:
            assert one.probed("readinessProbe")
            assert one.probed("livenessProbe")
            assert ask(one.ports["8000"], "/v2/health/ready")[0] == 200
            assert ask(one.ports["8000"], "/v2")[0] == 403, "all but health asks for a secret"
            _, figures = ask(one.ports["8002"], "/metrics")
            # The autoscaler's metric is made of these two.
            assert re.search(
                r'^nv_inference_queue_duration_us\{model="branch",version="1"\} \d+', figures, re.MULTILINE
            )
            assert re.search(
                r'^nv_inference_request_success\{model="branch",version="1"\} [1-9]', figures, re.MULTILINE
            )


def documented() -> list[str]:
    """Words of docs/KUBERNETES.md that print the gateway's configuration, for the folder in the place of `server-0`."""
    guide = (FOLDER.parents[1] / "docs" / "KUBERNETES.md").read_text()
    (block,) = re.findall(r"^```sh gateway\n(.*?) > nginx.conf$", guide, re.MULTILINE | re.DOTALL)
    program, command, folder, *options = shlex.split(block.replace("\\\n", " "))
    assert (program, command, folder) == ("privdfs-export", "gateway", "server-0")
    return options


def test_the_gateway_of_a_pod_answers_over_https(
    tmp_path: Path, release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "overlay").mkdir()
    objects, authority = rendered(overlay(tmp_path / "overlay", "../cpu", "../../gateway")), trustme.CA()
    (container,) = [one for one in pod(objects)["spec"]["containers"] if one["name"] == "gateway"]
    with parties(objects, tmp_path, release, authority) as pods, ExitStack() as stack:
        for index, one in enumerate(pods):
            capsys.readouterr()
            assert export(["gateway", str(release / f"server-{index}"), *documented()]) == 0
            (settings,) = one.line(container, [capsys.readouterr().out])
            (one.volumes["gateway"] / "nginx.conf").write_text(settings)
            secret = f'proxy_set_header privdfs-gateway "{one.secrets["GATEWAY"]}";\n'
            (one.volumes["gateway-secret"] / "secret.conf").write_text(secret)
            process = stack.enter_context(running(one, container, find_nginx(), tmp_path / f"gateway-{index}.log"))
            until = time.monotonic() + READY_S
            while not answers(one.ports["9113"], container["readinessProbe"]["httpGet"]["path"]):
                told = (tmp_path / f"gateway-{index}.log").read_text()
                assert process.poll() is None, told
                assert time.monotonic() < until, told
                time.sleep(0.1)
            assert ask(one.ports["8000"], "/v2/models/branch/config")[0] == 403, "only the gateway may ask for that"
        tls = TLS(ca=authority.cert_pem.bytes())
        servers = [Server(f"https://127.0.0.1:{one.ports['8443']}", tls) for one in pods]
        trust = release.parent / "release-key.pub.pem"
        with Client(release / "client", servers, trust=trust, allow_shared_hosts=True, timeout=10) as client:
            result = client.predict(IMAGES / "bag-1.png")
        assert (result.label, result.answered) == ("Bag", (True, True, True))


def answers(port: int, path: str) -> bool:
    try:
        return ask(port, path)[0] == 200
    except OSError:
        return False


def test_the_metrics_adapter_asks_for_what_triton_counts_and_the_autoscaler_for_what_it_gives() -> None:
    text = (FOLDER / "metrics-adapter.yaml").read_text()
    metric = pick(rendered(FOLDER / "base"), "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f"as: {metric}\n" in text
    assert set(re.findall(r"\bnv_\w+", text)) == {"nv_inference_queue_duration_us", "nv_inference_request_success"}


def test_an_unsigned_folder_is_not_served(tmp_path: Path, release: Path) -> None:
    objects = rendered(FOLDER / "base")
    (tmp_path / "0").mkdir()
    one = place(objects, tmp_path / "0", release, 0, trustme.CA())
    (one.volumes["release"] / "manifest.sig").unlink()
    with pytest.raises(AssertionError, match="sign"):
        one.verify()
