"""Probabilities that are as often right as they say: a map on the fused log-probabilities, fitted and put in the graph.

Fusion bounds every log-probability, so its clear answers look less sure than they are. A temperature alone cannot
repair that without making doubtful answers too sure. So the map has one slope for each segment of log-probability, and
one set of slopes for each number of servers that answer. Every slope is positive: the ranking of the classes stays, and
with it every accuracy, also under liars.

The map is fitted on the training images that `data.held_out` kept from training. Where there are too few, it is fitted
on others, turned, scaled, and moved one pixel further than training moved them: a system is surer of images it was
trained on than of new ones, and views it has not seen stand in for those. No test image is used.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from privdfs._format import ANSWERED, PROBABILITIES, CalibrationError
from privdfs_export import evaluate
from privdfs_export.contents import Graph, Graphs
from privdfs_export.errors import ExportError, ParityError
from privdfs_training.config import Config
from privdfs_training.data import ImageData, as_trained

#: Training images that the map is fitted on, where too few were held out.
FIT_IMAGES = 10_000
#: Images held out that are enough to fit a map on.
FEWEST_HELD_OUT = 1000
#: Temperatures that are tried for the logits of a coded release, evenly spread by their logarithm.
TEMPERATURES = np.geomspace(0.2, 5.0, 400)
#: Bins of the expected calibration error.
BINS = 15
#: Where segments of log-probability meet. Fusion's floor of -5 lies in the first segment, which undoes the floor.
KNOTS = (-4.0, -2.0)
#: Slopes stay within this, so that classes keep their ranking also in float32.
SLOPES = (0.1, 20.0)
#: Pulls log-slopes towards 0, where few images fall into a segment.
PULL = 1e-4
#: A probability that float32 rounds to zero counts as this when the map is fitted.
SMALLEST = 1e-30
#: Degrees and fraction of the size that a view is turned and scaled by at most; each takes a part of the images.
VIEWS = ((5.0, 0.05), (10.0, 0.10))
#: Of the map's slopes in the graph.
SLOPES_NAME = "calibration_slopes"
_LOWER = np.array([np.finfo(np.float32).min, *KNOTS], np.float32)
_UPPER = np.array([*KNOTS, 0.0], np.float32)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Graphs whose fusion has a map.

    Attributes:
        graphs: All of them; only the fusion differs from those that were given.
        slopes: float32 [servers, segments]; row k is for k + 1 answers.
        fitted_on: Which images, in words.
    """

    graphs: Graphs
    slopes: NDArray[np.float32]
    fitted_on: str

    def __repr__(self) -> str:
        """What it was fitted on."""
        return f"Calibrated({self.fitted_on!r})"


def calibrate(built: Graphs, data: ImageData, config: Config, partitions: int | None) -> Calibrated:
    """Fit the map on training images, and put it in the fusion.

    Args:
        built: Graphs whose fusion has no map yet.
        data: The set that the system was trained on.
        config: Of that training.
        partitions: How many a keyed release has; None for others.

    Raises:
        ExportError: The fusion has a map already.
    """
    pixels, labels, fitted_on = unseen(data, config.data.held_out, FIT_IMAGES, familiar_shift(config) + 1)
    images = np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
    branches = [branch.session for branch in built.branches]
    answers = evaluate.server_answers(built.encoder.session, branches, images, spread(len(images), partitions))
    rows = []
    for count in range(1, len(branches) + 1):
        groups = list(itertools.combinations(range(len(branches)), count))
        fused = np.concatenate([evaluate.fuse(built.fusion.session, answers, group) for group in groups])
        logarithms = torch.from_numpy(fused).double().clamp(min=SMALLEST).log()
        rows.append(fit_slopes(logarithms, labels.repeat(len(groups))))
    slopes = np.stack(rows)
    fusion = Graph(calibrated_fusion(built.fusion.model, slopes))
    return Calibrated(
        graphs=dataclasses.replace(built, fusion=fusion),
        slopes=slopes,
        fitted_on=fitted_on,
    )


def unseen(data: ImageData, held_out: int, count: int, shift: int) -> tuple[Tensor, Tensor, str]:
    """Images that a system was not trained on, and that are no test images.

    Args:
        data: The whole set.
        held_out: How many of its training images were kept from training.
        count: How many others to take, if those are fewer than `FEWEST_HELD_OUT`.
        shift: Pixels that those are moved by at most.

    Returns:
        Images uint8 [batch, channels, height, width], labels int64 [batch], and what they are in words.
    """
    if held_out >= FEWEST_HELD_OUT:
        return *as_trained(data, held_out).sample("test"), fitted_on_held_out(held_out)
    pixels, labels = as_trained(data, held_out).sample("train", count)
    views = f"{len(labels)} training images, each mirrored, turned, scaled and moved at random"
    return unfamiliar(pixels, shift), labels, views


def fitted_on_held_out(count: int) -> str:
    """What a manifest says of a map that was fitted on images held out from the release's own training."""
    return f"{count} training images that were held out"


