"""The audit's attacks on other defences, and who leaks least at matched accuracy."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import progress as bars
from rich.console import Console
from rich.table import Table
from torch import Tensor

from privdfs_bench.audit.attacks import ATTACKS, reconstruct
from privdfs_bench.audit.effort import EFFORTS, HIGHEST, SEED, Effort, Progress
from privdfs_bench.audit.jobs import job
from privdfs_bench.audit.victim import Victim
from privdfs_bench.audit.views import flat, view_of, view_of_shares
from privdfs_bench.releases import release_name, short_digest
from privdfs_bench.results import made_by, read_results, write_results
from privdfs_training.attacks.floors import class_means, mean_image
from privdfs_training.attacks.linear import rank_by_linear_score
from privdfs_training.attacks.metrics import compare, psnr
from privdfs_training.attacks.optimise import OptimiseBudget
from privdfs_training.attacks.view import ServerView
from privdfs_training.data import DataSet, in_memory, load_data
from privdfs_training.rivals.system import INT8_LIMIT, Rival, load_rival

#: Points of accuracy that a system may be behind our release to be compared with it.
MATCHED = 1.0
#: Of the table of attacks, those that every system can be attacked by.
RIVALS = ("dense", "decoder", "optimisation", "optimisation-tv")
OURS = "shares, learned masks"


@dataclass(frozen=True)
class System:
    """One system to be attacked.

    Attributes:
        name: In tables.
        identity: Of exactly these weights.
        defence: The rival's kind, or how the masks of a release were assigned.
        servers: How many there are.
        members: Of the coalition that attacks.
        accuracy: On the test images, a fraction, and of its own baseline.
        baseline: As above.
        bits: That the coalition receives for an image.
        client_macs: Multiply-accumulates on the device, and of the baseline.
        baseline_macs: As above.
        data: That it was trained on.
        view: What the coalition has.
        graphs: Digests of a release's graphs that were attacked; a rival has none.
    """

    name: str
    identity: str
    defence: str
    servers: int
    members: tuple[int, ...]
    accuracy: float
    baseline: float
    bits: int
    client_macs: int
    baseline_macs: int
    data: DataSet
    view: ServerView
    graphs: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """No weights, no images."""
        return f"System({self.identity}, {self.defence})"


def release_system(folder: Path, data_folder: Path | None, effort: Effort) -> System:
    """A release, with the worst of its largest minorities.

    Raises:
        Error: The release or its data set cannot be used.
    """
    victim = Victim(folder, data_folder, effort)
    manifest, images = victim.bundle.masked, (victim.data.train_images, victim.data.test_images)
    (shares, received), size = victim.shares, victim.minority
    members = rank_by_linear_score(shares, images[0][: victim.pairs], received, images[1][: victim.targets], size)[0]
    assignment = manifest.made_by.config.get("masks", {}).get("assignment", "learned")
    return System(
        name=release_name(folder),
        identity=victim.bundle.release,
        graphs={name: short_digest(victim.digests[name]) for name in ("encoder", "baseline")},
        defence=f"shares, {assignment} masks",
        servers=victim.servers,
        members=members,
        accuracy=manifest.accuracy.fused,
        baseline=manifest.accuracy.baseline,
        bits=8 * sum(manifest.servers[one].share_length for one in members),
        client_macs=manifest.macs.head + manifest.macs.fusion,
        baseline_macs=manifest.macs.baseline,
        data=victim.data,
        view=view_of(victim, job(victim, "optimisation", members)),
    )


def rival_system(path: Path, data_folder: Path | None, effort: Effort) -> System:
    """A finished rival, whose one server attacks.

    Raises:
        Error: The checkpoint or its data set cannot be used.
    """
    rival = load_rival(path)
    data = in_memory(load_data(rival.config.data, data_folder))
    return System(
        name=rival.config.name,
        identity=f"{rival.config.name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}",
        defence=str(type(rival.config.defence).__struct_config__.tag),
        servers=1,
        members=(0,),
        accuracy=rival.accuracy["rival"],
        baseline=rival.accuracy["baseline"],
        bits=rival.bits,
        client_macs=rival.client_macs,
        baseline_macs=rival.baseline_macs,
        data=data,
        view=rival_view(rival, data, effort),
    )


def rival_view(rival: Rival, data: DataSet, effort: Effort) -> ServerView:
    """What a rival's server has: whole features, as they travel, and the way through head and defence."""
    images, targets = data.train_images[: effort.pairs], data.test_images[: effort.targets]
    received, system = rival.feature(targets, seed=SEED + 2), rival.system
    whole = received.dtype == torch.int8

    def steps(pixels: Tensor) -> Tensor:
        feature = system.defence.send(system.head(255 * pixels)).float()
        return feature / system.step if whole else feature

    return view_of_shares(
        members=(0,),
        images=images,
        labels=data.train_labels[: len(images)],
        shares=rival.feature(images, seed=SEED + 1),
        received=received,
        steps=steps,
        limits=torch.full(received.shape[1:], float(INT8_LIMIT)).flatten(),
    )


