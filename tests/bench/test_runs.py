"""Both benchmarks as a person runs them, on real tritonservers and a tiny trained release."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import accuracy, privacy
from privdfs import Bundle
from privdfs_bench.results import merge_release, write_results
from tests.e2e.processes import descendants, proxies, wait_until_gone

pytestmark = pytest.mark.e2e

BENCH = Path(__file__).parents[2] / "bench"
ABOUT = {"command", "commit", "config", "date", "machine", "seed", "versions"}


def run(script: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, str(BENCH / script), *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.run(line, capture_output=True, text=True, timeout=280, check=False, env=environment)


def run_here(main: Callable[[list[str]], int], *arguments: str | Path) -> int:
    """As `run`, in this process, which has PyTorch already; what it prints is for `capsys`."""
    try:
        return main([*map(str, arguments)])
    except SystemExit as ended:  # argparse's
        return ended.code if isinstance(ended.code, int) else 1


def test_accuracy(trained_release: Path, data_folder: Path, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "accuracy.json", trained_release.parent / "run" / "system.safetensors"
    other = {"fused": 0.5, "made_by": {"commit": "before"}}
    write_results(out, merge_release({}, "another", other))

    done = run("accuracy.py", trained_release, "--data", data_folder, "--checkpoint", checkpoint, "--out", out)

    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert results["releases"]["another"] == other
    found, manifest = (
        results["releases"][trained_release.name],
        Bundle.open(trained_release / "client", allow_unsigned=True).masked,
    )
    assert set(results["made_by"]) == ABOUT
    assert found["made_by"] == results["made_by"]
    assert results["made_by"]["versions"]["tritonserver"][0].isdigit()
    assert found["images"] == manifest.accuracy.images == 1000
    # The exporter measured the same files on the same images in one process; the servers must give the same.
    assert found["fused"] == found["fused_exported"] == manifest.accuracy.fused
    assert abs(found["fused_torch"] - found["fused"]) <= 0.002
    assert found["baseline"] == manifest.accuracy.baseline
    assert found["branches"] == list(manifest.accuracy.branches)
    assert found["agreement"]["agreeing"] == found["agreement"]["images"] == 1000
    by_size = {
        size: [row.accuracy for row in manifest.accuracy.subsets if len(row.answered) == size] for size in (1, 2)
    }
    assert set(found["missing"]) == {"1", "2"}
    for missing, values in found["missing"].items():
        expected = by_size[3 - int(missing)]
        assert values["worst"] == min(expected)
        assert values["mean"] == pytest.approx(sum(expected) / 3)
    (lied,) = manifest.accuracy.malicious
    assert set(found["malicious"]) == {"0", "1"}
    assert found["malicious"]["0"] == {"worst": found["fused_exported"]}
    by_kind = {kind: getattr(lied, kind) for kind in ("random", "constant", "flipped", "runner_up", "adversarial")}
    assert found["malicious"]["1"] == by_kind | {"worst": min(by_kind.values())}
    assert by_kind["adversarial"] <= min(found["fused"], by_kind["constant"], by_kind["runner_up"])
    assert 0.2 < found["linear_readouts"] <= 1
    assert found["client_macs"] == manifest.macs.head + manifest.macs.fusion
    assert found["bytes_up"] == 36
    for cell in (
        "fused, tritonservers",
        f"{found['fused']:.2%}",
        "1,000 of 1,000",
        "2 missing, worst",
        "1 malicious, runner up",
    ):
        assert cell in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "manifest.json"),
        (["{release}", "--data", "{data}", "--checkpoint", "nowhere"], "no checkpoint"),
        (["{release}", "--data", "nowhere"], "nowhere"),
        (["{release}", "{release}"], "same folder name"),
        (["{release}", "--data", "{data}", "--agreement", "0"], "at least 1"),
        (["a", "b", "--checkpoint", "nowhere"], "one release"),
        (["{release}", "--out", "{damaged}"], "remove it"),
    ],
)
def test_accuracy_says_what_is_wrong(
    trained_release: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    (tmp_path / "damaged.json").write_text("{")
    places = {"release": trained_release, "data": data_folder, "damaged": tmp_path / "damaged.json"}
    out = [] if "--out" in arguments else ["--out", tmp_path / "accuracy.json"]
    assert run_here(accuracy.main, *(word.format(**places) for word in arguments), *out) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "accuracy.json").exists()


def test_accuracy_refuses_the_checkpoint_of_another_release(
    trained_release: Path, trained_release_of_five: Path, data_folder: Path, tmp_path: Path
) -> None:
    checkpoint = trained_release_of_five.parent / "run" / "system.safetensors"
    arguments = ("--data", data_folder, "--checkpoint", checkpoint, "--out", tmp_path / "accuracy.json")
    done = run("accuracy.py", trained_release, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "was not trained with the config" in done.stderr


@pytest.mark.usefixtures("_hangup_counts")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_benchmark_that_is_stopped_leaves_nothing(
    trained_release: Path, tmp_path: Path, number: signal.Signals
) -> None:
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    line = [sys.executable, str(BENCH / "latency.py"), str(trained_release), "--out", str(out)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(scratch)}) as bench:
        deadline = time.monotonic() + 60
        while not list(scratch.glob("privdfs-server-*")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        below = descendants(bench.pid)
        bench.send_signal(number)
        assert bench.wait(60) == 130
    assert wait_until_gone(below, 30) == set()
    assert list(scratch.iterdir()) == []


def check_http_ratios(systems: dict[str, Any], ratios: dict[str, float]) -> None:
    p50 = {name: sorted(values["samples_ms"])[19] for name, values in systems.items()}
    cpu = {name: values["cpu_ms"] for name, values in systems.items()}
    expected = {
        "http_p50_to_floor": p50["http"] / p50["http_floor"],
        "http_p50_to_grpc_p50": p50["http"] / p50["privdfs"],
        "http_p50_to_baseline_p50": p50["http"] / p50["http_baseline"],
        "http_async_p50_to_floor": p50["http_async"] / p50["http_floor"],
        "http_cpu_to_grpc_cpu": cpu["http"] / cpu["privdfs"],
        "http_cpu_to_graphs_cpu": cpu["http"] / cpu["graphs_only"],
        "http_floor_cpu_to_graphs_cpu": cpu["http_floor"] / cpu["graphs_only"],
    }
    for secured, plain, wire in (("grpcs", "privdfs", "grpc"), ("https", "http", "http")):
        expected[f"{secured}_p50_to_{wire}_p50"] = p50[secured] / p50[plain]
        expected[f"{secured}_p50_to_unprotected_{secured}_p50"] = p50[secured] / p50[f"{secured}_baseline"]
    found = {name: value for name, value in ratios.items() if name.startswith(("http", "grpcs"))}
    assert found == pytest.approx(expected, rel=0.02, abs=2e-3)


def check_bytes_on_the_wire(on_the_wire: dict[str, Any], systems: dict[str, Any]) -> None:
    on_one = dict.fromkeys(("baseline_triton", "single_split", "http_baseline", "grpcs_baseline", "https_baseline"), 1)
    on_three = dict.fromkeys(("privdfs", "floor", "http", "http_floor", "grpcs", "https"), 3)
    for name, servers in (on_three | on_one).items():
        sent = on_the_wire[name]["up_by_server"]
        assert len(sent) == servers
        assert all(more > bytes_up for more, bytes_up in zip(sent, systems[name]["bytes_up_by_server"], strict=True))
    # TLS adds to every message, so no system of the two pairs has been called in plaintext by mistake.
    for plain, secured in (("privdfs", "grpcs"), ("http", "https"), ("http_baseline", "https_baseline")):
        assert sum(on_the_wire[secured]["up_by_server"]) > sum(on_the_wire[plain]["up_by_server"])


def test_latency(trained_release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in proxies().items():  # loopback is never asked for through one
        monkeypatch.setenv(name, value)
    done = run("latency.py", trained_release, "--samples", "40", "--cold", "1", "--network", "2,50", "--out", tmp_path)

    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "latency.json").read_text())
    assert set(results["made_by"]) == ABOUT
    assert results["made_by"]["config"]["samples"] == 40
    systems = results["systems"]
    jpeg, split = systems["baseline_jpeg"]["bytes_up"], results["made_by"]["config"]["split"]["shape"]
    assert {name: values["bytes_up"] for name, values in systems.items()} == {
        **dict.fromkeys(("privdfs", "privdfs_async", "privdfs_batch", "floor", "floor_futures"), 36),
        **dict.fromkeys(("http", "http_async", "http_floor", "grpcs", "https"), 36),
        "graphs_only": 0,
        **dict.fromkeys(("baseline_triton", "http_baseline", "grpcs_baseline", "https_baseline"), 784),
        "baseline_jpeg": jpeg,
        "single_split": 4 * int(np.prod(split)),
        "baseline_device": 0,
    }
    assert 300 < jpeg < 1500
    assert systems["privdfs"]["bytes_up_by_server"] == [12, 12, 12]
    assert systems["privdfs"]["bytes_down_by_server"] == [40, 40, 40]
    for name, values in systems.items():
        assert values["samples"] == len(values["samples_ms"]) == 40
        ordered = sorted(values["samples_ms"])
        assert [values[f"p{part}_ms"] for part in (50, 90, 99)] == [ordered[19], ordered[35], ordered[39]]
        assert values["cpu_ms"] > 0
        low, high = values["p50_interval_ms"]
        assert low <= values["p50_ms"] <= high
        assert values["p99_interval_ms"][1] is None  # 40 samples do not bound it
        assert name in done.stdout
        assert f"{values['p50_ms']:.2f}" in done.stdout
    # A mean call is the sum of its stages, and contains its servers, whose own clocks say less than the device's.
    stages = results["stages"]
    parts = [stages[f"{name}_ms"] for name in ("decode", "encode", "slowest_server", "fusion", "rest")]
    assert sum(parts) == pytest.approx(stages["mean_ms"], abs=0.01)
    for server in stages["servers"]:
        assert 0 < server["compute_ms"] < server["mean_ms"] <= stages["slowest_server_ms"]
        assert server["wire_ms"] + server["queue_ms"] + server["compute_ms"] == pytest.approx(
            server["mean_ms"], abs=0.01
        )
    assert sum(results["stragglers"]["slowest"]) == pytest.approx(1, abs=0.01)
    assert {name: len(one["samples_ms"]) for name, one in results["open_loop"]["systems"].items()} == {
        "privdfs": 40,
        "floor": 40,
        "baseline_triton": 40,
        "http": 40,
    }
    for cold in (results["cold"][name] for name in ("privdfs", "http", "floor", "http_floor")):
        assert cold["total_ms"] == pytest.approx(
            sum(cold[f"{name}_ms"] for name in ("import", "open", "first_answer")), abs=1
        )
        assert 5 < cold["peak_over_bare_mb"] < 1000
    for other in ("floor", "baseline_triton", "baseline_jpeg", "single_split", "baseline_device"):
        # From the samples, by the definition of a median of 40 at the nearest rank.
        ours, theirs = (sorted(systems[name]["samples_ms"])[19] for name in ("privdfs", other))
        assert results["ratios"][f"privdfs_p50_to_{other}_p50"] == pytest.approx(ours / theirs, abs=1e-3)
    check_http_ratios(systems, results["ratios"])
    through = results["networks"]["2,50"]
    assert through["measured"]["rtt_ms"] >= 2
    assert all(min(one["samples_ms"]) >= 2 for one in through["systems"].values())
    check_bytes_on_the_wire(through["bytes_on_the_wire"], systems)
    assert results["left_out"] == {}
    html = (tmp_path / "latency.html").read_text()
    assert html.count("data:image/png;base64,") == 2
    assert "through the network 2,50" in html
    assert f"{systems['privdfs']['p50_ms']:.2f}" in html
    for name in ("latency.png", "latency-stages.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


def test_privacy(trained_release: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kept = tmp_path / "privacy.json", tmp_path / "runs"
    small = ("--effort", "quick", "--epochs", "12", "--images", "200", "--threads", "1")
    options = ("--data", data_folder, *small, "--out", out, "--runs", kept)

    done = run("privacy.py", trained_release, *options)

    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    found = results["releases"][trained_release.name]
    assert set(results["made_by"]) == ABOUT
    assert found["floor"]["class_mean"] > found["floor"]["mean_image"] + 1
    by_attack = {
        name: [one["members"] for one in found["coalitions"] if one["attack"] == name]
        for name in ("linear", "dense", "decoder", "dense+answers", "optimisation")
    }
    assert sorted(by_attack["linear"]) == [[0], [0, 1], [0, 1, 2], [0, 2], [1], [1, 2], [2]]
    assert [len(members) for members in by_attack["dense"]] == [1, 2, 3]
    assert by_attack["decoder"] == by_attack["dense+answers"] == by_attack["optimisation"] == [by_attack["linear"][0]]
    for size in ("1", "2", "3"):
        same_size = [one for one in found["coalitions"] if one["size"] == int(size)]
        strongest = max(same_size, key=lambda one: one["psnr"] - one["floor"])
        assert found["worst"][size] == {key: strongest[key] for key in found["worst"][size]}
    for one in found["coalitions"]:
        assert one["interval"][0] <= one["psnr"] <= one["interval"][1]
        assert one["lpips"] is None
        assert 0 <= one["label_accuracy"] <= 1
    assert [one["pairs"] for one in found["queries"]] == [64, 256]
    assert found["shifted"][0]["images"] < 200
    # The attacks must work where nothing defends, or their other figures would mean nothing.
    assert found["undefended"]["optimisation-tv"] > found["worst"]["3"]["psnr"] + 5
    assert {"few images"} <= {flag["check"] for flag in found["flags"]}  # 16 images for the optimisation
    assert f"{found['worst']['1']['psnr']:.2f}" in done.stdout
    assert found["effort"] == "quick, changed"
    page = tmp_path / "privacy" / trained_release.name / "report.html"
    assert str(page) in done.stdout
    assert page.read_text().count("data:image/png;base64,") == 3
    assert f"{found['worst']['1']['psnr']:.2f}" in page.read_text()

    # What was found is kept: the second run attacks nothing, and says the same.
    files = {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")}
    assert run_here(privacy.main, trained_release, *options) == 0
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*.safetensors")} == files
    again = json.loads(out.read_text())["releases"][trained_release.name]
    assert again["coalitions"] == found["coalitions"]
    next(iter(files)).write_bytes(b"damaged")
    capsys.readouterr()
    assert run_here(privacy.main, trained_release, *options) == 2
    assert "run again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--images", "5"], "too few"), (["--pairs", "0"], "whole number from 1"), (["--seconds", "1e-9"], "too short")],
)
def test_privacy_refuses_what_measures_nothing(
    trained_release: Path,
    data_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    places = ("--data", data_folder, "--out", tmp_path / "privacy.json", "--runs", tmp_path / "runs")
    small = ("--effort", "quick", "--images", "100", "--threads", "1")
    assert run_here(privacy.main, trained_release, *small, *places, *arguments) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "privacy.json").exists()


def test_privacy_says_what_is_wrong(trained_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(privacy.main, trained_release, "--data", tmp_path) == 2
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err
