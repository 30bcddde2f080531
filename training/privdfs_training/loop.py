"""The training loop: one function runs any stage.

Every step seeds torch from (seed, stage, step), so a run that was interrupted and continued is the run that was not; on
a GPU up to the order in which its kernels sum.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from privdfs._command_line import stopping_signals
from privdfs_training import parallel
from privdfs_training.augment import crop_and_flip
from privdfs_training.checkpoint import (
    load_weights,
    optimizer_tensors,
    read_checkpoint,
    read_tensors,
    restore_optimizer,
    save_system,
    write_checkpoint,
)
from privdfs_training.config import Config, RunConfig, StageConfig
from privdfs_training.data import ImageData, image_shape
from privdfs_training.errors import CheckpointError, DivergenceError, TrainingConfigError
from privdfs_training.migration import migrated
from privdfs_training.models.system import System
from privdfs_training.parallel import CPU
from privdfs_training.precision import autocast
from privdfs_training.replay import replayed_networks
from privdfs_training.stages import EVALUATION_BATCH, Stage, accuracy, stages, trained_modules

WARM_UP = 0.2  # share of the steps in which the learning rate rises; it falls to zero in the rest


@dataclass(frozen=True)
class Compute:
    """How a process computes.

    Attributes:
        device: Where the system is, and where batches go.
        precision: Of convolutions and products in training; where bfloat16 would be emulated, they are float32.
        replay: Whether networks are recorded and replayed (replay.py); one process on a GPU can.
    """

    device: torch.device = CPU
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    replay: bool = False


@dataclass(frozen=True)
class Run:
    """What the stages of one training have in common.

    Attributes:
        config: Its settings.
        system: Has the parts that the stages name.
        data: Images.
        folder: For checkpoints and metrics.jsonl.
        console: Where progress is shown.
        compute: Where and how.
    """

    config: RunConfig
    system: nn.Module
    data: ImageData
    folder: Path
    console: Console
    compute: Compute = Compute()


@dataclass
class StopRequest:
    """Set by a signal to stop. The loop looks at it between steps, so that a checkpoint is never of half a step."""

    wanted: bool = False


class InterruptedTrainingError(Exception):
    """The run was stopped by the user; everything is saved."""


def check(config: Config) -> None:
    """Refuse networks that do not fit together, and finished weights that are not there, before images are read.

    Args:
        config: The run.

    Raises:
        CheckpointError: A file that the config names is missing or damaged.
        TrainingConfigError: As `System`.
    """
    for given in (config.backbone.checkpoint, config.head.checkpoint):
        if given is not None:
            read_tensors(Path(given))
    System(config, image_shape=image_shape(config.data), classes=2)


def train(config: Config, data: ImageData, folder: Path, console: Console, *, device: torch.device = CPU) -> Path:
    """Run all stages of a config, continuing where an earlier call stopped.

    Args:
        config: The run.
        data: Its images.
        folder: For checkpoints and metrics.jsonl.
        console: Where progress is shown.
        device: Where this process computes.

    Returns:
        The path of the finished system.

    Raises:
        CheckpointError: A stage's checkpoint is damaged, of another config, or cannot be written.
        DataError: An image cannot be read.
        DivergenceError: The loss stopped being finite.
        InterruptedTrainingError: The user stopped the run; the same call continues it.
        TrainingConfigError: A batch is larger than the set or cannot be divided among the processes, or networks
            cannot be compiled here.
    """
    torch.manual_seed(config.seed)
    system = System(config, image_shape=data.image_shape, classes=len(data.classes))
    system.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parallel.synchronise(system)
    if config.train.compile:
        _compile(system, device)
    # Neither compiled networks nor those that wait for other processes can be recorded.
    replay = device.type == "cuda" and parallel.world() == 1 and not config.train.compile
    compute = Compute(device, config.train.precision, replay)
    todo = stages(config, system, data)
    result = run_stages(todo, Run(config, system, data, folder, console, compute))
    path = folder / "system.safetensors"
    measured = {"baseline": result["baseline"], "fused": result[todo[-1].name]}
    parallel.first_only(lambda: save_system(path, system, config, data, measured))
    return path


def run_stages(todo: tuple[Stage, ...], run: Run) -> dict[str, float]:
    """Run stages one after the other; those that are done already are loaded.

    Args:
        todo: The stages, in order.
        run: What they have in common.

    Returns:
        Accuracy on the test images after each stage, by its name.

    Raises:
        CheckpointError: A stage's checkpoint is damaged, of another config, or cannot be written.
        DataError: An image cannot be read.
        DivergenceError: The loss stopped being finite.
        InterruptedTrainingError: The user stopped the run; the same call continues it.
        TrainingConfigError: A batch is larger than the set or cannot be divided among the processes.
    """
    _check_batches(todo, run.data)
    _make_folder(run.folder)
    _check_checkpoints(todo, run)
    result = {}
    with stop_on_signal() as stop:
        for stage in todo:
            run_stage(stage, run, stop)
            if stage.known is not None:
                stage.known.forget()
            run.system.eval()
            result[stage.name] = accuracy(
                on_device(run.compute.device, stage.classify), run.data.test_batches(EVALUATION_BATCH)
            )
            run.console.print(f"{stage.name}: {result[stage.name]:.2%} of {run.data.test_size} test images")
    return result


def run_stage(  # noqa: PLR0915  the story of training reads best in one piece
    stage: Stage, run: Run, stop: StopRequest
) -> None:
    """Train one stage to its end, or load it where it is done.

    Args:
        stage: What to train.
        run: What its stages have in common; its system receives the weights.
        stop: Looked at after every step.

    Raises:
        CheckpointError: The stage's checkpoint is damaged, does not fit, or cannot be written.
        DataError: An image cannot be read.
        DivergenceError: The loss or a weight stopped being finite.
        InterruptedTrainingError: `stop` was set; the checkpoint is saved, except before the first step.
    """
    data, console, compute = run.data, run.console, run.compute
    path = run.folder / f"{stage.name}.safetensors"
    modules = trained_modules(run.system, stage)
    torch.manual_seed(_seed(run.config.seed, stage.name, "start"))
    optimizer = build_optimizer(modules, stage.config)
    about = _restore(path, stage, modules, optimizer)
    if about["finished"]:
        return
    step = int(about["step"])
    if step:
        console.print(f"{stage.name}: continuing at step {step}")
    else:
        stage.prepare()

    batch = stage.config.batch
    per_epoch = data.train_size // batch
    steps = per_epoch * stage.config.epochs

    def save() -> None:
        # A step with a finite loss can leave weights that are not: they must not take the place of good ones.
        total = sum(values.detach().sum() for values in modules.parameters())
        _check_finite("a weight", float(total), stage, step, steps, path)
        finished = step == steps
        tensors = {} if finished else _running_state(stage, optimizer)
        about = {"made_by": _made_by(stage, run), "step": step, "finished": finished}
        parallel.first_only(lambda: write_checkpoint(path, modules.state_dict() | tensors, about))

    if step == steps:  # the weights are used as they came
        save()
    loss_of = parallel.averaging(modules, stage.loss)
    computing = autocast(compute.device.type, compute.precision)
    with progress_bar(console) as progress, replayed_networks(stage.networks if compute.replay else ()):
        bar, stopping = progress.add_task(stage.name, total=steps, completed=step, note=""), False
        with computing:
            _ask_ahead(stage, compute, stop, console, lambda note: progress.update(bar, note=note))
        while step < steps:
            epoch, first, started, history = step // per_epoch, step, time.monotonic(), list[dict[str, float]]()
            order = _seed(run.config.seed, stage.name, epoch)
            modules.train()
            mine = data.train_batches(
                order, batch, start=step % per_epoch, rank=parallel.rank(), world=parallel.world()
            )
            for images, labels in mine:
                torch.manual_seed(_seed(run.config.seed, f"{stage.name}-step", step))
                pixels = images.to(compute.device)
                pixels = crop_and_flip(pixels, padding=stage.config.crop_padding, flip=run.config.data.flip)
                with computing:
                    loss, terms = loss_of(pixels, labels.to(compute.device), step / steps)
                for group in optimizer.param_groups:
                    group["lr"] = stage.config.learning_rate * schedule(step / steps)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(modules.parameters(), stage.config.clip or math.inf)
                optimizer.step()
                # One exchange tells every process the loss of the whole batch, and whether any is to stop. It comes
                # last because a GPU works on while the processor prepares the rest of a step, but not while it reads.
                values = parallel.mean({"loss": loss, **terms, "stop": float(stop.wanted)})
                stopping = values.pop("stop") > 0
                history.append(values)
                _check_finite("the loss", history[-1]["loss"], stage, step, steps, path)
                step += 1
                note = f"epoch {epoch + 1}/{stage.config.epochs} loss {history[-1]['loss']:.3f}"
                progress.update(bar, completed=step, note=note)
                if stopping and step % per_epoch:
                    save()
                    raise InterruptedTrainingError
            modules.eval()
            with computing:
                ways = {"": stage.classify} | {f"_{name}": way for name, way in stage.beside.items()}
                measured = {
                    f"test_accuracy{name}": accuracy(
                        on_device(compute.device, way), data.test_batches(EVALUATION_BATCH)
                    )
                    for name, way in ways.items()
                }
            means = {name: sum(values[name] for values in history) / len(history) for name in history[0]}
            seconds = time.monotonic() - started
            record = {"stage": stage.name, "epoch": epoch + 1, "from_step": first, "step": step, **means}
            record |= measured | {"seconds": seconds}
            parallel.first_only(partial(_append, run.folder / "metrics.jsonl", record))
            save()  # before anything is said: there may be nobody left to say it to
            shown = [f"loss {means['loss']:.3f}"]
            shown += [f"{name} {means[name]:.1%}" for name in ("sparsity", "overlap") if name in means]
            shown += [f"test {measured['test_accuracy']:.2%}"]
            shown += [f"{name} {measured[f'test_accuracy_{name}']:.2%}" for name in stage.beside]
            shown += [f"{seconds:.0f} s"]
            console.print(f"{stage.name} {epoch + 1}/{stage.config.epochs}: {', '.join(shown)}")
            if stopping:
                raise InterruptedTrainingError


def _check_finite(what: str, value: float, stage: Stage, step: int, steps: int, path: Path) -> None:
    if not math.isfinite(value):
        message = (
            f"{what} of stage {stage.name} is {value} at step {step} of {steps}. {path} keeps the last finished epoch, "
            f"if there is one. Lower train.{stage.name}.learning_rate."
        )
        raise DivergenceError(message)


def _ask_ahead(
    stage: Stage, compute: Compute, stop: StopRequest, console: Console, show: Callable[[str], None]
) -> None:
    """On a processor, ask finished networks everything at once that the stage will ask again and again."""
    if stage.known is None or compute.device.type != "cpu":
        return

    def report(done: float) -> None:
        show(f"asking finished networks ahead, {done:.0%}")
        if stop.wanted and parallel.world() == 1:  # several processes have to agree, which they do after a step
            raise InterruptedTrainingError

    started = time.monotonic()
    stage.known.prepare(report)
    if len(stage.known):
        seconds = time.monotonic() - started
        console.print(f"{stage.name}: asked finished networks ahead about {len(stage.known)} images, {seconds:.0f} s")


def _running_state(stage: Stage, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a stage needs to go on, beside the networks that it trains."""
    adversary = {} if stage.adversary is None else stage.adversary.tensors()
    return optimizer_tensors(optimizer) | adversary


