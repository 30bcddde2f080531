"""Attack a release with all that an effort makes, and the table that shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from privdfs_bench.audit.attacks import NAMED
from privdfs_bench.audit.effort import SEED
from privdfs_bench.audit.jobs import Job, jobs
from privdfs_bench.audit.run import Done, floors, run
from privdfs_bench.audit.side_by_side import run_side_by_side
from privdfs_bench.audit.victim import Attacked, Victim
from privdfs_bench.releases import short_digest
from privdfs_bench.results import made_by
from privdfs_training.attacks import selfchecks


def measure(
    victim: Victim, folder: Path, console: Console, threads: int = 1
) -> tuple[dict[str, Any], dict[str, list[Done]]]:
    """Attack one release.

    Args:
        victim: The release.
        folder: Of what attacks found before, and will find.
        console: For progress.
        threads: Of this machine's; several attacks are made at once on them.

    Returns:
        Its entry of the result file, and what every attack found, by the groups of `jobs`.

    Raises:
        Error: An attack cannot be run.
    """
    if victim.effort.diffuse is not None:
        _ = victim.prior  # one that is missing is an error now, not after an hour
    floor = floors(victim)
    console.print("floors: " + ", ".join(f"{name.replace('_', ' ')} {value:.2f} dB" for name, value in floor.items()))
    groups = jobs(victim)
    found = attack(victim, [job for wanted in groups.values() for job in wanted], folder, console, threads)
    done = {group: [found[job] for job in wanted] for group, wanted in groups.items()}
    return _entry(victim, floor, done), done


def attack(victim: Attacked, every: Sequence[Job], folder: Path, console: Console, threads: int = 1) -> dict[Job, Done]:
    """Run attacks, several at once on a thread each.

    Args:
        victim: The release.
        every: The attacks.
        folder: Of what attacks found before, and will find.
        console: For progress.
        threads: Of this machine's.

    Returns:
        What each found.

    Raises:
        Error: One cannot be run.
    """
    found: dict[Job, Done] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("attacks", total=len(every))

        def one(job: Job) -> None:
            found[job] = _one(victim, job, folder, progress, console)
            progress.advance(task)

        run_side_by_side(victim, every, folder, threads, one)
        for job in every:
            if job not in found:
                one(job)
    return found


def _entry(victim: Victim, floor: dict[str, float], done: Mapping[str, Sequence[Done]]) -> dict[str, Any]:
    """What stands in the result file."""
    undefended = {one.job.attack: one.row["psnr"] for one in done["undefended"]}
    return {
        "made_by": made_by(asdict(victim.effort) | {"pairs": victim.pairs, "targets": victim.targets}, seed=SEED),
        "release": victim.bundle.release,
        "graphs": {name: short_digest(victim.digests[name]) for name in ("encoder", "baseline")},
        "data": f"{victim.data.name}, attackers trained on the training half, scored on the test half",
        "floor": floor,
        "undefended": undefended,
        "coalitions": [one.row for one in done["coalitions"]],
        "worst": {str(size): short(_worst(done["coalitions"], size)) for size in range(1, victim.servers + 1)},
        "queries": [one.row for one in done["queries"]],
        "shifted": [one.row for one in done["shifted"]],
        "keys": [one.row for one in done["keys"]],
        **({} if victim.partition is None else {"partition": victim.partition}),
        "flags": [asdict(flag) for flag in _flags(undefended, floor["class_mean"], done)],
        "sources": {name: attack.source for name, attack in NAMED.items()},
    }


def _worst(coalitions: Sequence[Done], size: int) -> Done:
    """Of the coalitions of a size, the one that reaches most."""
    return max((one for one in coalitions if len(one.job.members) == size), key=lambda one: one.margin)


def _flags(
    undefended: Mapping[str, float], class_mean: float, done: Mapping[str, Sequence[Done]]
) -> list[selfchecks.Flag]:
    """What speaks against the figures."""
    measured = [one.measured() for group in ("coalitions", "queries", "shifted", "keys") for one in done[group]]
    keys = {one.row["requests"]: one.row["psnr"] for one in done["keys"] if one.row["knows"] == "partition"}
    return [
        *selfchecks.check_undefended(undefended, {one.attack for one in measured}, class_mean),
        *selfchecks.check_views([one.measured() for one in done["coalitions"]]),
        *selfchecks.check_more(measured),
        *selfchecks.check_keys(keys),
        *selfchecks.check_each(measured),
    ]


def _one(victim: Attacked, job: Job, folder: Path, progress: Progress, console: Console) -> Done:
    """Run one attack and say what it found."""
    who = f"servers {job.members}" if job.members else "undefended split"
    name = f"{job.attack}, {who}, {job.pairs} pairs"
    task = progress.add_task(name, total=1.0)
    found = run(
        victim,
        job,
        folder,
        lambda done, loss: progress.update(task, completed=done, description=f"{name}, loss {loss:.4f}"),
    )
    progress.remove_task(task)
    row = found.row
    console.print(
        f"{name}: {row['psnr']:.2f} dB, SSIM {row['ssim']:.3f}, {row['images']} images, {row['seconds']} s",
        highlight=False,
        soft_wrap=True,
    )
    return found


def short(one: Done) -> dict[str, Any]:
    """Of the worst coalition of a size, what other files and the README show."""
    return {key: one.row[key] for key in ("attack", "members", "psnr", "ssim", "floor", "images")}


def table(name: str, entry: dict[str, Any]) -> Table:
    """One release's attacks beside floors and the undefended split, the strongest of each size last."""
    shown = Table(title=f"Reconstruction from the shares of {name}", title_justify="left", show_edge=False)
    for column in ("attacker", "attack", "PSNR, dB", "above class mean", "best twentieth, dB", "SSIM", "images"):
        shown.add_column(column, justify="left" if column in {"attacker", "attack"} else "right")
    for floor, psnr in entry["floor"].items():
        shown.add_row("without a share", floor.replace("_", " "), f"{psnr:.2f}", "", "", "", "")
    order = sorted(entry["coalitions"], key=lambda one: (one["size"], one["psnr"] - one["floor"]))
    for one in [*order, *entry["keys"]]:
        shown.add_row(
            f"servers {', '.join(map(str, one['members']))}",
            one["attack"],
            f"{one['psnr']:.2f}",
            f"{one['psnr'] - one['floor']:+.2f}",
            f"{one['psnr_worst']:.2f}",
            f"{one['ssim']:.3f}",
            str(one["images"]),
        )
    for attack, psnr in entry["undefended"].items():
        shown.add_row("undefended split", attack, f"{psnr:.2f}", "", "", "", "")
    return shown
