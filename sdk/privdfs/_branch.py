"""What a server of a release must be, and whether what it says of itself and what it answers is that.

Guarantees: an answer is float32 [batch, classes], finite and of sane size, or int8 residues of the round's primes, or
it is an `AnswerError`. No error quotes what a server wrote, but for the name of its release, cut and escaped.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privdfs._coded_format import CodedManifest, branch_model, round_signature
from privdfs._constants import MAX_ABS_LOGIT
from privdfs._errors import AnswerError, ServerError, ServerMismatchError
from privdfs._format import (
    BRANCH_MODEL,
    RELEASE_PARAMETER,
    SERVER_PARAMETER,
    Signature,
    TensorSpec,
    branch_signature,
)
from privdfs._manifest import AnyClientManifest
from privdfs._wire import ModelConfig, Tensor, TensorType

#: Element types as KServe spells them, and how an answer's bytes are read.
DATATYPES = {"int8": "INT8", "int32": "INT32", "float32": "FP32"}
_DTYPES = {"int8": np.dtype("i1"), "float32": np.dtype("<f4")}

_ADVICE = "the server is faulty or dishonest; tell its operator"


@dataclass(frozen=True)
class BranchModel:
    """One model that a server must serve: a masked release's branch, or the network of one round.

    Attributes:
        name: of the model.
        inputs: the share, and in a keyed release the partition.
        output: logits, or residues.
        moduli: of residues.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    moduli: tuple[int, ...] = ()


@dataclass(frozen=True)
class Branch:
    """What a server of a release must be; used to check it, and to build and read its messages."""

    server: int
    release: str
    models: tuple[BranchModel, ...]
    max_batch: int


def branches(manifest: AnyClientManifest, servers: int) -> list[Branch]:
    """What each server of a release must be: it has one model, or in a coded release one for each round."""
    return [
        Branch(server, manifest.release, _models(manifest, server), manifest.max_batch) for server in range(servers)
    ]


def _models(manifest: AnyClientManifest, server: int) -> tuple[BranchModel, ...]:
    if isinstance(manifest, CodedManifest):
        rounds = enumerate(manifest.rounds, 1)
        return tuple(_model(branch_model(number), round_signature(each), each.moduli) for number, each in rounds)
    return (_model(BRANCH_MODEL, branch_signature(manifest, server)),)


def _model(name: str, signature: Signature, moduli: tuple[int, ...] = ()) -> BranchModel:
    return BranchModel(name, signature.inputs, signature.outputs[0], moduli)


def judge_config(branch: Branch, model: BranchModel, where: str, config: ModelConfig | None) -> ServerError | None:
    """Whether an endpoint serves this branch: release and server first, then shapes."""
    if config is None:
        return AnswerError(f"{where} gave an unreadable answer to the release check: {_ADVICE}", branch.server)
    release, server = (config.parameters.get(name, "") for name in (RELEASE_PARAMETER, SERVER_PARAMETER))
    wanted = f"server {branch.server} of release {branch.release}"
    if release != branch.release:
        return ServerMismatchError(
            f"{where} serves release {_quoted(release)}, not {branch.release}: install the new bundle if the parties "
            f"have moved on, or start {wanted} there",
            branch.server,
        )
    if server != str(branch.server):
        return ServerMismatchError(
            f"{where} is server {_quoted(server)} of the release, not {branch.server}: put the servers in order",
            branch.server,
        )
    inputs = tuple(_type(each) for each in model.inputs)
    if (config.inputs, config.outputs) != (inputs, (_type(model.output),)) or config.max_batch < branch.max_batch:
        return ServerMismatchError(
            f"{where} calls itself {wanted}, but its tensors differ: its folder was changed; "
            "start it from the release as exported",
            branch.server,
        )
    return None


def _type(tensor: TensorSpec) -> TensorType:
    return TensorType(tensor.name, DATATYPES[tensor.dtype], tensor.sizes)


def read_tensor(server: int, model: BranchModel, batch: int, tensors: tuple[Tensor, ...] | None) -> "npt.NDArray[Any]":
    """The answer in a response: logits float32 [batch, classes], or residues int8 [batch, primes, outputs].

    Raises:
        AnswerError: it holds anything else.
    """
    if tensors is None:
        raise AnswerError(f"gave an unreadable answer: {_ADVICE}", server)
    raws = [each.raw for each in tensors if each.raw is not None]
    if len(tensors) != 1 or len(raws) != 1:
        raise AnswerError(
            f"answered with {len(tensors)} tensors ({len(raws)} of them raw) instead of one: {_ADVICE}", server
        )
    tensor, raw, wanted = tensors[0], raws[0], model.output
    dtype, datatype = _DTYPES[wanted.dtype], DATATYPES[wanted.dtype]
    if (tensor.name, tensor.datatype) != (wanted.name, datatype):
        raise AnswerError(f"answered with another tensor than {wanted.name!r} of type {datatype}: {_ADVICE}", server)
    shape = (batch, *wanted.sizes)
    if tensor.shape != shape or len(raw) != dtype.itemsize * math.prod(shape):
        raise AnswerError(
            f"answered with shape {list(tensor.shape)[:8]} in {len(raw)} bytes instead of {list(shape)}: {_ADVICE}",
            server,
        )
    flat: Any = np.frombuffer(raw, dtype)
    values: npt.NDArray[Any] = flat.reshape(shape)
    if model.moduli:
        largest = np.array(model.moduli, np.int16)[:, np.newaxis] // 2
        if (np.abs(values.astype(np.int16)) > largest).any():
            raise AnswerError(f"answered with numbers that are no residues of the round's primes: {_ADVICE}", server)
        return values
    if not np.abs(values).max() <= MAX_ABS_LOGIT:  # NaN is the largest of all, and compares false
        raise AnswerError(f"answered with NaN, infinite or absurdly large logits: {_ADVICE}", server)
    return values.astype(np.float32, copy=False)


def _quoted(text: str) -> str:
    """A server's own name, made safe for a log line."""
    return ascii(text[:80]) if text else "no name"
