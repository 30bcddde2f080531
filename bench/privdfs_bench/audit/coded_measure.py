"""Audit a coded release: coalitions that must learn nothing, what more servers see, and what travels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from privdfs_bench.audit.attacks import NAMED, quiet
from privdfs_bench.audit.coded import (
    CodedJob,
    CodedVictim,
    cliff_jobs,
    coalition_jobs,
    coded_job,
    coded_view,
    settings,
    strong_jobs,
    undefended_jobs,
)
from privdfs_bench.audit.effort import SEED
from privdfs_bench.audit.jobs import Job, job
from privdfs_bench.audit.measure import attack, short
from privdfs_bench.audit.run import Done, floors
from privdfs_bench.audit.wire import LEAST_P, check_wire
from privdfs_bench.releases import nhwc, short_digest
from privdfs_bench.results import made_by
from privdfs_training.attacks import selfchecks
from privdfs_training.attacks.classify import guess_class

#: A coalition that must learn nothing may be so many dB above the mean image, and so much above chance at the class:
#: what is left is the noise of training and of counting.
AT_FLOOR, AT_CHANCE = 0.1, 0.01
#: Standard deviations of counting, where few images are guessed.
DEVIATIONS = 4.0
#: Bytes of the wire that are counted, and images that they are sharings of.
WIRE_BYTES, WIRE_IMAGES = 10_000_000, 256


def measure_coded(
    victim: CodedVictim, folder: Path, console: Console, threads: int = 1, *, wire_bytes: int = WIRE_BYTES
) -> tuple[dict[str, Any], dict[str, list[Done]]]:
    """Attack one coded release.

    Args:
        victim: The release.
        folder: Of what attacks found before, and will find; guessing the class and the look at the wire start anew.
        console: For progress.
        threads: Of this machine's; several attacks are made at once on them.
        wire_bytes: How many bytes of what travels are looked at.

    Returns:
        Its entry of the result file, and what every attack found: `coalitions`, `cliff`, `undefended`.

    Raises:
        Error: An attack cannot be run.
    """
    if victim.effort.diffuse is not None:
        _ = victim.prior  # one that is missing is an error now, not after an hour
    floor = floors(victim)
    console.print("floors: " + ", ".join(f"{name.replace('_', ' ')} {value:.2f} dB" for name, value in floor.items()))
    done: dict[str, list[Done]] = {"coalitions": [], "cliff": [], "undefended": []}

    def all_of(group: str, wanted: Sequence[Job]) -> list[Done]:
        found = attack(victim, wanted, folder, console, threads)
        done[group] += [found[one] for one in wanted]
        return done[group]

    all_of("undefended", undefended_jobs(victim))
    all_of("cliff", cliff_jobs(victim))
    proven: list[dict[str, Any]] = []
    for servers, colluding in settings():
        linear = attack(victim, coalition_jobs(victim, servers, colluding), folder, console, threads)
        done["coalitions"] += linear.values()
        members = max(linear.values(), key=lambda one: one.margin).job.members
        all_of("coalitions", strong_jobs(victim, members, servers, colluding))
        proven.append(_proven(victim, members, servers, colluding, done["coalitions"], wire_bytes))
        console.print(_told(proven[-1]), highlight=False, soft_wrap=True)
    cliff_class = _class_guess(victim, done["cliff"][0].job.members, 3, 1)
    return _entry(victim, floor, done, proven, cliff_class), done


def _proven(
    victim: CodedVictim,
    members: tuple[int, ...],
    servers: int,
    colluding: int,
    coalitions: Sequence[Done],
    wire_bytes: int,
) -> dict[str, Any]:
    """What was seen of a promise that is proven."""
    mine = [one for one in coalitions if isinstance(one.job, CodedJob) and one.job.servers == servers]
    strongest = max(mine, key=_above_mean_image)
    images = nhwc(victim.data.test_images[:WIRE_IMAGES])
    return {
        "servers": servers,
        "colluding": colluding,
        "strongest": short(strongest) | {"blind_floor": strongest.row["blind_floor"]},
        "above_mean_image": round(_above_mean_image(strongest), 4),
        "class": _class_guess(victim, members, servers, colluding),
        "wire": [asdict(one) for one in check_wire(victim.networks, images, servers, colluding, wire_bytes)],
    }


def _class_guess(victim: CodedVictim, members: tuple[int, ...], servers: int, colluding: int) -> dict[str, Any]:
    """How often a classifier names the class from what a coalition has."""
    view = coded_view(victim, coded_job(job(victim, "dense", members), servers, colluding))
    labels = victim.data.test_labels[: victim.targets]
    guess = guess_class(view, len(victim.data.classes), victim.effort.dense, seed=SEED, progress=quiet)
    chance = float(labels.bincount().max() / len(labels))
    accuracy = float((guess == labels).float().mean())
    return {"members": list(members), "accuracy": accuracy, "chance": chance, "images": len(labels)}


def _above_mean_image(one: Done) -> float:
    """PSNR above the mean image's on the same images, in dB."""
    return one.row["psnr"] - one.row["blind_floor"]


