"""The runs of a sweep: trained, exported, and attacked by one decoder."""

import hashlib
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx
import onnxruntime as ort
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from privdfs._files import sha256_file
from privdfs._format import largest_coalition
from privdfs_bench.audit.attacks import ATTACKS, reconstruct
from privdfs_bench.audit.coded_sweep import coded_table, measure_coded
from privdfs_bench.audit.sweeps import Run
from privdfs_bench.audit.views import view_of_shares
from privdfs_bench.releases import nhwc
from privdfs_bench.results import made_by, read_results, write_results
from privdfs_export import evaluate
from privdfs_export.graphs import baseline_graph, branch_graph, count_macs, encoder_graph, fusion_graph
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.attacks.floors import class_means, mean_image
from privdfs_training.attacks.linear import by_linear_score
from privdfs_training.attacks.metrics import score
from privdfs_training.attacks.view import side_by_side
from privdfs_training.checkpoint import load_system
from privdfs_training.coded.config import CodedConfig
from privdfs_training.coded.train import train_coded
from privdfs_training.config import Config, CustomConfig
from privdfs_training.data import DataSet, in_memory, load_data
from privdfs_training.loop import train
from privdfs_training.migration import migrated
from privdfs_training.parallel import CPU
from privdfs_training.readouts import linear_readouts


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
    if isinstance(config, CodedConfig):
        return train_coded(config, data, folder / run.name, console, device=device)
    taught = () if config.teacher is None else (config.teacher, config.loss)
    named = [config.backbone.checkpoint] + ([] if config.teacher is None else [config.teacher.checkpoint])
    files = [sha256_file(Path(name)) for name in named if name is not None and Path(name).exists()]
    same = msgspec.json.encode(
        [config.seed, config.data, config.backbone, config.train.baseline, config.train.precision, *taught, *files]
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
    config: Config, path: Path, data: DataSet, budget: DecoderBudget, console: Console, device: torch.device = CPU
) -> dict[str, Any]:
    """Export a trained masked run's graphs, and measure them.

    Args:
        config: what was trained.
        path: of the finished system.
        data: its images.
        budget: of every attacker.
        console: for progress.
        device: where the decoders are trained.

    Returns:
        What the run's entry says, but for its name and provenance.

    Raises:
        Error: the system cannot be opened or exported.
    """
    own = config.backbone
    system = load_system(path, factory=own.factory if isinstance(own, CustomConfig) else None).system
    servers = config.masks.servers
    encoder, fusion, baseline = encoder_graph(system), fusion_graph(system), baseline_graph(system)
    branches = [branch_graph(system, server) for server in range(servers)]
    cut = evaluate.session(encoder.SerializeToString())
    shares, shares_test = (_shares(cut, images) for images in (data.train_images, data.test_images))
    worst = {}
    for size in range(1, servers + 1):
        members = by_linear_score(shares, data.train_images, shares_test, data.test_images, size)
        worst[str(size)] = _attack(members, shares, shares_test, data, budget, device)
        console.print(f"{config.name}: servers {members}: {worst[str(size)]['psnr']:.2f} dB")
    levels = [2 * system.quantiser.limit(server) + 1 for server in range(servers)]
    return {
        "servers": servers,
        "bits_per_share": config.masks.values * statistics.mean(map(math.log2, levels)),
        "client_macs": count_macs(encoder) + count_macs(fusion),
        "server_macs": count_macs(branches[0]),
        "baseline_macs": count_macs(baseline),
        **_accuracies(cut, branches, fusion, baseline, data),
        "linear_readouts": linear_readouts(shares, data.train_labels, shares_test, data.test_labels, len(data.classes)),
        "worst": worst,
    }


