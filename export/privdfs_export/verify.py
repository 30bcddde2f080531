"""`privdfs-export verify DIR`: whether a release, or one server's folder, can be served as it is.

Checked before a server starts, and by `privdfs-serve` itself:

- every file against its SHA-256, nothing added, and the folders of a release against each other;
- config.pbtxt against manifest and graph: name, backend, files, inputs, outputs, release;
- plans against the TensorRT that is installed here, by version;
- golden examples: through the graph always, through the plan where TensorRT and its GPU are here.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from privdfs._coded_format import RESIDUES, CodedServerManifest
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
    manifest = repository.manifest
    if isinstance(manifest, CodedServerManifest) or manifest.engine != "tensorrt":
        return checks
    if manifest.plan is msgspec.UNSET:
        message = f"{repository.path} has a plan, but its manifest does not say of which TensorRT: build it again."
        raise RepositoryError(message)
    checks += [
        Check("plan", f"{manifest.plan.precision}, built by TensorRT {manifest.plan.tensorrt}"),
        *_check_plan(repository, manifest.plan),
    ]
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
    if model.golden is None:
        return Check("golden examples", "none in this folder; export the release again to have them")
    inputs = {each.name: model.golden[each.name] for each in graph.get_inputs()}
    answers = np.asarray(graph.run(None, dict(inputs))[0])
    if RESIDUES in model.golden:
        differing = int(np.count_nonzero(answers != model.golden[RESIDUES]))
        _allow(model, "graph", differing, 0, f"{differing} of {answers.size} residues differ")
        return Check("golden examples", f"{len(answers)} through {model.name}, no residue of {answers.size} differs")
    difference = relative_difference(answers, model.golden[LOGITS])
    _allow(model, "graph", difference, GRAPH_TOLERANCE)
    return Check("golden examples", f"{len(answers)} through the graph, off by {difference:.1e}")


def _check_plan(repository: Repository, plan: PlanSpec) -> list[Check]:
    from privdfs_export.engine import find_tensorrt
    from privdfs_export.engine_runtime import run_plan
    from privdfs_export.gpu import find_gpu

    try:
        trt = find_tensorrt()
    except TensorRTMissingError as error:
        return [Check("plan", f"not compared with TensorRT: {error}")]
    if not loads(plan, trt.__version__):
        message = (
            f"{repository.path}: its plan was built by TensorRT {plan.tensorrt}, and this is {trt.__version__}: build "
            "it again on this machine with `privdfs-export plan`."
        )
        raise EngineMismatchError(message)
    model = repository.model
    golden = model.golden
    try:
        gpu = find_gpu()
    except TensorRTMissingError as error:
        return [Check("plan", f"not run: {error}")]
    fitting = [one for one in plan.plans if one.compute_capability == gpu.compute_capability] or [plan.plans[0]]
    if golden is None:
        return [Check("plan", "not run: there are no golden examples in this folder")]

    data = model.version_file(fitting[0].file)

    def answer(inputs: Tensors, profile: int) -> NDArray[np.generic]:
        run = run_plan(trt, gpu, data, inputs, profile=profile, version_compatible=plan.version_compatible)
        return run[LOGITS]

    difference = compare_plan(answer, golden, model.config.max_batch_size)
    _allow(model, f"{plan.precision} plan", difference, PLAN_TOLERANCE[plan.precision])
    return [Check("plan", f"{len(golden['logits'])} golden examples on {gpu.name}, off by {difference:.1e}")]


def compare_plan(answer: Callable[[Tensors, int], NDArray[np.generic]], golden: Tensors, max_batch: int) -> float:
    """Largest relative difference of a plan from the float32 graph on golden examples, over all profiles.

    Args:
        answer: Runs the plan: inputs and profile to logits.
        golden: Inputs by name, and `logits`.
        max_batch: The largest batch.

    Returns:
        The difference, as `relative_difference` has it; NaN if any is.
    """
    differences = []
    for profile, (smallest, _, largest) in enumerate(profiles(max_batch)):
        some = {name: values[:largest] for name, values in golden.items()}
        expected = some.pop(LOGITS)
        if len(expected) >= smallest:
            differences.append(relative_difference(answer(some, profile), expected))
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


def _allow(model: StoredModel, what: str, difference: float, allowed: float, found: str = "") -> None:
    if not difference <= allowed:  # written so that NaN fails
        found = found or f"off by {difference:.1e} (allowed: {allowed:.0e})"
        message = (
            f"{model.path}: golden examples through the {what}: {found}: get the release again; if that does not "
            "help, build the plan in another precision."
        )
        raise ParityError(message, what, difference, allowed)
