import hashlib
import json
import math
from pathlib import Path

import pytest

from bench import figures
from privdfs_bench.pages import bars, break_even, deploy, frontier, marks, privacy, readme
from privdfs_bench.pages import results as results_page
from privdfs_bench.pages import scaling as scaling_page
from privdfs_bench.pages.coded_privacy import coded_beside_rivals
from privdfs_bench.pages.coded_seeds import coded_seeds_table, minus_baseline
from privdfs_bench.pages.marks import BEGIN, END, named, updated
from privdfs_bench.releases import graph_digests

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    made_by = {"command": "latency.py", "commit": "0123456789abcdef", "date": "2026-01-01"}
    entry = {"branches": [0.8, 0.85, 0.9], "baseline": 0.95, "fused": 0.94125, "missing": {"1": {"worst": 0.7}}}
    lies = {"random": 0.92, "constant": 0.91, "flipped": 0.93, "runner_up": 0.94, "adversarial": 0.88, "worst": 0.88}
    entry |= {"malicious": {"0": {"worst": 0.94125}, "1": lies}, "linear_readouts": 0.85}
    entry |= {
        "data": "fashion-mnist, test",
        "backbone": "resnet20",
        "images": 10000,
        "bytes_up": 32,
        "baseline_macs": 300,
        "client_macs": 20,
        "made_by": made_by,
    }
    (tmp_path / "accuracy.json").write_text(json.dumps({"made_by": made_by, "releases": {"small": entry}}))
    worst = {"1": {"psnr": 14.0, "ssim": 0.4}, "2": {"psnr": 14.5, "ssim": 0.5}}
    leak = {"floor": {"mean_image": 10.0, "class_mean": 13.0}, "undefended": {"decoder": 33.0}, "worst": worst}
    leak |= {"coalitions": [{"images": 10000}, {"images": 64}], "effort": "quick"}
    (tmp_path / "privacy.json").write_text(json.dumps({"made_by": made_by, "releases": {"small": leak}}))
    system = {"p50_ms": 1.234, "p90_ms": 2.0, "p99_ms": 3.0, "p99.9_ms": 4.0, "bytes_up": 32, "samples": 1000}
    about = made_by | {"machine": {"cores": "2", "processor": "a processor"}}
    networks = {"4g": {"rtt_ms": 50.0, "mbit": 20.0, "systems": {"privdfs": {"p50_ms": 51.5}}}}
    systems = {"privdfs": system, "baseline_device": system | {"cpu_ms": 1.5}}
    (tmp_path / "latency.json").write_text(
        json.dumps({"made_by": about, "release": "small", "systems": systems, "networks": networks})
    )
    return tmp_path


def test_figures_are_those_of_the_result_files(results: Path) -> None:
    text = results_page.figures(results)
    measured = "95.00% | **94.12%** | 70.00% | 1 of 3: 91.00%; 88.00% | 80.00% to 90.00% | 85.00% | 32 | 1/15.0"
    assert f"| small[^accuracy-1] | 3 | {measured} |" in text
    assert "| bytes up | p50 through 50 ms and 20 Mbit/s |\n| --- |" in text
    assert "| privdfs | 1.23 ms | 2.00 ms | 3.00 ms | 4.00 ms | not measured | 32 | 51.50 ms |" in text
    assert "| baseline_device | 1.23 ms | 2.00 ms | 3.00 ms | 4.00 ms | 1.50 ms | 32 | not measured |" in text
    assert "| 1 server, worst coalition | 14.00 dB, SSIM 0.400 |" in text
    assert "| 2 servers, worst coalition | 14.50 dB, SSIM 0.500 |" in text
    assert "| floor: the class alone (class mean) | 13.00 dB |" in text
    assert "| test images; effort | 10,000; quick |" in text
    assert "| undefended split, its strongest attack | 33.00 dB (decoder) |" in text
    assert "commit 0123456789" in text


def test_every_row_names_what_measured_it(results: Path) -> None:
    text = results_page.figures(results)
    for name in ("accuracy-1", "privacy-1", "latency"):
        assert text.count(f"[^{name}]") == 2
        assert f"\n[^{name}]: `latency.py`, commit 0123456789, 2026-01-01." in text


