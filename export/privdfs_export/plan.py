"""`privdfs-export plan RELEASE`: build the TensorRT plans of a release on the GPU host, in the container that serves.

A plan runs on the TensorRT and the GPU that it was built with, so the operator of a server builds it, from the ONNX
graph of the release (`--via onnx`) or with torch-tensorrt from the network it was exported from. Guarantees:

- Nothing of the release changes before every plan is built and agrees with the float32 graph on the golden shares. A
  plan of a coded round has to give the very same residues: one that differs, and it is refused. So are precisions that
  are not exact (`exact`).
- With `--out` the release stays as it is. Without, each folder is exchanged whole, by renaming.
- The manifest says what built each plan, for which GPU, in which precision, and how far off it is.
"""

import argparse
import functools
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from privdfs._coded_format import CodedServerManifest
from privdfs._command_line import whole_number
from privdfs._format import CLIENT_FOLDER, SIGNATURE_NAME, PlanFile, PlanSpec
from privdfs._verify import verify
from privdfs_export.engine import Build, BuildOptions, Plan, build_engine, find_tensorrt, is_rtx
from privdfs_export.engine_runtime import run_plan
from privdfs_export.errors import EngineError, ExportError, ParityError, PrecisionError
from privdfs_export.exact import with_exact_int8
from privdfs_export.factory import add_factory
from privdfs_export.gpu import Gpu, find_gpu, using
from privdfs_export.precision import PRECISIONS, Precision, check_precision, with_precision
from privdfs_export.repository import Model, Repository, StoredModel, Tensors, read_repository, write_models
from privdfs_export.triton import PLAN_NAME, ModelSpec, TensorSpec, triton_type
from privdfs_export.verify import Check, answer_name, compare_plan, plan_tolerance, server_folders, told

#: What rounds of coded releases can have.
EXACT_PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
DESCRIPTION = "Build the TensorRT plans of a release, or of one server's folder, on the GPU host that will serve it."


@dataclass(frozen=True)
class PlanOptions:
    """What plans to build.

    Attributes:
        precision: of the branches; None for fp32 where shares are coded, else fp16. Coded ones take int8 too.
        devices: GPUs to build for, as CUDA counts; one plan for each kind of them.
        build: for every engine; its `max_batch` and `gpu` are filled in.
        system: `system.safetensors` to build from with torch-tensorrt; None to build from the ONNX graphs.
        factory: What makes that system's custom backbone; None where it has none.
    """

    precision: Precision | None = None
    devices: tuple[int, ...] = (0,)
    build: BuildOptions = field(default_factory=lambda: BuildOptions(max_batch=1))
    system: Path | None = None
    factory: str | None = None


@dataclass(frozen=True)
class _Planner:
    """What plans are built with: options, precision, TensorRT, one GPU of each kind, the route to an engine.

    `coded` tells that a release, or folder, is a coded one.
    """

    options: PlanOptions
    precision: Precision
    coded: bool
    trt: ModuleType
    gpus: Sequence[Gpu]
    build: Build


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("release", type=Path, metavar="RELEASE", help="a release, or one server's folder of it")
    parser.add_argument("--out", type=Path, help="where the planned copy goes; without it the folders are exchanged")
    parser.add_argument(
        "--via",
        choices=("onnx", "torch-tensorrt"),
        default="onnx",
        help="what engines are built from: the ONNX graphs of the release (default), or with torch-tensorrt the "
        "network in --system, for networks that TensorRT's ONNX parser cannot read",
    )
    parser.add_argument(
        "--system", type=Path, help="with --via torch-tensorrt: the system.safetensors that the release is of"
    )
    add_factory(parser)
    parser.add_argument(
        "--precision",
        help=f"one of {', '.join(PRECISIONS)}; default fp16. Coded releases are exact: fp32 (their default) or int8",
    )
    parser.add_argument(
        "--device",
        type=whole_number(0, 1023),
        action="append",
        help="GPU to build for; several times for several kinds",
    )
    parser.add_argument(
        "--workspace", type=whole_number(1, 2**20), metavar="MIB", help="most scratch memory of a kernel"
    )
    parser.add_argument("--level", type=int, choices=range(6), help="builder's effort; default is TensorRT's own")
    parser.add_argument("--timing-cache", type=Path, metavar="DIR", help="keep kernel times here between builds")
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="plans load in newer TensorRT too; slower, see deploy/README.md",
    )
    parser.add_argument(
        "--hardware",
        choices=("none", "ampere-plus", "same-compute-capability"),
        default="none",
        help="which other GPUs the plans run on; default none, which is fastest",
    )


