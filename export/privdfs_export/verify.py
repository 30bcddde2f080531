"""`privdfs-export verify DIR`: whether a release, or one server's folder, can be served as it is.

Checked before a server starts, and by `privdfs-serve` itself:

- every file against its SHA-256, nothing added, and the folders of a release against each other;
- config.pbtxt against manifest and graph: name, backend, files, inputs, outputs, release;
- plans against the TensorRT that is installed here, by version;
- golden examples: through the graph always, through the plan where TensorRT and its GPU are here. Of a coded release
  every residue has to be the same.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from privdfs._coded_format import RESIDUES
from privdfs._format import (
    BASELINE_FOLDER,
    BASELINE_MODEL,
    CLIENT_FOLDER,
    LOGITS,
    RELEASE_PARAMETER,
    SERVER_PARAMETER,
    PlanSpec,
)
from privdfs._verify import verify
from privdfs_export.errors import EngineMismatchError, ParityError, RepositoryError, TensorRTMissingError
from privdfs_export.repository import Repository, StoredModel, Tensors, read_repository
from privdfs_export.sessions import session
from privdfs_export.triton import FILES, profiles, triton_type

DESCRIPTION = "Check a release, or one server's folder, before it is served."
#: Of a float32 graph on another processor than the exporter's, relative to the largest logit.
GRAPH_TOLERANCE = 1e-3
#: Of a plan against the float32 graph, by precision, relative to the largest logit. TensorRT sums in another order, and
#: INT8 rounds where another kernel does not. Set by reasoning: no plan has been compared on a GPU yet.
PLAN_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 1e-1, "int8-fp16": 1e-1}
_ORT_TYPES = {f"tensor({name})": name for name in ("uint8", "int8", "int32")} | {"tensor(float)": "float32"}


@dataclass(frozen=True)
class Check:
    """One check, and its result."""

    name: str
    found: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("folder", type=Path, metavar="DIR", help="a release, or one server's folder of it")


def run(options: argparse.Namespace) -> None:
    """Verify, and print what was checked.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: Something does not fit; the message says what to do.
    """
    for folder in verify(options.folder):
        print(f"{folder.name}: release {folder.release}, {folder.files} files as listed")
    for folder in server_folders(options.folder):
        for check in check_repository(read_repository(folder)):
            print(f"{folder.name}: {check.name}: {check.found}")


def server_folders(path: Path) -> list[Path]:
    """Folders that a server is given.

    Args:
        path: A release, or one server's folder.

    Returns:
        `server-0`, …, and `baseline` where there is one; or the folder itself.
    """
    if not (path / CLIENT_FOLDER).is_dir():
        return [path]
    folders = sorted(path.glob("server-*"), key=lambda folder: (len(folder.name), folder.name))
    return [*folders, *([path / BASELINE_FOLDER] if (path / BASELINE_FOLDER).is_dir() else [])]


def check_repository(repository: Repository) -> list[Check]:
    """Check that a server's folder fits itself, and its plan this machine.

    Args:
        repository: Read, so that its files are as listed.

    Returns:
        What was checked, in words.

    Raises:
        RepositoryError: Configuration, graph and manifest contradict each other.
        EngineMismatchError: The plan is of another TensorRT or GPU.
        ParityError: Golden examples give other results.
    """
    checks = list[Check]()
    for model in repository.models:
        try:
            graph = session(model.graph)
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            message = f"{model.path}: ONNX Runtime cannot load its graph ({error}): get the release again."
            raise RepositoryError(message) from error
        checks += [_check_config(repository, model, graph), _check_golden(model, graph)]
        if model.engine == "tensorrt":
            checks += _check_plan(model)
    return checks


def relative_difference(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    """Largest difference of logits.

    Args:
        found: To judge.
        expected: To judge by.

    Returns:
        Relative to the largest expected one (or to 1, if that is larger); NaN where one is NaN.
    """
    return float(
        np.abs(found.astype(np.float64) - expected.astype(np.float64)).max() / max(1.0, float(np.abs(expected).max()))
    )


def off_by(found: NDArray[np.generic], golden: Tensors) -> float:
    """How far the answers of a model are from golden ones.

    Args:
        found: What it answers to golden inputs, or to the first of them.
        golden: With `residues`, or else `logits`.

    Returns:
        How many residues differ, or `relative_difference` of logits.
    """
    expected = golden[answer_name(golden)][: len(found)]
    if RESIDUES in golden:
        return float(np.count_nonzero(found != expected))
    return relative_difference(found, expected)


def answer_name(golden: Tensors) -> str:
    """Name of the output that golden examples are of: `residues` of a coded round, `logits` of others."""
    return RESIDUES if RESIDUES in golden else LOGITS


def told(difference: float, golden: Tensors) -> str:
    """A difference of `off_by` in words."""
    if RESIDUES not in golden:
        return f"off by {difference:.1e}"
    return {0.0: "no residue differs", 1.0: "1 residue differs"}.get(difference, f"{difference:.0f} residues differ")


def plan_tolerance(precision: str, golden: Tensors) -> float:
    """How far a plan may be off, as `off_by` has it: residues not at all."""
    return 0 if RESIDUES in golden else PLAN_TOLERANCE[precision]


def _check_config(repository: Repository, model: StoredModel, graph: ort.InferenceSession) -> Check:
    manifest, config = repository.manifest, model.config
    _same(model, "name", config.name, model.name)
    _same(model, "backend", config.backend, manifest.engine)
    _same(model, "release", config.parameters[RELEASE_PARAMETER].string_value, manifest.release)
    if model.name != BASELINE_MODEL:
        _same(model, "server", config.parameters[SERVER_PARAMETER].string_value, str(manifest.server))
    names = {config.default_model_filename, *config.cc_model_filenames.values()}
    _same(model, "default_model_filename", config.default_model_filename, FILES[manifest.engine])
    for name in names:
        model.version_file(name)
    for kind, stated, real in (
        ("input", config.input, graph.get_inputs()),
        ("output", config.output, graph.get_outputs()),
    ):
        said = {one.name: (triton_type(one.data_type), list(one.dims)) for one in stated}
        has = {one.name: (_ORT_TYPES.get(one.type, one.type), list(one.shape[1:])) for one in real}
        _same(model, kind, said, has)
    if manifest.engine == "tensorrt":
        stated = [list(group.profile) for group in config.instance_group]
        wanted = [str(index) for index in range(len(profiles(config.max_batch_size)))]
        _same(model, "instance_group.profile", stated, [wanted])
    return Check(f"{model.name}/config.pbtxt", f"fits graph and manifest, batches up to {config.max_batch_size}")


def _same(model: StoredModel, what: str, stated: object, real: object) -> None:
    if stated != real:
        message = (
            f"{model.path}: config.pbtxt says {what} {stated}, graph and manifest say {real}: they are of "
            "different releases, or were edited. Get the release again, or build its plans again."
        )
        raise RepositoryError(message)


def _check_golden(model: StoredModel, graph: ort.InferenceSession) -> Check:
    """Logits within a tolerance; residues, which are exact everywhere, without one."""
    golden = model.golden
    if golden is None:
        return Check("golden examples", "none in this folder; export the release again to have them")
    inputs = {each.name: golden[each.name] for each in graph.get_inputs()}
    answers = np.asarray(graph.run(None, dict(inputs))[0])
    difference = off_by(answers, golden)
    _allow(model, "graph", difference, 0 if RESIDUES in golden else GRAPH_TOLERANCE)
    through = f"through {model.name}" if RESIDUES in golden else "through the graph"
    return Check("golden examples", f"{len(answers)} {through}, {told(difference, golden)}")


def _check_plan(model: StoredModel) -> list[Check]:
    from privdfs_export.engine import find_tensorrt
    from privdfs_export.engine_runtime import run_plan
    from privdfs_export.gpu import find_gpu

    plan, golden, name = model.plan, model.golden, f"{model.name} plan"
    if plan is None:
        message = f"{model.path} has a plan, but its manifest does not say of which TensorRT: build it again."
        raise RepositoryError(message)
    built = Check(name, f"{plan.precision}, built by TensorRT {plan.tensorrt}")
    try:
        trt = find_tensorrt()
    except TensorRTMissingError as error:
        return [built, Check(name, f"not compared with TensorRT: {error}")]
    if not loads(plan, trt.__version__):
        message = (
            f"{model.path}: its plan was built by TensorRT {plan.tensorrt}, and this is {trt.__version__}: build "
            "it again on this machine with `privdfs-export plan`."
        )
        raise EngineMismatchError(message)
    try:
        gpu = find_gpu()
    except TensorRTMissingError as error:
        return [built, Check(name, f"not run: {error}")]
    if golden is None:
        return [built, Check(name, "not run: there are no golden examples in this folder")]
    fitting = [one for one in plan.plans if one.compute_capability == gpu.compute_capability] or [plan.plans[0]]
    data, output = model.version_file(fitting[0].file), answer_name(golden)

    def answer(inputs: Tensors, profile: int) -> NDArray[np.generic]:
        return run_plan(trt, gpu, data, inputs, profile=profile, version_compatible=plan.version_compatible)[output]

    difference = compare_plan(answer, golden, model.config.max_batch_size)
    _allow(model, f"{plan.precision} plan", difference, plan_tolerance(plan.precision, golden))
    count = len(golden[output])
    return [built, Check(name, f"{count} golden examples on {gpu.name}, {told(difference, golden)}")]


def compare_plan(answer: Callable[[Tensors, int], NDArray[np.generic]], golden: Tensors, max_batch: int) -> float:
    """Largest difference of a plan from the float32 graph on golden examples, over all profiles.

    Args:
        answer: Runs the plan: inputs and profile to its one output.
        golden: Inputs by name, and what the graph answers.
        max_batch: The largest batch.

    Returns:
        As `off_by` has it; NaN if any is.
    """
    differences = []
    for profile, (smallest, _, largest) in enumerate(profiles(max_batch)):
        inputs = {name: values[:largest] for name, values in golden.items() if name != answer_name(golden)}
        if len(next(iter(inputs.values()))) >= smallest:
            differences.append(off_by(answer(inputs, profile), golden))
    return float(np.max(differences))


def loads(plan: PlanSpec, installed: str) -> bool:
    """Whether a TensorRT loads a plan, by the versions alone.

    Args:
        plan: As the manifest tells.
        installed: Version here.

    Returns:
        True for the very same version; for a version-compatible plan, also for a newer one of the same major version
        or, from 10, of the next.
    """
    built, here = (
        [int(part) for part in version.split(".")[:4] if part.isdigit()] for version in (plan.tensorrt, installed)
    )
    if not plan.version_compatible or not built or not here:
        return plan.tensorrt == installed
    return here >= built and (here[0] == built[0] or (built[0], here[0]) == (10, 11))


def _allow(model: StoredModel, what: str, difference: float, allowed: float) -> None:
    if not difference <= allowed:  # written so that NaN fails
        found = told(difference, model.golden or {})
        limit = f"allowed: {allowed:.0e}" if allowed else "allowed: none"
        message = (
            f"{model.path}: golden examples through the {what} of {model.name}: {found} ({limit}): get the release "
            "again; if that does not help, build its plans again."
        )
        raise ParityError(message, what, difference, allowed)
