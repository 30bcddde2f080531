"""The attacks of `bench/privacy.py` on one release: what each effort runs, with resuming.

Every attack is a `Job`. What it found is kept in a file named by all that decides it, so a run that was stopped, or one
of a greater effort, does not repeat it.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _common import (
    ENCODED_AT_ONCE,
    ROOT,
    UNDEFENDED_IMAGES,
    BenchError,
    largest_minority,
    release_data,
    shares_of,
    verified_graph,
)
from _head import before_rounding, through_graph
from _keyed import Keys, keyed_settings, keyed_view, most_telling_partition
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from privdfs import Bundle
from privdfs._manifest import key_spec
from privdfs_export import evaluate
from privdfs_training.attacks import decoder
from privdfs_training.attacks.decoder import DecoderBudget, Form, reconstruct, train_decoder
from privdfs_training.attacks.diffusion import TUNED_ON, DiffuseBudget, diffuse, tune
from privdfs_training.attacks.floors import class_means, mean_image, nearest_by_answer
from privdfs_training.attacks.linear import linear_reconstruct, linear_sums, rank_by_linear_score
from privdfs_training.attacks.metrics import compare, mean_interval, psnr
from privdfs_training.attacks.optimise import OptimiseBudget, optimise
from privdfs_training.attacks.perceptual import Lpips
from privdfs_training.attacks.prior import Prior, load_prior
from privdfs_training.attacks.selfchecks import Measured
from privdfs_training.attacks.view import Relation, ServerView, side_by_side
from privdfs_training.errors import AttackError
from privdfs_training.parallel import CPU

SEED = 0
#: Part of a job's name: raise it when an attack is changed, so that old results are not taken for new ones.
VERSION = 1
#: Images whose reconstructions are kept to be looked at, and those that the baseline looks at.
SHOWN, JUDGED = 12, 500
#: PSNR of an image that came out exactly, in dB: a result file holds no infinity.
HIGHEST = 100.0
#: Up to so many servers every coalition is attacked by the stronger attacks of effort `full`.
EVERY_COALITION = 5
#: Of which "diffusion-mean" is the mean.
SAMPLES = 8
THROUGH_HEAD = (OptimiseBudget, DiffuseBudget)
QUERIES = (64, 256, 1000, 4000, 16_000, 50_000)
Progress = Callable[[float, float], None]

SOURCES = {
    "linear": "ridge regression of the pixels on the levels",
    "dense": "inverse network (He et al., ACSAC 2019), fully connected",
    "decoder": "inverse network (He et al., ACSAC 2019), residual",
    "unet": "inverse network, U-Net (Ronneberger et al., 2015)",
    "decoder-ssim": "inverse network, residual, squared error and SSIM",
    "dense+answers": "inverse network, fully connected, told the branches' logits too",
    "optimisation": "maximum a posteriori through the head (He et al., ACSAC 2019), Gaussian prior",
    "diffusion": "sampled, guided by a diffusion prior through the head (DRAG, arXiv 2509.11724)",
    "diffusion-mean": "the mean of several such samples",
    "diffusion+dense": "one sample, started from the fully connected decoder's images (DRAG++)",
    "optimisation-tv": "maximum likelihood and total variation through the head (He et al., ACSAC 2019)",
}


@dataclass(frozen=True)
class Effort:
    """What is spent on a release.

    Attributes:
        pairs: The attacker's own images, at most.
        targets: Test images that are attacked by decoders, at most.
        optimised: Test images that are attacked by optimisation.
        dense: Of fully connected decoders.
        strong: Of convolutional ones.
        sizes: Whether convolutional decoders attack coalitions of every size, or the largest minority alone.
        every: Whether fully connected decoders attack every coalition, or of each size the one that ridge regression
            finds worst.
        forms: Attacks that are made once, by the worst minority.
        optimise: Of attacks through the head.
        undefended: Pairs for the undefended split.
        diffuse: Of attacks guided by a diffusion prior; None makes none.
        diffused: Test images that they attack.
        seconds: Stop training a decoder after so long; None never does.
    """

    pairs: int
    targets: int
    optimised: int
    dense: DecoderBudget
    strong: DecoderBudget
    sizes: bool
    every: bool
    forms: tuple[str, ...]
    optimise: OptimiseBudget
    undefended: int
    diffuse: DiffuseBudget | None = None
    diffused: int = 64
    seconds: float | None = None


#: For Fashion-MNIST and three servers `quick` took 159 s of processor time, and `standard` 5,100 s on one thread of a
#: core with AVX-512, so about three quarters of an hour on two. What `full` takes has not been measured.
EFFORTS = {
    "quick": Effort(
        pairs=20_000,
        targets=2000,
        optimised=16,
        dense=DecoderBudget(epochs=10, width=32),
        strong=DecoderBudget(epochs=2, width=32, blocks=1),
        sizes=False,
        every=False,
        forms=("dense+answers",),
        optimise=OptimiseBudget(steps=100, restarts=2),
        undefended=10_000,
    ),
    "standard": Effort(
        pairs=60_000,
        targets=10_000,
        optimised=128,
        dense=DecoderBudget(epochs=20, width=64),
        strong=DecoderBudget(epochs=5, width=32, blocks=1),
        sizes=True,
        every=False,
        forms=("dense+answers", "decoder-ssim", "unet"),
        optimise=OptimiseBudget(steps=400, restarts=4),
        undefended=20_000,
        diffuse=DiffuseBudget(steps=50, recurrence=2),
    ),
    "full": Effort(
        pairs=60_000,
        targets=10_000,
        optimised=256,
        dense=DecoderBudget(epochs=60, width=64, blocks=2),
        strong=DecoderBudget(epochs=50, width=64, blocks=2, learning_rate=1e-3),
        sizes=True,
        every=False,
        forms=("dense+answers", "decoder-ssim", "unet"),
        optimise=OptimiseBudget(steps=4000, restarts=8),
        undefended=60_000,
        diffuse=DiffuseBudget(),
    ),
}


@dataclass(frozen=True)
class Job:
    """One attack of one coalition. All that decides its result but the release and the data.

    Attributes:
        attack: Its name, a key of `SOURCES`.
        members: Of the coalition; none for the undefended split.
        pairs: The attacker's own images.
        targets: Test images.
        relation: Of those to the pairs.
        budget: Of the attack.
        start: Of the decoder whose images it starts from.
        keys: Of a keyed release, whose partitions it is about; None is the benchmark's own user's alone.
    """

    attack: str
    members: tuple[int, ...]
    pairs: int
    targets: int
    relation: Relation
    budget: DecoderBudget | OptimiseBudget | DiffuseBudget | None
    start: DecoderBudget | None = None
    keys: Keys | None = None

    @property
    def hears_answers(self) -> bool:
        """Whether it is told the branches' answers beside the shares."""
        return self.attack.endswith("+answers")


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


