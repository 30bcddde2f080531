"""`python bench/frontier.py [SWEEP …]`: many small trainings, and what each buys: accuracy, leakage, client compute.

A sweep is a TOML file (configs/frontier): a config to start from, what all runs change in it, and what each run does.
Every run is trained, its graphs are exported, and an attacker's decoder is trained from scratch on the shares that the
exported encoder makes, for one coalition of each size: the one whose shares a linear map inverts best. Runs are
resumed, and those already in the result file are not made again. Beside the JSON stands a picture of all runs.
"""

import argparse
import copy
import hashlib
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import torch
from _common import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    RESULTS,
    ROOT,
    BenchError,
    largest_minority,
    made_by,
    read_results,
    write_results,
)
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from privdfs import Error
from privdfs._command_line import signals_interrupt, whole_number
from privdfs_export import evaluate
from privdfs_export.graphs import baseline_graph, branch_graph, count_macs, encoder_graph, fusion_graph
from privdfs_training.attacks.decoder import DecoderBudget, reconstruct, train_decoder
from privdfs_training.attacks.floors import class_means, mean_image
from privdfs_training.attacks.linear import by_linear_score
from privdfs_training.attacks.metrics import score
from privdfs_training.attacks.view import side_by_side
from privdfs_training.checkpoint import load_system
from privdfs_training.config import Config, config_from_dict, read_toml
from privdfs_training.data import DataSet, in_memory, load_data
from privdfs_training.errors import TrainingConfigError
from privdfs_training.loop import InterruptedTrainingError, check, train
from privdfs_training.parallel import CPU, choose_device
from privdfs_training.readouts import linear_readouts

SWEEPS = ROOT / "configs" / "frontier"
#: Decides how a decoder starts and which images it meets first.
SEED = 0


@dataclass(frozen=True)
class Run:
    """One point to be.

    Attributes:
        name: in the result file: that of the sweep's file, and its own.
        change: what it changes in the common config.
        config: all of it.
    """

    name: str
    change: dict[str, Any]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """Runs to compare with one another.

    Attributes:
        runs: in the order of the file.
        attack: what every attacker spends.
    """

    runs: list[Run]
    attack: DecoderBudget


def read_sweep(path: Path) -> Sweep:
    """Read a sweep.

    Args:
        path: TOML with `base` (a config, from the file's folder), `common` (changes for all), `attack`, and `runs`.

    Raises:
        TrainingConfigError: the file, or the config of one of its runs, cannot be used.
    """
    raw = read_toml(path)
    unknown = raw.keys() - {"base", "common", "attack", "runs"}
    if unknown or not {"base", "attack", "runs"} <= raw.keys():
        message = (
            f"{path} needs base, attack and runs, may have common, and knows no {', '.join(sorted(unknown)) or 'other'}"
        )
        raise TrainingConfigError(message)
    common = _changed(read_toml(path.parent / raw["base"]), raw.get("common", {}))
    runs = []
    for name, change in raw["runs"].items():
        full = f"{path.stem}-{name}"
        runs.append(
            Run(full, change, config_from_dict(_changed(common, {"name": full} | change), f"{path}, run {name}"))
        )
        if runs[-1].config.keys is not None or runs[-1].config.data.task == "attributes":
            message = f"{path}, run {name}: what is measured here is for images with one class, cut without keys"
            raise TrainingConfigError(message)
    return Sweep(runs, _attack_budget(raw["attack"], path))


def _attack_budget(values: dict[str, Any], path: Path) -> DecoderBudget:
    known = {field.name for field in fields(DecoderBudget)}
    try:
        budget = msgspec.convert(values, DecoderBudget)
    except msgspec.ValidationError as error:
        message = f"{path}: attack: {error}"
        raise TrainingConfigError(message) from error
    if values.keys() - known:  # which msgspec lets pass in a dataclass
        message = (
            f"{path}: attack knows no {', '.join(sorted(values.keys() - known))}; it has {', '.join(sorted(known))}"
        )
        raise TrainingConfigError(message)
    if min(budget.epochs, budget.batch, budget.width, budget.blocks) < 1 or budget.learning_rate <= 0:
        message = f"{path}: attack: every number must be above 0"
        raise TrainingConfigError(message)
    return budget


