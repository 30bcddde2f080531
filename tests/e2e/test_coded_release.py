"""Coded releases on real tritonservers: every residue is that of ONNX Runtime and of plain integers, in every round."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient.grpc import InferenceServerClient, InferInput

from privdfs import AsyncClient, Client, NotEnoughAnswersError, ServerMismatchError, coding
from privdfs_export.cli import main
from privdfs_export.serve import find_tritonserver, serve, serve_release
from privdfs_export.serve.cli import main as serve_main
from privdfs_export.sessions import session
from tests.coded_release import build_coded_release, drawn, noise

pytestmark = pytest.mark.e2e
SERVERS = 4


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of degree 2, for three servers; the fourth was added afterwards."""
    folder = build_coded_release(tmp_path_factory.mktemp("coded") / "release", servers=3)
    assert main(["servers", str(folder), "--servers", str(SERVERS)]) == 0
    return folder


@pytest.fixture(scope="module")
def endpoints(release: Path) -> Iterator[list[str]]:
    with serve_release(release) as running:
        yield list(running)


def answer(endpoint: str, number: int, share: np.ndarray) -> np.ndarray:
    """What a tritonserver answers in a round."""
    tensor = InferInput("share", list(share.shape), "INT8")
    tensor.set_data_from_numpy(share)
    with InferenceServerClient(endpoint) as client:
        found = client.infer(f"branch-{number}", [tensor], client_timeout=30)
        assert found is not None
        residues = found.as_numpy("residues")
    assert residues is not None
    return residues


def plain(number: int, share: np.ndarray) -> np.ndarray:
    """The same by int64 arithmetic modulo each prime, without a graph."""
    about = drawn().rounds[number - 1]
    network = drawn().trained.system.plain()[number - 1].network
    columns = [
        network(share[:, column].astype(np.int64).reshape(-1, *network.inputs), prime).reshape(len(share), -1)
        for column, prime in enumerate(about.moduli)
    ]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_server_gives_the_residues_of_plain_integers(release: Path, endpoints: list[str], number: int) -> None:
    about = drawn().rounds[number - 1]
    share = coding.draw((64, 1, about.values), about.moduli)[:, 0]
    expected = plain(number, share)
    graph = session((release / "server-0" / f"branch-{number}" / "1" / "model.onnx").read_bytes())
    np.testing.assert_array_equal(np.asarray(graph.run(None, {"share": share})[0]), expected)
    for endpoint in endpoints:
        found = answer(endpoint, number, share)
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, expected)


def test_requests_that_triton_runs_as_one_batch_stay_apart(endpoints: list[str]) -> None:
    about = drawn().rounds[1]
    shares = [coding.draw((size, 1, about.values), about.moduli)[:, 0] for size in (1, 3, 1, 7, 2, 1, 5, 1) * 4]
    together = threading.Barrier(8, timeout=30)

    def ask(share: np.ndarray) -> np.ndarray:
        together.wait()
        return answer(endpoints[2], 2, share)

    with ThreadPoolExecutor(8) as pool:
        for share, found in zip(shares, pool.map(ask, shares), strict=True):
            np.testing.assert_array_equal(found, plain(2, share))


