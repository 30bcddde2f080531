"""`python bench/reidentify.py RELEASE… --faces FOLDER`: whether shares tell people apart.

FOLDER has the layout of the ORL (AT&T) database of faces: a folder for each person, photographs in it. Half of each
person's photographs are the attacker's gallery, with names; the others are sent, and the coalition says whose they are.
The release is used as it is: its head was made for other images, so the figures are about what so few values let
through, and not about an application that recognises faces.

Three attackers, each trained or set up from scratch on shares that the release's client makes of the gallery, moved and
mirrored many times over: the nearest share, a network that was trained to tell people by their shares, and a fully
connected decoder after which the picture is compared with the gallery's. Beside them stand guessing, and the same
comparison of the photographs themselves.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from _common import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    RESULTS,
    BenchError,
    made_by,
    merge_release,
    read_results,
    release_name,
    releases,
    shares_of,
    write_results,
)
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from privdfs import Bundle, Error
from privdfs._command_line import signals_interrupt
from privdfs_training.attacks.decoder import DecoderBudget, reconstruct, train_decoder
from privdfs_training.attacks.metrics import mean_interval
from privdfs_training.attacks.reidentify import by_classifier, by_nearest, rank_hits
from privdfs_training.attacks.view import side_by_side
from privdfs_training.augment import crop_and_flip

SEED = 0
COPIES, PADDING = 50, 2  # of each photograph of the gallery, moved by up to so many pixels
BUDGET = DecoderBudget(epochs=20, width=32)
ATTACKS = ("nearest share", "classifier", "reconstruction")
RANKS = (1, 5)


def load_faces(folder: Path, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Read photographs, cut to a square in the middle and scaled.

    Args:
        folder: With a folder for each person.
        shape: Channels, height, width of what comes out.

    Returns:
        uint8 [images, channels, height, width], and whose they are, int64 [images]; each person's in the order of
        their names.

    Raises:
        BenchError: There are fewer than two people, or someone has fewer than two photographs, or one is damaged.
    """
    channels, height, width = shape
    people = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if len(people) < 2:
        raise BenchError(f"{folder} has no two folders of people: pass the folder that holds s1, s2, …")
    images, labels = [], []
    for label, person in enumerate(people):
        files = sorted(path for path in person.iterdir() if path.suffix.lower() in {".pgm", ".png", ".jpg"})
        if len(files) < 2:
            raise BenchError(f"{person} has fewer than two photographs: one is to be known, another to be recognised")
        for path in files:
            try:
                with Image.open(path) as opened:
                    picture = ImageOps.fit(opened.convert("L" if channels == 1 else "RGB"), (width, height))
            except (OSError, ValueError) as error:
                raise BenchError(f"{path} is not an image that can be read: get the file again") from error
            values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            images.append(values.view(height, width, channels).permute(2, 0, 1))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def halves(people: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the gallery, the first half of each person's photographs, and of the probes, the others."""
    order = torch.arange(len(people))
    known = torch.cat([order[people == one][: int((people == one).sum()) // 2] for one in people.unique()])
    return known, order[~torch.isin(order, known)]


def measure(release: Path, faces: Path, progress: Progress) -> dict[str, Any]:
    """Attack one release.

    Args:
        release: Its folder.
        faces: As `load_faces` takes it.
        progress: Where it is shown.

    Returns:
        Its entry of the result file.

    Raises:
        Error: The release or the photographs cannot be used.
    """
    bundle = Bundle.open(release / "client", allow_unsigned=True)
    spec = bundle.manifest.image
    images, people = load_faces(faces, (spec.channels, spec.height, spec.width))
    known, sent = halves(people)
    gallery, gallery_people, probes, probe_people = images[known], people[known], images[sent], people[sent]
    torch.manual_seed(SEED)
    copies = crop_and_flip(gallery.repeat(COPIES, 1, 1, 1), padding=PADDING, flip=True)
    copies_people = gallery_people.repeat(COPIES)
    own, copied, received = (shares_of(bundle, part) for part in (gallery, copies, probes))
    coalitions = [
        members for size in range(1, bundle.n_servers + 1) for members in combinations(range(bundle.n_servers), size)
    ]
    task = progress.add_task(release_name(release), total=len(coalitions))
    found: dict[int, dict[str, Any]] = {}
    for members in coalitions:
        mine, many, theirs = (side_by_side(part, members) for part in (own, copied, received))
        network = train_decoder(many, copies, BUDGET, seed=SEED, progress=lambda *_: None, form="dense")
        scores = {
            "nearest share": by_nearest(mine, gallery_people, theirs),
            "classifier": by_classifier(many, copies_people, theirs, seed=SEED),
            "reconstruction": by_nearest(gallery, gallery_people, 255 * reconstruct(network, theirs)),
        }
        for attack, score in scores.items():
            worst = found.setdefault(len(members), {}).get(attack)
            row: dict[str, Any] = {"members": list(members)} | _rates(score, probe_people)
            if worst is None or row["rank 1"]["rate"] > worst["rank 1"]["rate"]:
                found[len(members)][attack] = row
        progress.advance(task)
    return {
        "made_by": made_by({"copies": COPIES, "padding": PADDING}, seed=SEED),
        "identity": bundle.release,
        "people": len(people.unique()),
        "gallery": len(gallery),
        "probes": len(probes),
        "bits": [round(one.share_length * math.log2(one.levels), 1) for one in bundle.manifest.servers],
        "photographs": _rates(by_nearest(gallery, gallery_people, probes), probe_people),
        "coalitions": {str(size): rows for size, rows in found.items()},
    }


def _rates(scores: Tensor, people: Tensor) -> dict[str, Any]:
    """Rates and their intervals over the photographs that were sent."""
    rates = {}
    for rank in RANKS:
        hits = rank_hits(scores, people, min(rank, scores.shape[1]))
        rates[f"rank {rank}"] = {"rate": float(hits.mean()), "interval": list(mean_interval(hits, seed=SEED))}
    return rates


def table(name: str, entry: dict[str, Any]) -> Table:
    """The worst coalition of each size under each attacker."""
    guess = f"guessing {1 / entry['people']:.1%}"
    shown = Table(title=f"{name}: {entry['people']} people, {guess}", title_justify="left", show_edge=False)
    for column in ("servers together", *ATTACKS):
        shown.add_column(column, justify="left" if column == "servers together" else "right")
    for size, rows in entry["coalitions"].items():
        shown.add_row(size, *(f"{rows[one]['rank 1']['rate']:.1%}" for one in ATTACKS))
    shown.add_row("the photographs", "", "", f"{entry['photographs']['rank 1']['rate']:.1%}")
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted.
    """
    parser = argparse.ArgumentParser(prog="reidentify", description="Measure whether shares tell people apart.")
    parser.add_argument("releases", nargs="*", type=Path, metavar="RELEASE", help="folders (default: all releases)")
    parser.add_argument("--faces", type=Path, required=True, metavar="FOLDER", help="a folder for each person")
    parser.add_argument("--out", type=Path, default=RESULTS / "reidentify.json", help="file to add to")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        for release in releases(options.releases):
            results = read_results(options.out)
            with Progress(console=console, transient=True) as progress:
                entry = measure(release, options.faces, progress)
            write_results(options.out, merge_release(results, release_name(release), entry))
            console.print(table(release_name(release), entry))
    except KeyboardInterrupt:
        print("reidentify: stopped; releases that were finished are kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (Error, OSError) as error:
        print(f"reidentify: {error}", file=sys.stderr)
        return EXIT_ERROR
    console.print(f"\nin {options.out}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    with signals_interrupt():
        sys.exit(main())
