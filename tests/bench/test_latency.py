"""The parts of bench/latency.py that need no server."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from bench import latency
from privdfs import Bundle, Error, Result, Timings
from privdfs_bench.releases import is_coded
from privdfs_bench.speed import tls
from privdfs_bench.speed.check import bars, check_record, compare
from privdfs_bench.speed.crypten import measure_crypten
from privdfs_bench.speed.endpoints import Endpoints, Secured
from privdfs_bench.speed.latency import given
from privdfs_bench.speed.rounds import check_crypten, open_loop, ratios
from privdfs_bench.speed.serving import ServerTime, split_near
from privdfs_bench.speed.stages import stragglers
from privdfs_bench.speed.systems import System
from privdfs_export.serve import gateway

CONFIGS = Path(__file__).parents[2] / "configs"


def residual_model() -> bytes:
    """Three products of 4 x 4 numbers; a shortcut passes the second."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "first"], ["a"]),
        helper.make_node("MatMul", ["a", "second"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["d"]),
        helper.make_node("MatMul", ["d", "third"], ["logits"]),
    ]
    weights = [
        numpy_helper.from_array(generator.standard_normal((4, 4), dtype=np.float32), name)
        for name in ("first", "second", "third")
    ]
    source = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 4])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(nodes, "residual", [source], [answer], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def run(graph: bytes, values: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: values})[0])


@pytest.mark.parametrize(("macs", "feature"), [(0, "a"), (17, "a"), (31, "d"), (1000, "d")])
def test_a_model_is_split_where_one_tensor_carries_everything(macs: int, feature: str) -> None:
    graph = residual_model()
    split = split_near(graph, macs)
    assert (split.feature, split.shape, split.macs) == (feature, (4,), 16 if feature == "a" else 32)
    image = np.arange(8, dtype=np.uint8).reshape(2, 4)
    np.testing.assert_array_equal(run(split.server, run(split.device, image)), run(graph, image))


def test_a_model_that_no_layer_narrows_cannot_be_split() -> None:
    model = onnx.load_from_string(residual_model())
    model.graph.node[5].input[0] = "pixels"
    with pytest.raises(Error, match="no layer"):
        split_near(model.SerializeToString(), 10)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "manifest.json"),
        (["nowhere.toml"], "nowhere.toml"),
        (["x", "--samples", "0"], "at least"),
        (["x", "--cold", "0"], "at least"),
        (["x", "--network", "5g"], "is no network"),
        (["x", "--check"], "no record"),
    ],
)
def test_latency_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    try:
        code = latency.main([*arguments, "--out", str(tmp_path)])
    except SystemExit as left:
        code = left.code
    assert code == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fashion-resnet20", "fashion-coded-r1"])
