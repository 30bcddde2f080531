"""`python bench/soak.py`: predictions over five real tritonservers, one killed or started again every few seconds.

The release has random weights, so answers are compared with what the same branches give in this process for the servers
that each result names: a result that differs would be wrong and not flagged. Memory, threads and file descriptors of
this process are read all the time; growth is counted after the warm-up.

A second part has one server that holds one answer in ten back for half a second, on servers in this process, and
compares the latency of a client without and with protection: `wait="quorum"` with one answer less, and hedges to a
second, healthy replica of that server after the 95th percentile of its healthy times.

Results go to bench/results/soak.json.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from privdfs_bench.results import RESULTS, made_by, write_results
from privdfs_bench.script import run, start, whole_number
from privdfs_bench.speed.random_release import write_random_release
from privdfs_bench.speed.soak import CLASSES, CONFIG, SHAPE, soak, straggler
from privdfs_training.reading import load_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="soak", description="Predict while servers are killed and started again.")
    parser.add_argument("--predictions", type=whole_number(1, 10**9), default=100_000, metavar="N")
    parser.add_argument(
        "--straggler-calls",
        type=whole_number(1, 10**9),
        default=1000,
        metavar="N",
        help="of each system (default: 1000)",
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="of the release with random weights")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args(arguments)

    def work() -> int:
        folder = Path(tempfile.mkdtemp(prefix="privdfs-soak-"))  # with the servers' logs, kept after an error
        release = folder / "release"
        write_random_release(load_config(options.config), SHAPE, CLASSES, release)
        try:
            found = {
                "made_by": made_by({"load": os.getloadavg()}, seed=0),
                "straggler": straggler(release, options.straggler_calls),
                "soak": soak(release, options.predictions, folder),
            }
        except KeyboardInterrupt:
            shutil.rmtree(folder)
            raise
        write_results(options.out, found)
        shutil.rmtree(folder)
        print(json.dumps({name: found[name] for name in ("straggler", "soak")}, indent=1))
        return 0

    return run(parser.prog, work, stopped="nothing was written")


if __name__ == "__main__":
    start(main)
