"""Probabilities that mean what they say: a temperature for logits, and how far probabilities are off.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv 1706.04599).
"""

import numpy as np
from numpy.typing import NDArray

#: Bins of the expected calibration error, as in the paper.
BINS = 15
#: What is tried: 400 temperatures, evenly spread by their logarithm.
TEMPERATURES = np.geomspace(0.2, 5.0, 400)


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The temperature whose probabilities make labels likeliest; it leaves every ranking of classes as it is.

    Args:
        logits: [images, classes], of images that were not trained on.
        labels: int64 [images].

    Returns:
        What to divide logits by.
    """
    rows = np.arange(len(labels))
    losses = [-log_softmax(logits / temperature)[rows, labels].mean() for temperature in TEMPERATURES]
    return float(TEMPERATURES[int(np.argmin(losses))])


def calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Expected calibration error of the likeliest class: how far its probability is from how often it is right.

    Args:
        probabilities: [images, classes].
        labels: int64 [images].

    Returns:
        Mean over images of the gap of their bin, a fraction.
    """
    sure = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [abs(float(right[bins == each].sum() - sure[bins == each].sum())) for each in range(BINS)]
    return sum(gaps) / len(labels)


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Logarithms of probabilities.

    Args:
        logits: [images, classes].

    Returns:
        Same shape.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
