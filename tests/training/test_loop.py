import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from privdfs_training import loop
from privdfs_training.checkpoint import (
    FORMAT,
    load_system,
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    write_checkpoint,
)
from privdfs_training.cli import main
from privdfs_training.config import StageConfig
from privdfs_training.data import load_data
from privdfs_training.errors import CheckpointError, DivergenceError, TrainingConfigError
from privdfs_training.interruption import StopRequest, stop_on_signal
from privdfs_training.models.system import System
from privdfs_training.optimizer import build_optimizer
from privdfs_training.parallel import CPU
from privdfs_training.precision import has_bfloat16
from privdfs_training.reading import config_from_dict
from privdfs_training.run import Compute, Run
from privdfs_training.stage import accuracy
from privdfs_training.stages import stages
from tests.trained import QUIET, tiny_config, tiny_values, write_data, write_toml
from tests.training.interrupting import until_done

TOML = """
name = "{name}"
seed = 1
data = {{name = "fashion-mnist", flip = true}}
backbone = {{name = "resnet8", width = 8}}
head = {{stem = 4, stages = [[8, 1], [8, 1]], channels = 4}}
masks = {{servers = 3, values = 4, levels = 3, temperature = [1.0, 0.1], settled = 0.5}}
branch = {{width = 8, blocks = 1}}
fusion = {{hidden = 8, branch_dropout = 0.2}}
loss = {{auxiliary = 0.1, distillation = 1.0, distillation_temperature = 4.0, label_smoothing = 0.1}}
[train.baseline]
epochs = {epochs}
batch = 64
optimizer = "sgd"
learning_rate = 0.05
weight_decay = 5e-4
crop_padding = 2
[train.masks]
epochs = 1
batch = 64
optimizer = "adamw"
learning_rate = 3e-3
weight_decay = 0.05
crop_padding = 0
[train.finetune]
epochs = 1
batch = 64
optimizer = "adamw"
learning_rate = 1e-3
weight_decay = 0.05
crop_padding = 0
"""


def test_a_finished_system_has_learned_and_opens_again(trained_release: Path, data_folder: Path) -> None:
    data = load_data("fashion-mnist", data_folder)
    run = trained_release.parent / "run"
    trained = load_system(run / "system.safetensors")
    measured = accuracy(trained.system, data.test_batches(300))
    assert measured > 0.5  # ten classes
    assert measured == trained.accuracy["fused"]
    assert bool(trained.system.masks.frozen)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["baseline"] * 2 + ["masks"] * 4 + ["finetune"]
    assert lines[2]["fused"] > lines[5]["fused"]


@pytest.mark.usefixtures("_hangup_counts")
def test_an_interrupted_run_ends_as_the_uninterrupted_one(
    tmp_path: Path, data_folder: Path, trained_release: Path
) -> None:
    data, config = load_data("fashion-mnist", data_folder), tiny_config(3)
    whole = read_checkpoint(trained_release.parent / "run" / "system.safetensors")
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGHUP)
    # In the middle of epochs of each stage.
    path, _ = until_done(lambda: loop.train(config, data, tmp_path / "run", QUIET), 3, 11, 20, 47, signals=signals)
    resumed = read_checkpoint(path)
    assert all(torch.equal(resumed.tensors[name], value) for name, value in whole.tensors.items())


