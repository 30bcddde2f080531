"""Accuracy, latency, scaling and engines of coded releases: what silent servers and liars change, and what is told."""

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from bench import latency, scaling
from privdfs import ConfigError
from privdfs._format import ENCODER_NAME
from privdfs_bench import coded_accuracy
from privdfs_bench.coded import open_coded
from privdfs_bench.coded_accuracy import agreement, coded_rows, fewest_servers, predict, settings
from privdfs_bench.coded_client import local_client
from privdfs_bench.errors import BenchError
from privdfs_bench.pages.coded_results import (
    NO_ACCURACY,
    NO_LATENCY,
    NO_SCALING,
    coded_accuracy_table,
    coded_latency_table,
    coded_scaling_table,
)
from privdfs_bench.releases import coded_digests, graph_digests, is_coded
from privdfs_bench.speed import coded as coded_speed
from privdfs_bench.speed.coded import RESULT_NAME, bars, copied, device_ms, head_graph, ratios, sharing
from privdfs_bench.speed.coded import device_session as session_of
from privdfs_bench.speed.random_release import write_random
from privdfs_training.data import DataSet, load_data
from tests.coded_release import build_coded_release, noise
from tests.e2e.processes import proxies
from tests.trained import QUIET

CONFIGS = Path(__file__).parents[2] / "configs"
MADE_BY = {"command": "bench.py", "commit": "0123456789abcdef", "date": "2026-01-01"}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rounds of degree 2; folders for three servers."""
    return build_coded_release(tmp_path_factory.mktemp("coded") / "drawn", "rounds")


def answers(release: Path, servers: int, colluding: int, **how: Any) -> tuple[np.ndarray, int]:
    with local_client(release, servers, colluding, **how) as client, Progress(console=QUIET) as progress:
        return predict(client, noise(24), progress, "")


# ------------------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("setting", [(3, 1), (4, 1), (5, 2), (7, 3)])
def test_any_number_of_servers_gives_what_no_shares_give(release: Path, setting: tuple[int, int]) -> None:
    found, _ = answers(release, *setting)
    np.testing.assert_array_equal(found, open_coded(release).plain(noise(24)).probabilities)


@pytest.mark.parametrize(("servers", "colluding", "silent"), [(4, 1, (2,)), (5, 1, (0, 3)), (7, 2, (1, 6))])
def test_silent_servers_change_nothing(release: Path, servers: int, colluding: int, silent: tuple[int, ...]) -> None:
    found, _ = answers(release, servers, colluding, silent=silent)
    np.testing.assert_array_equal(found, open_coded(release).plain(noise(24)).probabilities)


def test_a_liar_who_knows_everything_changes_nothing_and_is_named(release: Path) -> None:
    expected = open_coded(release).plain(noise(24)).probabilities
    for servers, colluding in ((5, 1), (7, 2)):
        found, named = answers(release, servers, colluding, liar=0)
        np.testing.assert_array_equal(found, expected)
        assert named == 24


def test_where_nothing_is_to_spare_its_lie_passes_unseen_and_counts(release: Path) -> None:
    expected = open_coded(release).plain(noise(24)).probabilities
    found, named = answers(release, 3, 1, liar=0)
    assert named == 0
    assert agreement(found, expected)["agreeing"] < 24  # a lie that changed nothing would test nothing
    with pytest.raises(BenchError, match="let server 0 lie"):
        answers(release, 5, 1, liar=4)


def test_canaries_catch_it(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_accuracy, "CANARY_CALLS", 30)
    always, never = (coded_accuracy._canary(release, rate, noise(4)) for rate in (1.0, 0.0))
    assert always["detected"] > 0.5
    assert never == {"rate": 0.0, "calls": 30, "detected": 0.0}


def test_settings_are_those_that_decode(release: Path) -> None:
    manifest = open_coded(release).manifest
    assert settings(manifest) == [(3, 1), (4, 1), (5, 1), (5, 2), (7, 2), (7, 3)]
    assert fewest_servers(manifest) == 3
    with pytest.raises(ConfigError):
        local_client(release, 4, 2)


def test_graphs_are_told_by_digest(release: Path) -> None:
    assert is_coded(release)
    names = {"encoder", "relay-1", "relay-2", "fusion", "branch-1", "branch-2", "branch-3"}
    whole = coded_digests(release, open_coded(release).manifest)
    assert set(whole) == names
    baseline = release / "baseline" / "baseline" / "1" / "model.onnx"
    whole["baseline"] = hashlib.sha256(baseline.read_bytes()).hexdigest()
    assert graph_digests(release) == {name: digest[:16] for name, digest in whole.items()}


# ---------------------------------------------------------------------------------------------------------------- speed


def test_the_head_ends_where_sharing_begins(release: Path) -> None:
    networks = open_coded(release)
    head = session_of(head_graph(networks.files[ENCODER_NAME]))
    (values,) = head.run(None, {"image": noise(4)})
    np.testing.assert_array_equal(values, networks.plain(noise(4)).values[0])


def test_time_on_the_device_is_told_by_part(release: Path) -> None:
    spent = device_ms(open_coded(release), noise(1)[0], 3)
    assert set(spent) == {"head", "sharing", "decoding", "sharing_and_decoding_to_head"}
    assert spent["head"] > 0
    assert spent["decoding"] > 0
    wanted = (spent["sharing"] + spent["decoding"]) / spent["head"]
    assert spent["sharing_and_decoding_to_head"] == pytest.approx(wanted, rel=0.05)


def test_a_copy_has_folders_for_more_servers_and_the_release_stays(release: Path, tmp_path: Path) -> None:
    copy = copied(release, tmp_path, 4)
    assert len(list(copy.glob("server-*"))) == 4
    assert len(list(release.glob("server-*"))) == 3


# ---------------------------------------------------------------------------------------------------------------- pages


def test_tables_of_coded_releases(release: Path, tmp_path: Path) -> None:
    networks = open_coded(release)
    shared = sharing(networks, 3)
    case = {"servers": 5, "colluding": 1, "case": "1 lies", "accuracy": 0.9, "images": 100, "agreeing": 99}
    entry = {
        **shared,
        "made_by": MADE_BY,
        "images": 10_000,
        "baseline": 0.93,
        "fused": 0.925,
        "fused_exported": 0.925,
        "linear_readouts": 0.9,
        "ece": 0.0123,
        "agreement": {"images": 100, "agreeing": 100, "largest_probability_difference": 0.0},
        "settings": [
            case | {"images_with_liar_named": 98},
            case | {"case": "2 silent", "images_with_liar_named": None},
        ],
        "canaries": [{"rate": 0.1, "calls": 400, "detected": 0.0975}],
        "client_macs": 10,
        "baseline_macs": 200,
    }
    text = coded_accuracy_table({"releases": {"drawn": entry, "masked": {}}, "made_by": MADE_BY})
    assert "| drawn[^coded-accuracy-1] | 3 | 2, 2, 2 | 93.00% | **92.50%** | 90.00% | 1.23% |" in text
    assert f"| {shared['bytes_up']:,} / {shared['bytes_down']:,} | 1/20.0 |" in text
    assert "| drawn | 5 | 1 | 1 lies | 90.00% | 1 of 100 | 98 of 100 |" in text
    assert "| drawn | 5 | 1 | 2 silent | 90.00% | 1 of 100 |  |" in text
    assert "| drawn | 10% | 9.8% |" in text
    assert "masked" not in text
    assert coded_rows(entry)["N = 5, T = 1, 1 lies"] == "90.00%, named for 98 of 100"
    assert coded_accuracy_table({"releases": {"masked": {}}}) == NO_ACCURACY

    point = {"p50_ms": 6.0, "p99_ms": 9.0, "cpu_ms": 1.0, "bytes_up": 30, "bytes_down_by_server": [2, 2], "samples": 7}
    systems = {"coded": point, "masked": point | {"p50_ms": 4.0}}
    systems |= {name: point | {"p50_ms": 3.0, "cpu_ms": 0.4} for name in ("http_coded", "http_masked", "http_baseline")}
    latency = {
        **shared,
        "made_by": MADE_BY,
        "release": "drawn",
        "systems": systems,
        "ratios": ratios(systems),
        "networks": {"20,10": {"rtt_ms": 20.0, "mbit": 10.0, "systems": {"coded": point | {"p50_ms": 66.0}}}},
        "device_ms": {"head": 1.0, "sharing": 0.25, "decoding": 0.5, "sharing_and_decoding_to_head": 0.75},
    }
    assert ratios(systems) == {
        "coded_p50_to_masked_p50": 1.5,
        "http_coded_p50_to_masked_p50": 1.0,
        "http_coded_p50_to_baseline_p50": 1.0,
        "http_coded_p50_to_grpc_p50": 0.5,
        "http_coded_cpu_to_grpc_cpu": 0.4,
    }
    in_tls = {"https_coded": point | {"p50_ms": 6.0}, "https_baseline": point | {"p50_ms": 4.0}}
    assert ratios(systems | in_tls) == ratios(systems) | {
        "https_coded_p50_to_baseline_p50": 1.5,
        "https_coded_p50_to_plain_p50": 2.0,
    }
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / RESULT_NAME).write_text(json.dumps(latency))
    text = coded_latency_table(tmp_path)
    assert "| coded | 6.00 ms | 9.00 ms | 1.00 ms | 30 | 4 | 66.00 ms |" in text
    assert "| masked | 4.00 ms | 9.00 ms | 1.00 ms | 30 | 4 |  |" in text
    assert "coded p50 / masked p50, loopback: 1.5 (bar <= 1.5 for one round)" in text
    assert "CrypTen" not in text  # not measured
    assert [value for *_, value in bars(latency)] == [1.5, 0.75, None]
    assert coded_latency_table(tmp_path / "drawn" / "nothing") == NO_LATENCY
    alone = {name: system for name, system in systems.items() if "masked" not in name}
    assert ratios(alone) == {name: value for name, value in ratios(systems).items() if "masked" not in name}
    (tmp_path / "drawn" / RESULT_NAME).write_text(json.dumps(latency | {"systems": alone, "ratios": ratios(alone)}))
    assert "masked" not in coded_latency_table(tmp_path)

    scaling = {"coded": {"drawn": {"made_by": MADE_BY, "points": [shared | point]}}}
    assert "| drawn | 3 | 1 | 6.00 ms | 9.00 ms | 1.00 ms |" in coded_scaling_table(scaling)
    assert coded_scaling_table({}) == NO_SCALING


# ------------------------------------------------------------------------------------------------ on real tritonservers


@pytest.fixture
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is never asked for through a proxy of the environment."""
    for name, value in proxies().items():
        monkeypatch.setenv(name, value)


