"""Parity: before anything is written, every graph must compute what the trained network computes, on real images."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privdfs_export.errors import ExportError, ParityError

# Sums in another order move an activation across a rounding tie now and then, and a value by one level with it: half a
# percent of them behind a deep head. Of a head that was not quantised, far more are off.
SHARE_EQUAL = 0.99
SHARE_STEPS = 1
FLOAT_TOLERANCE = 1e-4
ACCURACY_TOLERANCE = 0.002


def check_shares(name: str, exported: NDArray[np.int8], trained: NDArray[np.int8]) -> None:
    """Compare int8 shares.

    Args:
        name: Of the output; used in messages.
        exported: int8 [images, values], from the graph.
        trained: int8 [images, values], from torch.

    Raises:
        ParityError: Shapes differ, too few values are equal, or one is off by more than one level.
    """
    _check_shape(name, exported.shape, trained.shape)
    equal = float((exported == trained).mean())
    largest = int(np.abs(exported.astype(np.int16) - trained.astype(np.int16)).max())
    if equal < SHARE_EQUAL or largest > SHARE_STEPS:
        message = (
            f"{name}: {equal:.4%} of the int8 values equal the trained head's (required: {SHARE_EQUAL:.1%}), and the "
            f"largest difference is {largest} (allowed: {SHARE_STEPS}). Was the head quantised before export?"
        )
        raise ParityError(message, name, 1 - equal, 1 - SHARE_EQUAL)


def check_floats(name: str, exported: NDArray[np.float32], trained: NDArray[np.float32]) -> None:
    """Compare logits or probabilities.

    Args:
        name: Of the graph; used in messages.
        exported: float32, from the graph.
        trained: float32, from torch.

    Raises:
        ParityError: Shapes differ, or a value differs by more than the tolerance, relative to the larger of one and the
            largest trained value.
    """
    _check_shape(name, exported.shape, trained.shape)
    difference = float(np.abs(exported - trained).max() / max(1.0, float(np.abs(trained).max())))
    if not difference <= FLOAT_TOLERANCE:  # written so that NaN fails
        message = f"{name}: differs from the trained network by {difference:.2e} (allowed: {FLOAT_TOLERANCE:.0e})."
        raise ParityError(message, name, difference, FLOAT_TOLERANCE)


def check_residues(name: str, residues: NDArray[np.int8], moduli: Sequence[int]) -> None:
    """Refuse residues that are congruent to the right ones and not the same: clients take centred ones alone.

    Args:
        name: Of the round; used in messages.
        residues: int8 [..., primes, values], from a graph.
        moduli: The primes.

    Raises:
        ParityError: One exceeds half its prime.
    """
    halves = np.array(moduli)[:, np.newaxis] // 2
    beyond = int(np.count_nonzero(np.abs(residues.astype(np.int16)) > halves))
    if beyond:
        message = f"{name}: {beyond} of {residues.size} residues exceed half their prime, so they are not centred."
        raise ParityError(message, name, beyond, 0)


def check_accuracy(exported: float, trained: float) -> None:
    """Compare the fused accuracy of the exported files with torch's.

    Args:
        exported: Fraction.
        trained: Fraction.

    Raises:
        ParityError: They differ by more than 0.2 points.
    """
    difference = abs(exported - trained)
    if difference > ACCURACY_TOLERANCE:
        message = (
            f"the exported files reach {exported:.2%}, the trained system {trained:.2%}: they differ by "
            f"{difference:.2%} (allowed: {ACCURACY_TOLERANCE:.1%})."
        )
        raise ParityError(message, "accuracy", difference, ACCURACY_TOLERANCE)


def check_data(name: str, reached: float, trained: float, sample: int | None) -> None:
    """Refuse data other than those that a system was measured on at the end of its training.

    Args:
        name: Of the data set; used in messages.
        reached: Fused accuracy of the trained system on the test images, or on those held out, a fraction.
        trained: What the checkpoint states.
        sample: Number of images, if they or their partitions are drawn at random; else None.

    Raises:
        ExportError: They differ by more than 0.2 points and, in a sample, four standard errors.
    """
    chance = 0.0 if sample is None else 4 * math.sqrt(max(trained * (1 - trained), 0.01) / sample)
    if abs(reached - trained) > ACCURACY_TOLERANCE + chance:
        message = (
            f"the system reached {trained:.2%} at the end of its training, and reaches {reached:.2%} on these images "
            f"of {name}: these are not the images that it was measured on. Pass the folder of its own data set with "
            "--data, or train again on this one."
        )
        raise ExportError(message)


def _check_shape(name: str, exported: tuple[int, ...], trained: tuple[int, ...]) -> None:
    if exported != trained:
        message = f"{name}: the graph gives shape {exported}, the trained network {trained}."
        raise ParityError(message, name, float("inf"), 0.0)
