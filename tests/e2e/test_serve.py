"""Serving, on real tritonserver processes."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from privdfs._errors import BundleIntegrityError
from privdfs_export.errors import RepositoryError, TritonserverFailedError, TritonserverMissingError
from privdfs_export.repository import read_repository
from privdfs_export.serve import (
    ADMIN_HEADER,
    HTTP_ADMIN_HEADER,
    RunningServer,
    find_tritonserver,
    processes,
    serve,
    serve_measured,
    serve_release,
    tritonserver,
)
from privdfs_export.serve.cli import main
from privdfs_export.serve.local import running
from privdfs_export.serve.tritonserver import Services
from tests.e2e.processes import command, descendants, listening, proxies, wait_until_gone
from tests.e2e.tiny_release import IMAGE, MAX_BATCH, RELEASE, SHARE_LENGTH, write_release, write_server
from tests.ports import free_ports, take_a_port

pytestmark = pytest.mark.e2e

#: Ending takes a server about two seconds; its keeper gives it eight before it kills.
ENDED_S = 12.0


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("tiny3"), 3)


@pytest.fixture(scope="module")
def endpoints(release: Path) -> Iterator[list[str]]:
    with serve_release(release) as found:
        yield found


@pytest.fixture
def process(release: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """`privdfs-serve` on the release, as a process of its own."""
    with _start_command(release, tmp_path, log_dir=tmp_path / "logs") as started:
        yield started
        started.kill()


def port_of(address: str | tuple[str, int]) -> int:
    return int(address.split("/metrics")[0].split(":")[-1]) if isinstance(address, str) else address[1]


def page(url: str, path: str) -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=10)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def infer(endpoint: str, model: str, name: str, values: np.ndarray) -> np.ndarray:
    tensor = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    tensor.set_data_from_numpy(values)
    with InferenceServerClient(endpoint) as client:
        answer = client.infer(model, [tensor], client_timeout=10)
        assert answer is not None
        logits = answer.as_numpy("logits")
        assert logits is not None
        return logits


def expected(graph: Path, values: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: values})[0])


def shares(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, (count, SHARE_LENGTH), dtype=np.int8)


def _start_command(
    release: Path,
    scratch: Path,
    *prefix: str,
    log_dir: Path | None = None,
    settings: dict[str, str] | None = None,
    more: Sequence[str] = (),
) -> "subprocess.Popen[str]":
    line = [*prefix, sys.executable, "-m", "privdfs_export.serve", str(release), "--json", *more]
    line += [] if log_dir is None else ["--log-dir", str(log_dir)]
    environment = {**os.environ, "TMPDIR": str(scratch), **(settings or {})}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _first_line(process: "subprocess.Popen[str]") -> dict:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def _shared_memory(copies: list[Path]) -> list[Path]:
    """Shared memory of the servers that read these copies of repositories."""
    return [path for path in Path("/dev/shm").iterdir() if path.name.startswith(tuple(copy.name for copy in copies))]


# -------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("batch", [1, 5, MAX_BATCH])
def test_every_server_answers_what_onnxruntime_answers(endpoints: list[str], release: Path, batch: int) -> None:
    assert len(set(endpoints)) == 3
    for index, endpoint in enumerate(endpoints):
        values = shares(batch, seed=batch)
        want = expected(release / f"server-{index}" / "branch" / "1" / "model.onnx", values)
        np.testing.assert_allclose(infer(endpoint, "branch", "share", values), want, rtol=1e-5)


def test_five_servers(tmp_path: Path) -> None:
    release = write_release(tmp_path / "tiny5", 5)
    with serve_release(release) as endpoints:
        assert len(set(endpoints)) == 5
        for index, endpoint in enumerate(endpoints):
            want = expected(release / f"server-{index}" / "branch" / "1" / "model.onnx", shares(2))
            np.testing.assert_allclose(infer(endpoint, "branch", "share", shares(2)), want, rtol=1e-5)


def test_the_same_script_serves_the_baseline(release: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, *IMAGE), dtype=np.uint8)
    with serve([release / "baseline"]) as (endpoint,):
        want = expected(release / "baseline" / "baseline" / "1" / "model.onnx", images)
        np.testing.assert_allclose(infer(endpoint, "baseline", "image", images), want, rtol=1e-5)


def test_requests_that_are_batched_together_get_their_own_answers(endpoints: list[str], release: Path) -> None:
    graph = release / "server-0" / "branch" / "1" / "model.onnx"

    def ask(seed: int) -> None:
        values = shares(1 + seed % 3, seed)
        want = expected(graph, values)
        np.testing.assert_allclose(infer(endpoints[0], "branch", "share", values), want, rtol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(64)))


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((1, SHARE_LENGTH + 1), np.int8),
        np.zeros((1, SHARE_LENGTH), np.uint8),
        np.zeros((MAX_BATCH + 1, SHARE_LENGTH), np.int8),
    ],
    ids=["length", "type", "batch"],
)
def test_a_wrong_share_is_refused_and_the_server_lives_on(endpoints: list[str], values: np.ndarray) -> None:
    with pytest.raises(InferenceServerException):
        infer(endpoints[0], "branch", "share", values)
    assert infer(endpoints[0], "branch", "share", shares(1)).shape == (1, 4)


# ------------------------------------------------------------------------------------------------------ hardening


def test_the_model_configuration_names_release_and_server(endpoints: list[str]) -> None:
    for index, endpoint in enumerate(endpoints):
        with InferenceServerClient(endpoint) as client:
            config = client.get_model_config("branch", as_json=True)
        assert config is not None
        found = {key: value["string_value"] for key, value in config["config"]["parameters"].items()}
        assert found == {"privdfs_release": RELEASE, "privdfs_server": str(index)}


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("register_system_shared_memory", ("region", "/key", 16)),
        ("get_system_shared_memory_status", ()),
        ("get_cuda_shared_memory_status", ()),
        ("load_model", ("branch",)),
        ("unload_model", ("branch",)),
        ("get_model_repository_index", ()),
        ("get_inference_statistics", ("branch",)),
        ("get_trace_settings", ()),
        ("update_trace_settings", (None, {"trace_level": "TENSORS"})),
        ("get_log_settings", ()),
        ("update_log_settings", ({"log_verbose_level": 9},)),
    ],
)
def test_calls_that_clients_do_not_need_are_refused(endpoints: list[str], call: str, arguments: tuple) -> None:
    with InferenceServerClient(endpoints[0]) as client, pytest.raises(InferenceServerException) as refused:
        getattr(client, call)(*arguments)
    assert "restricted" in str(refused.value)


def test_whoever_started_a_server_can_read_its_statistics(release: Path) -> None:
    with serve_measured([release / "server-0"]) as (server,), InferenceServerClient(server.endpoint) as client:

        def count() -> int:
            found = client.get_inference_statistics("branch", headers={ADMIN_HEADER: server.admin}, as_json=True)
            return int((found or {})["model_stats"][0].get("inference_count", 0))

        before = count()
        infer(server.endpoint, "branch", "share", shares(1))
        ends = time.monotonic() + 10
        while count() == before and time.monotonic() < ends:  # Triton answers first, and counts afterwards
            time.sleep(0.01)
        assert count() == before + 1
    assert server.admin not in repr(server)


def test_servers_listen_on_one_loopback_port_and_nowhere_else(endpoints: list[str]) -> None:
    for endpoint in endpoints:
        port = int(endpoint.split(":")[1])
        assert listening_ports(port) == {port}


def listening_ports(port: int) -> set[int]:
    """All ports of the server that has this one for gRPC; they are on loopback."""
    (pid,) = [
        pid for pid in descendants(os.getpid()) if f"--grpc-port={port}" in command(pid) and "-I -S" not in command(pid)
    ]
    found = [where.partition(":") for where in listening(pid)]
    # 127.0.0.1, in host byte order, alone or mapped into IPv6
    assert all(address.endswith("0100007F") for address, _, _ in found)
    return {int(port, 16) for _, _, port in found}


# ------------------------------------------------------------------------------------------------------------- HTTP


@pytest.fixture(scope="module")
def both(release: Path) -> Iterator[RunningServer]:
    """A server that speaks HTTP too."""
    with serve_measured([release / "server-0"], http=True) as (server,):
        yield server


def ask_over_http(server: RunningServer, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    assert server.http is not None
    connection = http.client.HTTPConnection(server.http.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_http_is_one_more_loopback_port(both: RunningServer) -> None:
    assert both.http is not None
    ports = [int(endpoint.rpartition(":")[2]) for endpoint in (both.endpoint, both.http)]
    assert listening_ports(ports[0]) == set(ports)
    status, body = ask_over_http(both, "/v2/models/branch/config")
    assert status == 200
    assert json.loads(body)["parameters"]["privdfs_server"] == {"string_value": "0"}


@pytest.mark.parametrize(
    "path",
    [
        "/v2/systemsharedmemory/status",
        "/v2/cudasharedmemory/status",
        "/v2/models/branch/stats",
        "/v2/models/stats",
        "/v2/trace/setting",
        "/v2/logging",
    ],
)
def test_paths_that_clients_do_not_need_are_refused(both: RunningServer, path: str) -> None:
    assert ask_over_http(both, path)[0] == 403
    assert ask_over_http(both, path, {HTTP_ADMIN_HEADER: "guess"})[0] == 403
    assert ask_over_http(both, path, {HTTP_ADMIN_HEADER: both.admin})[0] == 200


def test_there_are_no_metrics_over_http(both: RunningServer) -> None:
    assert ask_over_http(both, "/metrics")[0] in {400, 404}


def test_what_the_manifest_does_not_list_is_not_served(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "server-0"
    shutil.copytree(release / "server-0", folder)
    shutil.copytree(folder / "branch" / "1", folder / "branch" / "2")
    with serve([folder]) as (endpoint,), InferenceServerClient(endpoint) as client:
        metadata = client.get_model_metadata("branch", as_json=True)
    assert metadata is not None
    assert metadata["versions"] == ["1"]


# ------------------------------------------------------------------------------------------------------- bad input


def test_a_changed_file_is_refused_before_anything_starts(release: Path, tmp_path: Path) -> None:
    changed = tmp_path / "release"
    shutil.copytree(release, changed)
    graph = changed / "server-1" / "branch" / "1" / "model.onnx"
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    before = descendants(os.getpid())
    with pytest.raises(BundleIntegrityError, match=r"branch/1/model\.onnx"), serve_release(changed):
        pass
    assert descendants(os.getpid()) <= before


def test_a_server_in_the_place_of_another_is_refused(release: Path, tmp_path: Path) -> None:
    swapped = tmp_path / "release"
    shutil.copytree(release, swapped)
    shutil.rmtree(swapped / "server-1")
    shutil.copytree(swapped / "server-2", swapped / "server-1")
    with pytest.raises(BundleIntegrityError, match="expected server 1"), serve_release(swapped):
        pass


def test_a_server_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    write_server(tmp_path, 0)
    write_server(tmp_path, 1, script=b"raise RuntimeError('this script does not start')")
    before = descendants(os.getpid())
    repositories = [tmp_path / "server-0", tmp_path / "server-1"]
    with (
        pytest.raises(TritonserverFailedError, match="before it was ready") as failed,
        serve(repositories, log_dir=tmp_path / "logs"),
    ):
        pass
    assert failed.value.log == str(tmp_path / "logs" / "1-server-1.log")
    assert "this script does not start" in str(failed.value)
    assert wait_until_gone(descendants(os.getpid()) - before, ENDED_S) == set()


def test_a_graph_that_cannot_be_loaded_is_found_before_anything_starts(tmp_path: Path) -> None:
    write_server(tmp_path, 0, onnx_bytes=b"not a graph")
    before = descendants(os.getpid())
    with pytest.raises(RepositoryError, match="ONNX Runtime cannot load its graph"), serve([tmp_path / "server-0"]):
        pass
    assert descendants(os.getpid()) <= before


@pytest.mark.parametrize("service", range(3), ids=["grpc", "http", "metrics"])
def test_a_port_taken_in_the_meantime_is_replaced(
    release: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: int
) -> None:
    thieves = take_a_port(monkeypatch, tritonserver, service)
    checked, services = [read_repository(release / "server-0")], Services(http=True, metrics=True)
    with running(checked, None, tmp_path / "logs", services) as (server,):
        (thief,) = thieves
        with thief:
            urls = [server.endpoint, server.http or "", server.metrics or ""]
            assert port_of(thief.getsockname()) not in map(port_of, urls)
            assert infer(server.endpoint, "branch", "share", shares(1)).shape == (1, 4)
            assert page(urls[1], "/v2/health/ready")[0] == 200
            assert b"nv_inference_count" in page(urls[2], "/metrics")[1]


def test_a_held_port_is_given_to_nobody_until_its_server_has_ended(release: Path, tmp_path: Path) -> None:
    with running([read_repository(release / "server-0")], None, tmp_path / "logs") as (server,):
        held: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            taken = {port_of(processes.place(held)) for _ in range(200)} | {port_of(server.endpoint)}
            assert len(taken) == 201
            for _ in range(2_000):
                with socket.create_connection(listener.getsockname()) as somebody, socket.socket() as another:
                    another.bind(("127.0.0.1", 0))
                    listener.accept()[0].close()
                    assert not {port_of(each.getsockname()) for each in (somebody, another)} & taken
        for each in held:
            each.close()
    assert [each.fileno() for each in server.held] == [-1]


def test_a_missing_tritonserver_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TritonserverMissingError, match="give the path"):
        find_tritonserver(tmp_path / "tritonserver")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "_PROJECT", tmp_path)
    with pytest.raises(TritonserverMissingError, match="make triton"):
        find_tritonserver()


def test_a_tritonserver_on_path_comes_before_that_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_tritonserver() == program


@pytest.mark.parametrize("arguments", [["nowhere"], ["{release}", "--tritonserver", "nowhere"]])
def test_the_command_ends_with_status_2_and_one_line(release: Path, arguments: list[str]) -> None:
    line = [sys.executable, "-m", "privdfs_export.serve", *(word.format(release=release) for word in arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("privdfs-serve: error: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_named_before_anything_starts(
    release: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([str(release), "--port", str(port)]) == 2
    assert f"port {port} cannot be used" in capsys.readouterr().err
    assert main([str(release), "--port", "65534"]) == 2
    assert "port 65536 cannot be used" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ no orphans


def test_the_command_serves_http_where_that_is_asked_for(release: Path, tmp_path: Path) -> None:
    with _start_command(release, tmp_path, more=["--http"]) as started:
        found = _first_line(started)
        assert len({endpoint.removeprefix("http://") for endpoint in found["http"] + found["endpoints"]}) == 6
        started.send_signal(signal.SIGINT)
        assert started.wait(ENDED_S) == 0


def test_when_one_server_ends_the_others_go_on_where_that_is_asked_for(release: Path, tmp_path: Path) -> None:
    port, *_ = free_ports(6)
    more = ["--keep-going", "--http", "--port", str(port)]
    with _start_command(release, tmp_path, log_dir=tmp_path / "logs", more=more) as started:
        found = _first_line(started)
        assert found["endpoints"] == [f"127.0.0.1:{port + i}" for i in range(3)]
        assert found["http"] == [f"http://127.0.0.1:{port + 3 + i}" for i in range(3)]
        assert ["tritonserver" in command(pid) for pid in found["pids"]] == [True] * 3
        assert started.stderr is not None
        for ends in (1, 2):
            os.kill(found["pids"][ends], signal.SIGKILL)
            said = started.stderr.readline()
            assert said == f"the tritonserver of {release}/server-{ends} ended (status 137); the others go on\n"
        assert infer(found["endpoints"][0], "branch", "share", shares(1)).shape == (1, 4)
        os.kill(found["pids"][0], signal.SIGKILL)
        _, said = started.communicate(timeout=ENDED_S)
    assert started.returncode == 2
    assert "server-0 ended by itself with status 137" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_servers(process: "subprocess.Popen[str]", number: signal.Signals) -> None:
    found = _first_line(process)
    assert found["release"] == RELEASE
    assert len(found["endpoints"]) == 3
    assert all(Path(log).exists() for log in found["logs"])
    below = descendants(process.pid)
    assert len([pid for pid in below if "triton_python_backend_stub" in command(pid)]) == 3
    process.send_signal(number)
    assert process.wait(ENDED_S) == 0
    assert wait_until_gone(below, ENDED_S) == set()


@pytest.mark.usefixtures("_hangup_counts")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ready", [True, False], ids=["ready", "starting"])
def test_a_signal_leaves_no_log_no_copy_and_no_shared_memory(
    release: Path, tmp_path: Path, number: signal.Signals, *, ready: bool
) -> None:
    with _start_command(release, tmp_path) as started:
        if ready:
            logs = [Path(log) for log in _first_line(started)["logs"]]
            assert all(log.is_relative_to(tmp_path) and log.exists() for log in logs)
        else:
            deadline = time.monotonic() + 30
            while not list(tmp_path.glob("privdfs-server-*")):
                assert time.monotonic() < deadline
                time.sleep(0.005)
        copies = list(tmp_path.iterdir())
        started.send_signal(number)
        _, said = started.communicate(timeout=ENDED_S)
    assert (started.returncode, said) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert _shared_memory(copies) == []


def test_a_program_that_is_interrupted_leaves_no_log_and_one_that_fails_does(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), serve([release / "server-0"]):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="of the program"), serve([release / "server-0"]):
        raise ValueError("of the program")
    assert [path.name for path in tmp_path.glob("*/*")] == ["0-server-0.log"]


def test_an_interrupted_start_leaves_no_copy(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(processes.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt), serve([release / "server-0"]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_the_folder_is_made_leaves_none(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def interrupted(path: str | Path, mode: int = 0o777) -> None:
        make(path, mode)
        if "privdfs-server-" in str(path):
            raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), serve([release / "server-0"]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nohup_keeps_the_servers_when_the_terminal_closes(release: Path, tmp_path: Path) -> None:
    with _start_command(release, tmp_path, "nohup") as started:
        endpoints = _first_line(started)["endpoints"]
        started.send_signal(signal.SIGHUP)
        assert infer(endpoints[0], "branch", "share", shares(1)).shape == (1, 4)
        started.send_signal(signal.SIGTERM)
        assert started.wait(ENDED_S) == 0


def test_no_proxy_stands_between_the_command_and_its_servers(release: Path, tmp_path: Path) -> None:
    with _start_command(release, tmp_path, settings=proxies()) as started:
        try:
            assert len(_first_line(started)["endpoints"]) == 3
        finally:
            started.terminate()


def test_killing_the_command_leaves_nothing_behind(process: "subprocess.Popen[str]", tmp_path: Path) -> None:
    _first_line(process)
    below = descendants(process.pid)
    assert len(below) == 9  # keeper, tritonserver and Python stub of each server
    copies = list(tmp_path.glob("privdfs-server-*"))
    assert len(copies) == 3
    assert len(_shared_memory(copies)) >= 3
    process.kill()
    assert wait_until_gone(below, ENDED_S) == set()
    assert not any(copy.exists() for copy in copies)
    assert _shared_memory(copies) == []


def test_the_end_of_whoever_started_the_command_ends_all(release: Path, tmp_path: Path) -> None:
    # The command is a child of the shell, not of this process.
    with _start_command(release, tmp_path, "sh", "-c", '"$@" & wait', "sh", log_dir=tmp_path / "logs") as shell:
        _first_line(shell)
        below = descendants(shell.pid)
        shell.kill()
        assert wait_until_gone(below, ENDED_S) == set()


def test_a_killed_keeper_takes_its_server_with_it_and_the_command_says_so(
    process: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    _first_line(process)
    below = descendants(process.pid)
    keeper = next(pid for pid in below if "_keeper.py" in command(pid))
    os.kill(keeper, signal.SIGKILL)
    _, said = process.communicate(timeout=ENDED_S)
    assert process.returncode == 2
    assert not list(tmp_path.glob("privdfs-server-*"))
    assert "ended by itself" in said
    assert wait_until_gone(below, ENDED_S) == set()


def test_servers_outlive_the_thread_that_started_them(release: Path) -> None:
    started: list = []

    def start() -> None:
        context = serve([release / "server-0"])
        started.extend([context, context.__enter__()])

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    context, (endpoint,) = started
    try:
        time.sleep(1)
        assert infer(endpoint, "branch", "share", shares(1)).shape == (1, 4)
    finally:
        context.__exit__(None, None, None)


# ------------------------------------------------------------------------------------------------ plain tritonserver


def test_a_server_folder_works_with_plain_tritonserver_and_stays_as_it_is(release: Path) -> None:
    folder = release / "server-0"
    before = sorted(folder.rglob("*"))
    (port,) = free_ports(1)
    line = [str(find_tritonserver()), f"--model-repository={folder}", f"--grpc-port={port}"]
    line += ["--grpc-address=127.0.0.1", "--allow-http=false", "--allow-metrics=false"]  # as others may use the ports
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 30
            with InferenceServerClient(f"127.0.0.1:{port}") as client:
                while not _is_ready(client):
                    assert server.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            assert infer(f"127.0.0.1:{port}", "branch", "share", shares(1)).shape == (1, 4)
        finally:
            server.terminate()
    assert sorted(folder.rglob("*")) == before


def _is_ready(client: InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_ready(client_timeout=1))
    except InferenceServerException:
        return False