def measure(
    plain: Graphs,
    calibrated: Calibrated,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    partitions: NDArray[np.int32] | None,
) -> CalibrationError:
    """Expected calibration errors before and after, and the check that no answer changed.

    Args:
        plain: The graphs without the map.
        calibrated: The same graphs with it.
        images: uint8 [images, height, width, channels], of none that the map was fitted on.
        labels: int64 [images].
        partitions: Of a keyed release, int32 [images].

    Raises:
        ParityError: Some subset of the servers gives an image another class than before.
    """
    answers = evaluate.server_answers(
        plain.encoder.session, [branch.session for branch in plain.branches], images, partitions
    )
    servers = range(len(plain.branches))
    fusions = (plain.fusion.session, calibrated.graphs.fusion.session)
    for group in itertools.chain.from_iterable(itertools.combinations(servers, size + 1) for size in servers):
        before, after = (evaluate.fuse(fusion, answers, group).argmax(axis=1) for fusion in fusions)
        if changed := int((before != after).sum()):
            message = f"calibration changed the class of {changed} images, and it must change none. Report this."
            raise ParityError(message, "fusion", changed, 0)
    errors = [calibration_error(evaluate.fuse(fusion, answers, servers), labels) for fusion in fusions]
    return CalibrationError(
        before=errors[0],
        after=errors[1],
        fitted_on=calibrated.fitted_on,
    )


def spread(count: int, partitions: int | None) -> NDArray[np.int32] | None:
    """The partition of each of some images, int32 [count]: the whole family in turn; None without keys."""
    return None if partitions is None else np.arange(count, dtype=np.int32) % np.int32(partitions)


def familiar_shift(config: Config) -> int:
    """How many pixels training moved the images by that head, branches and fusion saw; the baseline does not count."""
    stages = (config.train.masks, config.train.finetune, config.train.branches, config.train.fusion)
    return max(stage.crop_padding for stage in stages if stage is not None)


def unfamiliar(images: Tensor, shift: int) -> Tensor:
    """Views of images, always the same: mirrored, turned, scaled and moved.

    Args:
        images: uint8 [batch, channels, height, width].
        shift: Pixels that an image is moved by at most, down or right.

    Returns:
        As `images`.
    """
    generator, parts = torch.Generator().manual_seed(0), images.tensor_split(len(VIEWS))
    return torch.cat([_viewed(part, *view, shift, generator) for part, view in zip(parts, VIEWS, strict=True)])


