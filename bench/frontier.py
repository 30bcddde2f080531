"""`python bench/frontier.py [SWEEP …]`: many small trainings, and what each buys: accuracy, leakage, client compute.

A sweep is a TOML file (configs/frontier): a config to start from, what all runs change in it, and what each run does.
Every run is trained, its graphs are exported, and an attacker's decoder is trained from scratch on the shares that the
exported encoder makes, for one coalition of each size: the one whose shares a linear map inverts best. Coded runs hold
out training images, on which they are measured; the decoder attacks what more servers than may collude decode. Runs
are resumed, and those already in the result file are not made again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from privdfs_bench.audit.frontier import make, tables
from privdfs_bench.audit.sweeps import SWEEPS, chosen, read_sweep
from privdfs_bench.results import read_results
from privdfs_bench.script import add_data, add_out, add_threads, run, start
from privdfs_training.coded.config import CodedConfig
from privdfs_training.coded.train import check_coded
from privdfs_training.interruption import InterruptedTrainingError
from privdfs_training.loop import check
from privdfs_training.parallel import choose_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="frontier", description="Train and measure the runs of sweeps.")
    parser.add_argument(
        "sweeps", nargs="*", type=Path, metavar="SWEEP", help="TOML files (default: all of the project)"
    )
    parser.add_argument("--only", metavar="RUN", help="this run of the one sweep")
    add_data(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "frontier", help="folder of the trainings")
    add_out(parser)
    add_threads(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()

    def work() -> int:
        places = {"data_folder": options.data, "runs": options.runs, "out": options.out}
        device = choose_device(options.device)
        for sweep in [read_sweep(path) for path in options.sweeps or sorted(SWEEPS.glob("*.toml"))]:
            wanted = chosen(sweep, options.only)
            for config in (one.config for one in wanted):
                if isinstance(config, CodedConfig):
                    check_coded(config)
                else:
                    check(config)
            for one in wanted:
                make(one, sweep.attack, **places, console=console, device=device)
        for table in tables(read_results(options.out)):
            console.print(table)
        console.print(f"\nin {options.out}", highlight=False, soft_wrap=True)
        return 0

    def interruptible() -> int:
        try:
            return work()
        except InterruptedTrainingError:
            raise KeyboardInterrupt from None

    return run(parser.prog, interruptible, stopped="the same command continues")


if __name__ == "__main__":
    start(main)
