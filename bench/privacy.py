"""`python bench/privacy.py [RELEASE …] --effort quick|standard|full`: what coalitions of servers can reconstruct.

An attacker has what a coalition has (`ServerView`): its shares as the bundle makes them from the attacker's own images
(the training half of the data set, so the same distribution), each value in its known place, its branches' answers, and
the head. Attacks, efforts and what they cost are in `_audit.py`. Beside every figure stand the floors (the mean image;
the mean image of the class, which every branch's answer reveals anyway; the nearest training image by the fused answer)
and the same attack on an undefended split, the baseline cut after its first layer. Below the table stand the flags of
an evaluation that should not be trusted; all of it, with pictures of what came out, is on a page beside the results.

All of it is a lower bound on what a coalition can learn, not a proof that it learns no more. Several attacks are made
at once, on a thread each. A run that was stopped goes on with the same command; what attacks found is kept in
runs/privacy.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from _audit import EFFORTS, SEED, SOURCES, Done, Effort, Job, Victim, floors, jobs, run
from _common import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    ROOT,
    BenchError,
    made_by,
    merge_release,
    read_results,
    release_name,
    release_parser,
    releases,
    write_results,
)
from _privacy_report import strips, write_report
from _side_by_side import run_side_by_side
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from privdfs import Error
from privdfs._command_line import signals_interrupt, whole_number
from privdfs_export.release import MAY_BE_PASSED_ON
from privdfs_training.attacks import selfchecks
from privdfs_training.attacks.perceptual import load_lpips
from privdfs_training.parallel import choose_device


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
    every = [job for wanted in groups.values() for job in wanted]
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
    done = {group: [found[job] for job in wanted] for group, wanted in groups.items()}
    coalitions = done["coalitions"]
    worst = {
        str(size): max((one for one in coalitions if len(one.job.members) == size), key=lambda one: one.margin)
        for size in range(1, victim.servers + 1)
    }
    undefended = {one.job.attack: one.row["psnr"] for one in done["undefended"]}
    measured = [one.measured() for group in ("coalitions", "queries", "shifted", "keys") for one in done[group]]
    used = {one.attack for one in measured}
    flags = [
        *selfchecks.check_undefended(undefended, used, floor["class_mean"]),
        *selfchecks.check_views([one.measured() for one in coalitions]),
        *selfchecks.check_more(measured),
        *selfchecks.check_keys(
            {one.row["requests"]: one.row["psnr"] for one in done["keys"] if one.row["knows"] == "partition"}
        ),
        *selfchecks.check_each(measured),
    ]
    entry = {
        "made_by": made_by(asdict(victim.effort) | {"pairs": victim.pairs, "targets": victim.targets}, seed=SEED),
        "release": victim.bundle.release,
        "data": f"{victim.data.name}, attackers trained on the training half, scored on the test half",
        "floor": floor,
        "undefended": undefended,
        "coalitions": [one.row for one in coalitions],
        "worst": {size: _short(one) for size, one in worst.items()},
        "queries": [one.row for one in done["queries"]],
        "shifted": [one.row for one in done["shifted"]],
        "keys": [one.row for one in done["keys"]],
        **({} if victim.partition is None else {"partition": victim.partition}),
        "flags": [asdict(flag) for flag in flags],
        "sources": SOURCES,
    }
    return entry, done


def _one(victim: Victim, job: Job, folder: Path, progress: Progress, console: Console) -> Done:
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


def _short(one: Done) -> dict[str, Any]:
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


def report(
    victim: Victim, name: str, entry: dict[str, Any], done: dict[str, list[Done]], options: argparse.Namespace
) -> Path:
    """Write the page of a release beside the results, and where images are wanted that may not be passed on, another.

    Args:
        victim: The release.
        name: Of the release.
        entry: Of the release in the result file.
        done: What the attacks found.
        options: Of the command line.

    Returns:
        The page, of two the one with images.
    """
    frontier = options.out.with_name("frontier.json")
    shared = victim.data.name in MAY_BE_PASSED_ON
    page = write_report(
        options.out.with_suffix("") / name, name, entry, strips(victim, done) if shared else [], frontier
    )
    if shared or not options.show_images:
        return page
    return write_report(options.runs / victim.bundle.release, name, entry, strips(victim, done), frontier)


def chosen_effort(options: argparse.Namespace) -> Effort:
    """The effort of a name, with what the command line changes.

    Raises:
        BenchError: A number is not positive.
    """
    given = {name: getattr(options, name) for name in ("pairs", "images", "epochs", "seconds")}
    for name, value in given.items():
        if value is not None and value <= 0:
            raise BenchError(f"--{name} must be more than 0, not {value}")
    effort = EFFORTS[options.effort]
    if options.pairs:
        effort = replace(effort, pairs=options.pairs, undefended=min(effort.undefended, options.pairs))
    if options.images:
        few = {name: min(getattr(effort, name), options.images) for name in ("optimised", "diffused")}
        effort = replace(effort, targets=options.images, **few)
    if options.epochs:
        changed = (replace(budget, epochs=options.epochs) for budget in (effort.dense, effort.strong))
        effort = replace(effort, **dict(zip(("dense", "strong"), changed, strict=True)))
    if options.prior == Path("none"):
        effort = replace(effort, diffuse=None)
    return replace(effort, seconds=options.seconds) if options.seconds else effort


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted.
    """
    parser = release_parser("privacy", "Measure what coalitions of servers can reconstruct.")
    parser.add_argument("--effort", choices=EFFORTS, default="standard", help="how much attackers spend")
    parser.add_argument("--pairs", type=whole_number(1, 10**9), help="the attacker's own images, at most")
    parser.add_argument("--images", type=whole_number(1, 10**9), help="test images to attack, at most")
    parser.add_argument("--epochs", type=whole_number(1, 10**9), help="of every decoder")
    parser.add_argument("--seconds", type=float, help="stop the training of a decoder after so long")
    parser.add_argument(
        "--prior",
        type=Path,
        help="diffusion prior, or `none` to leave its attack out (default: checkpoints/DATA-prior.safetensors)",
    )
    parser.add_argument(
        "--lpips",
        type=Path,
        help="score LPIPS too, with the weights of this file (docs/PRIVACY.md says which); attacks made without it are"
        " made again",
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "privacy", help="folder of what attacks found")
    parser.add_argument(
        "--show-images",
        action="store_true",
        help="of a data set that may not be passed on, draw reconstructions, into a page in the folder of --runs",
    )
    parser.add_argument("--threads", type=whole_number(1, 1024), help="CPU threads (default: one for each core)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    options = parser.parse_args(arguments)
    threads = options.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    console = Console()
    try:
        read_results(options.out)  # a file that cannot be added to is an error now, not after an hour
        effort, device = chosen_effort(options), choose_device(options.device)
        lpips = load_lpips(options.lpips) if options.lpips else None
        for release in releases(options.releases):
            name = release_name(release)
            victim = Victim(release, options.data, effort, options.prior, lpips, device)
            entry, done = measure(victim, options.runs, console, threads)
            entry["effort"] = options.effort if effort == EFFORTS[options.effort] else f"{options.effort}, changed"
            write_results(options.out, merge_release(read_results(options.out), name, entry))
            console.print(table(name, entry))
            page = report(victim, name, entry, done, options)
            for flag in entry["flags"]:
                console.print(f"flag ({flag['check']}): {flag['message']}", highlight=False, soft_wrap=True)
            console.print(f"page with pictures: {page}", highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        print("privacy: stopped; the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"privacy: {error}", file=sys.stderr)
        return EXIT_ERROR
    console.print(
        f"\nadded to {options.out}; to put it into a manifest: privdfs-export leakage RELEASE {options.out}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    with signals_interrupt():
        sys.exit(main())