def test_the_readme_has_one_line_for_each_release_that_it_shows(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme, "SHOWN", ("small", "mine-coded", "not-yet"))
    assert readme.figures(results).splitlines()[4:-2] == [
        "| small | 3 | 95.00% | **94.12%** | +1.00 dB | 32 | 1/15.0 |"
    ]
    whole = json.loads((results / "accuracy.json").read_text())
    coded = {"sharing": "coded", "degree": [2, 1], "baseline": 0.95, "fused": 0.94, "bytes_up": 3136}
    whole["releases"]["mine-coded"] = coded | {"baseline_macs": 300, "client_macs": 20}
    (results / "accuracy.json").write_text(json.dumps(whole))
    last = readme.figures(results).splitlines()[-3]
    assert last == "| mine-coded | 3 or more | 95.00% | **94.00%** | none, proven | 3,136 a server | 1/15.0 |"
    (results / "privacy.json").write_text(json.dumps({"releases": {}}))
    assert "| **94.12%** | not measured | 32 |" in readme.figures(results)


def test_a_release_measured_before_there_were_such_figures_says_so(results: Path) -> None:
    path = results / "accuracy.json"
    found = json.loads(path.read_text())
    for name in ("malicious", "linear_readouts"):
        del found["releases"]["small"][name]
    path.write_text(json.dumps(found))
    assert "| 70.00% | not measured | 80.00% to 90.00% | not measured | 32 | 1/15.0 |" in results_page.figures(results)


def test_only_what_stands_between_the_marks_changes(results: Path) -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    new = updated(text, results_page.figures(results))
    assert new.startswith(f"before\n{BEGIN}\n\n## Accuracy\n\n| release")
    assert new.endswith(f"{END}\nafter\n")
    assert updated(new, results_page.figures(results)) == new


def test_privacy_says_who_reaches_what_above_the_class_mean(results: Path) -> None:
    path = results / "privacy.json"
    found = json.loads(path.read_text())
    entry = found["releases"]["small"]
    entry |= {"made_by": found["made_by"], "release": "small-1", "flags": [{"check": "few images", "message": ""}] * 2}
    entry["worst"]["1"] |= {"attack": "dense", "members": [0]}
    entry["worst"]["2"] |= {"attack": "decoder", "members": [0, 1], "floor": 13.25}
    entry["coalitions"] = [
        one | {"images": 10000, "pairs": 20000, "relation": "other images"} for one in entry["worst"].values()
    ]
    path.write_text(json.dumps(found))
    text = privacy.figures(results)
    assert "| small | 1 of 2 | dense | 14.00 dB | +1.00 dB | 0.400 | 33.00 dB |" in text
    assert "| small | 2 of 2, not a minority | decoder | 14.50 dB | +1.25 dB | 0.500 | 33.00 dB |" in text
    assert "small-1: `latency.py`, commit 0123456789, 2026-01-01; flags of these rows: few images." in text
    path.unlink()
    assert "Not measured yet" in privacy.figures(results)


def test_keyed_releases_say_what_keys_change(results: Path) -> None:
    path = results / "accuracy.json"
    found = json.loads(path.read_text())
    found["releases"]["small"]["keys"] = {"keys": 100, "mean": 0.925, "min": 0.92, "max": 0.9275}
    path.write_text(json.dumps(found))
    told = "small under 100 random users' keys: 92.50% on average, 92.00% to 92.75%."
    assert told in results_page.figures(results)
    assert privacy.keys_tables({"small": {"keys": []}}) == []
    row = {"requests": 1, "knows": "nothing", "psnr": 10.0, "floor": 13.0, "ssim": 0.25}
    rows = [row | {"requests": 4, "knows": "partition", "psnr": 14.5}, row]
    (table,) = privacy.keys_tables({"small": {"keys": rows}})
    assert table.splitlines()[2:] == [
        "| the user's partition | 4 keys | 14.50 dB | +1.50 dB | 0.250 |",
        "| pairs under others, no partition: protects nobody | 1 key | 10.00 dB | -3.00 dB | 0.250 |",
    ]


