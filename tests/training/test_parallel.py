"""Two gloo processes, started by torchrun as a user does, compute what one process computes."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from privdfs_training import loop, parallel
from privdfs_training.checkpoint import read_checkpoint
from privdfs_training.coded.config import coded_config
from privdfs_training.coded.train import train_coded
from privdfs_training.data import load_data
from privdfs_training.errors import CheckpointError, TrainingConfigError
from privdfs_training.reading import config_from_dict
from tests.trained import BRANCHES_STAGE, FUSION_STAGE, QUIET, tiny_values, write_data, write_toml

ROOT = Path(__file__).parents[2]
WORKER = str(Path(__file__).parent / "stopping_worker.py")
# Workers import the tests' helpers; OMP_NUM_THREADS as torchrun sets it by default.
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}
STEPS = {"baseline": 4, "masks": 6, "finetune": 3, "branches": 5, "fusion": 5}  # the last: frozen parts are asked ahead
CODED_STEPS = {"baseline": 4, "rounds": 6, "finetune": 3}


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images to train on, so that one batch is an epoch and metrics.jsonl has a line for every step."""
    return write_data(tmp_path_factory.mktemp("few") / "fashion", train_copies=3, test_copies=2)


def values_of_every_step() -> dict[str, Any]:
    values = copy.deepcopy(tiny_values())
    values["train"] |= {"branches": BRANCHES_STAGE, "fusion": FUSION_STAGE}
    values["train"] = {
        name: values["train"][name] | {"batch": 60, "epochs": epochs, "learning_rate": 1e-3}
        for name, epochs in STEPS.items()
    }
    values["train"]["fusion"]["average"] = 0.5
    values["train"]["precision"] = "float32"
    values["masks"] |= {"learned_levels": True}
    values["loss"] |= {"rate": 0.01, "bits": 0.01, "decorrelation": 0.1}
    values["adversary"] = {"weight": 0.5, "kind": "decoder", "width": 4, "start": 0.0, "warm_up": 2}
    values["data"]["flip"] = True
    return values


def torchrun(
    *arguments: str | Path, processes: int = 2, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, few_images: Path) -> Path:
    """The same run in two processes."""
    folder = tmp_path_factory.mktemp("pair")
    config = write_toml(folder / "tiny-3.toml", values_of_every_step())
    done = torchrun("-m", "privdfs_training", config, "--data", few_images, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: ") == 1  # one process talks
    return folder / "tiny-3"


def coded_values_of_every_step() -> dict[str, Any]:
    values = {key: copy.deepcopy(tiny_values()[key]) for key in ("name", "seed", "data", "backbone", "head", "train")}
    stage = values["train"]["masks"] | {"batch": 60, "learning_rate": 1e-3, "clip": 1.0}
    values["train"] = {name: stage | {"epochs": epochs} for name, epochs in CODED_STEPS.items()}
    values["train"]["rounds"]["average"] = 0.5
    values["train"]["precision"] = "float32"
    values["sharing"] = {"kind": "coded", "annealed": 0.5, "mirrored": True}
    values["rounds"] = [
        {"levels": 15, "hidden": [{"outputs": 8, "kernel": 3}], "output": {"outputs": 4, "kernel": 3}, "skip": 1},
        {"levels": 9, "hidden": [{"outputs": 8, "kernel": 3}], "pool": 7, "output": {"over": "all"}},
    ]
    values["data"]["flip"] = True
    loss = {"distillation": 1.0, "distillation_temperature": 4.0, "label_smoothing": 0.0, "range": 0.01}
    return values | {"loss": loss}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "coded"])
def test_two_processes_have_the_losses_of_one(tmp_path: Path, few_images: Path, kind: str) -> None:
    values, steps_of = (
        (values_of_every_step(), STEPS) if kind == "masked" else (coded_values_of_every_step(), CODED_STEPS)
    )
    config = write_toml(tmp_path / "tiny-3.toml", values)
    for folder in ("alone", "pair"):
        (tmp_path / folder).mkdir()
    worker = [str(Path(__file__).parent / "double_worker.py"), str(config), str(few_images)]
    subprocess.run([sys.executable, *worker, str(tmp_path / "alone")], env=ENVIRONMENT, check=True)
    done = torchrun(*worker, tmp_path / "pair")
    assert done.returncode == 0, done.stderr
    ours, theirs = metrics(tmp_path / "pair"), metrics(tmp_path / "alone")
    assert [line["stage"] for line in ours] == [name for name, steps in steps_of.items() for _ in range(steps)]
    terms = {"masked": {"fused", "auxiliary", "distillation"}, "coded": {"coded", "readout", "range"}}[kind]
    assert terms | {"loss", "test_accuracy"} <= ours[STEPS["baseline"]].keys()
    for our, their in zip(ours, theirs, strict=True):
        for line in (our, their):
            del line["seconds"]
        assert our.pop("stage") == their.pop("stage")
        # Adam makes steps of sums that only rounding keeps from zero.
        assert our == pytest.approx(their, rel=1e-7, abs=1e-7)
    assert len({line["loss"] for line in ours}) == len(ours)  # something was learned, or at least drawn


