"""`python bench/random_release.py CONFIG --out DIR`: a release of a config with random weights, to measure its cost.

The networks, graphs and files are those of a trained release, masked or coded; only the weights are drawn, and the int8
ranges measured on random images. Its accuracies are zero, and its classes are numbers.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from privdfs_bench.script import run, start
from privdfs_bench.speed.random_release import write_random


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="random_release", description="Write a release with random weights.")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a config of a training run")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the release; must not exist")
    parser.add_argument("--image", type=int, default=224, metavar="PIXELS", help="height and width (default: 224)")
    parser.add_argument("--grey", action="store_true", help="one channel instead of three")
    parser.add_argument("--classes", type=int, default=1000, metavar="N", help="number of classes (default: 1000)")
    options = parser.parse_args(arguments)

    def work() -> int:
        shape = (1 if options.grey else 3, options.image, options.image)
        write_random(options.config, shape, options.classes, options.out)
        print(f"written to {options.out}; python bench/latency.py {options.out} measures it")
        return 0

    return run(parser.prog, work, stopped="nothing was written")


if __name__ == "__main__":
    start(main)
