"""A sweep as a person runs it, on tiny trainings."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import frontier
from privdfs_bench.audit import frontier as audit
from privdfs_bench.audit.frontier import config_of, recorded_config
from privdfs_bench.audit.frontier_picture import draw, is_current, points
from privdfs_bench.audit.sweeps import SWEEPS, Run, chosen, read_sweep
from privdfs_bench.pages.frontier import search_table
from privdfs_bench.results import RESULTS
from privdfs_training.coded.system import load_coded
from privdfs_training.config import Config, VitTinyConfig
from privdfs_training.data import DataSet, load_data
from privdfs_training.errors import TrainingConfigError
from privdfs_training.reading import config_from_dict
from tests.trained import QUIET, shifted_images, tiny_values, write_data, write_idx, write_toml
from tests.training.coded_systems import coded_values

SCRIPT = Path(__file__).parents[2] / "bench" / "frontier.py"
SWEEP = """
base = "base.toml"

[common.loss]
auxiliary = 0.4

[attack]
epochs = 1
width = 8
blocks = 1

[runs.three]

[runs.five.masks]
servers = 5
values = 6

[runs.five.branch]
width = 8
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_toml(tmp_path / "base.toml", tiny_values())
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP)
    return path


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, str(SCRIPT), *map(str, arguments), "--threads", "1"]
    environment = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(line, capture_output=True, text=True, timeout=150, check=False, env=environment)


def test_a_sweep_is_trained_measured_drawn_and_not_made_twice(sweep: Path, data_folder: Path, tmp_path: Path) -> None:
    out, runs = tmp_path / "frontier.json", tmp_path / "runs"
    places = ("--data", data_folder, "--runs", runs, "--out", out)

    first = run(sweep, *places, "--only", "three")
    assert first.returncode == 0, first.stderr
    both = run(sweep, *places)
    assert both.returncode == 0, both.stderr

    assert "sweep-three: in " in both.stdout
    results = json.loads(out.read_text())
    five, three = results["runs"]
    assert [five["name"], three["name"]] == ["sweep-five", "sweep-three"]
    assert five["change"] == {"masks": {"servers": 5, "values": 6}, "branch": {"width": 8}}
    assert three["servers"] == 3
    assert three["bits_per_share"] == pytest.approx(12 * math.log2(5))
    assert five["bits_per_share"] == pytest.approx(6 * math.log2(5))
    assert five["server_macs"] < three["server_macs"]
    assert five["baseline"] == three["baseline"]  # the same weights: trained once
    assert len(list(runs.glob("baseline-*"))) == 1
    for entry in (five, three):
        assert 0.2 < entry["accuracy"] <= 1
        assert 0.1 < entry["one_missing"] <= 1
        assert 0.2 < entry["linear_readouts"] <= 1
        assert set(entry["worst"]) == {str(size + 1) for size in range(entry["servers"])}
        assert 8 < results["floors"]["fashion-mnist"]["mean_image"] < results["floors"]["fashion-mnist"]["class_mean"]
        for size, found in entry["worst"].items():
            assert len(found["members"]) == int(size)
            assert 5 < found["psnr"] < 20  # one epoch of a tiny decoder
        assert entry["made_by"]["config"]["run"]["loss"]["auxiliary"] == 0.4
        assert f"{entry['accuracy']:.2%}" in both.stdout


def test_runs_of_other_teachers_share_no_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = DataSet("none", (), *[torch.empty(0)] * 4)

    def train(config: Config, _data: object, folder: Path, _console: object, **_: object) -> Path:
        if not (folder / "baseline.safetensors").exists():
            (folder / "baseline.safetensors").write_text(str(config.teacher))
        return folder

    monkeypatch.setattr(audit, "train", train)
    for name, teacher in (("none", None), ("same", None), ("first", "a"), ("second", "b"), ("third", "b")):
        values = tiny_values()
        if teacher is not None:
            values["teacher"] = {"name": "resnet8", "width": 8, "checkpoint": teacher}
        config = config_from_dict(values, "tests")
        audit.train_run(Run(name, {}, config), images, tmp_path, QUIET)
        assert (tmp_path / name / "baseline.safetensors").read_text() == str(config.teacher)
    assert len(list(tmp_path.glob("baseline-*"))) == 3
    (tmp_path / "b").write_text("weights")  # another teacher of the same name
    monkeypatch.chdir(tmp_path)
    audit.train_run(Run("fourth", {}, config), images, tmp_path, QUIET)
    assert len(list(tmp_path.glob("baseline-*"))) == 4


CODED_SWEEP = """
base = "base.toml"

[common.data]
held_out = 120

[attack]
epochs = 1
width = 8
blocks = 1

[runs.reference]

[runs.fewer.sharing]
values = 6
"""


def test_coded_runs_are_measured_on_images_that_they_did_not_learn_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_folder = write_data(tmp_path / "fashion")
    _, labels = shifted_images(50, 2)
    write_idx(data_folder / "t10k-labels-idx1-ubyte.gz", (labels + 1) % 10)  # whoever looks at them is never right
    write_toml(tmp_path / "base.toml", coded_values("pooled"))
    sweep, out, runs = tmp_path / "coded.toml", tmp_path / "frontier.json", tmp_path / "runs"
    sweep.write_text(CODED_SWEEP)
    arguments = [str(sweep), "--data", str(data_folder), "--runs", str(runs), "--out", str(out), "--threads", "1"]

    assert frontier.main([*arguments, "--only", "fewer"]) == 0
    assert frontier.main([*arguments, "--only", "fewer"]) == 0

    assert "coded-fewer: in " in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert (results["runs"], results["floors"]) == ([], {})  # floors are those of test images
    (entry,) = results["coded"]
    config = read_sweep(sweep).runs[1].config
    held_out = load_data(config.data, data_folder)
    images, truth = held_out.sample("test")
    trained = load_coded(runs / "coded-fewer" / "system.safetensors")
    right = (trained.system(images).argmax(1) == truth).float().mean().item()
    assert len(truth) == entry["held_out"] == 120
    assert entry["accuracy"] == pytest.approx(right)
    assert entry["accuracy"] > 0.3
    assert 0.1 < entry["linear_readouts"] <= 1
    (primes,) = entry["moduli"]
    assert (entry["servers"], entry["bytes_up"], entry["bytes_down"]) == (3, 3 * primes * 6, 3 * primes * 10)
    assert entry["floor"]["mean_image"] < entry["floor"]["class_mean"]
    assert 5 < entry["decoded"]["psnr"] < 25
    assert f"{entry['accuracy']:.2%}" in search_table(results["coded"], "fashion-mnist")