def plan_options(options: argparse.Namespace) -> PlanOptions:
    """Options of the command line.

    Args:
        options: Parsed with `add_arguments`.

    Returns:
        The options, typed.

    Raises:
        PrecisionError: The precision is unknown.
        EngineError: `--system` without `--via torch-tensorrt`, or the other way round; `--factory` without `--system`.
    """
    if options.factory is not None and options.system is None:
        message = "--factory makes the backbone of --system system.safetensors: give both, or neither."
        raise EngineError(message)
    if (options.via == "torch-tensorrt") != (options.system is not None):
        message = "--via torch-tensorrt and --system system.safetensors go together: give both, or neither."
        raise EngineError(message)
    build = BuildOptions(
        max_batch=1,
        workspace=None if options.workspace is None else options.workspace * 2**20,
        level=options.level,
        version_compatible=options.version_compatible,
        hardware=options.hardware,
        timing_cache=options.timing_cache,
    )
    precision = None if options.precision is None else check_precision(options.precision)
    return PlanOptions(precision, tuple(options.device or (0,)), build, options.system, options.factory)


def run(options: argparse.Namespace) -> None:
    """Build, compare and write, and print what was built.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: It cannot be done; the release is as it was.
    """
    for check in plan_release(options.release, options.out, plan_options(options)):
        print(f"{check.name}: {check.found}")


def plan_release(release: Path, out: Path | None, options: PlanOptions) -> list[Check]:
    """Build the plans of a release, or of one server's folder.

    Args:
        release: The release, or the folder.
        out: Where the planned copy goes; None to exchange the folders.
        options: What to build.

    Returns:
        What was built, in words, by folder.

    Raises:
        privdfs.BundleError: A folder is not what its manifest says.
        EngineError: A plan cannot be built: TensorRT or a GPU is missing, or the graph is refused.
        ParityError: A plan and its graph give different answers.
        ExportError: The folder cannot be written.
    """
    verify(release)
    whole = (release / CLIENT_FOLDER).is_dir()
    if out is not None and out.exists():
        message = f"{out} exists already: choose another folder with --out."
        raise ExportError(message)
    signed = [folder for folder in server_folders(release) if (folder / SIGNATURE_NAME).exists()]
    if out is None and signed:
        message = (
            f"{signed[0]} is signed, and plans change it: name a folder for the planned copy with --out, and sign that "
            "with your own key."
        )
        raise ExportError(message)
    repositories = [read_repository(folder) for folder in server_folders(release)]
    planner = _prepare(options, repositories)
    target = release if out is None else out
    # On the same file system, so that renaming works: folders of a release are exchanged inside of it.
    place = release if out is None and whole else target.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=place))
    except OSError as error:
        message = f"cannot write in {place}: {error.strerror}. Choose another folder with --out."
        raise ExportError(message) from error
    try:
        checks = []
        for repository in repositories:
            planned = staging / (repository.path.name if whole else target.name)
            checks += _write_planned(repository, planned, _planner_of(repository, planner))
        if out is None:
            _exchange(staging, release if whole else release.parent)
        elif whole:
            shutil.copytree(release / CLIENT_FOLDER, staging / CLIENT_FOLDER)
            staging.chmod(0o755)
            staging.rename(out)
        else:
            (staging / target.name).rename(out)
    except OSError as error:
        message = f"cannot write the plans beside {target}: {error.strerror}. Free some disk space, or use --out."
        raise ExportError(message) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return checks


