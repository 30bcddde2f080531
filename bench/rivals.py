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
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from privdfs_bench.audit.effort import EFFORTS
from privdfs_bench.audit.rivals import add, table
from privdfs_bench.results import read_results
from privdfs_bench.script import add_data, add_out, add_threads, run, start


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="rivals", description="Attack releases and rival defences alike.")
    parser.add_argument(
        "systems", nargs="+", type=Path, metavar="SYSTEM", help="folder of a release, or rival.safetensors of a run"
    )
    parser.add_argument("--effort", choices=EFFORTS, default="standard", help="how much attackers spend")
    add_data(parser)
    add_out(parser)
    add_threads(parser)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()

    def work() -> int:
        read_results(options.out)  # a file that cannot be added to is an error now, not after an hour
        for path in options.systems:
            add(path, options.effort, options.data, options.out, console)
        found = read_results(options.out)
        console.print(table(found["systems"]))
        for sentence in found["verdicts"]:
            console.print(sentence, highlight=False, soft_wrap=True)
        console.print(f"\nin {options.out}", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="the same command goes on from here")


if __name__ == "__main__":
    start(main)