def test_rivals_are_ranked_by_what_they_leak() -> None:
    assert "not measured yet" in privacy.rivals_table({}, {})
    about = {"data": "fashion-mnist", "bits": 64, "client_macs": 10, "baseline_macs": 205, "accuracy": 0.925}
    mine = about | {"defence": "shares, learned masks", "lost_points": 0.5, "matched": True}
    mine |= {"worst": {"attack": "dense", "psnr": 14.5, "above": 1.0}}
    other = about | {"defence": "cem", "lost_points": 2.0, "matched": False}
    other |= {"worst": {"attack": "decoder", "psnr": 14.0, "above": 0.5}}
    made_by = {"command": "rivals.py", "commit": "0123456789abcdef", "date": "2026-01-01"}
    found = {"made_by": made_by, "systems": {"mine": mine, "other": other}, "verdicts": ["nothing is compared"]}
    lines = privacy.rivals_table(found, {}).splitlines()
    assert lines[2].startswith(
        "| other | cem | 64 bits | 1/20.5 | 92.50%, not matched | 2.00 | decoder | 14.00 dB | +0.50 dB |"
    )
    assert lines[3].startswith("| mine | shares, learned masks | 64 bits | 1/20.5 | 92.50% | 0.50 | dense | 14.50 dB |")
    assert lines[-1] == "nothing is compared. `rivals.py`, commit 0123456789, 2026-01-01."

    measured = {"sharing": "coded", "graphs": {}, "bytes_up": 100, "client_macs": 10, "baseline_macs": 210}
    measured |= {"data": "fashion-mnist, test half", "fused": 0.93, "baseline": 0.935}
    strongest = {"attack": "linear", "psnr": 11.0, "floor": 13.5}
    audited = {"coded": {"proven": [{"strongest": strongest}]}}
    coded = coded_beside_rivals({"coded": measured, "not audited": measured, "mine": mine}, audited)
    *_, told = lines = privacy.rivals_table(found, coded).splitlines()
    assert lines[2] == "| coded | coded shares | 800 bits | 1/21.0 | 93.00% | 0.50 | linear | 11.00 dB | -2.50 dB |"
    assert [line.split(" ")[1] for line in lines[2:5]] == ["coded", "other", "mine"]
    assert told.endswith("one server of three, which is proven to learn nothing.")


def test_the_documents_show_what_the_committed_results_say() -> None:
    assert figures.main(["--check"]) == 0


@pytest.fixture
def scaling(results: Path) -> Path:
    points = [{"size": 1, "privdfs": {"p50_ms": 2.0}}, {"size": 9, "privdfs": {"p50_ms": 4.0}}]
    growth = {"base_ms": 1.75, "slope_ms": 0.25, "explained": 1.0}
    machine = {"cores": "2", "processor": "a processor"}
    about = {"command": "scaling.py", "commit": "0123456789abcdef", "date": "2026-01-01", "machine": machine}
    found = {"made_by": about, "curves": {"servers": points}, "growth": {"servers": growth}}
    found |= {"service": {"one_ms": 0.6, "base_ms": 0.5, "image_ms": 0.1}}
    found |= {"throughput": {"bound_ms": 50.0, "per_second": 400.0}}
    (results / "scaling.json").write_text(json.dumps(found))
    return results


def test_scaling_shows_the_curves_and_the_estimate_made_of_them(scaling: Path) -> None:
    text = scaling_page.figures(scaling)
    assert "| servers | 1, 9 | 2.00, 4.00 ms | 0.25 ms | 100% |" in text
    assert "within 50 ms, all on one machine: 400." in text
    # Half busy: as long a mean wait as half a service; a million images a minute of 0.6 ms need ten at full load.
    assert "| 50% | 0.30 ms | 6.0 ms | 20 |" in text
    assert text.startswith(BEGIN)
    assert text.endswith(END)


def test_the_estimate_of_queueing() -> None:
    mean, tail, instances = scaling_page.queueing(10.0, 0.8)
    assert mean == pytest.approx(0.8 * 10 / (2 * 0.2))
    # Beyond the tail, one of three servers keeps a call waiting in one call of a hundred.
    beyond = 0.8 * math.exp(-(1 - 0.8) * tail / 10)
    assert 3 * beyond == pytest.approx(0.01)
    assert instances == math.ceil(10**6 / 60 * 0.010 / 0.8)