def _changed(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries with some values replaced; a section with another `name` or `kind` starts afresh."""
    result = copy.deepcopy(dict(values))
    for key, value in change.items():
        before = result.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and not {"name", "kind"} & value.keys():
            result[key] = _changed(before, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def train_run(run: Run, data: DataSet, folder: Path, console: Console, device: torch.device = CPU) -> Path:
    """Train a run, sharing the baseline with the runs that have the same one.

    Args:
        run: what to train.
        data: its images.
        folder: of all runs.
        console: for progress.
        device: where it is trained.

    Returns:
        The path of the finished system.

    Raises:
        TrainingError: as `train`.
    """
    config = run.config
    same = msgspec.json.encode(
        [config.seed, config.data, config.backbone, config.train.baseline, config.train.precision]
    )
    shared = folder / f"baseline-{hashlib.sha256(same).hexdigest()[:12]}.safetensors"
    own = folder / run.name / "baseline.safetensors"
    own.parent.mkdir(parents=True, exist_ok=True)
    if shared.exists() and not own.exists():
        os.link(shared, own)
    path = train(config, data, own.parent, console, device=device)
    if not shared.exists():
        os.link(own, shared)
    return path


def measure(
    run: Run, path: Path, data: DataSet, budget: DecoderBudget, console: Console, device: torch.device = CPU
) -> dict[str, Any]:
    """Export a trained run's graphs, and measure them.

    Args:
        run: what was trained.
        path: of the finished system.
        data: its images.
        budget: of every attacker.
        console: for progress.
        device: where the decoders are trained.

    Returns:
        The run's entry in the result file.

    Raises:
        Error: the system cannot be opened or exported.
    """
    system = load_system(path).system
    servers = run.config.masks.servers
    encoder, fusion, baseline = encoder_graph(system), fusion_graph(system), baseline_graph(system)
    branches = [branch_graph(system, server) for server in range(servers)]
    cut = evaluate.session(encoder.SerializeToString())
    shares, shares_test = (_shares(cut, images) for images in (data.train_images, data.test_images))
    pixels, labels = _pixels(data.test_images), data.test_labels.numpy()
    answers = evaluate.server_answers(
        cut, [evaluate.session(branch.SerializeToString()) for branch in branches], pixels
    )
    combine = evaluate.session(fusion.SerializeToString())

    def fused(answered: Sequence[int]) -> float:
        return evaluate.fraction_right(evaluate.fuse(combine, answers, answered), labels)

    worst = {}
    for size in range(1, servers + 1):
        members = by_linear_score(shares, data.train_images, shares_test, data.test_images, size)
        worst[str(size)] = _attack(members, shares, shares_test, data, budget, device)
        console.print(f"{run.name}: servers {members}: {worst[str(size)]['psnr']:.2f} dB")
    plain = evaluate.session(baseline.SerializeToString())
    return {
        "name": run.name,
        "change": run.change,
        "data": data.name,
        "backbone": run.config.backbone.name,
        "servers": servers,
        "bits_per_share": run.config.masks.values
        * statistics.mean(math.log2(2 * system.quantiser.limit(server) + 1) for server in range(servers)),
        "client_macs": count_macs(encoder) + count_macs(fusion),
        "server_macs": count_macs(branches[0]),
        "baseline_macs": count_macs(baseline),
        "baseline": evaluate.fraction_right(evaluate.run_batched(plain, {"image": pixels})[0], labels),
        "accuracy": fused(range(servers)),
        "one_missing": min(fused([one for one in range(servers) if one != gone]) for gone in range(servers)),
        "linear_readouts": linear_readouts(shares, data.train_labels, shares_test, data.test_labels, len(data.classes)),
        "worst": worst,
        **({} if device.type == "cpu" else {"device": torch.cuda.get_device_name(device)}),
        "made_by": made_by(_config(run, budget), seed=run.config.seed),
    }


def _attack(
    members: Sequence[int],
    shares: Sequence[Tensor],
    shares_test: Sequence[Tensor],
    data: DataSet,
    budget: DecoderBudget,
    device: torch.device,
) -> dict[str, Any]:
    """What a decoder of one coalition's shares, trained from scratch, reconstructs of the test images."""
    seen, seen_test = side_by_side(shares, members), side_by_side(shares_test, members)
    decoder = train_decoder(
        seen, data.train_images, budget, seed=SEED, progress=lambda _done, _loss: None, device=device
    )
    scores = score(reconstruct(decoder, seen_test), data.test_images)
    return {"members": list(members), "attack": "decoder", "psnr": scores.psnr, "ssim": scores.ssim}


def _config(run: Run, budget: DecoderBudget) -> dict[str, Any]:
    """All that decides a run's entry, as JSON gives it back."""
    return msgspec.json.decode(msgspec.json.encode({"attack": budget, "run": run.config}))


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def _shares(encoder: ort.InferenceSession, images: Tensor) -> list[Tensor]:
    """Of each server, int8 [images, values], as the exported encoder makes them."""
    return [torch.from_numpy(share) for share in evaluate.run_batched(encoder, {"image": _pixels(images)})]


def floors(data: DataSet) -> dict[str, float]:
    """What one reaches who knows nothing, and one who knows the class, in dB."""
    average = mean_image(data.train_images).expand(len(data.test_images), *data.image_shape)
    by_class = class_means(data.train_images, data.train_labels, len(data.classes))[data.test_labels]
    return {
        "mean_image": score(average, data.test_images).psnr,
        "class_mean": score(by_class, data.test_images).psnr,
    }


def table(results: Mapping[str, Any], data: str) -> Table:
    """A row for each run on a data set; narrow, for a terminal of 80 columns."""
    floor = results["floors"][data]["class_mean"]
    shown = Table(
        title=f"{data}: dB above the class mean", title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False
    )
    for column in ("run", "N", "bits", "client", "fused", "lost", "linear", "1 of N", "minority"):
        shown.add_column(column, justify="left" if column == "run" else "right", no_wrap=column == "run")
    for run in (run for run in results["runs"] if run["data"] == data):
        shown.add_row(
            run["name"].partition("-")[2],
            str(run["servers"]),
            f"{run['bits_per_share']:.1f}",
            f"1/{run['baseline_macs'] / run['client_macs']:.1f}",
            f"{run['accuracy']:.2%}",
            f"{100 * (run['baseline'] - run['accuracy']):.2f}",
            f"{run['linear_readouts']:.2%}",
            f"{run['worst']['1']['psnr'] - floor:+.2f}",
            f"{_minority(run)['psnr'] - floor:+.2f}",
        )
    return shown


def _minority(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the largest coalition reaches that is still a minority."""
    return run["worst"][str(largest_minority(run["servers"]))]


def picture(results: Mapping[str, Any], path: Path) -> None:
    """Draw accuracy lost against what a minority reconstructs; the size of a point is the client's compute.

    Args:
        results: as read from the result file.
        path: of the PNG.
    """
    sets = sorted({run["data"] for run in results["runs"]})
    figure = Figure(figsize=(8 * len(sets), 5.5), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False)
    for axis, name in zip(axes[0], sets, strict=True):
        floor = results["floors"][name]["class_mean"]
        points = {}
        for run in (run for run in results["runs"] if run["data"] == name):
            lost, leaked = 100 * (run["baseline"] - run["accuracy"]), _minority(run)["psnr"]
            axis.scatter(leaked, lost, s=4000 * run["client_macs"] / run["baseline_macs"], alpha=0.6)
            points[run["name"].partition("-")[2]] = (leaked, lost)
        axis.axvline(floor, color="grey", linestyle=":", label=f"class mean, {floor:.2f} dB")
        axis.axhline(1, color="grey", linestyle="--", label="one point lost")
        axis.set(
            title=name,
            xlabel="worst minority, PSNR in dB (left is better)",
            ylabel="points of accuracy lost (down is better)",
        )
        axis.legend(loc="best", fontsize=8)
        for i, (run, point) in enumerate(sorted(points.items(), key=lambda one: one[1][1])):
            axis.annotate(
                run,
                point,
                xytext=(1.02, (i + 0.5) / len(points)),
                textcoords="axes fraction",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": "grey", "linewidth": 0.5},
            )
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted and saved.
    """
    parser = argparse.ArgumentParser(prog="frontier", description="Train and measure the runs of sweeps.")
    parser.add_argument(
        "sweeps", nargs="*", type=Path, metavar="SWEEP", help="TOML files (default: all of the project)"
    )
    parser.add_argument("--only", metavar="RUN", help="this run of the one sweep")
    parser.add_argument(
        "--data", type=Path, help="folder of the data set; default $PRIVDFS_DATA, then where Debian installs it"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs") / "frontier", help="folder of the trainings")
    parser.add_argument("--out", type=Path, default=RESULTS / "frontier.json", help="file to add to")
    parser.add_argument("--threads", type=whole_number(1, 1024), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    try:
        device = choose_device(options.device)
        for sweep in [read_sweep(path) for path in options.sweeps or sorted(SWEEPS.glob("*.toml"))]:
            wanted = [run for run in sweep.runs if options.only in {None, run.name, run.name.partition("-")[2]}]
            if not wanted:
                known = ", ".join(run.name for run in sweep.runs)
                message = f"the sweep has no run '{options.only}'; it has {known}"
                raise BenchError(message)
            for run in wanted:
                check(run.config)
            for run in wanted:
                _make(run, sweep.attack, options, console, device)
    except (KeyboardInterrupt, InterruptedTrainingError):
        print("frontier: stopped; the same command continues", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"frontier: {error}", file=sys.stderr)
        return EXIT_ERROR
    results = read_results(options.out)
    picture(results, options.out.with_suffix(".png"))
    for data in sorted(results["floors"]):
        console.print(table(results, data))
    console.print(f"\nin {options.out}, drawn beside it", highlight=False, soft_wrap=True)
    return 0


def _make(run: Run, budget: DecoderBudget, options: argparse.Namespace, console: Console, device: torch.device) -> None:
    """Train, measure and record one run, unless the result file has it."""
    config = _config(run, budget)
    if any(one["made_by"]["config"] == config for one in read_results(options.out).get("runs", [])):
        console.print(f"{run.name}: in {options.out} already", highlight=False, soft_wrap=True)
        return
    data = in_memory(load_data(run.config.data, options.data))
    path = train_run(run, data, options.runs, console, device)
    entry = measure(run, path, data, budget, console, device)
    results = read_results(options.out)  # again: another process may have added to it
    others = [one for one in results.get("runs", []) if one["name"] != run.name]
    together = {"runs": sorted([*others, entry], key=lambda one: one["name"])}
    known = {"floors": results.get("floors", {}) | {data.name: floors(data)}}
    write_results(options.out, {"made_by": entry["made_by"]} | known | together)


if __name__ == "__main__":
    with signals_interrupt():
        sys.exit(main())
