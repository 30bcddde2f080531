"""`python bench/branches.py [CONFIG …]`: how long training steps take on this processor, as ratios within one run.

Whole steps of the stages of each config, against its baseline's step. What is compared is interleaved, step by step,
since machines are noisy; a figure is the median. Images are random: time does not depend on them. Finished networks are
asked in every step, also where training asks them ahead. One thread, since that is how runs are started here.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from privdfs_bench.results import made_by, write_results
from privdfs_bench.script import add_out, run, start, whole_number
from privdfs_bench.speed.steps import CONFIGS, SEED, read_run, steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="branches", description="Time training steps on this processor.")
    parser.add_argument("configs", nargs="*", type=Path, metavar="CONFIG", help="of a run (default: two references)")
    parser.add_argument("--rounds", type=whole_number(1, 10**9), default=20, help="steps of each way (default: 20)")
    add_out(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()

    def work() -> int:
        runs = [read_run(path) for path in options.configs or CONFIGS]
        timed: list[dict[str, Any]] = []
        table = Table("config", "batch", "baseline", "masks", "masks / baseline", "finetune / baseline")
        with console.status("steps"):
            for config in runs:
                found = steps(config, options.rounds)
                timed.append(found)
                table.add_row(*map(str, found.values()))
        console.print(table)
        about = {"rounds": options.rounds, "threads": 1}
        write_results(options.out, {"made_by": made_by(about, seed=SEED), "steps": timed})
        console.print(f"written to {options.out}", highlight=False, soft_wrap=True)
        return 0

    return run(parser.prog, work, stopped="nothing was written")


if __name__ == "__main__":
    start(main)