def test_local_mode_tritonservers_and_plain_integers_agree(release: Path, endpoints: list[str]) -> None:
    images = noise(200, seed=11)
    with (
        Client.local(release, timeout=60) as local,
        Client(release / "client", endpoints, allow_unsigned=True, timeout=60) as remote,
    ):
        here, there = local.predict_batch(images), remote.predict_batch(images)
    assert [each.probability for each in there] == [each.probability for each in here]
    system = drawn().trained.system
    with torch.inference_mode():
        expected = system(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(dim=1).tolist()
    assert [each.index for each in there] == [each.index for each in here]
    # Before anything is exact comes the head, whose values may move by one level from torch to ONNX Runtime.
    assert np.mean(np.array([each.index for each in there]) == expected) >= 0.97
    assert all(each.answered == (True,) * SERVERS for each in there)
    assert there[0].timings.rounds
    assert len(there[0].timings.rounds) == 3


async def test_the_asyncio_client_gives_the_same(release: Path, endpoints: list[str]) -> None:
    images = noise(8, seed=12)
    with Client.local(release) as local:
        expected = [each.probability for each in local.predict_batch(images)]
    async with AsyncClient(release / "client", endpoints, allow_unsigned=True, timeout=30) as client:
        found = await client.predict_batch(images)
    assert [each.probability for each in found] == expected


def test_a_client_may_use_fewer_servers_than_there_are(release: Path, endpoints: list[str]) -> None:
    images = noise(4, seed=13)
    with (
        Client(release / "client", endpoints[:3], allow_unsigned=True, timeout=30) as three,
        Client(release / "client", endpoints, allow_unsigned=True, timeout=30) as four,
    ):
        few, all_of_them = three.predict_batch(images), four.predict_batch(images)
    assert [each.probability for each in few] == [each.probability for each in all_of_them]


def test_servers_in_another_order_get_no_share(release: Path, endpoints: list[str]) -> None:
    swapped = [endpoints[1], endpoints[0], *endpoints[2:]]
    with (
        Client(release / "client", swapped, allow_unsigned=True, timeout=30) as client,
        pytest.raises(NotEnoughAnswersError) as caught,
    ):
        client.predict(noise(1)[0])
    assert {type(caught.value.causes[server]) for server in (0, 1)} == {ServerMismatchError}


def test_without_one_server_the_answer_is_the_same(release: Path, endpoints: list[str]) -> None:
    images = noise(4, seed=14)
    silent = [*endpoints[:2], "127.0.0.1:9", endpoints[3]]  # nothing listens on the discard port
    with (
        Client.local(release) as local,
        Client(release / "client", silent, allow_unsigned=True, timeout=30) as client,
    ):
        expected, found = local.predict_batch(images), client.predict_batch(images)
    assert [each.probability for each in found] == [each.probability for each in expected]
    assert all(each.answered == (True, True, False, True) for each in found)


def test_the_command_serves_as_many_servers_as_are_asked_for(release: Path) -> None:
    line = [sys.executable, "-m", "privdfs_export.serve", str(release), "--json", "--servers", "3"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            assert (said["release"], len(said["endpoints"])) == (drawn().manifest.release, 3)
            with Client(release / "client", said["endpoints"], allow_unsigned=True, timeout=30) as client:
                assert client.predict(noise(1)[0]).answered == (True,) * 3
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("servers", "told"),
    [
        ("5", "has folders for 4 servers, not 5: add some"),
        ("2", "have degree 2, so at least 3 answers decode them; pass --servers 3"),
        ("0", "--servers"),
        ("17", "--servers"),
    ],
)
def test_servers_that_are_not_there(release: Path, capsys: pytest.CaptureFixture[str], servers: str, told: str) -> None:
    with pytest.raises(SystemExit) if servers in {"0", "17"} else nullcontext():
        assert serve_main([str(release), "--servers", servers]) == 2
    assert told in capsys.readouterr().err


def test_a_masked_release_is_served_whole(trained_release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_main([str(trained_release), "--servers", "2"]) == 2
    assert "needs all its 3 servers: leave out --servers" in capsys.readouterr().err


def test_the_baseline_is_served_beside_the_rounds(release: Path) -> None:
    with serve([release / "baseline"]) as (endpoint,), InferenceServerClient(endpoint) as client:
        assert client.is_model_ready("baseline")


def test_the_onnxruntime_backend_gives_the_same_residues(tmp_path: Path) -> None:
    """Where this tritonserver has it: that of `make triton` has the Python backend alone."""
    backends = find_tritonserver().resolve().parents[1] / "lib" / "tritonserver" / "backends"
    if not (backends / "onnxruntime").is_dir() and not Path("/opt/tritonserver/backends/onnxruntime").is_dir():
        pytest.skip("NOT COMPARED: this tritonserver has no onnxruntime backend")
    folder = build_coded_release(tmp_path / "release", engine="onnxruntime", servers=2)
    with serve_release(folder) as running:
        for number, about in enumerate(drawn().rounds, 1):
            share = coding.draw((16, 1, about.values), about.moduli)[:, 0]
            for endpoint in running:
                np.testing.assert_array_equal(answer(endpoint, number, share), plain(number, share))