def test_engines_show_the_largest_branch_of_each_precision(results: Path) -> None:
    engine = {"precision": "int8", "seconds": 0.2, "plan_bytes": 5000, "weights_bytes": 1000}
    branches = [
        engine | {"server": "server-0", "difference": 0.01, "agreement": 1.0},
        engine | {"server": "server-1", "difference": 0.04, "agreement": 0.99, "seconds": 0.5, "plan_bytes": 7000},
        engine | {"server": "baseline", "difference": 0.9, "agreement": 0.1},
    ]
    bf16 = [engine | {"server": "server-0", "precision": "bf16", "difference": None, "agreement": None}]
    written(results, {"one": {"branches": [row | {"graph": "0" * 16} for row in branches + bf16]}})
    text = deploy.figures(results)
    assert "| one | int8 | 2 | 0.20 to 0.50 | 7 kB | 1 kB | 0.04 | 99% |" in text
    assert "| one | bf16 | 1 | 0.20 | 5 kB | 1 kB | not computed by ONNX Runtime |  |" in text
    assert "never run" in text
    assert "coded" not in text.partition("\n\n")[0]


def test_engines_show_every_round_and_what_measured_each_release(results: Path) -> None:
    engine = {"round": 1, "graph": "0" * 16, "seconds": 0.2, "plan_bytes": 5000, "weights_bytes": 1000}
    exact = engine | {"golden_residues": 1280, "differing": 0}
    rounds = [exact | {"precision": "fp32"}, exact | {"precision": "int8", "differing": 3}]
    written(results, {"one": {"rounds": rounds}, "fashion-coded": {"rounds": rounds}}, commit="fedcba9876543210")
    text = deploy.figures(results)
    assert "| one | 1 | fp32 | 0.20 | 5 kB | 1 kB | 0 of 1,280 |" in text
    assert "| one | 1 | int8 | 0.20 | 5 kB | 1 kB | 3 of 1,280 |" in text
    assert "| fashion-coded (earlier release) | 1 | fp32 |" in text  # its graph has another digest
    assert "`engines.py one`, commit fedcba9876, 2026-01-01; `engines.py fashion-coded`, commit fedcba9876" in text


def written(results: Path, entries: dict[str, dict[str, object]], commit: str = "0123456789abcdef") -> None:
    """A result file of the engines in which every release was measured by a command of its own."""
    about = {"commit": commit, "date": "2026-01-01"}
    releases = {name: {"made_by": about | {"command": f"engines.py {name}"}} | rows for name, rows in entries.items()}
    (results / "engines.json").write_text(json.dumps({"made_by": about, "releases": releases}))


def test_what_was_not_measured_yet_says_so(tmp_path: Path) -> None:
    assert "Not measured yet" in deploy.figures(tmp_path)
    assert "Not measured yet" in scaling_page.figures(tmp_path)


def frontier_run(name: str, **changes: object) -> dict[str, object]:
    made_by = {"command": "frontier.py", "commit": "fedcba9876543210", "date": "2026-01-01", "seed": 0}
    run = {
        "name": name,
        "change": {},
        "data": "cifar10",
        "backbone": "resnet20",
        "servers": 3,
        "bits_per_share": 12.68,
        "one_missing": 0.8,
    }
    run |= {"client_macs": 10, "baseline_macs": 300, "baseline": 0.9, "accuracy": 0.85, "linear_readouts": 0.84}
    run |= {"worst": {size: {"psnr": 13 + int(size) / 2, "ssim": 0.2} for size in "123"}, "made_by": made_by}
    return run | changes