@pytest.mark.slow
def test_two_processes_stop_together_and_continue_to_the_same_weights(
    tmp_path: Path, few_images: Path, pair: Path
) -> None:
    config = write_toml(tmp_path / "tiny-3.toml", values_of_every_step())
    arguments = (config, "--data", few_images, "--out", tmp_path)
    stopped = torchrun(WORKER, "stop", str(STEPS["baseline"] + 3), *arguments)
    assert "stopped and saved" in stopped.stdout, stopped.stderr
    assert read_checkpoint(tmp_path / "tiny-3" / "masks.safetensors").about["step"] == 3
    done = torchrun("-m", "privdfs_training", *arguments)
    assert "masks: continuing at step 3" in done.stdout, done.stderr
    resumed, whole = (read_checkpoint(run / "system.safetensors").tensors for run in (tmp_path / "tiny-3", pair))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path: Path, few_images: Path) -> None:
    config = write_toml(tmp_path / "tiny-3.toml", values_of_every_step())
    done = torchrun(WORKER, "fail", "2", config, "--data", few_images, "--out", tmp_path, timeout=120)
    assert done.returncode != 0
    assert "privdfs-train: process 1: one picture cannot be read" in done.stderr


def test_a_batch_that_the_processes_cannot_divide_is_an_error_before_anything_starts(
    tmp_path: Path, few_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of_every_step()
    values["train"]["masks"]["batch"] = 25
    monkeypatch.setattr(parallel, "world", lambda: 2)
    with pytest.raises(
        TrainingConfigError, match=r"train\.masks\.batch is 25, which 2 processes cannot divide into equal parts"
    ):
        loop.train(config_from_dict(values, "tests"), load_data("fashion-mnist", few_images), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("blend", ["mixup", "cutmix"])
def test_blends_of_a_batch_need_one_process(
    blend: str, tmp_path: Path, few_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbours in a batch may be in different processes."""
    values = coded_values_of_every_step()
    values["train"]["finetune"][blend] = 0.5
    monkeypatch.setattr(parallel, "world", lambda: 2)
    monkeypatch.setattr(parallel, "synchronise", lambda _: None)
    with pytest.raises(TrainingConfigError, match=r"train\.finetune\.mixup and cutmix blend images of the whole batch"):
        train_coded(coded_config(values, "tests"), load_data("fashion-mnist", few_images), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


def test_each_process_gets_its_part_of_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    whole = torch.rand(6, 2)
    monkeypatch.setattr(parallel, "world", lambda: 3)
    parts = []
    for process in range(3):
        monkeypatch.setattr(parallel, "rank", lambda process=process: process)
        torch.manual_seed(1)
        parts.append(parallel.per_image(lambda count: torch.rand(count, 2), 2))
    assert torch.equal(torch.cat(parts), whole)


def test_one_process_needs_no_synchronised_statistics() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    parallel.synchronise(module)
    assert type(module[0]) is torch.nn.BatchNorm2d
    assert parallel.mean({"loss": 1.5}) == {"loss": 1.5}


def test_a_normalisation_that_does_more_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithActivation(torch.nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  as torch names it
            return super().forward(input).relu()

    monkeypatch.setattr(parallel, "world", lambda: 2)
    module = WithActivation(2)
    parallel.synchronise(module)
    assert type(module) is WithActivation


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(TrainingConfigError, match=f"--device {device}"):
        parallel.choose_device(device)


def test_what_fails_in_the_first_process_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise CheckpointError("disk")

    with pytest.raises(CheckpointError, match="disk"):
        parallel.first_only(full)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    monkeypatch.setattr(parallel, "mean", lambda values: {"failed": 0.5})
    with pytest.raises(CheckpointError, match="process 0 could not write"):
        parallel.first_only(full)
