"""The release format of coded shares, format version 2. `_format` has what it shares with masked ones.

A coded release is a folder like a masked one. `client` holds the encoder, one relay for each round but the last, the
fusion and golden examples; `server-<i>` holds the same networks for every server, one model a round, and its place i.
The number of servers and how many of them may collude are not in the release: whoever deploys it chooses them.

| graph | inputs | outputs |
| --- | --- | --- |
| encoder | `image` uint8 [batch, H, W, C]; `randomness` int8 [batch, T, primes, values]; `powers` int8 [primes, N, T] | `shares` int8 [batch, N, primes, values]; `values` int8 [batch, elements] |
| branch of a round | `share` int8 [batch, primes, values] | `residues` int8 [batch, primes, outputs] |
| relay after round r | `answers` int8 [batch, answered, primes, outputs]; `weights` int8 [primes, answered]; `randomness`, `powers` of the next round; `added` int8 [batch, outputs] where the round adds earlier values | `shares` and `values` of the next round |
| fusion | `answers`, `weights` of the last round | `probabilities` float32 [batch, classes] |
"""  # noqa: E501 - a table

import math
from typing import Annotated

import msgspec

from privdfs._format import (
    PROBABILITIES,
    SHARE,
    CalibrationError,
    Engine,
    Fraction,
    ImageSpec,
    Index,
    Leakage,
    Macs,
    MadeBy,
    PlanSpec,
    Positive,
    ReleaseId,
    Sha256,
    Signature,
    Struct,
    TensorSpec,
    image_tensor,
)
from privdfs.coding import MAX_SERVERS, PRIMES

CODED_FORMAT_VERSION = 2

#: Tensors of the graphs and of requests; also of the golden examples, where `numbered` adds the round.
RANDOMNESS = "randomness"
POWERS = "powers"
SHARES = "shares"
VALUES = "values"
RESIDUES = "residues"
ANSWERS = "answers"
WEIGHTS = "weights"
ADDED = "added"

#: Above the place of every server: modulo a smaller prime some place is 0, and its share the value itself. Residues of
#: larger primes do not fit int8 with room to spare (`privdfs.coding`).
Modulus = Annotated[int, msgspec.Meta(gt=MAX_SERVERS, le=241)]
#: Of more primes, clients' arithmetic would not be exact: the product of these is just below 2^48.
Moduli = Annotated[tuple[Modulus, ...], msgspec.Meta(min_length=1, max_length=len(PRIMES))]


class RoundSpec(Struct, frozen=True):
    """One exchange with all servers.

    Attributes:
        values: what the device shares, for each image; in the first round, those that the learned mask chose.
        elements: of the tensor that they were chosen from: channels x height x width.
        levels: how many different values there are (odd): from -(levels - 1) / 2 on.
        outputs: results for each image.
        degree: D, of the servers' polynomial.
        moduli: the primes.
        bound: magnitude that no result can exceed, whatever is shared; proven, and below half the primes' product.
        seen: largest magnitude of a result on the test images; it promises nothing.
        added: number of the round, from 1, whose shared values the device adds to the results; 0: none.
        macs: multiply-accumulates of one server for one image, over all primes.
    """

    values: Positive
    elements: Positive
    levels: Annotated[int, msgspec.Meta(ge=3, le=255)]
    outputs: Positive
    degree: Annotated[int, msgspec.Meta(ge=1, le=8)]
    moduli: Moduli
    bound: Positive
    seen: Index
    added: Index
    macs: Index


class CodedAccuracy(Struct, frozen=True):
    """Accuracies of the exported files, as fractions.

    Attributes:
        data: name of the data set, and which part.
        images: how many.
        baseline: of the unprotected model.
        fused: of the answer; the same whoever answers.
        readout: of a linear readout of what the device shares, which it could compute alone.
        calibration: how much the probabilities are off.
    """

    data: str
    images: Positive
    baseline: Fraction
    fused: Fraction
    readout: Fraction
    calibration: CalibrationError | msgspec.UnsetType = msgspec.UNSET


class CodedManifest(Struct, frozen=True):
    """`client/manifest.json` of a coded release: what an edge device needs to know of it."""

    format_version: int
    release: ReleaseId
    made_by: MadeBy
    classes: Annotated[tuple[str, ...], msgspec.Meta(min_length=2)]
    image: ImageSpec
    rounds: Annotated[tuple[RoundSpec, ...], msgspec.Meta(min_length=1)]
    max_batch: Positive
    files: dict[str, Sha256]
    accuracy: CodedAccuracy
    macs: Macs
    #: Measured attacks of more servers than may collude: fewer learn nothing, which needs no measurement.
    leakage: tuple[Leakage, ...] = ()


class ServerRound(Struct, frozen=True):
    """What a server needs to know of one round; the names are those of `RoundSpec`."""

    values: Positive
    outputs: Positive
    degree: Positive
    moduli: Moduli