def test_the_frontier_says_which_bars_hold_together_and_what_misses_by_least(results: Path) -> None:
    runs = [
        frontier_run("cifar10-reference"),
        frontier_run("cifar10-wide", accuracy=0.895, client_macs=30, change={"head": {"stem": 8}, "seed": 3}),
        frontier_run("cifar10-vit", accuracy=0.91, backbone="vit-tiny"),
    ]
    floors = {"cifar10": {"class_mean": 13.0}}
    (results / "frontier.json").write_text(json.dumps({"floors": floors, "runs": runs}))
    text = frontier.figures(results)
    assert "| cifar10, ResNet | accuracy and leakage | cifar10-wide | 0.50 | +0.50 dB | 1/10.0 |" in text
    nearest = "none; nearest is cifar10-reference | 5.00 | +0.50 dB | 1/30.0 |"
    assert f"| cifar10, ResNet | accuracy and compute | {nearest}" in text
    assert "| cifar10, ResNet | leakage and compute | cifar10-reference | 5.00 | +0.50 dB | 1/30.0 |" in text
    assert "| cifar10, ViT | accuracy and compute | cifar10-vit | -1.00 | +0.50 dB | 1/30.0 |" in text
    floors["cifar10"]["class_mean"] = 11.0  # so that every run leaks too much
    (results / "frontier.json").write_text(json.dumps({"floors": floors, "runs": runs}))
    leaking = frontier.figures(results)
    assert "| cifar10, ResNet | accuracy and leakage | none | | | |" in leaking
    nearest = "none; nearest is cifar10-reference | 5.00 | +2.50 dB | 1/30.0 |"
    assert f"| cifar10, ResNet | leakage and compute | {nearest}" in leaking
    leaks = "85.00% | 80.00% | 84.00% | +0.50 dB | +0.50 dB | +1.50 dB |"
    assert f"| reference |  | 3 | 12.7 | 1/30.0 | 90.00% | {leaks}" in text
    assert "| wide | `head.stem = 8`, `seed = 3` | 3 |" in text
    assert "Not measured yet: configs/seeds/fashion.toml." in text


def test_coded_releases_stand_beside_their_other_seeds() -> None:
    about = {"command": "frontier.py", "commit": "0123456789abcdef", "date": "2026-01-01"}
    runs = [
        {"name": f"small-seed-{seed}", "made_by": about | {"seed": seed}, "decoded": {"psnr": psnr}}
        | {"floor": {"class_mean": 13.5}}
        for seed, psnr in ((1, 19.5), (2, 20.5), (3, 20.5))
    ]
    measured = {"baseline": 0.9375, "linear_readouts": 0.91, "made_by": about | {"command": "accuracy.py"}}
    accuracy = {"small": measured | {"fused": 0.93}}
    measured |= {"rounds": 2}
    others = {"small-seed-1": measured | {"fused": 0.94}, "small-seed-2": measured | {"fused": 0.935}}
    masked = {"fashion-seed-1": {key: value for key, value in measured.items() if key != "rounds"} | {"fused": 0.9}}
    others |= masked
    lines = coded_seeds_table({"coded": runs}, others, accuracy).splitlines()
    assert lines[2:7] == [
        "| small | 0, the release | 93.00% | -0.75 | +2.00 |  |",
        "| small | 1 | 94.00% | +0.25 | +3.00 | +6.00 dB |",
        "| small | 2 | 93.50% | -0.25 | +2.50 | +7.00 dB |",
        "| small | mean | 93.50% | -0.25 | +2.50 | +6.50 dB |",
        "| small | standard deviation | 0.50% | 0.50 | 0.50 | 0.71 dB |",
    ]
    assert lines[-1].count("`frontier.py`, commit 0123456789") == lines[-1].count("`accuracy.py`, commit") == 2
    assert minus_baseline(others, accuracy) == {"small": pytest.approx([-0.75, 0.25, -0.25])}
    # A seed that nobody has attacked has its accuracy, and an empty cell.
    (_, _, _, _, second, mean, spread, *_) = coded_seeds_table({"coded": runs[:1]}, others, accuracy).splitlines()
    assert second == "| small | 2 | 93.50% | -0.25 | +2.50 |  |"
    assert mean == "| small | mean | 93.50% | -0.25 | +2.50 | +6.00 dB |"
    assert spread == "| small | standard deviation | 0.50% | 0.50 | 0.50 |  |"
    (_, _, _, _, _, mean, *_) = coded_seeds_table({}, others, accuracy).splitlines()
    assert mean == "| small | mean | 93.50% | -0.25 | +2.50 |  |"
    assert "one seed so far" in coded_seeds_table({"coded": runs}, masked, accuracy)