def _precision(options: PlanOptions, coded: Sequence[Repository]) -> Precision:
    """The precision of all plans, before anything is built; `coded` are the folders of a coded release's servers."""
    if not coded:
        return options.precision or "fp16"
    precision = options.precision or "fp32"
    if precision not in EXACT_PRECISIONS:
        message = (
            f"{coded[0].path} is of a coded release, whose rounds are integers that have to come out exactly: "
            f"{precision} would round them. Build its plans with --precision {' or '.join(EXACT_PRECISIONS)}."
        )
        raise PrecisionError(message)
    if options.system is not None:
        message = f"{coded[0].path} is of a coded release: build its plans with --via onnx, from the rounds themselves."
        raise EngineError(message)
    return precision


def _prepare(options: PlanOptions, repositories: Sequence[Repository]) -> _Planner:
    """Decide on the precision, and find TensorRT, the GPUs and what builds engines, before anything is written."""
    coded = [each for each in repositories if isinstance(each.manifest, CodedServerManifest)]
    precision = _precision(options, coded)
    trt = find_tensorrt()
    if is_rtx(trt):
        message = "no tritonserver loads plans of TensorRT-RTX: use the TensorRT of the serving container."
        raise EngineError(message)
    kinds = {gpu.compute_capability: gpu for gpu in map(find_gpu, options.devices)}
    if options.system is None:
        build: Build = functools.partial(_build_from_onnx, precision, trt)
    else:
        from privdfs_export import torch_engine  # a serving host has no torch

        torch_engine.check_options(options.devices, options.build)
        build = torch_engine.torch_builder(options.system, precision, options.factory)
    return _Planner(options, precision, bool(coded), trt, list(kinds.values()), build)


def _planner_of(repository: Repository, planner: _Planner) -> _Planner:
    """What plans one folder; the baseline of a coded release, which has no ranges for INT8, is planned in FP32."""
    if not planner.coded or isinstance(repository.manifest, CodedServerManifest):
        return planner
    return replace(planner, precision="fp32", build=functools.partial(_build_from_onnx, "fp32", planner.trt))


def _build_from_onnx(
    precision: Precision, trt: ModuleType, repository: Repository, model: StoredModel, options: BuildOptions
) -> Plan:
    """Build the engine of one model from its ONNX graph."""
    graph = onnx.load_from_string(model.graph)
    if precision == "int8" and isinstance(repository.manifest, CodedServerManifest):
        graph = with_exact_int8(graph)
    else:
        graph = with_precision(graph, precision, repository.ranges)
    return build_engine(graph, options, trt)


def _write_planned(repository: Repository, folder: Path, planner: _Planner) -> list[Check]:
    """Build the plans of one server's models, compare them, and write its folder anew; say what was built."""
    models, plans, checks = list[Model](), list[PlanSpec](), list[Check]()
    for stored in repository.models:
        model, plan, found = _planned(repository, stored, planner)
        models.append(model)
        plans.append(plan)
        checks += [Check(folder.name, each) for each in found]
    manifest = repository.manifest
    if isinstance(manifest, CodedServerManifest):
        manifest = msgspec.structs.replace(manifest, engine="tensorrt", plans=tuple(plans))
    else:
        manifest = msgspec.structs.replace(manifest, engine="tensorrt", plan=plans[0])
    write_models(folder, manifest, models, golden=repository.golden, ranges=repository.ranges)
    return checks