def _entry(
    victim: CodedVictim,
    floor: dict[str, float],
    done: Mapping[str, Sequence[Done]],
    proven: list[dict[str, Any]],
    cliff_class: dict[str, Any],
) -> dict[str, Any]:
    """What stands in the result file."""
    undefended = {one.job.attack: one.row["psnr"] for one in done["undefended"]}
    cliff = short(max(done["cliff"], key=lambda one: one.margin))
    rounds = victim.networks.rounds
    return {
        "made_by": made_by(asdict(victim.effort) | {"pairs": victim.pairs, "targets": victim.targets}, seed=SEED),
        "release": victim.name,
        "sharing": "coded",
        "rounds": len(rounds),
        "degree": [each.degree for each in rounds],
        "moduli": [list(each.moduli) for each in rounds],
        # The fusion stays on the device, and no attack looks at it.
        "graphs": {name: short_digest(digest) for name, digest in victim.digests.items() if name != "fusion"},
        "data": f"{victim.data.name}, attackers trained on the training half, scored on the test half",
        "floor": floor,
        "undefended": undefended,
        "proven": proven,
        "coalitions": [_row(one) for one in done["coalitions"]],
        "cliff": [_row(one) for one in done["cliff"]],
        "cliff_class": cliff_class,
        # Of more servers than may collude: what they decode is the same for every T.
        "worst": {str(colluding + 1): cliff | {"members": list(range(colluding + 1))} for _, colluding in settings()},
        "flags": [asdict(flag) for flag in _flags(undefended, floor["class_mean"], done, proven)],
        "sources": {name: one.source for name, one in NAMED.items()},
    }


def _row(one: Done) -> dict[str, Any]:
    """A row of the result file."""
    told = {"servers": one.job.servers, "colluding": one.job.colluding} if isinstance(one.job, CodedJob) else {}
    return one.row | told


def _flags(
    undefended: Mapping[str, float],
    class_mean: float,
    done: Mapping[str, Sequence[Done]],
    proven: Sequence[Mapping[str, Any]],
) -> list[selfchecks.Flag]:
    """What speaks against the figures, and what speaks against the proof: a fault of the code that shares."""
    measured = [one.measured() for group in ("coalitions", "cliff") for one in done[group]]
    return [
        *(flag for one in proven for flag in broken_promises(one)),
        *selfchecks.check_undefended(undefended, {one.attack for one in measured}, class_mean),
        *selfchecks.check_each(measured),
    ]


def broken_promises(proven: Mapping[str, Any]) -> list[selfchecks.Flag]:
    """What an audit saw of a coalition that must learn nothing, and of what travels, that cannot be chance.

    Args:
        proven: A row of `proven` in the entry.
    """
    flags, who = [], f"{proven['colluding']} of {proven['servers']} servers"
    if proven["above_mean_image"] > AT_FLOOR:
        flags.append(
            selfchecks.Flag(
                "not at the floor",
                f"{who}: {proven['strongest']['attack']} is {proven['above_mean_image']:.2f} dB above the mean image, "
                "and they must learn nothing: find the fault in how values are shared before anything else",
            )
        )
    guess = proven["class"]
    counting = (guess["chance"] * (1 - guess["chance"]) / guess["images"]) ** 0.5
    if guess["accuracy"] - guess["chance"] > max(AT_CHANCE, DEVIATIONS * counting):
        flags.append(
            selfchecks.Flag(
                "class", f"{who}: guess the class of {guess['accuracy']:.1%}, chance is {guess['chance']:.1%}: as above"
            )
        )
    flags += [
        selfchecks.Flag(
            "wire",
            f"{who}: {one['check']}: chance does as badly once in {1 / max(one['p'], 1e-300):.3g} times: as above",
        )
        for one in proven["wire"]
        if one["p"] <= LEAST_P
    ]
    return flags


def _told(proven: Mapping[str, Any]) -> str:
    """A line for the console."""
    wire = ", ".join(f"{one['check']} p = {one['p']:.3g}" for one in proven["wire"])
    return (
        f"{proven['colluding']} of {proven['servers']} servers: {proven['above_mean_image']:+.3f} dB above the mean "
        f"image, class {proven['class']['accuracy']:.2%} (chance {proven['class']['chance']:.2%}); wire: {wire}"
    )


def coded_table(name: str, entry: Mapping[str, Any]) -> Table:
    """One coded release's attacks beside the floors."""
    shown = Table(title=f"Reconstruction from the shares of {name}", title_justify="left", show_edge=False)
    for column in ("attacker", "attack", "PSNR, dB", "above mean image", "above class mean", "SSIM", "images"):
        shown.add_column(column, justify="left" if column in {"attacker", "attack"} else "right")
    for floor, psnr in entry["floor"].items():
        shown.add_row("without a share", floor.replace("_", " "), f"{psnr:.2f}", "", "", "", "")
    for one in [*entry["coalitions"], *entry["cliff"]]:
        who = f"{', '.join(map(str, one['members']))} of {one['servers']}"
        shown.add_row(
            who,
            one["attack"],
            f"{one['psnr']:.2f}",
            f"{one['psnr'] - one['blind_floor']:+.2f}",
            f"{one['psnr'] - one['floor']:+.2f}",
            f"{one['ssim']:.3f}",
            str(one["images"]),
        )
    for attack_name, psnr in entry["undefended"].items():
        shown.add_row("undefended split", attack_name, f"{psnr:.2f}", "", "", "", "")
    return shown
