"""The golden examples of a coded release, replayed on this device."""

from collections.abc import Mapping

import numpy as np

from privdfs import coding
from privdfs._canaries import Canaries
from privdfs._coded import CodedGraphs
from privdfs._coded_format import ANSWERS, VALUES, CodedManifest, numbered
from privdfs._constants import SELFTEST_PROBABILITY_TOLERANCE, SELFTEST_SHARE_TOLERANCE
from privdfs._errors import BundleFormatError, SelfTestError
from privdfs._format import GOLDEN_NAME, IMAGES, PROBABILITIES
from privdfs._onnx import Array
from privdfs._result import SelfTest


def replay_coded(graphs: CodedGraphs, manifest: CodedManifest, golden: Mapping[str, Array]) -> SelfTest:
    """Compare this device with what was recorded: the head within rounding, everything after it exactly.

    Raises:
        SelfTestError: something differs.
        BundleFormatError: the golden file does not hold the tensors of this release.
    """
    _check_tensors(manifest, golden)
    images, rounds = golden[IMAGES], manifest.rounds
    shared, moved = list[Array](), 0
    exact = True
    for number, about in enumerate(rounds, 1):
        randomness = coding.draw((len(images), 1, about.values), about.moduli)
        servers = coding.needed_answers(about.degree, 1)
        powers = coding.powers(about.moduli, servers, 1)
        if number == 1:
            shares, values = graphs.encode(images, randomness, powers)
            moved = int(np.count_nonzero(values != golden[numbered(VALUES, 1)]))
            shared.append(golden[numbered(VALUES, 1)])
        else:
            before = rounds[number - 2]
            added = shared[before.added - 1] if before.added else None
            shares, values = graphs.relay(
                number - 2,
                golden[numbered(ANSWERS, number - 1)],
                _weights(manifest, number - 1),
                randomness,
                powers,
                added,
            )
            exact &= bool((values == golden[numbered(VALUES, number)]).all())
            shared.append(golden[numbered(VALUES, number)])
        decoded = coding.decode(shares, range(1, servers + 1), about.moduli)
        # In the first round a mask may choose what travels, in the order of the values.
        exact &= _travelled(decoded, values.astype(np.int64))
    probabilities = graphs.fuse(golden[numbered(ANSWERS, len(rounds))], _weights(manifest, len(rounds)))
    recorded = golden[PROBABILITIES]
    error = float(np.abs(probabilities - recorded).max())
    same_label = bool((probabilities.argmax(axis=1) == recorded.argmax(axis=1)).all())
    fraction = moved / golden[numbered(VALUES, 1)].size
    close = fraction <= SELFTEST_SHARE_TOLERANCE and error <= SELFTEST_PROBABILITY_TOLERANCE  # NaN compares false
    if not (exact and close and same_label):
        raise SelfTestError(
            f"the golden examples give different results here: {fraction:.2%} of the head's values differ (allowed "
            f"{SELFTEST_SHARE_TOLERANCE:.0%}), sharing and decoding are {'exact' if exact else 'not exact'}, "
            f"probabilities differ by up to {error:.2g} (allowed {SELFTEST_PROBABILITY_TOLERANCE:g}): try another "
            "version of onnxruntime; do not use the bundle on this device until this passes"
        )
    return SelfTest(images=len(images), differing_values=fraction, probability_error=error)


def find_canaries(graphs: CodedGraphs, manifest: CodedManifest, golden: Mapping[str, Array]) -> Canaries:
    """The golden examples whose values come out on this device exactly as they were recorded.

    Raises:
        ConfigError: there are none.
        BundleFormatError: the golden file does not hold the tensors of this release.
    """
    _check_tensors(manifest, golden)
    images, about = golden[IMAGES], manifest.rounds[0]
    randomness = coding.draw((len(images), 1, about.values), about.moduli)
    _, values = graphs.encode(images, randomness, coding.powers(about.moduli, 2, 1))
    return Canaries.among(images, golden[PROBABILITIES], golden[numbered(VALUES, 1)], values)


def _travelled(decoded: Array, values: Array) -> bool:
    """Whether what shares stand for is what they share; of values that a mask chose, the others are zero."""
    if decoded.shape == values.shape:
        return bool((decoded == values).all())
    return all(
        np.array_equal(np.sort(one[one != 0]), np.sort(other[other != 0]))
        for one, other in zip(decoded, values, strict=True)
    )


def _weights(manifest: CodedManifest, number: int) -> Array:
    about = manifest.rounds[number - 1]
    return coding.weights(about.moduli, range(1, coding.needed_answers(about.degree, 1) + 1))


def _check_tensors(manifest: CodedManifest, golden: Mapping[str, Array]) -> None:
    images = len(golden.get(IMAGES, ()))
    spec = manifest.image
    wanted = {
        IMAGES: ("uint8", (images, spec.height, spec.width, spec.channels)),
        PROBABILITIES: ("float32", (images, len(manifest.classes))),
    }
    for number, about in enumerate(manifest.rounds, 1):
        needed = coding.needed_answers(about.degree, 1)
        wanted[numbered(VALUES, number)] = ("int8", (images, about.elements))
        wanted[numbered(ANSWERS, number)] = ("int8", (images, needed, len(about.moduli), about.outputs))
    found = {name: (str(array.dtype), array.shape) for name, array in golden.items()}
    if images == 0 or found != wanted:
        raise BundleFormatError(f"{GOLDEN_NAME} does not hold the tensors of this release: get the release again")
