"""The checked-in release on real tritonservers that want TLS with client certificates and a token."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from privdfs import TLS, Client, Error, NotEnoughAnswersError, Server, Token
from privdfs_export.serve import find_tritonserver
from tests.ports import free_ports
from tests.trained import IMAGES

pytestmark = pytest.mark.e2e

RELEASE = Path(__file__).parents[2] / "model_repository" / "fashion-resnet20"
IMAGE = IMAGES / "bag-1.png"
READY_S = 60.0


@dataclass
class Secured:
    """Three servers: where they are, what they are known by, and what they ask for."""

    endpoints: list[str]
    authority: trustme.CA
    certificates: list[bytes]
    device: dict[str, bytes]

    def servers(self, token: Token | None, tls: TLS) -> list[Server]:
        return [Server(endpoint, tls, token=token) for endpoint in self.endpoints]


TOKEN = Token("open-sesame", header="triton-grpc-protocol-privdfs")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    device = authority.issue_cert("device.example")
    endpoints, certificates, logs = [], [], []
    running: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(3):
            issued = authority.issue_cert("127.0.0.1")
            issued.private_key_pem.write_to_path(folder / f"{i}.key")
            issued.cert_chain_pems[0].write_to_path(folder / f"{i}.pem")
            certificates.append(issued.cert_chain_pems[0].bytes())
            (port,) = free_ports(1)
            endpoints.append(f"127.0.0.1:{port}")
            logs.append(folder / f"{i}.log")
            line = [
                str(find_tritonserver()),
                f"--model-repository={RELEASE / f'server-{i}'}",
                "--model-control-mode=none", "--disable-auto-complete-config", "--exit-timeout-secs=3",
                "--allow-http=false", "--allow-metrics=false", f"--grpc-port={port}", "--grpc-use-ssl=1",
                "--grpc-use-ssl-mutual=1", f"--grpc-server-cert={folder / f'{i}.pem'}",
                f"--grpc-server-key={folder / f'{i}.key'}", f"--grpc-root-cert={folder / 'ca.pem'}",
                "--grpc-restricted-protocol=inference,model-config:privdfs=open-sesame",
                f"--backend-config=python,shm-region-prefix-name=privdfs-tls-{port}",
            ]  # fmt: skip
            with logs[-1].open("wb") as log:
                running.append(subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT))
        found = Secured(
            endpoints,
            authority,
            certificates,
            {"cert": device.cert_chain_pems[0].bytes(), "key": device.private_key_pem.bytes()},
        )
        until = time.monotonic() + READY_S
        trusted = found.servers(TOKEN, TLS(ca=authority.cert_pem.bytes(), **found.device))
        with Client(RELEASE / "client", trusted, allow_unsigned=True) as client:
            while not all(row.ok for row in client.health(timeout=2)):
                assert time.monotonic() < until, [log.read_text()[-2000:] for log in logs]
                time.sleep(0.3)
        yield found
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(30)


def predict(servers: list[Server]) -> str:
    with Client(RELEASE / "client", servers, allow_unsigned=True, timeout=4) as client:
        return client.predict(IMAGE).label


def test_with_everything_in_order_the_answer_is_that_of_local_mode(secured: Secured) -> None:
    with Client.local(RELEASE) as local:
        expected = local.predict(IMAGE).label
    assert predict(secured.servers(TOKEN, TLS(ca=secured.authority.cert_pem.bytes(), **secured.device))) == expected
    pinned = [
        Server(endpoint, TLS(pin=pin, **secured.device), token=TOKEN)
        for endpoint, pin in zip(secured.endpoints, secured.certificates, strict=True)
    ]
    assert predict(pinned) == expected


@pytest.mark.parametrize(
    "case",
    ["no client certificate", "another authority", "wrong name", "another server's pin", "plaintext", "no token"],
)
def test_whatever_does_not_fit_is_refused(secured: Secured, case: str) -> None:
    ca, stranger = secured.authority.cert_pem.bytes(), trustme.CA()
    by_name = [endpoint.replace("127.0.0.1", "localhost") for endpoint in secured.endpoints]
    servers = {
        "no client certificate": secured.servers(TOKEN, TLS(ca=ca)),
        "another authority": secured.servers(TOKEN, TLS(ca=stranger.cert_pem.bytes(), **secured.device)),
        "wrong name": [Server(endpoint, TLS(ca=ca, **secured.device), token=TOKEN) for endpoint in by_name],
        "another server's pin": [
            Server(endpoint, TLS(pin=secured.certificates[i - 1], **secured.device), token=TOKEN)
            for i, endpoint in enumerate(secured.endpoints)
        ],
        "plaintext": [Server(endpoint, token=TOKEN) for endpoint in secured.endpoints],
        "no token": secured.servers(None, TLS(ca=ca, **secured.device)),
    }[case]
    with pytest.raises(Error) as caught:
        predict(servers)
    assert isinstance(caught.value, NotEnoughAnswersError)
    said = {
        "no client certificate": "whether it wants a certificate of this device",
        "another authority": "a certificate that the authorities in TLS(ca=…) did not sign",
        "wrong name": "a certificate for another name",
        "another server's pin": "another certificate than the pinned one",
        "plaintext": "that both sides use TLS or neither",
        "no token": "the token that it may need",
    }[case]
    messages = [cause.message for cause in caught.value.causes.values()]
    assert all(said in message for message in messages), messages
    assert "\n" not in str(caught.value)