class CodedServerManifest(Struct, frozen=True):
    """`server-<i>/manifest.json` of a coded release: what the operator of one server needs to know."""

    format_version: int
    release: ReleaseId
    server: Index
    rounds: Annotated[tuple[ServerRound, ...], msgspec.Meta(min_length=1)]
    engine: Engine
    files: dict[str, Sha256]
    made_by: MadeBy
    #: Of the engine "tensorrt" alone: of each round, in order.
    plans: tuple[PlanSpec, ...] | msgspec.UnsetType = msgspec.UNSET


def branch_model(number: int) -> str:
    """Name under which Triton serves the network of a round, counted from 1."""
    return f"branch-{number}"


def branch_file(number: int) -> str:
    """The graph of a round, in the folder of a server."""
    return f"{branch_model(number)}/1/model.onnx"


def relay_name(number: int) -> str:
    """File of what the device does after a round, counted from 1, that is not the last."""
    return f"relay-{number}.onnx"


def numbered(name: str, number: int) -> str:
    """Name of a round's tensor among golden examples, where every round has its own."""
    return f"{name}_{number}"


def largest_degree(manifest: CodedManifest) -> int:
    """The D of all rounds: what decides how many servers a call needs."""
    return max(each.degree for each in manifest.rounds)


def coded_encoder_signature(manifest: CodedManifest) -> Signature:
    """Of the encoder: an image and fresh randomness to the shares of the first round."""
    first = manifest.rounds[0]
    return Signature((image_tensor(manifest.image), *_sharing_inputs(first)), _sharing_outputs(first))


def server_round(each: RoundSpec) -> ServerRound:
    """What a server's manifest says of a round."""
    return ServerRound(values=each.values, outputs=each.outputs, degree=each.degree, moduli=each.moduli)


def round_signature(each: RoundSpec | ServerRound) -> Signature:
    """Of every server's branch in one round: residues to residues."""
    primes = len(each.moduli)
    share = TensorSpec(SHARE, "int8", (primes, each.values))
    return Signature((share,), (TensorSpec(RESIDUES, "int8", (primes, each.outputs)),))


def relay_signature(manifest: CodedManifest, number: int) -> Signature:
    """Of what the device does after a round, counted from 1: answers and fresh randomness to the next shares."""
    current, following = manifest.rounds[number - 1 : number + 1]
    added = (TensorSpec(ADDED, "int8", (current.outputs,)),) if current.added else ()
    return Signature((*_answer_inputs(current), *_sharing_inputs(following), *added), _sharing_outputs(following))


def coded_fusion_signature(manifest: CodedManifest) -> Signature:
    """Of the fusion: the answers of the last round to probabilities."""
    probabilities = TensorSpec(PROBABILITIES, "float32", (len(manifest.classes),))
    return Signature(_answer_inputs(manifest.rounds[-1]), (probabilities,))


def round_bytes(each: RoundSpec) -> tuple[int, int]:
    """Bytes of tensors to and from one server for one image, in one round."""
    return len(each.moduli) * each.values, len(each.moduli) * each.outputs


def contradictions(manifest: CodedManifest) -> list[str]:
    """What in a manifest's rounds cannot be true together; empty: nothing."""
    found = list[str]()
    for number, each in enumerate(manifest.rounds, 1):
        if each.levels % 2 == 0:
            found.append(f"round {number}: `levels` must be odd, so that zero is one of them")
        if len(set(each.moduli)) < len(each.moduli) or not all(map(_is_prime, each.moduli)):
            found.append(f"round {number}: `moduli` must be different primes")
        elif 2 * each.bound >= math.prod(each.moduli):
            found.append(f"round {number}: the product of `moduli` is too small for results up to `bound`")
        if each.values > each.elements or (number > 1 and each.values < each.elements):
            found.append(f"round {number}: `values` are chosen from `elements` in the first round alone")
        if each.added > number or (each.added and manifest.rounds[each.added - 1].elements != each.outputs):
            found.append(f"round {number}: `added` names a round with another number of values")
        if number < len(manifest.rounds) and manifest.rounds[number].elements != each.outputs:
            found.append(f"round {number + 1}: `values` must be as many as the `outputs` of the round before")
    last = manifest.rounds[-1]
    if last.outputs != len(manifest.classes) or last.added:
        found.append("the last round must have one output for each class, and add nothing")
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, math.isqrt(number) + 1))


def _sharing_inputs(each: RoundSpec) -> tuple[TensorSpec, TensorSpec]:
    primes = len(each.moduli)
    randomness = TensorSpec(RANDOMNESS, "int8", ("colluding", primes, each.values))
    return randomness, TensorSpec(POWERS, "int8", (primes, "servers", "colluding"), batched=False)


def _sharing_outputs(each: RoundSpec) -> tuple[TensorSpec, TensorSpec]:
    shares = TensorSpec(SHARES, "int8", ("servers", len(each.moduli), each.values))
    return shares, TensorSpec(VALUES, "int8", (each.elements,))


def _answer_inputs(each: RoundSpec) -> tuple[TensorSpec, TensorSpec]:
    primes = len(each.moduli)
    answers = TensorSpec(ANSWERS, "int8", ("answered", primes, each.outputs))
    return answers, TensorSpec(WEIGHTS, "int8", (primes, "answered"), batched=False)
