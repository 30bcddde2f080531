"""`python bench/photos.py FOLDER --out OUT`: cut photographs in three, to train a system and to measure its agreement.

FOLDER has one folder for each class, as ImageNet's train/ has. OUT gets WebDataset shards for `privdfs-train`
(photos-train.tar, and photos-val.tar to choose a design by), and held-out/ for `bench/agreement.py`. A photograph that
looks like a held-out one, by a perceptual hash, goes to no part.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from privdfs_bench.photos import cut, find_photos, write_parts
from privdfs_bench.script import run, start, whole_number


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; None takes the arguments of the process. Exit code: 0 done, 2 an error, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="photos", description="Cut photographs in three parts.")
    parser.add_argument("photos", type=Path, metavar="FOLDER", help="one folder of photographs for each class")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder to write; must not exist")
    parser.add_argument(
        "--validation",
        type=whole_number(1, 10**6),
        default=100,
        metavar="N",
        help="photographs to choose by (default: 100)",
    )
    parser.add_argument(
        "--held-out", type=whole_number(1, 10**6), default=200, metavar="N", help="photographs held out (default: 200)"
    )
    options = parser.parse_args(arguments)

    def work() -> int:
        classes, photos = find_photos(options.photos)
        parts = cut(photos, options.validation, options.held_out, seed=0)
        write_parts(parts, classes, options.out)
        print(
            f"{len(parts.train)} to train on, {len(parts.validation)} to choose by, {len(parts.held_out)} held out, "
            f"{len(parts.left_out)} left out because they look like a held-out one: {options.out}"
        )
        return 0

    return run(parser.prog, work, stopped="remove the folder and start again")


if __name__ == "__main__":
    start(main)