def test_a_config_becomes_a_release_with_random_weights_for_a_while(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privdfs_bench.speed.latency.RANDOM_SHAPE", (3, 16, 16))
    monkeypatch.setattr("privdfs_bench.speed.latency.RANDOM_CLASSES", 5)
    config = CONFIGS / f"{name}.toml"
    with given(config, Console()) as release:
        bundle = Bundle.open(release / "client", allow_unsigned=True)
        assert release.name == f"{name}-random"
        assert is_coded(release) == name.startswith("fashion-coded")
        assert (bundle.manifest.image.height, len(bundle.classes)) == (16, 5)
    assert not release.exists()
    with given(release, Console()) as same:
        assert same == release


@pytest.mark.parametrize(
    ("name", "folder"), [("fashion-resnet20", ""), ("mine", "mine")], ids=["the reference", "another"]
)
def test_only_the_reference_is_written_into_the_folder_of_the_record(
    name: str, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[Path] = []

    def stop(out: Path, _results: object) -> None:
        written.append(out)
        raise KeyboardInterrupt

    monkeypatch.setattr(latency, "RESULTS", tmp_path)
    monkeypatch.setattr(latency, "measure", lambda *_: {})
    monkeypatch.setattr(latency, "write", stop)
    assert latency.main([name]) == 130
    assert written == [tmp_path / folder]


def checked(ratios: dict[str, float], network: float = 1.0, **about: Any) -> dict[str, Any]:
    names = {"privdfs_p50_to_floor_p50", "privdfs_p99_to_floor_p99", "privdfs_bytes_up_to_pixels"}
    through = {"20,10": {"ratios": {"privdfs_p50_to_baseline_triton_p50": network}}}
    return {"release": "small", "ratios": dict.fromkeys(names, 1.0) | ratios, "networks": through} | about


@pytest.mark.parametrize(
    ("now", "worse"),
    [
        (checked({}), set()),
        (checked({"privdfs_p50_to_floor_p50": 1.149}), set()),
        (checked({"privdfs_p50_to_floor_p50": 1.151}), {"privdfs_p50_to_floor_p50"}),
        (checked({"privdfs_p50_to_floor_p50": 0.5}), set()),
        (checked({"privdfs_p99_to_floor_p99": 1.49}), set()),
        (checked({"privdfs_p99_to_floor_p99": 1.51}), {"privdfs_p99_to_floor_p99"}),
        (checked({"privdfs_bytes_up_to_pixels": 1.001}), {"privdfs_bytes_up_to_pixels"}),
        (checked({}, network=1.2), {"20,10: privdfs_p50_to_baseline_triton_p50"}),
        (checked({"privdfs_p50_to_new_p50": 9.0}), set()),  # the record does not have it
        (checked({"crypten_p50_to_privdfs_p50": 900.0}), set()),  # more is better
    ],
)
def test_the_gate_holds_ratios_to_their_margins(now: dict[str, Any], worse: set[str]) -> None:
    assert {one.name for one in compare(now, checked({})) if one.is_worse} == worse


def test_bars_over_http_are_told_apart_and_may_be_missing() -> None:
    private = {"privdfs_p50_to_baseline_triton_p50": 1.0, "privdfs_cpu_to_graphs_cpu": 1.0}
    cold = {"privdfs": {"total_ms": 500.0, "peak_over_bare_mb": 70.0}}
    before = checked(private, cold=cold)
    assert {bar.is_met for bar in bars(before) if "HTTP" in bar.what} == {None}
    now = checked(
        private | {"http_p50_to_floor": 1.15, "http_p50_to_grpc_p50": 0.76, "http_cpu_to_grpc_cpu": 0.4},
        cold=cold | {"http": {"total_ms": 251.0, "peak_over_bare_mb": 60.0}},
    )
    met = {bar.what: bar.is_met for bar in bars(now) if bar.measured is not None and "HTTP" in bar.what}
    assert met == {
        "HTTP: PrivDFS p50 / floor p50": True,
        "PrivDFS p50 over HTTP / over gRPC": False,
        "processor time of a call over HTTP / over gRPC": True,
        "HTTP: cold start to the first answer, ms": False,
        "HTTP: peak memory over a bare interpreter, MB": True,
    }


def test_what_tls_costs_is_a_ratio_where_it_was_measured() -> None:
    took = {"privdfs": 2.0, "grpcs": 3.0, "grpcs_baseline": 1.5, "floor": 1.0, "privdfs_async": 1.0, "http": 1.0}
    others = {"http_floor": 1.0, "http_async": 1.0, "http_baseline": 1.0, "baseline_triton": 1.0}
    systems = {
        name: {"p50_ms": p50, "p99_ms": p50, "cpu_ms": p50, "bytes_up": 1} for name, p50 in (took | others).items()
    }
    without = ratios(systems)
    assert without["grpcs_p50_to_grpc_p50"] == 1.5
    assert without["grpcs_p50_to_unprotected_grpcs_p50"] == 2.0
    assert not any("https" in name for name in without)
    more = {"https": {"p50_ms": 4.0}, "https_baseline": {"p50_ms": 3.2}}
    assert ratios(systems | more) == without | {
        "https_p50_to_http_p50": 4.0,
        "https_p50_to_unprotected_https_p50": 1.25,
    }


def test_a_machine_without_nginx_leaves_https_out_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def served(*_: object, **asked: object) -> Iterator[list[Any]]:
        assert asked == {"tls": True}
        yield [SimpleNamespace(endpoint="127.0.0.1:1", ca=Path("ca.pem"))]

    monkeypatch.setattr(tls, "serve_measured", served)
    monkeypatch.setattr(gateway, "find_program", lambda *_: None)
    with tls.secured([], [Path("server-0")]) as (found, left_out):
        assert found == {"grpcs": Secured(["127.0.0.1:1"], Path("ca.pem"))}
        assert set(left_out) == {"https", "https_baseline"}
        assert all("make nginx" in why for why in left_out.values())


def test_endpoints_keep_their_schemes_and_authorities_behind_a_proxy() -> None:
    ca = Path("ca.pem")
    own = Endpoints(
        ["127.0.0.1:1", "127.0.0.1:2"], ["http://127.0.0.1:3"], Secured(["127.0.0.1:4"], ca),
        Secured(["https://127.0.0.1:5", "https://127.0.0.1:6"], ca),
    )  # fmt: skip
    assert own.plain() == [f"127.0.0.1:{port}" for port in range(1, 7)]
    assert own.behind([f"127.0.0.1:{port}" for port in range(11, 17)]) == Endpoints(
        ["127.0.0.1:11", "127.0.0.1:12"], ["http://127.0.0.1:13"], Secured(["127.0.0.1:14"], ca),
        Secured(["https://127.0.0.1:15", "https://127.0.0.1:16"], ca),
    )  # fmt: skip
    assert Endpoints(["a:1"], []).behind(["b:2"]) == Endpoints(["b:2"], [])


@pytest.mark.parametrize(
    ("record", "told"), [({}, "no record"), (checked({}, release="b"), "release b"), ({"ratios": {}}, "no record")]
)
def test_without_a_record_there_is_no_gate(record: dict[str, Any], told: str) -> None:
    with pytest.raises(Error, match=told):
        check_record(record, "small")
    check_record(checked({}), "small")


def test_logits_of_another_model_are_no_comparison() -> None:
    graph, image = residual_model(), np.arange(4, dtype=np.uint8)
    logits = run(graph, image[np.newaxis])[0]
    check_crypten((logits + 0.01 * np.abs(logits).max()).tolist(), graph, image)
    with pytest.raises(Error, match="has not computed"):
        check_crypten(logits[::-1].tolist(), graph, image)


def test_crypten_is_the_library_and_not_the_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crypten").mkdir()
    (tmp_path / "crypten" / "__init__.py").write_text('raise SystemExit("the library")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(subprocess.CalledProcessError) as failed:
        measure_crypten(Path(sys.executable), b"", np.zeros(1, np.uint8), 1)
    assert failed.value.stderr.strip() == "the library"


def result(servers_ms: Sequence[float]) -> Result:
    took = Timings(decode_ms=1, encode_ms=2, servers_ms=tuple(servers_ms), fusion_ms=3, total_ms=0)
    return Result(
        label="a",
        index=0,
        probability=1.0,
        answered=(True,) * 3,
        timings=took,
        bytes_up=(1, 1, 1),
        suspects=(),
        expected_accuracy=None,
        probabilities=np.ones(1, np.float32),
        classes=("a",),
    )


def test_stragglers_are_those_that_calls_waited_for() -> None:
    results = [result((5, 4, 3))] * 150 + [result((4, 5, 5.5))] * 46 + [result((5, 4, 45))] * 4
    samples = [11.0] * 150 + [11.5] * 46 + [51.0] * 4  # decode, encode, fusion and the last server
    found = stragglers(results, samples)
    assert found["slowest"] == [0.75, 0, 0.25]
    assert found["waited_ms"] == pytest.approx((150 * 1 + 46 * 0.5 + 4 * 40) / 200, abs=1e-3)
    assert found["slow_calls"]["calls"] == 2
    assert found["slow_calls"]["slowest"] == [0, 0, 1]
    assert found["slow_calls"]["excess_ms"] == {"decode": 0, "encode": 0, "servers": 40, "fusion": 0, "rest": 0}


def test_a_servers_time_is_the_mean_since_an_earlier_reading() -> None:
    before, now = ServerTime(10, queue_ms=5, compute_ms=50), ServerTime(14, queue_ms=7, compute_ms=58)
    assert now.since(before) == {"queue_ms": 0.5, "compute_ms": 2.0}
    assert before.since(before) == {"queue_ms": 0, "compute_ms": 0}


def test_in_an_open_loop_a_call_that_waits_counts_from_its_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow_call(_: np.ndarray) -> int:
        pass_time(1.0)
        return 0

    monkeypatch.setattr("time.perf_counter", lambda: now)
    monkeypatch.setattr("time.sleep", pass_time)
    names = ("privdfs", "floor", "baseline_triton", "http")
    # The rate is planned for calls of 100 ms, and then each takes a second: they queue up.
    systems = {name: System(name, [1], [1], slow_call, samples=[100.0]) for name in names}
    found = open_loop(systems, [np.zeros((1, 1, 1), np.uint8)], 20)
    assert found["per_second"] == 5
    samples = found["systems"]["privdfs"]["samples_ms"]
    assert len(samples) == 20
    assert samples[0] == pytest.approx(1000)
    assert samples[19] > 10_000