@pytest.mark.e2e
@pytest.mark.usefixtures("_no_proxy")
def test_accuracy_is_measured_on_real_servers(
    release: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_data("fashion-mnist", data_folder)
    assert isinstance(whole, DataSet)
    few = replace(whole, test_images=whole.test_images[:30], test_labels=whole.test_labels[:30])
    monkeypatch.setattr(coded_accuracy, "manifest_data", lambda _manifest, _folder: few)
    monkeypatch.setattr(coded_accuracy, "CANARY_CALLS", 2)
    monkeypatch.setattr(coded_accuracy, "SETTINGS", ((3, 1), (5, 1)))
    entry = coded_accuracy.measure_coded(release, argparse.Namespace(data=None, agreement=20), QUIET)
    assert entry["fused"] == entry["fused_exported"]
    assert entry["agreement"] == {"images": 30, "agreeing": 30, "largest_probability_difference": 0.0}
    cases = [(row["servers"], row["case"], row["agreeing"]) for row in entry["settings"]]
    assert cases[0] == (3, "all answer", 20)
    assert cases[2:] == [(5, "all answer", 20), (5, "2 silent", 20), (5, "1 lies", 20)]
    assert entry["settings"][-1]["images_with_liar_named"] == 20
    assert entry["made_by"]["versions"]["tritonserver"]
    json.dumps(entry, allow_nan=False)


@pytest.mark.e2e
@pytest.mark.usefixtures("_no_proxy")
def test_latency_is_measured_beside_a_masked_release(release: Path, trained_release: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    line = [str(release), "--beside", str(trained_release), "--samples", "5", "--network", "5,100", "--out", str(out)]
    assert latency.main(line) == 0
    results = json.loads((out / RESULT_NAME).read_text())
    plain, http = (
        {"coded", "masked", "baseline_triton", "baseline_device"},
        {"http_coded", "http_masked", "http_baseline"},
    )
    in_tls = {f"{wire}_{what}" for wire in ("grpcs", "https") for what in ("coded", "baseline")}
    assert set(results["systems"]) == plain | http | in_tls
    assert results["left_out"] == {}
    assert results["systems"]["https_coded"]["bytes_up"] == results["systems"]["coded"]["bytes_up"]
    assert (results["rounds"], results["degree"], results["colluding"]) == (3, [2, 2, 2], 1)
    assert results["systems"]["coded"]["bytes_up"] == 3 * results["bytes_up"]
    far = results["networks"]["5,100"]["systems"]
    assert far["coded"]["p50_ms"] > 15  # three rounds, each a round trip
    assert "baseline_device" not in far


@pytest.mark.e2e
@pytest.mark.usefixtures("_no_proxy")
def test_latency_of_a_config_is_measured_without_a_masked_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("privdfs_bench.speed.latency.RANDOM_SHAPE", (3, 16, 16))
    monkeypatch.setattr("privdfs_bench.speed.latency.RANDOM_CLASSES", 5)
    line = [str(CONFIGS / "fashion-coded-r1.toml"), "--samples", "3", "--network", "none", "--out", str(tmp_path)]
    assert latency.main(line) == 0
    results = json.loads((tmp_path / RESULT_NAME).read_text())
    assert results["release"] == "fashion-coded-r1-random"
    assert {"coded", "baseline_triton", "baseline_device", "http_coded", "http_baseline"} < set(results["systems"])
    assert not {"masked", "http_masked"} & set(results["systems"])
    assert results["made_by"]["config"]["beside"] is None
    assert results["device_ms"]["head"] > 0
    assert "not measured" in capsys.readouterr().out  # the bar that compares with a masked release
    line += ["--beside", str(CONFIGS / "fashion-resnet20.toml")]
    assert latency.main(line) == 0
    results = json.loads((tmp_path / RESULT_NAME).read_text())
    assert {"masked", "http_masked"} < set(results["systems"])
    assert results["made_by"]["config"]["beside"].startswith("fashion-resnet20-random")


@pytest.mark.usefixtures("_no_proxy")
def test_a_masked_release_of_other_images_is_refused(release: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_random(CONFIGS / "fashion-resnet20.toml", (3, 16, 16), 5, other)
    options = argparse.Namespace(servers=3, samples=1, network=[], crypten=None)
    with pytest.raises(BenchError, match=r"takes other images: .* --beside"):
        coded_speed.measure_coded(release, other, options, QUIET)


@pytest.mark.e2e
@pytest.mark.usefixtures("_no_proxy")
def test_a_call_is_measured_with_more_servers(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coded_speed, "SERVERS", (3, 5))
    (tmp_path / "scaling.json").write_text(json.dumps({"growth": {"servers": 1}}))
    assert scaling.main(["--coded", str(release), "--samples", "3", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "scaling.json").read_text())
    assert results["growth"] == {"servers": 1}  # what was measured before stays
    points = results["coded"]["drawn"]["points"]
    assert [(point["servers"], point["colluding"]) for point in points] == [(3, 1), (5, 2)]
    assert all(point["p50_ms"] > 0 for point in points)