class Victim:
    """A release, its data set, and what its device and servers make of it."""

    def __init__(
        self,
        release: Path,
        data_folder: Path | None,
        effort: Effort,
        prior: Path | None = None,
        lpips: Lpips | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Open the release; nothing is computed yet.

        Args:
            release: Its folder.
            data_folder: Of the data set.
            effort: Its limits on images.
            prior: The diffusion prior's file; None takes the data set's in checkpoints/.
            lpips: A further measure of likeness.
            device: Where networks are trained and attacks go through the head; all else stays on the processor.

        Raises:
            Error: The release or the data set cannot be used.
        """
        self.again = partial(Victim, release, data_folder, effort, prior, lpips, device)  # for another process
        self.release, self.effort, self.lpips, self.device = release, effort, lpips, device
        self.bundle = Bundle.open(release / "client", allow_unsigned=True)
        self.data = release_data(self.bundle, data_folder)
        self.pairs = min(effort.pairs, len(self.data.train_images))
        self.targets = min(effort.targets, len(self.data.test_images))
        if self.targets < SHOWN:
            raise BenchError(f"{self.targets} test images are too few to measure on: give at least {SHOWN}")
        self.prior_path = prior or ROOT / "checkpoints" / f"{self.data.name}-prior.safetensors"
        self.servers = self.bundle.n_servers
        self.minority = largest_minority(self.servers)

    @cached_property
    def partition(self) -> int | None:
        """Of a keyed release, that of the user whom attackers are after: no deal is known to give a minority more."""
        return None if key_spec(self.bundle.manifest) is None else most_telling_partition(self)

    @cached_property
    def shares(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of the pairs and the targets, for every server."""
        train, test = self.data.train_images[: self.pairs], self.data.test_images[: self.targets]
        return shares_of(self.bundle, train, self.partition), shares_of(self.bundle, test, self.partition)

    @cached_property
    def answers(self) -> tuple[list[Tensor], list[Tensor]]:
        """What the branches answer to them, float [images, classes]."""
        branches = [
            evaluate.session(verified_graph(self.release / f"server-{server}", "branch"))
            for server in range(self.servers)
        ]

        def answer(server: int, share: Tensor) -> Tensor:
            every = None if self.partition is None else np.full(len(share), self.partition, np.int32)
            inputs = {"share": share.numpy()} | evaluate.partition_input(every)
            return torch.from_numpy(evaluate.run_batched(branches[server], inputs)[0].astype(np.float32))

        both = [[answer(server, share) for server, share in enumerate(shares)] for shares in self.shares]
        return both[0], both[1]

    @cached_property
    def probabilities(self) -> tuple[Tensor, Tensor]:
        """The fused answer to pairs and targets, float [images, classes]."""
        fusion = evaluate.session((self.release / "client" / "fusion.onnx").read_bytes())
        fused = [
            evaluate.fuse(fusion, torch.stack(answers, dim=1).numpy(), range(self.servers)) for answers in self.answers
        ]
        return torch.from_numpy(fused[0]), torch.from_numpy(fused[1])

    @cached_property
    def prior(self) -> tuple[Prior, str]:
        """The data set's diffusion prior and the SHA-256 of its file.

        Raises:
            TrainingError: It is missing, damaged or of other images; the message says how to train one.
        """
        try:
            prior = load_prior(self.prior_path, self.data.image_shape, self.data.name)
        except AttackError as error:
            raise AttackError(f"{error}; or leave its attack out with --prior none") from error
        return prior.to(self.device), hashlib.sha256(self.prior_path.read_bytes()).hexdigest()

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the graphs that attacks look at: `encoder`, `baseline`, and `branch 0`, `branch 1`, …, in hex."""
        graphs = {"encoder": (self.release / "client" / "encoder.onnx").read_bytes(), "baseline": self.baseline}
        for server in range(self.servers):
            graphs[f"branch {server}"] = verified_graph(self.release / f"server-{server}", "branch")
        return {name: hashlib.sha256(graph).hexdigest() for name, graph in graphs.items()}

    @cached_property
    def baseline(self) -> bytes:
        """The unprotected model, as ONNX."""
        return verified_graph(self.release / "baseline", "baseline")

    def view(self, job: Job) -> ServerView:
        """What the coalition of a job has."""
        if job.keys is not None:
            return keyed_view(self, job, job.keys)
        pairs, targets = self.pair_indices(job), self.target_indices(job)
        (shares, received), (answers, heard) = self.shares, self.answers
        limits = [torch.full((one.share_length,), (one.levels - 1) / 2) for one in self.bundle.manifest.servers]
        return ServerView(
            members=job.members,
            relation=job.relation,
            images=self.data.train_images[pairs],
            labels=self.data.train_labels[pairs],
            shares=side_by_side(shares, job.members)[pairs],
            answers=side_by_side(answers, job.members)[pairs],
            received=side_by_side(received, job.members)[targets],
            received_answers=side_by_side(heard, job.members)[targets],
            steps=self._through_head(job.members) if isinstance(job.budget, THROUGH_HEAD) else None,
            limits=torch.cat([limits[one] for one in job.members]),
        )

    def undefended_view(self, job: Job) -> ServerView:
        """What a server has to whom the baseline's feature after the first layer is sent as it is."""
        first = _first_feature(self.baseline)
        pairs, targets = self.data.train_images[: job.pairs], self.data.test_images[: job.targets]
        nothing = [torch.zeros(len(images), 0) for images in (pairs, targets)]
        return ServerView(
            members=(),
            relation=job.relation,
            images=pairs,
            labels=self.data.train_labels[: job.pairs],
            shares=_features(self.baseline, first, pairs),
            answers=nothing[0],
            received=_features(self.baseline, first, targets).float(),
            received_answers=nothing[1],
            steps=(
                through_graph(self.baseline, [first], {}, self.device) if isinstance(job.budget, THROUGH_HEAD) else None
            ),
            limits=torch.zeros(0),
        )

    def pair_indices(self, job: Job) -> Tensor:
        """Which training images a job learns from; a shifted attacker has those of the first half of the classes."""
        chosen = torch.arange(job.pairs)
        if job.relation is Relation.SHIFTED:
            chosen = chosen[self.data.train_labels[: job.pairs] < len(self.data.classes) // 2]
        return chosen

    def target_indices(self, job: Job) -> Tensor:
        """Which test images a job is after, in order; a shifted attacker those of the other half."""
        wanted = torch.arange(job.targets)
        if job.relation is Relation.SHIFTED:
            wanted = wanted[self.data.test_labels[: job.targets] >= len(self.data.classes) // 2]
        return wanted

    def _through_head(self, members: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        fixed = {} if self.partition is None else {"partition": torch.tensor([[self.partition]])}
        encoder = (self.release / "client" / "encoder.onnx").read_bytes()
        return through_graph(encoder, before_rounding(encoder, members), fixed, self.device)

    @cached_property
    def floor_images(self) -> dict[str, Tensor]:
        """What attackers without a share reconstruct of the targets, float [targets, channels, height, width]."""
        data, labels = self.data, self.data.test_labels[: self.targets]
        nearest = nearest_by_answer(self.probabilities[0], self.probabilities[1])
        return {
            "mean_image": mean_image(data.train_images).expand(self.targets, *data.image_shape),
            "class_mean": class_means(data.train_images, data.train_labels, len(data.classes))[labels],
            "nearest_training": data.train_images[nearest].float() / 255,
        }

    @cached_property
    def floor_psnr(self) -> dict[str, Tensor]:
        """Of every target and floor, in dB."""
        images = self.data.test_images[: self.targets].float() / 255
        return {name: psnr(guess, images).clamp(max=HIGHEST) for name, guess in self.floor_images.items()}

    @cached_property
    def judge(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The baseline's penultimate features and its logits, of float images in 0..1."""
        graph = onnx.load_from_string(self.baseline)
        last = next(node for node in reversed(graph.graph.node) if node.op_type in {"Gemm", "MatMul"})
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.input[0]))
        model, names = evaluate.session(graph.SerializeToString()), ["logits", last.input[0]]

        def look(images: Tensor) -> tuple[Tensor, Tensor]:
            pixels = _nhwc((images * 255).round().to(torch.uint8))
            logits, features = (
                torch.from_numpy(np.asarray(one, np.float32)) for one in model.run(names, {"image": pixels})
            )
            return features.flatten(1), logits

        return look


def kept_at(victim: Victim, job: Job, folder: Path) -> Path:
    """The file of what an attack finds, named by all that decides it.

    So a release whose branches or fusion alone were trained again keeps what was found of its shares.
    """
    settled = [VERSION, SEED, *_seen(victim, job), victim.data.name, len(victim.data.train_images), _plain(job)]
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


def _seen(victim: Victim, job: Job) -> list[str]:
    """Digests of the graphs that a result depends on. The baseline is always one: it scores what was reconstructed."""
    names = ["baseline", *(["encoder"] if job.members else [])]
    if job.hears_answers:
        names += [f"branch {member}" for member in job.members]
    return [victim.digests[name] for name in names]


def run(victim: Victim, job: Job, folder: Path, progress: Progress) -> Done:
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
    view = victim.view(job) if job.members else victim.undefended_view(job)
    began = time.monotonic()
    # What is float32 on the processor is so on a GPU: cuDNN would take TF32 for convolutions, whose 10 bits are too few
    # for a head that rounds and for the differences that SSIM is made of. Here, because processes that attack side by
    # side do not choose their device.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        guess, notes = _attack(victim, view, job, progress)
    notes["seconds"] = round(time.monotonic() - began, 1)
    if _computes_on_gpu(victim, job):
        notes["device"] = torch.cuda.get_device_name(victim.device)
    row = _scores(victim, job, guess) | {"pairs": len(view.images), "finished": True} | notes
    shown = (guess[:SHOWN].clamp(0, 1) * 255).round().to(torch.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # audits of two releases may find the same at once
    save_file({"shown": shown.contiguous()}, partial, metadata={"row": json.dumps(row)})
    partial.replace(path)
    return Done(job, row, shown)


def _computes_on_gpu(victim: Victim, job: Job) -> bool:
    """Whether the result is a GPU's; ridge regression, which has no budget, never computes on one."""
    return victim.device.type != "cpu" and job.budget is not None


def _attack(victim: Victim, view: ServerView, job: Job, progress: Progress) -> tuple[Tensor, dict[str, Any]]:
    """Reconstructions, float [targets, channels, height, width], and what else there is to say."""
    seconds = math.inf if victim.effort.seconds is None else victim.effort.seconds
    if isinstance(job.budget, DiffuseBudget):
        return _diffuse(victim, view, job, job.budget, seconds, progress)
    if isinstance(job.budget, OptimiseBudget):
        found = optimise(view, job.budget, seed=SEED, progress=progress, device=victim.device)
        return found.images, {"gradient": found.gradient}
    if job.budget is None:
        sums, _ = linear_sums([view.shares], view.images)
        return linear_reconstruct(sums, (0,), [view.received]), {}
    told = view.with_answers_as_shares() if job.hears_answers else view
    forms: dict[str, Form] = {"dense": "dense", "dense+answers": "dense", "unet": "unet"}
    form = "dense" if job.keys is not None else forms.get(job.attack, "residual")
    similar, last = job.attack == "decoder-ssim", 0.0

    def step(done: float, loss: float) -> None:
        nonlocal last
        last = done
        progress(done, loss)

    network = train_decoder(
        told.shares,
        told.images,
        job.budget,
        seed=SEED,
        progress=step,
        form=form,
        loss_of=decoder.squared_error_and_similarity if similar else decoder.squared_error,
        seconds=seconds,
        device=victim.device,
    )
    return reconstruct(network, told.received), {"finished": last >= 1}


def _diffuse(
    victim: Victim, view: ServerView, job: Job, budget: DiffuseBudget, seconds: float, progress: Progress
) -> tuple[Tensor, dict[str, Any]]:
    """As `_attack`, by the diffusion prior."""
    begin, device = None, victim.device
    if job.start is not None:
        decoding = train_decoder(
            view.shares,
            view.images,
            job.start,
            seed=SEED,
            progress=progress,
            form="dense",
            seconds=seconds,
            device=device,
        )
        begin = partial(reconstruct, decoding)
    network, digest = victim.prior
    budget = tune(view, network, budget, seed=SEED, progress=progress, start=begin, device=device)
    start = None if begin is None else begin(view.received)
    found = diffuse(view, network, budget, seed=SEED, progress=progress, start=start, seconds=seconds, device=device)
    notes = {"gradient": found.gradient, "finished": found.finished, "guidance": budget.guidance}
    return found.images, notes | {"prior_sha256": digest}


def _scores(victim: Victim, job: Job, guess: Tensor) -> dict[str, Any]:
    """A job's entry of the result file."""
    wanted = victim.target_indices(job)
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


def jobs(victim: Victim) -> dict[str, list[Job]]:
    """What an effort runs.

    Args:
        victim: With its effort.

    Returns:
        `coalitions`, `queries`, `shifted`, `keys` and `undefended`, each with its jobs.
    """
    effort, size = victim.effort, victim.minority

    def job(attack: str, members: tuple[int, ...]) -> Job:
        budgets: dict[str, Any] = {"linear": None, "dense": effort.dense, "dense+answers": effort.dense}
        budgets |= {"optimisation": effort.optimise}
        budget = budgets.get(attack, effort.strong)
        return Job(attack, members, victim.pairs, victim.targets, Relation.SAME_DISTRIBUTION, budget)

    worst = {
        count: rank_by_linear_score(
            victim.shares[0],
            victim.data.train_images[: victim.pairs],
            victim.shares[1],
            victim.data.test_images[: victim.targets],
            count,
        )
        for count in range(1, victim.servers + 1)
    }
    every = victim.servers <= EVERY_COALITION
    linear = [job("linear", members) for ranked in worst.values() for members in (ranked if every else ranked[:10])]
    tried = slice(None) if effort.every and every else slice(1)
    dense = [job("dense", members) for ranked in worst.values() for members in ranked[tried]]
    strong = [job("decoder", worst[count][0]) for count in (worst if effort.sizes else [size])]
    minority = worst[size][0]
    once = [job(attack, minority) for attack in effort.forms]
    optimised = min(effort.optimised, victim.targets)
    once.append(replace(job("optimisation", minority), targets=optimised))
    broken = []
    if effort.diffuse is not None:
        guided = replace(
            job("diffusion", minority), targets=min(effort.diffused, victim.targets), budget=effort.diffuse
        )
        several = replace(effort.diffuse, samples=SAMPLES)
        once += [
            guided,
            replace(guided, attack="diffusion-mean", budget=several),
            replace(guided, attack="diffusion+dense", start=effort.dense),
        ]
        broken.append(replace(guided, members=(), pairs=TUNED_ON))
    fully = job("dense", minority)
    queries = [
        replace(fully, pairs=count, budget=_for_fewer(effort.dense, count, victim))
        for count in QUERIES
        if count < victim.pairs
    ]
    shifted = [replace(fully, relation=Relation.SHIFTED)]
    spec = key_spec(victim.bundle.manifest)
    keyed = [replace(fully, attack=one.attack, keys=one) for one in (keyed_settings(spec.partitions) if spec else ())]
    tv = OptimiseBudget(3 * effort.optimise.steps, 1, prior="variation", weight=1e-3)
    pairs = min(effort.undefended, victim.pairs)
    undefended = [
        replace(job("decoder", ()), pairs=pairs, targets=min(UNDEFENDED_IMAGES, victim.targets)),
        replace(job("optimisation-tv", ()), pairs=1, targets=optimised, budget=tv),
        *broken,
    ]
    return {
        "coalitions": linear + dense + strong + once,
        "queries": queries,
        "shifted": shifted,
        "keys": keyed,
        "undefended": undefended,
    }


def floors(victim: Victim) -> dict[str, float]:
    """Mean PSNR of the floors on the targets, in dB."""
    return {name: float(values.mean()) for name, values in victim.floor_psnr.items()}


def _for_fewer(budget: DecoderBudget, pairs: int, victim: Victim) -> DecoderBudget:
    """The same number of steps at least a third, whatever the number of pairs: more passes over fewer."""
    passes = math.ceil(budget.epochs * victim.pairs / max(pairs, budget.batch) / 3)
    return replace(budget, epochs=max(budget.epochs, passes))


def _first_feature(model: bytes) -> str:
    """Name of the first ReLU's output in a graph; without one, of the first convolution's."""
    for kind in ("Relu", "Conv"):
        for node in onnx.load_from_string(model).graph.node:
            if node.op_type == kind:
                return node.output[0]
    raise AttackError("the baseline has no convolution: there is no undefended split to compare with")


def _features(model: bytes, name: str, images: Tensor) -> Tensor:
    """A tensor of a graph for many images, float16 to halve the memory."""
    graph = onnx.load_from_string(model)
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    cut = evaluate.session(graph.SerializeToString())
    parts = [
        np.asarray(cut.run([name], {"image": _nhwc(images[at : at + ENCODED_AT_ONCE])})[0]).astype(np.float16)
        for at in range(0, len(images), ENCODED_AT_ONCE)
    ]
    return torch.from_numpy(np.concatenate(parts))


def _nhwc(images: Tensor) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


def _plain(job: Job) -> dict[str, Any]:
    return asdict(job) | {"relation": job.relation.value}


def _read(job: Job, path: Path) -> Done:
    """What a job found before."""
    try:
        with safe_open(path, framework="pt") as file:
            row = json.loads(file.metadata()["row"])
        return Done(job, row, load_file(path)["shown"])
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise BenchError(f"{path} is damaged ({error}): remove it, and its attack is run again") from error