def _planned(repository: Repository, stored: StoredModel, planner: _Planner) -> tuple[Model, PlanSpec, list[str]]:
    """One model with plans for all kinds of GPUs, what the manifest says of them, and what was built, in words."""
    config, golden, options = stored.config, stored.golden, planner.options
    if golden is None:
        message = f"{stored.path} has no golden examples to compare a plan with. Export the release again."
        raise ExportError(message)
    data: dict[str, bytes] = {}
    files: list[PlanFile] = []
    found: list[str] = []
    for gpu in planner.gpus:
        # The first is also what the backend takes for a GPU whose compute capability has no plan.
        name = f"model_sm{gpu.compute_capability.replace('.', '')}.plan" if data else PLAN_NAME
        plan, difference = _built_and_compared(repository, stored, golden, planner, gpu)
        data[name] = plan.data
        files.append(
            PlanFile(file=name, gpu=gpu.name, compute_capability=gpu.compute_capability, difference=difference)
        )
        found.append(
            f"{planner.precision} plan of {stored.name}, {len(plan.data)} bytes in {plan.seconds:.1f} s by TensorRT "
            f"{plan.tensorrt} for {gpu.name}, {told(difference, golden)} on golden examples"
        )
    spec = ModelSpec(
        name=stored.name,
        engine="tensorrt",
        inputs=tuple(_tensor(one) for one in config.input),
        output=_tensor(config.output[0]),
        max_batch=config.max_batch_size,
        parameters={key: value.string_value for key, value in config.parameters.items()},
        plans={file.compute_capability: file.file for file in files},
        version_compatible=options.build.version_compatible,
    )
    about = PlanSpec(
        precision=planner.precision,
        tensorrt=planner.trt.__version__,
        hardware=options.build.hardware,
        version_compatible=options.build.version_compatible,
        date=datetime.now(timezone.utc).date().isoformat(),
        plans=tuple(files),
    )
    warm_up = {tensor.name: golden[tensor.name] for tensor in spec.inputs}
    return Model(spec, stored.graph, data, warm_up), about, found


def _built_and_compared(
    repository: Repository, stored: StoredModel, golden: Tensors, planner: _Planner, gpu: Gpu
) -> tuple[Plan, float]:
    """A plan for one GPU, and its largest difference from the float32 graph on golden examples."""
    options, batch = planner.options, stored.config.max_batch_size
    with using(gpu):
        plan = planner.build(repository, stored, replace(options.build, max_batch=batch, gpu=gpu.name))
    output = answer_name(golden)

    def answer(inputs: Tensors, profile: int) -> NDArray[np.generic]:
        compatible = options.build.version_compatible
        return run_plan(planner.trt, gpu, plan.data, inputs, profile=profile, version_compatible=compatible)[output]

    difference = compare_plan(answer, golden, batch)
    allowed = plan_tolerance(planner.precision, golden)
    if not difference <= allowed:  # written so that NaN fails
        also = "" if options.system is None else f", and check that {options.system} is what the release was made of"
        instead = f"Try another --precision{also}" if allowed else "Try another --level, or another TensorRT"
        limit = f"{allowed:.0e}" if allowed else "none"
        message = (
            f"the {planner.precision} plan of {stored.path}, {stored.name}, on {gpu.name}: "
            f"{told(difference, golden)} on golden examples (allowed: {limit}), so it is not published. {instead}."
        )
        raise ParityError(message, stored.path.name, difference, allowed)
    return plan, difference


def _tensor(stated: Any) -> TensorSpec:
    return TensorSpec(stated.name, triton_type(stated.data_type), tuple(stated.dims))


def _exchange(staging: Path, parent: Path) -> None:
    """Put the new folders in the place of the old ones, each at once but for the moment between two renames."""
    for new in sorted(staging.iterdir()):
        old = parent / new.name
        aside = staging / f"{new.name}.old"
        old.rename(aside)
        try:
            new.rename(old)
        except BaseException:  # Ctrl-C too: what is aside is about to be deleted
            if not old.exists():
                aside.rename(old)
            raise
