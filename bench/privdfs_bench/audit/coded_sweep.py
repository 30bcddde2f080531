"""The coded runs of a sweep: measured on held-out training images (seeds: as the release was), the feature attacked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from privdfs._coded_format import round_bytes
from privdfs_bench.audit.attacks import ATTACKS, reconstruct
from privdfs_bench.audit.views import view_of_shares
from privdfs_export.coded_contents import build_coded_graphs, round_specs
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.attacks.metrics import score
from privdfs_training.coded.config import CodedConfig
from privdfs_training.coded.system import CodedSystem, load_coded
from privdfs_training.config import CustomConfig
from privdfs_training.data import DataSet
from privdfs_training.parallel import CPU
from privdfs_training.stage import EVALUATION_BATCH

#: Servers that collude, of as few as the largest degree allows; more of them are honest.
COLLUDING = 1


def measure_coded(
    config: CodedConfig, path: Path, data: DataSet, budget: DecoderBudget, device: torch.device = CPU
) -> dict[str, Any]:
    """Measure a trained coded run.

    Args:
        config: What was trained.
        path: Of the finished system.
        data: Its images; where training images were held out, these are its test images.
        budget: Of the attacker.
        device: Where the decoder is trained.

    Returns:
        What the run's entry says, but for its name and provenance. Bytes are those of all servers.

    Raises:
        Error: The system cannot be opened or exported.
    """
    own = config.backbone
    trained = load_coded(path, factory=own.factory if isinstance(own, CustomConfig) else None)
    rounds, macs = round_specs(trained.rounds), build_coded_graphs(trained, 1.0).macs
    servers = max(2, *(each.degree for each in rounds)) * COLLUDING + 1
    up, down = (servers * sum(way) for way in zip(*map(round_bytes, rounds), strict=True))
    return {
        "servers": servers,
        "levels": [each.levels for each in rounds],
        "moduli": [len(each.moduli) for each in rounds],
        "bytes_up": up,
        "bytes_down": down,
        "client_macs": macs.head + macs.fusion,
        "server_macs": macs.branch,
        "baseline_macs": macs.baseline,
        "accuracy": trained.accuracy["coded"],
        "linear_readouts": trained.accuracy["readout"],
        "decoded": _attack(trained.system, data, budget, device),
    }


def _attack(system: CodedSystem, data: DataSet, budget: DecoderBudget, device: torch.device) -> dict[str, Any]:
    """What a decoder of the first round's values, which T + 1 servers have, reconstructs of the others."""
    view = view_of_shares(
        members=tuple(range(COLLUDING + 1)),
        images=data.train_images,
        labels=data.train_labels,
        shares=_values(system, data.train_images),
        received=_values(system, data.test_images),
    )
    scores = score(reconstruct(view, ATTACKS["decoder"], budget, device=device).images, data.test_images)
    return {"attack": "decoder", "psnr": scores.psnr, "ssim": scores.ssim}


@torch.inference_mode()
def _values(system: CodedSystem, images: Tensor) -> Tensor:
    """What the device shares, int8 [images, channels, h, w]."""
    return torch.cat([system.values(some).to(torch.int8) for some in images.split(EVALUATION_BATCH)])


def coded_table(runs: Sequence[Mapping[str, Any]], data: str) -> Table:
    """A row for each coded run on a data set; narrow, for a terminal of 80 columns."""
    shown = Table(
        title=f"{data}, coded shares; T + 1: dB above the class mean",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
    for column in ("run", "N", "rounds", "kB", "client", "coded", "linear", "T + 1"):
        shown.add_column(column, justify="left" if column == "run" else "right", no_wrap=column == "run")
    for run in (run for run in runs if run["data"] == data):
        shown.add_row(
            run["name"],
            str(run["servers"]),
            str(len(run["levels"])),
            f"{(run['bytes_up'] + run['bytes_down']) / 1000:.1f}",
            f"1/{run['baseline_macs'] / run['client_macs']:.1f}",
            f"{run['accuracy']:.2%}",
            f"{run['linear_readouts']:.2%}",
            f"{run['decoded']['psnr'] - run['floor']['class_mean']:+.2f}",
        )
    return shown