def _accuracies(
    cut: ort.InferenceSession,
    branches: Sequence[onnx.ModelProto],
    fusion: onnx.ModelProto,
    baseline: onnx.ModelProto,
    data: DataSet,
) -> dict[str, float]:
    """On the test images: the baseline, the fused answer of all servers, and with the worst one missing."""
    pixels, labels, servers = nhwc(data.test_images), data.test_labels.numpy(), range(len(branches))
    sessions = [evaluate.session(branch.SerializeToString()) for branch in branches]
    answers = evaluate.server_answers(cut, sessions, pixels)
    combine, plain = (evaluate.session(model.SerializeToString()) for model in (fusion, baseline))

    def fused(answered: Sequence[int]) -> float:
        return evaluate.fraction_right(evaluate.fuse(combine, answers, answered), labels)

    return {
        "baseline": evaluate.fraction_right(evaluate.run_batched(plain, {"image": pixels})[0], labels),
        "accuracy": fused(servers),
        "one_missing": min(fused([one for one in servers if one != gone]) for gone in servers),
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
    view = view_of_shares(
        members=tuple(members),
        images=data.train_images,
        labels=data.train_labels,
        shares=side_by_side(shares, members),
        received=side_by_side(shares_test, members),
    )
    scores = score(reconstruct(view, ATTACKS["decoder"], budget, device=device).images, data.test_images)
    return {"members": list(members), "attack": "decoder", "psnr": scores.psnr, "ssim": scores.ssim}


def config_of(run: Run, budget: DecoderBudget) -> dict[str, Any]:
    """All that decides a run's entry, as JSON gives it back."""
    return msgspec.json.decode(msgspec.json.encode({"attack": budget, "run": run.config}))


def recorded_config(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What decided a recorded entry, to be compared with `config_of`; an older version may have written it."""
    config = entry["made_by"]["config"]
    return config | {"run": migrated(config["run"])}


def _shares(encoder: ort.InferenceSession, images: Tensor) -> list[Tensor]:
    """Of each server, int8 [images, values], as the exported encoder makes them."""
    return [torch.from_numpy(share) for share in evaluate.run_batched(encoder, {"image": nhwc(images)})]


def floors(data: DataSet) -> dict[str, float]:
    """What one reaches who knows nothing, and one who knows the class, in dB."""
    average = mean_image(data.train_images).expand(len(data.test_images), *data.image_shape)
    by_class = class_means(data.train_images, data.train_labels, len(data.classes))[data.test_labels]
    return {
        "mean_image": score(average, data.test_images).psnr,
        "class_mean": score(by_class, data.test_images).psnr,
    }


def tables(results: Mapping[str, Any]) -> list[Table]:
    """One of the masked runs on each data set, and one of the coded ones."""
    coded = results.get("coded", [])
    return [
        *(_table(results, data) for data in sorted(results["floors"])),
        *(coded_table(coded, data) for data in sorted({one["data"] for one in coded})),
    ]


def _table(results: Mapping[str, Any], data: str) -> Table:
    """A row for each masked run on a data set; narrow, for a terminal of 80 columns."""
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
            f"{minority(run)['psnr'] - floor:+.2f}",
        )
    return shown


def minority(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the largest coalition reaches that is still a minority."""
    return run["worst"][str(largest_coalition(run["servers"]))]


def make(
    run: Run,
    budget: DecoderBudget,
    *,
    data_folder: Path | None,
    runs: Path,
    out: Path,
    console: Console,
    device: torch.device,
) -> None:
    """Train, measure and record one run, unless the result file has it.

    Args:
        run: Of a sweep.
        budget: Of every attacker.
        data_folder: Of the data set.
        runs: Folder of the trainings.
        out: The result file.
        console: For progress.
        device: Where networks are trained.

    Raises:
        Error: It cannot be trained, or measured.
    """
    coded, config = isinstance(run.config, CodedConfig), config_of(run, budget)
    kind = "coded" if coded else "runs"
    if any(recorded_config(one) == config for one in read_results(out).get(kind, [])):
        console.print(f"{run.name}: in {out} already", highlight=False, soft_wrap=True)
        return
    data = in_memory(load_data(run.config.data, data_folder))
    path, about = train_run(run, data, runs, console, device), made_by(config, seed=run.config.seed)
    entry = {"name": run.name, "change": run.change, "data": data.name, "backbone": run.config.backbone.name}
    if isinstance(run.config, CodedConfig):
        # The floors of a data set are those of its test images, and nothing here looks at them.
        entry |= {"held_out": run.config.data.held_out, "floor": floors(data)}
        entry |= measure_coded(run.config, path, data, budget, device)
    else:
        entry |= measure(run.config, path, data, budget, console, device)
    if device.type != "cpu":
        entry["device"] = torch.cuda.get_device_name(device)
    entry["made_by"] = about
    results = read_results(out)  # again: another process may have added to it
    others = [one for one in results.get(kind, []) if one["name"] != run.name]
    found = {kind: sorted([*others, entry], key=lambda one: one["name"])}
    known = results.get("floors", {}) | ({} if coded else {data.name: floors(data)})
    write_results(out, {"runs": [], "coded": []} | results | {"made_by": about, "floors": known} | found)