def attack(view: ServerView, effort: Effort, progress: Callable[[str], Progress]) -> dict[str, Tensor]:
    """Run every attack on a view.

    Args:
        view: With `steps`.
        effort: Budgets.
        progress: Gives, for the name of an attack, what is called with the progress in 0..1 and the loss.

    Returns:
        Attack -> float [targets, channels, height, width]; those through the head have the first targets alone.

    Raises:
        AttackError: An attack cannot be run.
    """
    row = flat(view.with_targets(effort.optimised))
    budgets = {name: effort.budget(name) for name in RIVALS}
    return {
        name: reconstruct(
            row if isinstance(budget, OptimiseBudget) else view, ATTACKS[name], budget, progress=progress(name)
        ).images
        for name, budget in budgets.items()
    }


def measure(system: System, effort: Effort, name: str, progress: Callable[[str], Progress]) -> dict[str, Any]:
    """Attack a system.

    Args:
        system: What is attacked.
        effort: Budgets.
        name: Of the effort.
        progress: As `attack` takes it.

    Returns:
        Its entry of the result file.
    """
    torch.manual_seed(SEED)  # of the noise that some defences draw
    guesses = attack(system.view, effort, progress)
    attacks = {name: _scores(system.data, guess) for name, guess in guesses.items()}
    worst = max(attacks, key=lambda one: attacks[one]["above"])
    return {
        "made_by": made_by(asdict(effort), seed=SEED),
        "identity": system.identity,
        "graphs": dict(system.graphs),
        "effort": name,
        "data": system.data.name,
        "defence": system.defence,
        "servers": system.servers,
        "members": list(system.members),
        "accuracy": system.accuracy,
        "baseline": system.baseline,
        "lost_points": 100 * (system.baseline - system.accuracy),
        "bits": system.bits,
        "client_macs": system.client_macs,
        "baseline_macs": system.baseline_macs,
        "attacks": attacks,
        "worst": {"attack": worst, **attacks[worst]},
    }


def _scores(data: DataSet, guess: Tensor) -> dict[str, Any]:
    """Of one attack, beside the floors on the same images."""
    images, labels = data.test_images[: len(guess)], data.test_labels[: len(guess)]
    means = class_means(data.train_images, data.train_labels, len(data.classes))[labels]
    blind = mean_image(data.train_images).expand(len(guess), *data.image_shape)
    scores = compare(guess, images)
    reached = scores.psnr.clamp(max=HIGHEST)
    floor, blind_floor = (psnr(one, images.float() / 255).clamp(max=HIGHEST) for one in (means, blind))
    return {
        "psnr": float(reached.mean()),
        "ssim": float(scores.ssim.mean()),
        "floor": float(floor.mean()),
        "blind_floor": float(blind_floor.mean()),
        "above": float((reached - floor).mean()),
        "images": len(guess),
    }


