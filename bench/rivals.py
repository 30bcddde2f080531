"""`python bench/rivals.py SYSTEM… --effort quick|standard|full`: what the same attacks reconstruct of other defences.

A SYSTEM is the folder of a release, or `rival.safetensors` of a run of configs/rivals; releases with `masks.assignment`
"random" or "channel-block" are how a feature that is merely cut in pieces is compared. Nothing is trained here but
attackers. All systems meet the same ones, with the same images, pairs and budgets: a fully connected and a residual
decoder, and optimisation through the head with two priors. Of a release the worst largest minority is attacked, of a
rival its one server; both know everything public, and in the optimisation noise is drawn afresh at every step, so that
it cannot hide a gradient (Athalye et al., ICML 2018, section 4.2).

Leakage counts at equal accuracy: a system more than a point less accurate than our release is listed and not compared.
What stands in the result file already is not attacked again.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _audit import EFFORTS, HIGHEST, SEED, Effort, Job, Victim
from _common import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    RESULTS,
    made_by,
    read_results,
    release_name,
    write_results,
)
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from privdfs import Error
from privdfs._command_line import signals_interrupt, whole_number
from privdfs_training.attacks.decoder import DecoderBudget, Form, reconstruct, train_decoder
from privdfs_training.attacks.floors import class_means, mean_image
from privdfs_training.attacks.linear import rank_by_linear_score
from privdfs_training.attacks.metrics import compare, psnr
from privdfs_training.attacks.optimise import OptimiseBudget, optimise
from privdfs_training.attacks.view import Relation, ServerView
from privdfs_training.data import DataSet, in_memory, load_data
from privdfs_training.rivals.system import INT8_LIMIT, Rival, load_rival

#: Points of accuracy that a system may be behind our release to be compared with it.
MATCHED = 1.0
ATTACKS = ("dense", "decoder", "optimisation", "optimisation-tv")
OURS = "shares, learned masks"
Step = Callable[[float, float], None]


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

    def __repr__(self) -> str:
        """No weights, no images."""
        return f"System({self.identity}, {self.defence})"


def release_system(folder: Path, data_folder: Path | None, effort: Effort) -> System:
    """A release, with the worst of its largest minorities.

    Raises:
        Error: The release or its data set cannot be used.
    """
    victim = Victim(folder, data_folder, effort)
    manifest, images = victim.bundle.manifest, (victim.data.train_images, victim.data.test_images)
    (shares, received), size = victim.shares, victim.minority
    members = rank_by_linear_score(shares, images[0][: victim.pairs], received, images[1][: victim.targets], size)[0]
    same = Relation.SAME_DISTRIBUTION
    assignment = manifest.made_by.config.get("masks", {}).get("assignment", "learned")
    return System(
        name=release_name(folder),
        identity=victim.bundle.release,
        defence=f"shares, {assignment} masks",
        servers=victim.servers,
        members=members,
        accuracy=manifest.accuracy.fused,
        baseline=manifest.accuracy.baseline,
        bits=8 * sum(manifest.servers[one].share_length for one in members),
        client_macs=manifest.macs.head + manifest.macs.fusion,
        baseline_macs=manifest.macs.baseline,
        data=victim.data,
        view=victim.view(Job("", members, victim.pairs, victim.targets, same, effort.optimise)),
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
    shares, received = rival.feature(images, seed=SEED + 1), rival.feature(targets, seed=SEED + 2)
    system, whole = rival.system, received.dtype == torch.int8

    def steps(pixels: Tensor) -> Tensor:
        feature = system.defence.send(system.head(255 * pixels)).float()
        return feature / system.step if whole else feature

    return ServerView(
        members=(0,),
        relation=Relation.SAME_DISTRIBUTION,
        images=images,
        labels=data.train_labels[: len(images)],
        shares=shares,
        answers=torch.zeros(len(images), 0),
        received=received,
        received_answers=torch.zeros(len(targets), 0),
        steps=steps,
        limits=torch.full(received.shape[1:], float(INT8_LIMIT)).flatten(),
    )


def flat(view: ServerView) -> ServerView:
    """The same view with every value in one row, as attacks through the head compare them."""
    steps = view.steps
    return replace(
        view,
        shares=view.shares.flatten(1),
        received=view.received.flatten(1),
        steps=None if steps is None else lambda pixels: steps(pixels).flatten(1),
    )


def attack(view: ServerView, effort: Effort, progress: Callable[[str], Step]) -> dict[str, Tensor]:
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
    found = {}
    decoders: dict[str, tuple[Form, DecoderBudget]] = {
        "dense": ("dense", effort.dense),
        "decoder": ("residual", effort.strong),
    }
    for name, (form, budget) in decoders.items():
        network = train_decoder(view.shares, view.images, budget, seed=SEED, progress=progress(name), form=form)
        found[name] = reconstruct(network, view.received)
    row = flat(view.with_targets(effort.optimised))
    tv = OptimiseBudget(3 * effort.optimise.steps, 1, prior="variation", weight=1e-3)
    for name, budget in (("optimisation", effort.optimise), ("optimisation-tv", tv)):
        found[name] = optimise(row, budget, seed=SEED, progress=progress(name)).images
    return found


def measure(system: System, effort: Effort, name: str, progress: Callable[[str], Step]) -> dict[str, Any]:
    """Attack a system.

    Args:
        system: What is attacked.
        effort: Budgets.
        name: Of the effort.
        progress: As `attack` takes it.

    Returns:
        Its entry of the result file.
    """
    data, attacks = system.data, {}
    average = mean_image(data.train_images)
    means = class_means(data.train_images, data.train_labels, len(data.classes))
    torch.manual_seed(SEED)  # of the noise that some defences draw
    for attack_name, guess in attack(system.view, effort, progress).items():
        images = data.test_images[: len(guess)]
        scores = compare(guess, images)
        floor = psnr(means[data.test_labels[: len(guess)]], images.float() / 255).clamp(max=HIGHEST)
        blind = psnr(average.expand(len(guess), *data.image_shape), images.float() / 255).clamp(max=HIGHEST)
        reached = scores.psnr.clamp(max=HIGHEST)
        attacks[attack_name] = {
            "psnr": float(reached.mean()),
            "ssim": float(scores.ssim.mean()),
            "floor": float(floor.mean()),
            "blind_floor": float(blind.mean()),
            "above": float((reached - floor).mean()),
            "images": len(guess),
        }
    worst = max(attacks, key=lambda one: attacks[one]["above"])
    return {
        "made_by": made_by(asdict(effort), seed=SEED),
        "identity": system.identity,
        "effort": name,
        "data": data.name,
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
    columns = ("system", "defence", "bits", "accuracy", "points lost", *ATTACKS, "above class mean")
    for column in columns:
        shown.add_column(column, justify="left" if column in {"system", "defence"} else "right")
    for name, entry in sorted(systems.items(), key=lambda one: (one[1]["data"], one[1]["worst"]["above"])):
        shown.add_row(
            name,
            entry["defence"],
            f"{entry['bits']:,}",
            f"{entry['accuracy']:.2%}" + ("" if entry["matched"] else " (not matched)"),
            f"{entry['lost_points']:.2f}",
            *(f"{entry['attacks'][one]['psnr']:.2f}" for one in ATTACKS),
            f"{entry['worst']['above']:+.2f}",
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="rivals", description="Attack releases and rival defences alike.")
    parser.add_argument(
        "systems", nargs="+", type=Path, metavar="SYSTEM", help="folder of a release, or rival.safetensors of a run"
    )
    parser.add_argument("--effort", choices=EFFORTS, default="standard", help="how much attackers spend")
    parser.add_argument(
        "--data", type=Path, help="folder of the data set; default $PRIVDFS_DATA, then where Debian installs it"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "rivals.json", help="file to add to")
    parser.add_argument("--threads", type=whole_number(1, 1024), help="CPU threads")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    try:
        read_results(options.out)  # a file that cannot be added to is an error now, not after an hour
        for path in options.systems:
            _add(path, options, console)
    except KeyboardInterrupt:
        print("rivals: stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"rivals: {error}", file=sys.stderr)
        return EXIT_ERROR
    found = read_results(options.out)
    console.print(table(found["systems"]))
    for sentence in found["verdicts"]:
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(f"\nin {options.out}", highlight=False, soft_wrap=True)
    return 0


def _add(path: Path, options: argparse.Namespace, console: Console) -> None:
    """Attack one system and add it to the result file, unless it stands there already."""
    effort = EFFORTS[options.effort]
    make = release_system if path.is_dir() else rival_system
    system = make(path, options.data, effort)
    results = read_results(options.out)
    before = results.get("systems", {}).get(system.name, {})
    spent = json.loads(json.dumps(asdict(effort)))  # as the file has it: tuples are lists there
    if before.get("identity") == system.identity and before["made_by"]["config"] == spent:
        console.print(f"{system.name}: in {options.out} already", highlight=False, soft_wrap=True)
        return
    with Progress(console=console, transient=True) as bar:

        def progress(name: str) -> Step:
            task = bar.add_task(f"{system.name}: {name}", total=1.0)
            return lambda done, _: bar.update(task, completed=done)

        entry = measure(system, effort, options.effort, progress)
    worst = entry["worst"]
    console.print(
        f"{system.name}: {worst['attack']} {worst['psnr']:.2f} dB, {worst['above']:+.2f} dB above the class mean",
        highlight=False,
        soft_wrap=True,
    )
    results = read_results(options.out)  # again: another process may have added to it
    together = with_matched(dict(sorted({**results.get("systems", {}), system.name: entry}.items())))
    write_results(options.out, {"made_by": entry["made_by"], "systems": together, "verdicts": verdicts(together)})


if __name__ == "__main__":
    with signals_interrupt():
        sys.exit(main())