@pytest.mark.parametrize(("kind", "moment"), [("adamw", "exp_avg"), ("sgd", "momentum_buffer")])
@pytest.mark.parametrize("groups", [1, 4])
def test_restored_optimizer_state_is_laid_out_as_its_parameter(
    tmp_path: Path, kind: str, moment: str, groups: int
) -> None:
    layer = torch.nn.Conv2d(4, 8, 3, groups=groups).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    budget = msgspec.structs.replace(tiny_config().train.masks, optimizer=kind)
    optimizer, fresh = (loop.build_optimizer(layer, budget) for _ in range(2))
    layer(torch.rand(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    path = tmp_path / "optimizer.safetensors"
    write_checkpoint(path, optimizer_tensors(optimizer), {})
    restore_optimizer(fresh, read_checkpoint(path).tensors)
    restored = fresh.state[layer.weight][moment]
    assert torch.equal(restored, optimizer.state[layer.weight][moment])
    assert restored.stride() == layer.weight.stride()  # a fused optimiser refuses any other


def test_ctrl_c_saves_says_so_and_the_same_command_continues(tmp_path: Path, data_folder: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(TOML.format(name="stopped", epochs=300))
    command = [sys.executable, "-m", "privdfs_training.cli", str(config), "--data", str(data_folder), "--threads", "1"]
    process = subprocess.Popen([*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in output
    assert read_checkpoint(tmp_path / "stopped" / "baseline.safetensors").about["step"] > 0


@pytest.mark.usefixtures("_hangup_counts")
def test_a_closed_terminal_saves_and_the_same_command_continues(tmp_path: Path, data_folder: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(TOML.format(name="hung-up", epochs=300))
    command = [sys.executable, "-m", "privdfs_training.cli", str(config), "--data", str(data_folder), "--threads", "1"]
    terminal, inside = os.openpty()

    def own_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=own_terminal,  # noqa: PLW1509  a terminal can be taken only there
    )
    os.close(inside)
    metrics = tmp_path / "hung-up" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    os.set_blocking(terminal, False)
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
    os.close(terminal)
    assert process.wait(60) == 130
    assert read_checkpoint(tmp_path / "hung-up" / "baseline.safetensors").about["step"] > 0


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.wanted
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_checkpoint_of_another_config_is_refused(tmp_path: Path, data_folder: Path, trained_release: Path) -> None:
    run = shutil.copytree(trained_release.parent / "run", tmp_path / "run")
    values = tiny_values(3)
    values["masks"]["levels"] = 7
    data = load_data("fashion-mnist", data_folder)
    with pytest.raises(CheckpointError, match=r"masks\.safetensors was made with other settings in: masks;.*finetune"):
        loop.train(config_from_dict(values, "tests"), data, run, QUIET)


def test_what_followed_another_stage_is_refused_before_anything_is_trained(
    tmp_path: Path, data_folder: Path, trained_release: Path
) -> None:
    run = shutil.copytree(trained_release.parent / "run", tmp_path / "run")
    (run / "masks.safetensors").unlink()
    values = tiny_values(3)
    values["train"]["masks"]["epochs"] += 1
    data = load_data("fashion-mnist", data_folder)
    with pytest.raises(
        CheckpointError,
        match=r"finetune\.safetensors was made with other settings in: train\.masks\. .*remove this file",
    ):
        loop.train(config_from_dict(values, "tests"), data, run, QUIET)
    assert not (run / "masks.safetensors").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path, data_folder: Path) -> None:
    (tmp_path / "baseline.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"baseline\.safetensors is not a readable safetensors file"):
        loop.train(tiny_config(), load_data("fashion-mnist", data_folder), tmp_path, QUIET)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_that_were_damaged_on_disk_are_named(
    tmp_path: Path, data_folder: Path, trained_release: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    run = shutil.copytree(trained_release.parent / "run", tmp_path / "tiny-3")
    (run / "system.safetensors").unlink()
    path = run / "masks.safetensors"
    kept = read_checkpoint(path)
    name = next(name for name, tensor in kept.tensors.items() if tensor.ndim == 4)
    kept.tensors[name].view(-1)[0] = value
    write_checkpoint(path, kept.tensors, kept.about)
    config = write_toml(tmp_path / "tiny-3.toml", tiny_values(3))
    assert main([str(config), "--data", str(data_folder), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert f"{path} is damaged: NaN or infinite values in {name}." in said.err
    assert "learning_rate" not in said.err
    assert "masks:" not in said.out


def test_a_file_without_its_metadata_is_damaged(tmp_path: Path) -> None:
    for about in ({}, {"about": "{"}):
        save_file({"weight": torch.ones(1)}, tmp_path / "a", metadata={"format": FORMAT, **about})
        with pytest.raises(CheckpointError, match="its metadata cannot be read"):
            read_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("given", ["-3", "0", "1025", "10000000000000000000000", "1.5", "two", ""])
def test_a_number_of_threads_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    config = write_toml(tmp_path / "tiny.toml", tiny_values())
    with pytest.raises(SystemExit) as ended:
        main([str(config), "--threads", given, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "argument --threads: expected a whole number from 1 to 1024" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    text = TOML.format(name="wild", epochs=2).replace("learning_rate = 0.05", "learning_rate = 1e30")
    config.write_text(text)
    assert main([str(config), "--data", str(data_folder), "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert re.search(r"the loss of stage baseline is (nan|inf) at step [1-9]\d* of 16\.", error)
    assert "train.baseline.learning_rate" in error


def test_weights_that_are_not_finite_do_not_replace_good_ones(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, steps = loop.build_optimizer, itertools.count(1)

    def build_spoiled(modules: torch.nn.Module, config: StageConfig) -> torch.optim.Optimizer:
        def spoil(*_: object) -> None:
            if next(steps) == 16:  # the last one: no loss is computed after it
                next(modules.parameters()).data.fill_(torch.nan)

        optimizer = build(modules, config)
        optimizer.register_step_post_hook(spoil)
        return optimizer

    monkeypatch.setattr(loop, "build_optimizer", build_spoiled)
    with pytest.raises(DivergenceError, match=r"a weight of stage baseline is nan at step 16 of 16\. .*baseline\.saf"):
        loop.train(tiny_config(), load_data("fashion-mnist", data_folder), tmp_path, QUIET)
    kept = read_checkpoint(tmp_path / "baseline.safetensors")
    assert (kept.about["step"], kept.about["finished"]) == (8, False)
    assert all(bool(value.isfinite().all()) for value in kept.tensors.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda values: values["train"].update(baseline=values["train"]["baseline"] | {"batch": 521}),
            r"train\.baseline\.batch is 521, but fashion-mnist has 520",
        ),
        (
            lambda values: values["train"].update(masks=values["train"]["masks"] | {"crop_padding": 28}),
            r"train\.masks\.crop_padding is 28, .* have 28 pixels on a side",
        ),
        (
            lambda values: values.update(adversary={"weight": 1.0, "restart": 0, "warm_up": 100_000}),
            r"adversary\.warm_up is 100000 steps, .* none would ever count",
        ),
    ],
)
def test_what_does_not_fit_the_set_is_refused(
    change: Callable[[dict[str, Any]], None], reason: str, tmp_path: Path, data_folder: Path
) -> None:
    values = tiny_values()
    change(values)
    data = load_data("fashion-mnist", data_folder)
    with pytest.raises(TrainingConfigError, match=reason):
        loop.train(config_from_dict(values, "tests"), data, tmp_path, QUIET)


def test_a_stage_without_anything_to_train_is_refused() -> None:
    config = config_from_dict(tiny_values(), "tests")
    frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    with pytest.raises(TrainingConfigError, match="no weight that it trains may change"):
        build_optimizer(frozen, config.train.baseline)


def test_a_single_stage_is_not_a_system(trained_release: Path) -> None:
    with pytest.raises(CheckpointError, match="holds one stage, not a finished system"):
        load_system(trained_release.parent / "run" / "masks.safetensors")


def test_a_foreign_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="of format 'unknown'"):
        load_system(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_system(tmp_path / "none.safetensors")


def test_weights_that_do_not_fit_are_listed(tmp_path: Path, trained_release: Path) -> None:
    checkpoint = read_checkpoint(trained_release.parent / "run" / "system.safetensors")
    del checkpoint.tensors["fusion.hidden.bias"]
    write_checkpoint(tmp_path / "less.safetensors", checkpoint.tensors, checkpoint.about)
    with pytest.raises(CheckpointError, match=r"fusion\.hidden\.bias is missing, not \(16,\)"):
        load_system(tmp_path / "less.safetensors")


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage.safetensors"
    write_checkpoint(path, {"weight": torch.ones(2)}, {"step": 1})

    def no_space(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("privdfs_training.checkpoint.save_file", no_space)
    with pytest.raises(CheckpointError, match=r"No space left on device.*untouched"):
        write_checkpoint(path, {"weight": torch.zeros(2)}, {"step": 2})
    assert read_checkpoint(path).about["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_under_the_metrics_is_a_typed_error(tmp_path: Path, data_folder: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: No space left on device.*the same command continues"):
        loop.train(tiny_config(), load_data("fashion-mnist", data_folder), tmp_path, QUIET)


def baseline_losses(folder: Path, values: dict[str, Any]) -> list[float]:
    """Losses of the baseline stage of a config, of one epoch each."""
    config, folder = config_from_dict(values, "tests"), folder / values["name"]
    data = load_data("fashion-mnist", folder.parent / "data")
    torch.manual_seed(0)
    system = System(config, image_shape=data.image_shape, classes=10)
    folder.mkdir()
    baseline = stages(config, system, data)[0]
    loop.run_stage(
        baseline,
        Run(config, system, data, folder, QUIET, Compute(precision=config.train.precision)),
        StopRequest(),
    )
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("weight", "lessons"), [(1.0, 1), (0.0, 0)])
def test_the_baseline_teaches_only_where_distillation_has_a_weight(
    data_folder: Path, weight: float, lessons: int
) -> None:
    values = tiny_values()
    values["loss"]["distillation"] = weight
    config = config_from_dict(values, "tests")
    data = load_data("fashion-mnist", data_folder)
    system = System(config, image_shape=data.image_shape, classes=10)
    masks, called = stages(config, system, data)[1], list[bool]()
    masks.prepare()
    system.baseline.register_forward_hook(lambda *_: called.append(system.baseline.training))
    images, labels = (part[:8] for part in data.sample("train"))
    masks.loss(images, labels, 0.5)
    assert called == [False] * lessons


def test_a_gradient_is_cut_to_its_norm_before_the_step(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train_copies=4, test_copies=2)
    values, moved = tiny_values(), {}
    budget = values["train"]["baseline"] | {"optimizer": "sgd", "weight_decay": 0.0, "epochs": 3}
    for clip in (0.0, 1e-9):
        values["train"]["baseline"] = budget | {"clip": clip}
        baseline_losses(tmp_path, values | {"name": f"clip-{clip}"})
        trained = read_checkpoint(tmp_path / f"clip-{clip}" / "baseline.safetensors").tensors
        torch.manual_seed(0)
        fresh = System(config_from_dict(values, "tests"), image_shape=(1, 28, 28), classes=10).baseline
        moved[clip] = max(
            float((trained[f"baseline.{name}"] - value.detach()).abs().max())
            for name, value in fresh.named_parameters()
        )
    assert moved[0.0] > 1e-3
    assert moved[1e-9] < 1e-7


def test_precision_changes_rounding_and_nothing_else(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train_copies=4, test_copies=2)
    values = tiny_values()
    half = baseline_losses(tmp_path, values | {"name": "half"})
    values["train"]["precision"] = "float32"
    full = baseline_losses(tmp_path, values | {"name": "full"})
    assert (half != full) == has_bfloat16("cpu")
    assert half == pytest.approx(full, rel=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
def test_compiled_networks_compute_the_same_and_keep_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    system = System(tiny_config(), image_shape=(1, 28, 28), classes=10)
    names = list(system.state_dict())
    logits, answered = torch.randn(4, 3, 10), torch.ones(4, 3, dtype=torch.bool)
    expected = system.fusion(logits, answered)
    loop._compile(system, CPU)
    # The smallest of the networks: each is compiled at its first use, which takes long.
    assert torch.allclose(system.fusion(logits, answered), expected, atol=1e-5)
    assert list(tmp_path.rglob("*.so"))
    assert list(system.state_dict()) == names


def test_where_nothing_can_be_compiled_the_run_does_not_start(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(_function: object) -> Callable[[torch.Tensor], torch.Tensor]:
        message = "no working C++ compiler found"
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "compile", no_compiler)
    values = tiny_values()
    values["train"]["compile"] = True
    data = load_data("fashion-mnist", data_folder)
    with pytest.raises(TrainingConfigError, match=r"needs a C\+\+ compiler.*no working C\+\+ compiler found"):
        loop.train(config_from_dict(values, "tests"), data, tmp_path, QUIET)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_checkpoint_of_another_precision_is_refused(tmp_path: Path, data_folder: Path, trained_release: Path) -> None:
    run = shutil.copytree(trained_release.parent / "run", tmp_path / "run")
    values = tiny_values(3)
    values["train"]["precision"] = "float32"
    with pytest.raises(CheckpointError, match="made with other settings in: train"):
        loop.train(config_from_dict(values, "tests"), load_data("fashion-mnist", data_folder), run, QUIET)