def with_matched(systems: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Say of every system whether it is about as accurate as our most accurate release of its data set, or more.

    Args:
        systems: Of the result file.

    Returns:
        The same, each with `matched`; false where there is no release of ours to compare with.
    """

    def reference(entry: Mapping[str, Any]) -> float:
        ours = [one["accuracy"] for one in systems.values() if _key(one) == _key(entry) and one["defence"] == OURS]
        return max(ours, default=math.inf)

    return {
        name: {**entry, "matched": 100 * (reference(entry) - entry["accuracy"]) <= MATCHED}
        for name, entry in systems.items()
    }


def verdicts(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of every data set and effort, who of those at matched accuracy leaks less: our best, or the best other.

    Args:
        systems: Of the result file, with `matched`.

    Returns:
        Sentences.
    """
    said = []
    for key in dict.fromkeys(map(_key, systems.values())):
        ranked: dict[bool, list[tuple[float, str]]] = {True: [], False: []}
        for name, entry in systems.items():
            if _key(entry) == key and entry["matched"]:
                ranked[entry["defence"] == OURS].append((entry["worst"]["above"], name))
        where = f"{key[0]}, effort {key[1]}"
        if not ranked[True] or not ranked[False]:
            missing = f"other system at most {MATCHED:g} point behind it" if ranked[True] else "release of ours"
            said.append(f"{where}: no {missing}, so nothing is compared")
            continue
        (ours, name), (theirs, rival) = min(ranked[True]), min(ranked[False])
        gain = theirs - ours
        said.append(
            f"{where}: {name if gain > 0 else rival} leaks least, {min(ours, theirs):+.2f} dB above the class mean; "
            f"{rival if gain > 0 else name} {max(ours, theirs):+.2f} dB"
        )
    return said


def _key(entry: Mapping[str, Any]) -> tuple[str, str]:
    """What two systems must have in common to be compared."""
    return entry["data"], entry["effort"]


def table(systems: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each system, the least leaking first."""
    shown = Table(title="The same attacks on every defence", title_justify="left", show_edge=False)
    columns = ("system", "defence", "bits", "accuracy", "points lost", *RIVALS, "above class mean")
    for column in columns:
        shown.add_column(column, justify="left" if column in {"system", "defence"} else "right")
    for name, entry in sorted(systems.items(), key=lambda one: (one[1]["data"], one[1]["worst"]["above"])):
        shown.add_row(
            name,
            entry["defence"],
            f"{entry['bits']:,}",
            f"{entry['accuracy']:.2%}" + ("" if entry["matched"] else " (not matched)"),
            f"{entry['lost_points']:.2f}",
            *(f"{entry['attacks'][one]['psnr']:.2f}" for one in RIVALS),
            f"{entry['worst']['above']:+.2f}",
        )
    return shown


def add(path: Path, effort_name: str, data_folder: Path | None, out: Path, console: Console) -> None:
    """Attack one system and add it to the result file, unless it stands there already.

    Args:
        path: Folder of a release, or checkpoint of a rival.
        effort_name: What is spent.
        data_folder: Of the data set.
        out: The result file.
        console: For progress.

    Raises:
        Error: The system or its data set cannot be used.
    """
    effort = EFFORTS[effort_name]
    system = (release_system if path.is_dir() else rival_system)(path, data_folder, effort)
    before = read_results(out).get("systems", {}).get(system.name, {})
    if before.get("identity") == system.identity and _spent(before["made_by"]["config"], effort):
        console.print(f"{system.name}: in {out} already", highlight=False, soft_wrap=True)
        return
    with bars.Progress(console=console, transient=True) as bar:

        def progress(name: str) -> Progress:
            task = bar.add_task(f"{system.name}: {name}", total=1.0)
            return lambda done, _: bar.update(task, completed=done)

        entry = measure(system, effort, effort_name, progress)
    worst = entry["worst"]
    console.print(
        f"{system.name}: {worst['attack']} {worst['psnr']:.2f} dB, {worst['above']:+.2f} dB above the class mean",
        highlight=False,
        soft_wrap=True,
    )
    results = read_results(out)  # again: another process may have added to it
    together = with_matched(dict(sorted({**results.get("systems", {}), system.name: entry}.items())))
    write_results(out, {"made_by": entry["made_by"], "systems": together, "verdicts": verdicts(together)})


def _spent(config: Mapping[str, Any], effort: Effort) -> bool:
    """Whether an entry was made with this effort; keys that efforts had once may stand there too."""
    plain = json.loads(json.dumps(asdict(effort)))  # as the file has it: tuples are lists there
    return all(config.get(name) == value for name, value in plain.items())