def test_a_larger_model_stands_beside_its_bars() -> None:
    about = {"command": "accuracy.py", "commit": "0123456789abcdef", "date": "2026-01-01"}
    entry = {"fused": 0.8973, "baseline": 0.9072, "linear_readouts": 0.8258, "backbone": "resnet18", "made_by": about}
    entry |= {"baseline_macs": 555_000_000, "client_macs": 26_000_000, "bytes_up": 15_360, "bytes_down": 5_170}
    entry |= {"sharing": "coded", "data": "cifar10, test", "rounds": 2}
    lines = frontier.larger_table({"large": entry}).splitlines()
    assert "| baseline | 90.72%, at least 90.0% |" in lines
    assert "| coded minus baseline | -0.99, at least -1.0 |" in lines
    assert "| coded minus linear readout | +7.15, at least +5.0 |" in lines
    assert "| bytes up and down, 3 servers | 61.6 kB, at most 64 kB |" in lines
    assert "`accuracy.py`, commit 0123456789" in lines[-1]
    assert "Not measured yet" in frontier.larger_table({})


def test_every_release_stands_beside_every_bar_and_what_misses_one_is_bold(results: Path) -> None:
    accuracy, privacy = (
        json.loads((results / f"{name}.json").read_text())["releases"] for name in ("accuracy", "privacy")
    )
    accuracy["keyed"] = accuracy["small"] | {"keys": {"largest_distance_from_mean": 0.006}, "backbone": "vit-tiny"}
    accuracy["keyed"] |= {"baseline": 0.96, "client_macs": 10}
    privacy["keyed"] = privacy["small"] | {"undefended": {"decoder": 20.0, "optimisation-tv": 29.0}}
    lines = bars.held_table(accuracy, privacy).splitlines()
    assert lines[0] == "| bar | small | keyed |"
    assert lines[2:12] == [
        "| baseline, at least 93.0 (Fashion-MNIST), 90.0 (CIFAR-10) | 95.00% |  |",
        "| fused, at most 1.0 below it | -0.87 | **-1.87** |",
        "| largest minority, at most 1.0 dB above the class mean | +1.00 dB | +1.00 dB |",
        "| client compute, at most 1/20 of the baseline's | **1/15.0** | 1/30.0 |",
        "| one server missing, at most 2.5 below fused | **-24.13** | **-24.13** |",
        "| minority with simple lies, at most 5.0 below fused | -3.12 | -3.12 |",
        "| minority that knows everything, at most 5.0 below fused | **-6.13** | **-6.13** |",
        "| linear readouts, at least 2.0 below fused | -9.13 | -9.13 |",
        "| undefended split, at least 30 dB | 33.0 dB | **29.0 dB** |",
        "| one of 100 keys, at most 0.5 from their mean |  | **0.60** |",
    ]


def test_other_seeds_stand_beside_the_release_with_mean_and_spread(results: Path) -> None:
    for name in ("accuracy", "privacy"):
        path = results / f"{name}.json"
        found = json.loads(path.read_text())
        found["releases"]["fashion-resnet20"] = found["releases"]["small"]
        if name == "privacy":
            alike = [{"attack": "decoder", "members": list(range(size)), "psnr": 14.0 + size} for size in (1, 2, 3)]
            found["releases"]["small"]["coalitions"] = [*alike, {"attack": "dense", "members": [0], "psnr": 99.0}]
        path.write_text(json.dumps(found))
    made_by = {"command": "frontier.py", "commit": "fedcba9876543210", "date": "2026-01-01", "seed": 1}
    runs = [frontier_run("fashion-seed-1", made_by=made_by)]
    accuracy, privacy = (json.loads((results / f"{name}.json").read_text()) for name in ("accuracy", "privacy"))
    release = accuracy["releases"]["small"]
    lies = {"1": release["malicious"]["1"] | {"adversarial": 0.84, "worst": 0.84}}
    other = release | {"fused": 0.93125, "missing": {"1": {"worst": 0.8}}, "linear_readouts": 0.84, "malicious": lies}
    table = frontier.seeds_table({"runs": runs}, {"releases": {"fashion-seed-1": other}}, accuracy, privacy)
    reached = "15.00 dB | 16.00 dB | 17.00 dB"
    assert f"| 0, the release | 94.12% | 70.00% | 91.00% | 88.00% | 85.00% | {reached} |" in table
    assert "| 1 | 93.12% | 80.00% | 91.00% | 84.00% | 84.00% | 13.50 dB | 14.00 dB | 14.50 dB |" in table
    assert "| mean | 93.62% | 75.00% | 91.00% | 86.00% | 84.50% | 14.25 dB | 15.00 dB | 15.75 dB |" in table
    assert "| standard deviation | 0.71% | 7.07% | 0.00% | 2.83% | 0.71% |" in table
    assert "`frontier.py`, commit fedcba9876, 2026-01-01; `latency.py`, commit 0123456789, 2026-01-01." in table


