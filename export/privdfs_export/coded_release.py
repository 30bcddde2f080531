"""A trained coded system to a release on disk.

Guarantees:

- Nothing is written before every graph gives the very integers of plain int64 arithmetic on every test image, from
  shares made with fresh randomness, and whichever servers answer. Only the head, which is floating point, may move a
  value by one level, as in masked releases; all that follows is exact, but for the last step: probabilities and the
  baseline are floating point again, and compared within a tolerance.
- The release appears whole, under its final name, or not at all.
- The release id is derived from the bytes of the graphs, and depends neither on N nor on T.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from privdfs import coding
from privdfs._coded_format import ANSWERS, RESIDUES, VALUES, CodedAccuracy, CodedManifest, RoundSpec, numbered
from privdfs._format import IMAGE, IMAGES, LOGITS, PROBABILITIES, SHARE, CalibrationError
from privdfs_export import parity
from privdfs_export.calibration import calibration_error, fit_temperature, unseen
from privdfs_export.coded_contents import CodedGraphs, build_coded_graphs, coded_manifest, round_specs
from privdfs_export.coded_run import CodedRun, run_coded
from privdfs_export.coded_writing import check_servers, write_coded_release
from privdfs_export.errors import ParityError
from privdfs_export.evaluate import fraction_right
from privdfs_export.release import GOLDEN_IMAGES, MAY_BE_PASSED_ON, check_same_data, drawn_images
from privdfs_export.sessions import run_batched
from privdfs_export.triton import GraphEngine
from privdfs_export.writing import Sidecar, refuse_existing
from privdfs_training.coded.system import CodedSystem, TrainedCodedSystem
from privdfs_training.data import ImageData, as_trained

BATCH = 250
#: Training images that the temperature is fitted on, where too few were held out.
CALIBRATION_IMAGES = 5000
#: Servers that answer beside those that are needed, while graphs are compared.
SPARE_SERVERS = 2


def export_coded(
    trained: TrainedCodedSystem,
    data: ImageData,
    out: Path,
    *,
    engine: GraphEngine,
    servers: int,
    console: Console,
) -> CodedManifest:
    """Build a coded release.

    Args:
        trained: A finished coded system.
        data: The whole set it was trained on; its test images serve parity and accuracy.
        out: Folder of the release; must not exist.
        engine: What Triton runs the rounds with.
        servers: How many servers get a folder.
        console: Where the steps are shown.

    Returns:
        The client's manifest.

    Raises:
        ParityError: A graph differs from plain integers; nothing was written.
        ExportError: The folder exists, cannot be written, or the data are not those of the system; nothing was written.
    """
    refuse_existing(out)
    check_servers(servers)
    check_same_data(data, trained.classes, trained.system.image_shape)
    fitted = _fitted(trained, data)
    console.print(
        f"graphs: encoder, {len(trained.rounds)} rounds, fusion, baseline; temperature {fitted.temperature:.2f}"
    )
    built = build_coded_graphs(trained, fitted.temperature)
    pixels, labels = data.sample("test")
    images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    _check_baseline(trained.system, built, images[:BATCH])
    compared = _compare(trained, built, fitted.temperature, images, console)
    accuracy = _accuracy(trained, built, compared, fitted, data, images, labels.numpy())
    at_the_end = _right(trained.system, as_trained(data, trained.config.data.held_out))
    parity.check_data(data.name, at_the_end, trained.accuracy["coded"], None)
    examples = images if data.name in MAY_BE_PASSED_ON else drawn_images(GOLDEN_IMAGES, images.shape[1:])
    client = coded_manifest(trained, built, seen=compared.seen, accuracy=accuracy)
    (baseline,) = run_batched(built.baseline.session, {IMAGE: examples[:GOLDEN_IMAGES]})
    write_coded_release(
        out,
        client,
        built,
        engine=engine,
        servers=servers,
        golden=client_examples(built, client.rounds, examples[:GOLDEN_IMAGES]),
        server_golden=server_examples(built, client.rounds),
        baseline=Sidecar({IMAGE: examples[:GOLDEN_IMAGES], LOGITS: baseline}),
    )
    told = f"baseline {accuracy.baseline:.2%}, coded {accuracy.fused:.2%}, linear readout {accuracy.readout:.2%}"
    console.print(f"{client.release}: {told}, written to {out}")
    return client


@dataclass(frozen=True)
class Fitted:
    """The temperature of a release.

    Attributes:
        temperature: What logits are divided by.
        on: Which images it was fitted on, in words.
    """

    temperature: float
    on: str


@dataclass(frozen=True, eq=False)
class Compared:
    """What the exported graphs gave on the test images.

    Attributes:
        probabilities: float32 [images, classes].
        values: What was shared in the first round, int8 [images, elements].
        seen: Largest magnitude of each round's results.
    """

    probabilities: NDArray[np.float32] = field(repr=False)
    values: NDArray[np.int8] = field(repr=False)
    seen: tuple[int, ...]


def _check_baseline(system: CodedSystem, built: CodedGraphs, images: NDArray[np.uint8]) -> None:
    """Compare the unprotected model with torch."""
    with torch.inference_mode():
        trained = system.baseline(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    (exported,) = run_batched(built.baseline.session, {IMAGE: images})
    parity.check_floats("baseline", exported.astype(np.float32), trained)


def _compare(
    trained: TrainedCodedSystem,
    built: CodedGraphs,
    temperature: float,
    images: NDArray[np.uint8],
    console: Console,
) -> Compared:
    """Compare every round with plain integers, on all images; the servers that answer change from batch to batch."""
    system, rounds = trained.system, round_specs(trained.rounds)
    needed = max(coding.needed_answers(each.degree, 1) for each in rounds)
    servers = needed + SPARE_SERVERS
    choices = itertools.cycle(itertools.combinations(range(servers), needed))
    seen, found, compared, moved = np.zeros(len(rounds), np.int64), list[CodedRun](), 0, 0
    starts = range(0, len(images), BATCH)
    for start in track(starts, "comparing every integer", console=console, transient=True):
        batch = images[start : start + BATCH]
        order = next(choices)
        ran = run_coded(
            built,
            rounds,
            batch,
            servers=servers,
            chosen=lambda index, order=order: order[: coding.needed_answers(rounds[index].degree, 1)],
        )
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2)
        with torch.inference_mode():
            head = system.values(pixels).flatten(1).numpy().astype(np.int8)
        parity.check_shares("encoder", ran.values[0], head)
        moved += int(np.count_nonzero(ran.values[0] != head))
        compared += _compare_exactly(system, rounds, ran, temperature, seen)
        found.append(ran)
    console.print(
        f"{len(images)} images, {compared:,} integers: none differs from plain arithmetic; of the head's values "
        f"{moved} moved by one level"
    )
    return Compared(
        probabilities=np.concatenate([ran.probabilities for ran in found]),
        values=np.concatenate([ran.values[0] for ran in found]),
        seen=tuple(int(largest) for largest in seen),
    )


def _compare_exactly(
    system: CodedSystem, rounds: Sequence[RoundSpec], ran: CodedRun, temperature: float, seen: NDArray[np.int64]
) -> int:
    """Compare what was decoded and shared with plain integers; how many numbers were compared."""
    first = system.polynomials[0].inputs
    shared, results, logits = system.run(ran.values[0].reshape(-1, *first).astype(np.int64))
    count = 0
    for index, (about, answers, expected) in enumerate(zip(rounds, ran.answers, results, strict=True)):
        for residues in (ran.shares[index], answers):
            parity.check_residues(f"round {index + 1}", residues, about.moduli)
        decoded = coding.decode(answers, [server + 1 for server in ran.chosen[index]], about.moduli)
        pairs = [(decoded, expected)]
        if index + 1 < len(rounds):
            pairs.append((ran.values[index + 1].astype(np.int64), shared[index + 1]))
        for have, want in pairs:
            differing = int(np.count_nonzero(have != want.reshape(have.shape)))
            if differing:
                message = f"round {index + 1}: {differing} of {have.size} integers differ from plain arithmetic."
                raise ParityError(message, f"round {index + 1}", differing, 0)
            count += have.size
        seen[index] = max(seen[index], int(np.abs(expected).max()))
    probabilities = torch.softmax(torch.from_numpy(logits / np.float32(temperature)), dim=1).numpy()
    parity.check_floats("fusion", ran.probabilities, probabilities)
    return count


def _accuracy(
    trained: TrainedCodedSystem,
    built: CodedGraphs,
    found: Compared,
    fitted: Fitted,
    data: ImageData,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
) -> CodedAccuracy:
    """As the manifest states it."""
    first = trained.system.polynomials[0].inputs
    with torch.inference_mode():
        shared = torch.from_numpy(found.values).float().view(-1, *first)
        readout = trained.system.read(shared).numpy()
    (baseline,) = run_batched(built.baseline.session, {IMAGE: images})
    return CodedAccuracy(
        data=f"{data.name}, test" + ("" if len(labels) == data.test_size else f", a sample of {data.test_size}"),
        images=len(labels),
        baseline=fraction_right(baseline, labels),
        fused=fraction_right(found.probabilities, labels),
        readout=fraction_right(readout, labels),
        calibration=CalibrationError(
            before=calibration_error(_warmed(found.probabilities, fitted.temperature), labels),
            after=calibration_error(found.probabilities, labels),
            fitted_on=fitted.on,
        ),
    )


def _warmed(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """What the probabilities were without the temperature."""
    raised = np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny) ** temperature
    return raised / raised.sum(axis=1, keepdims=True)


def _fitted(trained: TrainedCodedSystem, data: ImageData) -> Fitted:
    """On images as training never saw them: those of the test set must not decide anything."""
    stages = trained.config.train.rounds, trained.config.train.finetune
    shift = max(stage.crop_padding for stage in stages) + 1
    pixels, labels, on = unseen(data, trained.config.data.held_out, CALIBRATION_IMAGES, shift)
    return Fitted(fit_temperature(_logits(trained.system, pixels), labels.numpy()), on)


def _right(system: CodedSystem, data: ImageData) -> float:
    """Fraction of the test images that a trained system has right."""
    pixels, labels = data.sample("test")
    return fraction_right(_logits(system, pixels), labels.numpy())


def _logits(system: CodedSystem, pixels: Tensor) -> NDArray[np.float32]:
    """What a trained system answers, float32 [images, classes]."""
    with torch.inference_mode():
        return torch.cat([system(part) for part in pixels.split(BATCH)]).numpy()


def _golden_source() -> Callable[[int], bytes]:
    """Golden examples protect nothing, so they are drawn alike at every export: the same inputs give the same files."""
    return np.random.default_rng(0).bytes


def client_examples(
    built: CodedGraphs, rounds: Sequence[RoundSpec], images: NDArray[np.uint8]
) -> dict[str, NDArray[np.generic]]:
    """Golden examples of the client: images, what is shared of them, the first servers' answers, probabilities.

    Args:
        built: The graphs.
        rounds: Of the release.
        images: uint8 [images, height, width, channels].

    Returns:
        `images`, `values_<round>`, `answers_<round>`, `probabilities`.
    """
    needed = max(coding.needed_answers(each.degree, 1) for each in rounds)
    ran = run_coded(built, rounds, images, servers=needed, source=_golden_source())
    examples: dict[str, NDArray[np.generic]] = {IMAGES: images, PROBABILITIES: ran.probabilities}
    for number, (values, answers) in enumerate(zip(ran.values, ran.answers, strict=True), 1):
        examples |= {numbered(VALUES, number): values, numbered(ANSWERS, number): answers}
    return examples


def server_examples(built: CodedGraphs, rounds: Sequence[RoundSpec]) -> dict[str, NDArray[np.generic]]:
    """Golden examples of every server: random residues, as shares are, and the answers to them.

    Args:
        built: The graphs.
        rounds: Of the release.

    Returns:
        `share_<round>` and `residues_<round>`.
    """
    examples = dict[str, NDArray[np.generic]]()
    source = _golden_source()
    for number, (about, graph) in enumerate(zip(rounds, built.rounds, strict=True), 1):
        share = coding.draw((GOLDEN_IMAGES, 1, about.values), about.moduli, source)[:, 0]
        (residues,) = run_batched(graph.session, {SHARE: share})
        examples |= {numbered(SHARE, number): share, numbered(RESIDUES, number): residues}
    return examples
