"""How often a coded release answers as its unprotected model does, on photographs that need no labels.

All are measured on the same pixels. Beside the release stand floors: the model's most frequent class on the training
photographs, its mean answer there, its answer to the one that is nearest in pixels, and that every class is as likely.
"""

import argparse
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from privdfs import Client
from privdfs._coded_format import CodedManifest, round_bytes
from privdfs._format import IMAGE
from privdfs_bench.coded import open_coded
from privdfs_bench.errors import BenchError
from privdfs_bench.photos import find_photos
from privdfs_bench.releases import graph_digests, manifest_data, nhwc, release_name, verified_graph
from privdfs_bench.results import made_by
from privdfs_export import evaluate
from privdfs_export.serve import serve_release
from privdfs_export.sessions import run_batched
from privdfs_training.coded.system import load_coded
from privdfs_training.data import DataSet, as_trained
from privdfs_training.data.pictures import centre_crop, decode, read_file

CALL_IMAGES = 32
TIMEOUT_S = 600.0
TOP = 5
#: Of ImageNet-1K's 1,000 classes, in the order of their folders' names, the first so many are animals.
IMAGENET_CLASSES, IMAGENET_ANIMALS = 1000, 398
SMALL = 32  # height and width at which photographs are compared pixel by pixel
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Photographs:
    """Photographs as a release takes them.

    Attributes:
        pixels: uint8 [photographs, height, width, 3].
        labels: int64 [photographs], the classes that their folders name.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __repr__(self) -> str:
        """The number, never pixels or labels."""
        return f"Photographs({len(self.labels)})"


def measure(release: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure one coded release over tritonservers.

    Args:
        release: Its folder.
        options: Of the command line.
        console: For progress.

    Returns:
        Its entry in the result file.

    Raises:
        Error: The release, its checkpoint or the photographs cannot be used, or a server did not answer.
    """
    networks, name = open_coded(release), release_name(release)
    manifest = networks.manifest
    held_out = read_photographs(options.held_out, manifest)
    trained = load_coded(options.checkpoint, factory=options.factory)
    trained_on = _learned_from(manifest_data(manifest, options.data), trained.config.data.held_out)
    check_apart(held_out.pixels, trained_on)
    baseline = evaluate.session(verified_graph(release / "baseline", "baseline"))

    def model(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        return softmax(run_batched(baseline, {IMAGE: pixels})[0])

    with console.status(f"{name}: the unprotected model, and the exported files"):
        wanted, of_training = model(held_out.pixels), model(trained_on)
        plain = networks.plain(held_out.pixels)
    with torch.inference_mode():
        values = torch.from_numpy(plain.values[0]).float().view(-1, *trained.system.polynomials[0].inputs)
        readout = softmax(trained.system.read(values).numpy())
    with console.status(f"{name}: tritonservers"), serve_release(release) as endpoints:
        served = _served(release, endpoints, held_out.pixels)
        about = made_by({}, seed=manifest.made_by.seed, endpoint=endpoints[0])
    answers = {
        "release": served,
        "linear_readout": readout,
        "nearest_in_pixels": of_training[nearest_photographs(held_out.pixels, trained_on)],
        "mean_answer": np.broadcast_to(of_training.mean(axis=0), wanted.shape),
    }
    systems = {system: compared(found, wanted, held_out.labels) for system, found in answers.items()}
    systems["most_frequent"] = _most_frequent(of_training, wanted, held_out.labels)
    systems["all_alike"] = {"divergence": _divergence(np.full_like(wanted, 1 / wanted.shape[1]), wanted)}
    up, down = (sum(way) for way in zip(*map(round_bytes, manifest.rounds), strict=True))
    return {
        "release": manifest.release,
        "graphs": graph_digests(release),
        "photographs": {"held_out": len(held_out.labels), "trained_on": len(trained_on)},
        "classes": len(manifest.classes),
        "servers": len(endpoints),
        "rounds": len(manifest.rounds),
        "answers_as_exported": int((served.argmax(axis=1) == plain.probabilities.argmax(axis=1)).sum()),
        "model_right": _counted(wanted.argmax(axis=1) == held_out.labels),
        "systems": systems,
        "client_macs": manifest.macs.head + manifest.macs.fusion,
        "baseline_macs": manifest.macs.baseline,
        "bytes_up": up,
        "bytes_down": down,
        "made_by": about,
    }


def _served(release: Path, endpoints: Sequence[str], pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Probabilities through the SDK, some photographs a call."""
    found = list[NDArray[np.float32]]()
    with Client(release / "client", endpoints, allow_unsigned=True, timeout=TIMEOUT_S) as client:
        for at in range(0, len(pixels), CALL_IMAGES):
            found += [result.probabilities for result in client.predict_batch(pixels[at : at + CALL_IMAGES])]
    return np.stack(found).astype(np.float64)


def read_photographs(folder: Path, manifest: CodedManifest) -> Photographs:
    """Photographs of a folder for each class, cropped as test images are.

    Args:
        folder: Its folders have names of the release's classes, but need not have all.
        manifest: Of the release.

    Returns:
        The photographs.

    Raises:
        BenchError: A folder has no class's name.
        DataError: A file is no picture.
    """
    names, photos = find_photos(folder)
    places = {name: place for place, name in enumerate(manifest.classes)}
    unknown = [name for name in names if name not in places]
    if unknown:
        raise BenchError(f"{folder} has the folder {unknown[0]}, and {manifest.release} has no such class: remove it")
    random = np.random.default_rng(0)  # the centre crop draws nothing
    size = manifest.image.height
    content = ((read_file(photo.path, "Pass a folder that can be read."), str(photo.path)) for photo in photos)
    pixels = np.stack([decode(read, where, size, centre_crop, random) for read, where in content])
    return Photographs(pixels, np.array([places[names[photo.label]] for photo in photos]))


def _learned_from(data: DataSet, held_out: int) -> NDArray[np.uint8]:
    """The photographs that a run was trained on, which held out so many of a set's."""
    return nhwc(as_trained(data, held_out).sample("train")[0])


def check_apart(held_out: NDArray[np.uint8], trained_on: NDArray[np.uint8]) -> None:
    """Refuse photographs, uint8 [photographs, height, width, 3], that the release learned from, mirrored ones too.

    Raises:
        BenchError: Some are the very same.
    """
    learned = {hashlib.sha256(image.tobytes()).digest() for image in trained_on}
    both = zip(held_out, held_out[:, :, ::-1], strict=True)
    known = sum(any(hashlib.sha256(one.tobytes()).digest() in learned for one in pair) for pair in both)
    if known:
        raise BenchError(
            f"{known} of the {len(held_out)} photographs are among those that the release learned from: pass the "
            "folder held-out that bench/photos.py wrote"
        )


def compared(
    found: NDArray[np.float64], wanted: NDArray[np.float64], labels: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """How near answers come to the model's.

    Args:
        found: Probabilities [photographs, classes].
        wanted: The model's.
        labels: True classes.

    Returns:
        For how many the class is the `same`; is one of the model's five (`in_models_top5`); the model's is one of these
        five (`models_in_top5`); the label is met (`right`); of ImageNet, `animal_or_not` is the same. And the
        `divergence` from the model's answer in nats.
    """
    first, models_first = found.argmax(axis=1), wanted.argmax(axis=1)
    result = {
        "same": _counted(first == models_first),
        "in_models_top5": _counted((_top(wanted) == first[:, np.newaxis]).any(axis=1)),
        "models_in_top5": _counted((_top(found) == models_first[:, np.newaxis]).any(axis=1)),
        "right": _counted(first == labels),
    }
    if found.shape[1] == IMAGENET_CLASSES:
        result["animal_or_not"] = _counted(_animal(found) == _animal(wanted))
    return result | {"divergence": _divergence(found, wanted)}


def interval(hits: int, count: int) -> tuple[float, float]:
    """Where the fraction may lie of which a sample is known: Wilson's interval (1927), 95 %.

    Args:
        hits: In the sample.
        count: Size of the sample.

    Returns:
        Both ends, in 0..1.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / count / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def nearest_photographs(pixels: NDArray[np.uint8], among: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each photograph the nearest of others: least squared difference of small copies without their mean colour."""
    ours, theirs = _small(pixels), _small(among)
    distances = (theirs**2).sum(axis=1) - 2 * ours @ theirs.T  # and |ours|^2, the same for all
    return distances.argmin(axis=1)


def softmax(logits: NDArray[np.generic]) -> NDArray[np.float64]:
    """Probabilities of logits [photographs, classes]."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    copies = [np.asarray(Image.fromarray(one).resize((SMALL, SMALL), Image.Resampling.BOX)) for one in pixels]
    flat = np.stack(copies).astype(np.float64)
    return (flat - flat.mean(axis=(1, 2), keepdims=True)).reshape(len(flat), -1)


def _most_frequent(
    of_training: NDArray[np.float64], wanted: NDArray[np.float64], labels: NDArray[np.int64]
) -> dict[str, dict[str, Any]]:
    """What the model says most often of training photographs, without looking at the one in question."""
    often = np.bincount(of_training.argmax(axis=1), minlength=of_training.shape[1]) / len(of_training)
    row = compared(np.broadcast_to(often, wanted.shape), wanted, labels)
    del row["divergence"]  # from an answer that rules classes out it is infinite
    return row


def _top(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]


def _animal(probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
    return probabilities[:, :IMAGENET_ANIMALS].sum(axis=1) > probabilities.sum(axis=1) / 2


def _counted(hits: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = interval(int(hits.sum()), len(hits))
    return {"photographs": int(hits.sum()), "share": float(hits.mean()), "interval": [low, high]}


def _divergence(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> dict[str, Any]:
    """Kullback-Leibler divergence of answers from the model's: mean and standard error."""
    tiny = np.finfo(np.float32).tiny
    each = (wanted * (np.log(wanted + tiny) - np.log(found + tiny))).sum(axis=1)
    return {"nats": float(each.mean()), "standard_error": float(each.std(ddof=1) / math.sqrt(len(each)))}


def table(entries: dict[str, dict[str, Any]]) -> Table:
    """What was measured, for the terminal."""
    shown = Table("release", "system", "same class", "in the model's top 5", "animal or not", "nats from the model")
    for name, entry in entries.items():
        for system, row in entry["systems"].items():
            counts = [row.get(key) for key in ("same", "in_models_top5", "animal_or_not")]
            cells = ["" if one is None else f"{one['share']:.1%}" for one in counts]
            apart = row.get("divergence")
            shown.add_row(name, system, *cells, "" if apart is None else f"{apart['nats']:.2f}")
    return shown
