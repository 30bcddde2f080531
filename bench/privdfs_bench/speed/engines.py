"""Every branch through TensorRT-RTX, in every precision."""

import hashlib
import importlib
from typing import Any

import numpy as np
import onnx

from privdfs._coded_format import RESIDUES
from privdfs._format import SHARE
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import short_digest
from privdfs_export.engine import BuildOptions, build_engine
from privdfs_export.exact import with_exact_int8
from privdfs_export.precision import Precision, with_precision
from privdfs_export.repository import Repository, StoredModel, Tensors
from privdfs_export.sessions import session
from privdfs_export.verify import relative_difference


def measure(repository: Repository, precision: Precision) -> dict[str, Any]:
    """Build one branch in one precision.

    Args:
        repository: of a server, with golden examples and ranges.
        precision: wanted.

    Returns:
        One entry of the results: seconds, bytes of plan and weights, and against the float32 graph on the golden
        examples the largest difference, relative to the largest logit, and the fraction of equal classes.

    Raises:
        BenchError: TensorRT-RTX, or the golden examples, are missing.
        EngineError: it cannot be built.
    """
    rtx, golden = tensorrt_rtx(), _golden(repository, repository.model)
    graph = with_precision(onnx.load_from_string(repository.model.graph), precision, repository.ranges)
    plan = build_engine(graph, BuildOptions(repository.model.config.max_batch_size), rtx)
    found: dict[str, Any] = {
        "precision": precision,
        "graph": _digest(repository.model),
        "seconds": round(plan.seconds, 2),
        "plan_bytes": len(plan.data),
        "weights_bytes": plan.weights,
        "difference": None,
        "agreement": None,
    }
    if precision != "bf16":
        inputs = {name: values for name, values in golden.items() if name != "logits"}
        answers = np.asarray(session(graph.SerializeToString()).run(None, inputs)[0])
        found["difference"] = float(f"{relative_difference(answers, golden['logits']):.2e}")
        found["agreement"] = float((answers.argmax(1) == golden["logits"].argmax(1)).mean())
    return found


def measure_rounds(repository: Repository) -> list[dict[str, Any]]:
    """Build every round of a coded release's server in each precision that is exact.

    Args:
        repository: of the server, with golden examples.

    Returns:
        For each round and precision seconds, bytes of plan and weights, and how many of the golden residues ONNX
        Runtime computes otherwise from the same graph; more than none is a fault.

    Raises:
        BenchError: TensorRT-RTX, or the golden examples, are missing.
        EngineError: it cannot be built.
    """
    rtx, found = tensorrt_rtx(), list[dict[str, Any]]()
    for number, model in enumerate(repository.models, 1):
        golden, given = _golden(repository, model), onnx.load_from_string(model.graph)
        for precision, graph in (("fp32", given), ("int8", with_exact_int8(given))):
            plan = build_engine(graph, BuildOptions(model.config.max_batch_size), rtx)
            residues = np.asarray(session(graph.SerializeToString()).run(None, {SHARE: golden[SHARE]})[0])
            found.append(
                {
                    "round": number,
                    "precision": precision,
                    "graph": _digest(model),
                    "seconds": round(plan.seconds, 2),
                    "plan_bytes": len(plan.data),
                    "weights_bytes": plan.weights,
                    "golden_residues": residues.size,
                    "differing": int((residues != golden[RESIDUES]).sum()),
                }
            )
    return found


def tensorrt_rtx() -> Any:  # noqa: ANN401 - it has no types
    """TensorRT-RTX's Python package.

    Raises:
        BenchError: It is not installed.
    """
    try:
        return importlib.import_module("tensorrt_rtx_bindings")
    except ImportError as error:
        msg = "TensorRT-RTX is not installed: run `make tensorrt`"
        raise BenchError(msg) from error


def _digest(model: StoredModel) -> str:
    """Of the graph that a precision is made from, as `graph_digests` has it."""
    return short_digest(hashlib.sha256(model.graph).hexdigest())


def _golden(repository: Repository, model: StoredModel) -> Tensors:
    if model.golden is None:
        msg = f"{repository.path} has no golden examples: export the release again with this version"
        raise BenchError(msg)
    return model.golden