def _viewed(images: Tensor, degrees: float, zoom: float, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image under its own random affine map."""
    batch, _, height, width = images.shape
    angle, scale, right, down = 2 * torch.rand(4, batch, generator=generator) - 1
    mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    cosine = torch.cos(angle * math.radians(degrees)) * (1 + scale * zoom)
    sine = torch.sin(angle * math.radians(degrees)) * (1 + scale * zoom)
    across = torch.stack([cosine * mirror, -sine, 2 * pixels / width * right], dim=1)
    along = torch.stack([sine * mirror, cosine, 2 * pixels / height * down], dim=1)
    grid = F.affine_grid(torch.stack([across, along], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().clamp(0, 255).to(torch.uint8)


def fit_slopes(log_probabilities: Tensor, labels: Tensor) -> NDArray[np.float32]:
    """The slopes with the smallest cross-entropy.

    Args:
        log_probabilities: double [images, classes].
        labels: int64 [images].

    Returns:
        float32 [segments], within `SLOPES`.
    """
    pieces = segments(log_probabilities)
    logarithms = torch.zeros(len(_LOWER), dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([logarithms], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = F.cross_entropy(pieces @ logarithms.exp(), labels) + PULL * logarithms.square().mean()
        found.backward()
        return found

    optimiser.step(loss)  # pyright: ignore[reportArgumentType]  it takes whatever can be made a float
    return logarithms.detach().exp().clamp(*SLOPES).float().numpy()


def segments(log_probabilities: Tensor) -> Tensor:
    """Log-probabilities [images, classes] cut at the knots: [images, classes, segments]."""
    lower, upper = torch.from_numpy(_LOWER), torch.from_numpy(_UPPER)
    return log_probabilities.unsqueeze(-1).clamp(lower, upper)


def mapped(probabilities: Tensor, answered: Tensor, slopes: NDArray[np.float32]) -> Tensor:
    """What the graph computes after fusion, in torch.

    Args:
        probabilities: Fused, without the map, float [batch, classes].
        answered: bool [batch, servers].
        slopes: float32 [servers, segments].

    Returns:
        float [batch, classes].
    """
    chosen = torch.from_numpy(slopes)[answered.sum(dim=1) - 1]
    return (segments(probabilities.log()) * chosen[:, None]).sum(dim=2).softmax(dim=1)


def slopes_of(fusion: onnx.ModelProto) -> NDArray[np.float32] | None:
    """The map of a fusion, float32 [servers, segments]; None where it has none."""
    found = [one for one in fusion.graph.initializer if one.name == SLOPES_NAME]
    return numpy_helper.to_array(found[0]).astype(np.float32) if found else None


def is_calibrated(fusion: onnx.ModelProto) -> bool:
    """Whether a fusion has a map already."""
    return slopes_of(fusion) is not None


def with_slopes(fusion: onnx.ModelProto, slopes: NDArray[np.float32]) -> onnx.ModelProto:
    """A fusion with this map, whether it had one before or not.

    Args:
        fusion: It is not changed.
        slopes: float32 [servers, segments]; all one change no probability.

    Returns:
        A checked model.

    Raises:
        ExportError: The map has another shape than the fusion's, or the fusion does not end in a softmax.
    """
    servers = next(
        given.type.tensor_type.shape.dim[1].dim_value for given in fusion.graph.input if given.name == ANSWERED
    )
    if slopes.shape != (servers, len(_LOWER)):
        message = (
            f"a map of shape {list(slopes.shape)} is not for a fusion of {servers} servers. Take one of its config."
        )
        raise ExportError(message)
    if not is_calibrated(fusion):
        return calibrated_fusion(fusion, slopes)
    model = copy.deepcopy(fusion)
    for initializer in model.graph.initializer:
        if initializer.name == SLOPES_NAME:
            initializer.CopyFrom(numpy_helper.from_array(slopes, SLOPES_NAME))
    onnx.checker.check_model(model, full_check=True)
    return model


def calibrated_fusion(fusion: onnx.ModelProto, slopes: NDArray[np.float32]) -> onnx.ModelProto:
    """A fusion with the map before its last softmax.

    Args:
        fusion: It ends in a softmax over the classes; it is not changed.
        slopes: float32 [servers, segments].

    Returns:
        A checked model.

    Raises:
        ExportError: It has a map already, or does not end in a softmax.
    """
    if is_calibrated(fusion):
        raise ExportError("the fusion is calibrated already. Start from the release it was before, or export it again.")
    model = copy.deepcopy(fusion)
    graph = model.graph
    last = next((node for node in graph.node if PROBABILITIES in node.output), None)
    if last is None or last.op_type != "Softmax":
        raise ExportError("the fusion does not end in a softmax, so it cannot be calibrated. Export the release again.")
    raw = last.input[0]
    graph.node.remove(last)
    constants = {
        "slopes": slopes,
        "lower": _LOWER,
        "upper": _UPPER,
        "one": np.array(1, np.int64),
        "answers": np.array([1], np.int64),
        "classes": np.array([1], np.int64),
        "segments": np.array([2], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, f"calibration_{name}") for name, value in constants.items())
    steps: Sequence[tuple[str, list[str], str, dict[str, int]]] = (
        ("Cast", [ANSWERED], "given", {"to": onnx.TensorProto.INT64}),
        ("ReduceSum", ["calibration_given", "calibration_answers"], "count", {"keepdims": 0}),
        ("Sub", ["calibration_count", "calibration_one"], "row", {}),
        ("Gather", ["calibration_slopes", "calibration_row"], "chosen", {"axis": 0}),
        ("Unsqueeze", ["calibration_chosen", "calibration_classes"], "factors", {}),
        ("LogSoftmax", [raw], "log", {"axis": 1}),
        ("Unsqueeze", ["calibration_log", "calibration_segments"], "wide", {}),
        ("Max", ["calibration_wide", "calibration_lower"], "raised", {}),
        ("Min", ["calibration_raised", "calibration_upper"], "cut", {}),
        ("Mul", ["calibration_cut", "calibration_factors"], "sloped", {}),
        ("ReduceSum", ["calibration_sloped", "calibration_segments"], "logits", {"keepdims": 0}),
    )
    for kind, inputs, name, attributes in steps:
        node = helper.make_node(kind, inputs, [f"calibration_{name}"], f"calibration_{name}")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        graph.node.append(node)
    graph.node.append(helper.make_node("Softmax", ["calibration_logits"], [PROBABILITIES], axis=1))
    onnx.checker.check_model(model, full_check=True)
    return model


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature at which answers are as sure, on average, as they are right; it leaves every ranking as it is.

    Clarté et al., "Expectation consistency for calibration of neural networks", arXiv 2303.02644. The temperature of
    the smallest cross-entropy is moved by single wrong answers that are sure; this one is not.

    Args:
        logits: [images, classes], of images that were not trained on.
        labels: int64 [images].

    Returns:
        What to divide logits by.
    """
    right = (logits.argmax(axis=1) == labels).mean()
    sure = [_surest(logits / temperature).mean() for temperature in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(np.abs(np.array(sure) - right)))])


def _surest(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The largest probability of each image, [images]."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return 1 / raised.sum(axis=1)


def calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Expected calibration error of the top class, in 15 bins of equal width (Guo et al., 2017).

    Args:
        probabilities: [images, classes].
        labels: int64 [images].

    Returns:
        Mean distance between the stated probability and the accuracy of a bin, weighted by its images; a fraction.
    """
    stated = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(stated * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, weights=right - stated, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))
