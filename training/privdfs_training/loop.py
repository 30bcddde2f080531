"""The training loop: one function runs any stage.

Every step seeds torch from (seed, stage, step), so a run that was interrupted and continued is the run that was not; on
a GPU up to the order in which its kernels sum.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from privdfs_training import parallel
from privdfs_training.augment import crop_and_flip
from privdfs_training.average import MovingAverage
from privdfs_training.checkpoint import read_tensors, save_system, write_checkpoint
from privdfs_training.config import Config, RunConfig, TaughtStageConfig
from privdfs_training.data import ImageData, image_shape
from privdfs_training.errors import CheckpointError, DivergenceError, TrainingConfigError
from privdfs_training.interruption import InterruptedTrainingError, StopRequest, stop_on_signal
from privdfs_training.models.system import System
from privdfs_training.optimizer import build_optimizer, schedule
from privdfs_training.parallel import CPU
from privdfs_training.precision import autocast
from privdfs_training.replay import replayed_networks
from privdfs_training.resuming import check_checkpoints, made_by, restore, running_state
from privdfs_training.run import Compute, Run
from privdfs_training.stage import EVALUATION_BATCH, Stage, accuracy, trained_modules
from privdfs_training.stages import stages


def check(config: Config) -> None:
    """Refuse networks that do not fit together, and finished weights that are not there, before images are read.

    Args:
        config: The run.

    Raises:
        CheckpointError: A file that the config names is missing or damaged.
        TrainingConfigError: As `System`.
    """
    finished_weights(config)
    System(config, image_shape=image_shape(config.data), classes=2)


def finished_weights(config: RunConfig) -> None:
    """Refuse a run whose finished weights are not there.

    Args:
        config: Any run.

    Raises:
        CheckpointError: A file that the config names is missing or damaged.
    """
    teacher = None if config.teacher is None else config.teacher.checkpoint
    for given in (config.backbone.checkpoint, teacher, config.head.checkpoint):
        if given is not None:
            read_tensors(Path(given))


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
        Accuracy after each stage by its name, on the test images or those held out.

    Raises:
        CheckpointError: A stage's checkpoint is damaged, of another config, or cannot be written.
        DataError: An image cannot be read.
        DivergenceError: The loss stopped being finite.
        InterruptedTrainingError: The user stopped the run; the same call continues it.
        TrainingConfigError: A batch is larger than the set or cannot be divided among the processes.
    """
    _check_batches(todo, run.data)
    _make_folder(run.folder)
    check_checkpoints(todo, run)
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
            run.console.print(f"{stage.name}: {result[stage.name]:.2%} of {run.data.test_size} images")
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
    average = MovingAverage(modules, stage.config.average)
    about = restore(path, stage, modules, optimizer, average)
    if about["finished"]:
        return
    step = int(about["step"])
    origin = about["made_by"] if step else made_by(stage, run)  # a file may have been replaced since it was read
    if step:
        console.print(f"{stage.name}: continuing at step {step}")
    else:
        stage.prepare()
        average.start()

    batch = stage.config.batch
    per_epoch = data.train_size // batch
    steps = per_epoch * stage.config.epochs

    def save() -> None:
        # A step with a finite loss can leave weights that are not: they must not take the place of good ones.
        total = sum(values.detach().sum() for values in modules.parameters())
        _check_finite("a weight", float(total), stage, step, steps, path)
        finished = step == steps
        tensors = average.weights() if finished else modules.state_dict() | running_state(stage, optimizer, average)
        about = {"made_by": origin, "step": step, "finished": finished}
        parallel.first_only(lambda: write_checkpoint(path, tensors, about))

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
                average.update(step)
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
            with computing, average.in_place():
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
    average.take_over()


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
        if parallel.world() > 1 and isinstance(stage.config, TaughtStageConfig) and stage.config.unlabelled:
            message = (
                f"train.{stage.name}.mixup and cutmix blend images of the whole batch, of which each of "
                f"{parallel.world()} processes has a part. Start one process, or remove them."
            )
            raise TrainingConfigError(message)
        if stage.config.crop_padding >= min(data.image_shape[1:]):
            message = (
                f"train.{stage.name}.crop_padding is {stage.config.crop_padding}, and images of {data.name} have "
                f"{min(data.image_shape[1:])} pixels on a side: windows would show nothing of them. Take a few pixels."
            )
            raise TrainingConfigError(message)
    _check_adversary(todo, data)


def _check_adversary(todo: tuple[Stage, ...], data: ImageData) -> None:
    """Refuse proxies that would train through all stages without ever counting."""
    warm_up, longest = 0, 1.0
    for stage in todo:
        if stage.adversary is not None:
            steps = stage.config.epochs * (data.train_size // stage.config.batch)
            warm_up, longest = stage.adversary.config.warm_up, max(longest, steps * (1 - stage.adversary.start))
    if longest <= warm_up:
        message = (
            f"adversary.warm_up is {warm_up} steps, and no stage has more than {longest:.0f} with proxies, so none "
            "would ever count. Lower it, or train for longer."
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


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


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