def test_a_row_says_when_the_release_has_changed_since() -> None:
    release = ROOT / "model_repository" / "fashion-resnet20"
    today = graph_digests(release)
    assert set(today) == {"encoder", "fusion", "server-0", "server-1", "server-2", "baseline"}
    assert named(release.name, today) == release.name
    assert named(release.name, {"encoder": today["encoder"]}) == release.name
    for graphs in (None, {}, today | {"fusion": "0" * 16}, today | {"baseline": "0" * 16}):
        assert named(release.name, graphs) == "fashion-resnet20 (earlier release)"
    assert named("rival-fashion-none", None) == "rival-fashion-none"  # no release at all


def test_every_row_is_marked_by_what_was_measured(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = ROOT / "model_repository" / "fashion-resnet20"
    monkeypatch.setattr(marks, "RELEASES", results)
    (results / "small").symlink_to(release)
    old = results_page.figures(results)
    assert "| small (earlier release)[^accuracy-1] |" in old
    assert "| attacker | small (earlier release)[^privacy-1] |" in old
    assert "release small (earlier release).[^latency]" in old
    assert old.count(marks.EARLIER) == 1
    for name in ("accuracy", "privacy", "latency"):
        path = results / f"{name}.json"
        values = json.loads(path.read_text())
        for entry in values.get("releases", {"": values}).values():
            entry["graphs"] = graph_digests(release)
        path.write_text(json.dumps(values))
    new = results_page.figures(results)
    assert "earlier release" not in new
    assert marks.EARLIER not in new


def test_the_digests_are_those_of_the_files() -> None:
    release = ROOT / "model_repository" / "fashion-resnet20"
    found = graph_digests(release)
    assert hashlib.sha256((release / "client" / "encoder.onnx").read_bytes()).hexdigest().startswith(found["encoder"])
    branch = release / "server-1" / "branch" / "1" / "model.onnx"
    assert hashlib.sha256(branch.read_bytes()).hexdigest().startswith(found["server-1"])


def test_flags_under_the_headline_are_of_the_headline() -> None:
    """A flag of the same attack and servers from 64 pairs does not stand under the row of 20,000."""
    row = {"attack": "dense", "members": [2], "pairs": 20000, "relation": "other images"}
    entry = {"worst": {"1": {"attack": "dense", "members": [2]}}, "coalitions": [row | {"psnr": 13.0}]}
    few = row | {"check": "below the floor", "message": "", "pairs": 64}
    other = row | {"check": "few images", "message": "", "attack": "diffusion"}
    shifted = row | {"check": "unaware", "message": "", "relation": "images of other classes"}
    assert privacy.flagged(entry | {"flags": [few, other, shifted]}) == []
    own = row | {"check": "cut short", "message": ""}
    everything = {"check": "undefended", "message": "", "attack": None, "members": [], "pairs": None, "relation": None}
    assert privacy.flagged(entry | {"flags": [few, own, everything]}) == ["cut short", "undefended"]


def test_a_call_of_a_replaced_coded_release_is_marked(tmp_path: Path) -> None:
    measured, name = ROOT / "bench" / "results", "fashion-coded"
    accuracy = json.loads((measured / "accuracy.json").read_text())["releases"]
    found = json.loads((measured / name / break_even.RESULT).read_text())
    place = tmp_path / name / break_even.RESULT
    place.parent.mkdir()
    for graphs, shown in ((graph_digests(ROOT / "model_repository" / name), name), ({}, f"{name} (earlier release)")):
        place.write_text(json.dumps(found | {"graphs": graphs}))
        assert f"| {shown} | 2 | loopback |" in break_even.table(tmp_path, accuracy)


def test_calibration_is_what_the_manifests_state() -> None:
    path = ROOT / "model_repository" / "fashion-resnet20" / "client" / "manifest.json"
    manifest = json.loads(path.read_text())
    error = manifest["accuracy"]["calibration"]
    row = f"| {manifest['release']} | {error['after']:.2%} | {error['before']:.2%} |"
    assert row in results_page.calibration_table().splitlines()
