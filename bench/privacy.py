"""`python bench/privacy.py [RELEASE …] --effort quick|standard|full`: what coalitions of servers can reconstruct.

An attacker has what a coalition has (`ServerView`): its shares as the bundle makes them from the attacker's own images
(the training half of the data set, so the same distribution), each value in its known place, its branches' answers, and
the head. Efforts and what they cost are in `privdfs_bench/audit/effort.py`. Beside every figure stand the floors (the
mean image; the mean image of the class, which every branch's answer reveals anyway; the nearest training image by the
fused answer) and the same attack on an undefended split, the baseline cut after its first layer. Below the table stand
the flags of an evaluation that should not be trusted; all of it, with pictures of what came out, is on a page beside
the results.

A coded release is attacked by coalitions of as many servers as may collude, which must learn nothing (N = 3 and 5), and
by one server more, which decodes the feature; and what travels is compared with noise.

All of it is a lower bound on what a coalition can learn, not a proof that it learns no more. Several attacks are made
at once, on a thread each. A run that was stopped goes on with the same command; what attacks found is kept in
runs/privacy.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from privdfs_bench.audit.coded import open_victim
from privdfs_bench.audit.coded_measure import WIRE_BYTES, coded_table, measure_coded
from privdfs_bench.audit.coded_report import write_coded_for
from privdfs_bench.audit.effort import EFFORTS, chosen
from privdfs_bench.audit.measure import measure, table
from privdfs_bench.audit.report import write_for
from privdfs_bench.audit.victim import Victim
from privdfs_bench.releases import is_coded, release_name, releases
from privdfs_bench.results import ROOT, merge_release, read_results, write_results
from privdfs_bench.script import add_data, add_threads, release_parser, run, start, whole_number
from privdfs_training.attacks.perceptual import load_lpips
from privdfs_training.parallel import choose_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    options = _parser().parse_args(arguments)
    threads = options.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    console = Console()

    def work() -> int:
        read_results(options.out)  # a file that cannot be added to is an error now, not after an hour
        changes = {name: getattr(options, name) for name in ("pairs", "images", "epochs", "seconds")}
        effort = chosen(options.effort, **changes, diffusion=options.prior != Path("none"))
        device = choose_device(options.device)
        lpips = load_lpips(options.lpips) if options.lpips else None
        for release in releases(options.releases):
            name = release_name(release)
            private = options.runs if options.show_images else None
            if is_coded(release):
                victim = open_victim(release, options.data, effort, options.prior, lpips, device)
                entry, done = measure_coded(victim, options.runs, console, threads, wire_bytes=options.wire_bytes)
                shown, write = coded_table, partial(write_coded_for, victim)
            else:
                masked = Victim(release, options.data, effort, options.prior, lpips, device)
                entry, done = measure(masked, options.runs, console, threads)
                shown, write = table, partial(write_for, masked)
            entry["effort"] = options.effort if effort == EFFORTS[options.effort] else f"{options.effort}, changed"
            write_results(options.out, merge_release(read_results(options.out), name, entry))
            console.print(shown(name, entry))
            page = write(name, entry, done, options.out, private)
            for flag in entry["flags"]:
                console.print(f"flag ({flag['check']}): {flag['message']}", highlight=False, soft_wrap=True)
            console.print(f"page with pictures: {page}", highlight=False, soft_wrap=True)
        told = f"\nadded to {options.out}; to put it into a manifest: privdfs-export leakage RELEASE {options.out}"
        console.print(told, highlight=False, soft_wrap=True)
        return 0

    return run("privacy", work, stopped="the same command goes on from here")


def _parser() -> argparse.ArgumentParser:
    parser = release_parser("privacy", "Measure what coalitions of servers can reconstruct.")
    add_data(parser)
    parser.add_argument("--effort", choices=EFFORTS, default="standard", help="how much attackers spend")
    parser.add_argument("--pairs", type=whole_number(1, 10**9), help="the attacker's own images, at most")
    parser.add_argument("--images", type=whole_number(1, 10**9), help="test images to attack, at most")
    parser.add_argument("--epochs", type=whole_number(1, 10**9), help="of every decoder")
    parser.add_argument("--seconds", type=float, help="stop the training of a decoder after so long")
    prior = "diffusion prior, or `none` to leave its attack out (default: checkpoints/DATA-prior.safetensors)"
    parser.add_argument("--prior", type=Path, help=prior)
    lpips = "score LPIPS too, with the weights of this file (docs/PRIVACY.md says which); attacks are then made again"
    parser.add_argument("--lpips", type=Path, help=lpips)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "privacy", help="folder of what attacks found")
    wire = "of a coded release, bytes of the wire that are counted (default: 10,000,000)"
    parser.add_argument("--wire-bytes", type=whole_number(1, 10**12), default=WIRE_BYTES, help=wire)
    show = "of a data set that may not be passed on, draw reconstructions, into a page in the folder of --runs"
    parser.add_argument("--show-images", action="store_true", help=show)
    add_threads(parser, "one for each core")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    return parser


if __name__ == "__main__":
    start(main)
