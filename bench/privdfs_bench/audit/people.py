"""Whether shares tell people apart."""

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from privdfs import Bundle
from privdfs._format import CLIENT_FOLDER
from privdfs_bench.audit.attacks import ATTACKS, reconstruct
from privdfs_bench.audit.views import view_of_shares
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import graph_digests, release_name, shares_of
from privdfs_bench.results import made_by
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.attacks.metrics import mean_interval
from privdfs_training.attacks.reidentify import by_classifier, by_nearest, rank_hits
from privdfs_training.attacks.view import side_by_side
from privdfs_training.augment import crop_and_flip

SEED = 0
COPIES, PADDING = 50, 2  # of each photograph of the gallery, moved by up to so many pixels
BUDGET = DecoderBudget(epochs=20, width=32)
ATTACKERS = ("nearest share", "classifier", "reconstruction")
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
    bundle = Bundle.open(release / CLIENT_FOLDER, allow_unsigned=True)
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
        seen = view_of_shares(images=copies, labels=copies_people, shares=many, received=theirs)
        scores = {
            "nearest share": by_nearest(mine, gallery_people, theirs),
            "classifier": by_classifier(many, copies_people, theirs, seed=SEED),
            "reconstruction": by_nearest(
                gallery, gallery_people, 255 * reconstruct(seen, ATTACKS["dense"], BUDGET).images
            ),
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
        "graphs": {"encoder": graph_digests(release)["encoder"]},
        "people": len(people.unique()),
        "gallery": len(gallery),
        "probes": len(probes),
        "bits": [round(one.share_length * math.log2(one.levels), 1) for one in bundle.masked.servers],
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
    for column in ("servers together", *ATTACKERS):
        shown.add_column(column, justify="left" if column == "servers together" else "right")
    for size, rows in entry["coalitions"].items():
        shown.add_row(size, *(f"{rows[one]['rank 1']['rate']:.1%}" for one in ATTACKERS))
    shown.add_row("the photographs", "", "", f"{entry['photographs']['rank 1']['rate']:.1%}")
    return shown