def test_coded_runs_that_test_images_would_choose_are_refused(tmp_path: Path) -> None:
    write_toml(tmp_path / "base.toml", coded_values())
    sweep = tmp_path / "coded.toml"
    sweep.write_text(CODED_SWEEP.replace("held_out = 120", "held_out = 0"))
    with pytest.raises(TrainingConfigError, match=r"run coded-fewer: data\.held_out is missing"):
        read_sweep(sweep)
    sweep.write_text(sweep.read_text().replace("[runs.fewer.sharing]\nvalues = 6", "[runs.other]\nseed = 1"))
    assert [run.config.seed for run in read_sweep(sweep).runs] == [3, 1]


def test_a_picture_of_other_figures_is_not_current(tmp_path: Path) -> None:
    entry = {"data": "fashion-mnist", "backbone": "resnet20", "client_macs": 1, "baseline_macs": 20, "fused": 0.925}
    entry |= {"linear_readouts": 0.9, "baseline": 0.93, "branches": [0.92] * 3}
    audit = {"floor": {"class_mean": 13.0}, "worst": {"1": {"psnr": 13.5}}}
    shown = points({"one": entry, "two": entry | {"sharing": "coded"}}, {"one": audit})
    assert [one.learnt for one in shown] == ["+0.50 dB", "nothing (proven)"]
    path = tmp_path / "frontier.png"
    assert not is_current(shown, path)
    draw(shown, path)
    assert is_current(shown, path)
    assert not is_current([shown[0]._replace(accuracy=0.926), shown[1]], path)


def test_another_kind_of_section_starts_afresh(sweep: Path) -> None:
    sweep.write_text(SWEEP + '\n[runs.vit.backbone]\nname = "vit-tiny"\npatch = 7\ndepth = 2\n')
    (config,) = [one.config for one in read_sweep(sweep).runs if one.name == "sweep-vit"]
    assert isinstance(config, Config)
    assert config.backbone == VitTinyConfig(patch=7, depth=2)
    assert config.loss.auxiliary == 0.4
    assert config.loss.distillation == 0.5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('[attack]\nepochs = "many"', "attack"),
        ("[attack]\nepochs = 1\nwidht = 64", "attack knows no widht; it has batch"),
        ("[attack]\nepochs = 0", "above 0"),
        ("[runs.x.keys]\npartitions = 4", "run x: .* cut without keys"),
        ('[runs.x.data]\nname = "celeba-attributes"\nflip = true', "images with one class"),
        ("[runs.x.masks]\nservres = 3", "servres"),
        ("[runs.x.masks]\nservers = 1", "at least 2 servers"),
        ("[other]\nkey = 1", "other"),
    ],
)
def test_a_wrong_sweep_is_refused_before_time_is_spent(sweep: Path, change: str, told: str) -> None:
    text: Any = SWEEP.replace("[attack]\nepochs = 1", "[attack]") if change.startswith("[attack]") else SWEEP
    sweep.write_text(text.replace("[attack]", change) if change.startswith("[attack]") else f"{text}\n{change}\n")
    with pytest.raises(TrainingConfigError, match=told):
        read_sweep(sweep)


def test_an_unknown_run_is_named(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert frontier.main([str(sweep), "--only", "thre", "--out", str(tmp_path / "frontier.json")]) == 2
    assert "sweep-three, sweep-five" in capsys.readouterr().err


def test_every_run_of_the_committed_sweeps_is_committed_as_its_config_says() -> None:
    sweeps = [read_sweep(path) for path in SWEEPS.glob("*.toml")]
    known = {run.name: config_of(run, sweep.attack) for sweep in sweeps for run in sweep.runs}
    results = json.loads((RESULTS / "frontier.json").read_text())
    made = [*results["runs"], *results["coded"]]
    assert {run["name"] for run in made} == known.keys()
    assert [run["name"] for run in made if recorded_config(run) != known[run["name"]]] == []


def test_a_run_is_chosen_with_or_without_the_name_of_its_sweep() -> None:
    sweep = read_sweep(SWEEPS.parent / "seeds" / "fashion-coded.toml")
    for only in ("seed-1", "fashion-coded-seed-1"):
        assert [run.name for run in chosen(sweep, only)] == ["fashion-coded-seed-1"]
    assert chosen(sweep, None) == sweep.runs


def test_a_device_that_is_none_is_refused(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert frontier.main([str(sweep), "--device", "gpu", "--out", str(tmp_path / "frontier.json")]) == 2
    assert "none of: cpu, cuda, cuda:N" in capsys.readouterr().err
    assert not (tmp_path / "frontier.json").exists()


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_project_can_be_read(path: Path) -> None:
    runs = read_sweep(path).runs
    assert len({run.name for run in runs}) == len(runs) > 1