def _restore(path: Path, stage: Stage, modules: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a stage's checkpoint in place, if there is one, and give its metadata."""
    if not path.exists():
        return {"step": 0, "finished": False}
    checkpoint = read_checkpoint(path)
    state = ("optimizer.", "adversary.")
    weights = {name: value for name, value in checkpoint.tensors.items() if not name.startswith(state)}
    load_weights(modules, weights, path)
    if not checkpoint.about["finished"]:
        restore_optimizer(optimizer, checkpoint.tensors)
        if stage.adversary is not None:
            stage.adversary.restore(checkpoint.tensors, path)
    return checkpoint.about


def _check_checkpoints(todo: tuple[Stage, ...], run: Run) -> None:
    """Refuse checkpoints of another config, also those of later stages, before time is spent."""
    others = []
    for stage in todo:
        path = run.folder / f"{stage.name}.safetensors"
        if not parallel.same(path.exists()):
            message = f"only some of the processes see {path}. Let --out be one folder that all of them can reach."
            raise CheckpointError(message)
        if path.exists():
            theirs = migrated(read_checkpoint(path).about.get("made_by", {}))
            ours = json.loads(json.dumps(_made_by(stage, run)))
            changed = [section for section in ours | theirs if theirs.get(section) != ours.get(section)]
            others += [f"{path} was made with other settings in: {', '.join(changed)}"] if changed else []
    if others:
        files = "this file to train its stage" if len(others) == 1 else "these files to train their stages"
        message = f"{'; '.join(others)}. Give the run another name, or remove {files} again."
        raise CheckpointError(message)


def _check_batches(todo: tuple[Stage, ...], data: ImageData) -> None:
    for stage in todo:
        batch = stage.config.batch
        if batch > data.train_size:
            message = f"train.{stage.name}.batch is {batch}, but {data.name} has {data.train_size} training images"
            raise TrainingConfigError(message)
        if batch % parallel.world():
            message = (
                f"train.{stage.name}.batch is {batch}, which {parallel.world()} processes cannot divide into equal "
                f"parts. Start another number of processes, or take a multiple of {parallel.world()}."
            )
            raise TrainingConfigError(message)


def _compile(system: System, device: torch.device) -> None:
    """Compile all networks but the head in place, at their first use; names of parameters stay.

    The head is not: when it asked its buffers at every layer whether it computes in int8, the compiler gave up, and
    without that it was not tried again.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except RuntimeError as error:
        message = (
            "train.compile = true, but torch.compile does not work here. On a processor it needs a C++ compiler (g++, "
            f"or the one that CXX names), on a GPU triton. Install it, or remove the key. torch says: {error}"
        )
        raise TrainingConfigError(message) from error
    for network in (system.baseline, *system.branches, system.fusion):
        network.compile()


def on_device(device: torch.device, classify: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A classifier of images anywhere, with logits on the processor.

    Args:
        device: Where to compute.
        classify: Images to logits, on the device.

    Returns:
        The same for images anywhere.
    """
    return lambda images: classify(images.to(device)).cpu()


def _append(path: Path, record: dict[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        message = (
            f"cannot write {path}: {error.strerror}. Free some disk space; the same command continues from the last "
            "checkpoint."
        )
        raise CheckpointError(message) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the folder {folder}: {error.strerror}. Choose another one with --out."
        raise CheckpointError(message) from error


def schedule(progress: float) -> float:
    """The learning rate at a progress in 0..1, as a share of the highest."""
    return min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))


def build_optimizer(modules: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """The optimiser of a stage, fresh.

    Args:
        modules: What it trains.
        config: Of the stage.

    Returns:
        SGD with Nesterov momentum, or AdamW.
    """
    # Weight decay on matrices and kernels only: decaying gains, biases, mask preferences and probabilities would move
    # what they mean.
    kept = ("logits", "table")
    decayed = [value for name, value in modules.named_parameters() if value.ndim > 1 and not name.endswith(kept)]
    others = [value for name, value in modules.named_parameters() if value.ndim <= 1 or name.endswith(kept)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = any(value.is_cuda for value in modules.parameters())  # on a GPU, one kernel in place of one a tensor
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def _made_by(stage: Stage, run: Run) -> dict[str, Any]:
    """What decides a stage's weights: sections of the config, the budgets of the stages before it, and its own."""
    everything = msgspec.to_builtins(run.config)
    # A section or a key whose every value is the default is not among the values.
    sections = {
        name: value
        for name in stage.sections
        if (value := functools.reduce(_value, name.split("."), everything)) is not None
    }
    budgets = everything["train"]
    earlier = itertools.takewhile(lambda name: name != stage.name, budgets)  # a config has them in their order
    precision = {} if run.compute.precision == "bfloat16" else {"precision": run.compute.precision}
    return sections | {f"train.{name}": budgets[name] for name in earlier} | {"train": budgets[stage.name] | precision}


def _value(section: Any, key: str) -> Any:  # noqa: ANN401  of a config
    return section.get(key) if isinstance(section, dict) else None


def progress_bar(console: Console) -> Progress:
    """The bar of a training run; its tasks have a field `note`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
    )


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Inside it, Ctrl-C, SIGTERM and SIGHUP (a closed terminal) do nothing but set what it gives."""
    stop = StopRequest()

    def request(number: int, _frame: object) -> None:
        stop.wanted = True
        if number == signal.SIGHUP:
            _leave_closed_terminal()

    previous = {number: signal.signal(number, request) for number in stopping_signals()}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave_closed_terminal() -> None:
    """Let what is still said go nowhere: writing to a terminal that is gone is an error, which would end the run."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
