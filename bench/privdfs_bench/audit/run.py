"""Run an attack, score what it reconstructs, and keep what it found."""

import hashlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from privdfs_bench.audit.attacks import ATTACKS, reconstruct, reconstruct_or_mean
from privdfs_bench.audit.coded import CodedJob
from privdfs_bench.audit.effort import HIGHEST, JUDGED, SEED, SHOWN, Progress
from privdfs_bench.audit.jobs import Job
from privdfs_bench.audit.victim import Attacked
from privdfs_bench.audit.views import target_indices, view_of
from privdfs_bench.errors import BenchError
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.attacks.diffusion import DiffuseBudget
from privdfs_training.attacks.metrics import compare, mean_interval
from privdfs_training.attacks.selfchecks import Measured

#: Part of a job's name: raise it when an attack is changed, so that old results are not taken for new ones.
VERSION = 1


@dataclass(frozen=True)
class Done:
    """What a job found.

    Attributes:
        job: Which.
        row: Its scores, plain values for JSON.
        shown: The first reconstructions, uint8 [images, channels, height, width].
    """

    job: Job
    row: dict[str, Any]
    shown: Tensor

    def __repr__(self) -> str:
        """No images."""
        return f"Done({self.job.attack}, servers {self.job.members})"

    @property
    def margin(self) -> float:
        """PSNR above the class mean's on the same images, in dB."""
        return self.row["psnr"] - self.row["floor"]

    def measured(self) -> Measured:
        """As the self-checks take it."""
        row = self.row
        return Measured(
            attack=self.job.attack,
            members=self.job.members,
            psnr=row["psnr"],
            interval=tuple(row["interval"]),
            images=row["images"],
            blind_floor=row["blind_floor"],
            pairs=row["pairs"],
            relation=row["relation"],
            gradient=row.get("gradient"),
            aware=self.job.keys is None or self.job.keys.knows != "nothing",
            finished=row["finished"],
        )


def kept_at(victim: Attacked, job: Job, folder: Path) -> Path:
    """The file of what an attack finds, named by all that decides it.

    So a release whose branches or fusion alone were trained again keeps what was found of its shares.
    """
    settled = [
        VERSION,
        SEED,
        *_seen(victim, job),
        victim.data.name,
        len(victim.data.train_images),
        asdict(job) | {"relation": job.relation.value},
    ]
    if victim.partition is not None:
        settled.append(victim.partition)
    if isinstance(job.budget, DiffuseBudget):
        settled.append(victim.prior[1])
    if victim.lpips is not None:
        settled.append(victim.lpips.sha256)
    if _computes_on_gpu(victim, job):
        settled.append(victim.device.type)
    if victim.effort.seconds is not None:
        settled.append(victim.effort.seconds)
    name = f"{job.attack}-{'-'.join(map(str, job.members)) or 'undefended'}"
    return folder / f"{name}-{hashlib.sha256(json.dumps(settled).encode()).hexdigest()[:12]}.safetensors"


def _seen(victim: Attacked, job: Job) -> list[str]:
    """Digests of the graphs that a result depends on. The baseline is always one: it scores what was reconstructed."""
    if isinstance(job, CodedJob):
        return list(victim.digests.values())
    names = ["baseline", *(["encoder"] if job.members else [])]
    if ATTACKS[job.attack].hears_answers:
        names += [f"branch {member}" for member in job.members]
    return [victim.digests[name] for name in names]


def run(victim: Attacked, job: Job, folder: Path, progress: Progress) -> Done:
    """Run an attack, or read what it found before.

    Args:
        victim: What is attacked.
        job: The attack.
        folder: Of what is kept.
        progress: Called with the progress in 0..1 and the loss.

    Returns:
        What it found.

    Raises:
        AttackError: It cannot be run.
    """
    path = kept_at(victim, job, folder)
    if path.exists():
        return _read(job, path)
    view = view_of(victim, job)
    began = time.monotonic()
    # What is float32 on the processor is so on a GPU: cuDNN would take TF32 for convolutions, whose 10 bits are too few
    # for a head that rounds and for the differences that SSIM is made of. Here, because processes that attack side by
    # side do not choose their device.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        learns = isinstance(job, CodedJob) and (job.budget is None or isinstance(job.budget, DecoderBudget))
        found = (reconstruct_or_mean if learns else reconstruct)(
            view,
            ATTACKS[job.attack],
            job.budget,
            start=job.start,
            prior=victim.prior if isinstance(job.budget, DiffuseBudget) else None,
            seconds=math.inf if victim.effort.seconds is None else victim.effort.seconds,
            progress=progress,
            device=victim.device,
        )
    notes = found.notes | {"seconds": round(time.monotonic() - began, 1)}
    if _computes_on_gpu(victim, job):
        notes["device"] = torch.cuda.get_device_name(victim.device)
    row = _scores(victim, job, found.images) | {"pairs": len(view.images), "finished": True} | notes
    shown = (found.images[:SHOWN].clamp(0, 1) * 255).round().to(torch.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # audits of two releases may find the same at once
    save_file({"shown": shown.contiguous()}, partial, metadata={"row": json.dumps(row)})
    partial.replace(path)
    return Done(job, row, shown)


def _computes_on_gpu(victim: Attacked, job: Job) -> bool:
    """Whether the result is a GPU's; ridge regression, which has no budget, never computes on one."""
    return victim.device.type != "cpu" and job.budget is not None


def _scores(victim: Attacked, job: Job, guess: Tensor) -> dict[str, Any]:
    """A job's entry of the result file."""
    wanted = target_indices(victim, job)
    images = victim.data.test_images[wanted]
    scores = compare(guess, images)
    scores = replace(scores, psnr=scores.psnr.clamp(max=HIGHEST))
    summary = scores.summary()
    low, high = mean_interval(scores.psnr, seed=SEED)
    judged = min(JUDGED, len(images))
    shown, true = guess[:judged].clamp(0, 1), images[:judged].float() / 255
    seen, answered = victim.judge(shown)
    return {
        "size": len(job.members),
        "members": list(job.members),
        "attack": job.attack,
        "psnr": summary.psnr,
        "psnr_worst": summary.psnr_worst,
        "ssim": summary.ssim,
        "ms_ssim": None if scores.ms_ssim is None else float(scores.ms_ssim.mean()),
        "lpips": None if victim.lpips is None else float(victim.lpips(shown, true).mean()),
        "feature_similarity": float(torch.cosine_similarity(seen, victim.judge(true)[0]).mean()),
        "label_accuracy": float((answered.argmax(dim=1) == victim.data.test_labels[wanted][:judged]).float().mean()),
        "interval": [low, high],
        "floor": float(victim.floor_psnr["class_mean"][wanted].mean()),
        "blind_floor": float(victim.floor_psnr["mean_image"][wanted].mean()),
        "images": len(images),
        "relation": job.relation.value,
        **({} if job.keys is None else asdict(job.keys)),
    }


def floors(victim: Attacked) -> dict[str, float]:
    """Mean PSNR of the floors on the targets, in dB."""
    return {name: float(values.mean()) for name, values in victim.floor_psnr.items()}


def _read(job: Job, path: Path) -> Done:
    """What a job found before."""
    try:
        with safe_open(path, framework="pt") as file:
            row = json.loads(file.metadata()["row"])
        return Done(job, row, load_file(path)["shown"])
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise BenchError(f"{path} is damaged ({error}): remove it, and its attack is run again") from error
