"""Planning, verifying and serving plans, on stand-ins for TensorRT and for NVIDIA's driver.

They show that the commands do what they say around an engine, bad input included, and that no file changes before all
is well. That a real engine computes the right thing is shown by nothing here: test_gpu.py is for that.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from privdfs import BundleError, Client
from privdfs._files import sha256_file
from privdfs._format import ServerManifest
from privdfs._manifest import encode_manifest
from privdfs_export import gpu as gpu_module
from privdfs_export.cli import main
from privdfs_export.engine import BuildOptions, build_engine
from privdfs_export.engine_runtime import run_plan
from privdfs_export.errors import (
    EngineError,
    EngineMismatchError,
    ExportError,
    ParityError,
    PrecisionError,
    RepositoryError,
    TensorRTMissingError,
)
from privdfs_export.plan import PlanOptions, plan_release
from privdfs_export.precision import quantised_tensors
from privdfs_export.repository import read_repository, write_repository
from privdfs_export.sessions import session
from privdfs_export.triton import ModelSpec, TensorSpec
from privdfs_export.verify import check_repository, loads
from tests.e2e.tiny_release import SHARE_LENGTH, linear_graph, write_release
from tests.export import fake_tensorrt
from tests.export.folders import contents

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stub driver")


@pytest.fixture
def trt(driver: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A host with one GPU and TensorRT 11."""
    monkeypatch.setattr(gpu_module, "LIBRARY", str(driver))
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A tiny release of two servers, with golden examples and ranges, in the way of the exporter."""
    folder = write_release(tmp_path / "release", 2)
    shutil.rmtree(folder / "baseline")
    # Its client is for serving tests and has no graphs; here a release is verified as a whole.
    client = json.loads((folder / "client" / "manifest.json").read_text())
    for name in client["files"]:
        (folder / "client" / name).write_bytes(name.encode())
        client["files"][name] = sha256_file(folder / "client" / name)
    (folder / "client" / "manifest.json").write_text(json.dumps(client))
    for index in range(2):
        server = folder / f"server-{index}"
        old = read_repository(server)
        graph = linear_graph("share", TensorProto.INT8, (SHARE_LENGTH,), seed=index)
        golden = _golden(graph)
        spec = ModelSpec(
            "branch",
            "onnxruntime",
            (TensorSpec("share", "int8", (SHARE_LENGTH,)),),
            TensorSpec("logits", "float32", (4,)),
            8,
            {"privdfs_release": old.manifest.release, "privdfs_server": str(index)},
        )
        shutil.rmtree(server)
        ranges = dict.fromkeys(quantised_tensors(graph.graph), 10.0)
        write_repository(server, old.masked, spec, graph.SerializeToString(), golden=golden, ranges=ranges)
    return folder


def _golden(graph: onnx.ModelProto) -> dict[str, Any]:
    share = np.random.default_rng(0).integers(-3, 4, (6, SHARE_LENGTH), dtype=np.int8)
    return {"share": share, "logits": session(graph.SerializeToString()).run(None, {"share": share})[0]}


def planned_manifest(server: Path) -> ServerManifest:
    return read_repository(server).masked


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-fp16"])
def test_a_release_is_planned_whole_and_the_given_one_stays(
    release: Path, trt: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    before = contents(release)
    out = tmp_path / "out" / "planned"
    assert main(["plan", str(release), "--out", str(out), "--precision", precision, "--level", "3"]) == 0
    assert contents(release) == before
    assert sorted(path.name for path in out.iterdir()) == ["client", "server-0", "server-1"]
    said = capsys.readouterr().out
    assert said.count(f"{precision} plan of") == 2
    for index in range(2):
        repository = read_repository(out / f"server-{index}")
        manifest = repository.masked
        assert manifest.plan is not msgspec.UNSET
        assert (manifest.engine, manifest.plan.precision, manifest.plan.tensorrt) == (
            "tensorrt",
            precision,
            trt.__version__,
        )
        (plan,) = manifest.plan.plans
        assert (plan.file, plan.gpu, plan.compute_capability) == ("model.plan", "Stub H", "9.0")
        assert plan.difference < 0.1
        assert repository.model.config.default_model_filename == "model.plan"
        assert repository.model.graph == before[f"server-{index}/branch/1/model.onnx"]
    assert main(["verify", str(out)]) == 0
    assert "golden examples on Stub H, off by" in capsys.readouterr().out


def test_without_out_the_folders_are_exchanged_and_can_be_planned_again(release: Path, trt: ModuleType) -> None:
    plan_release(release / "server-1", None, PlanOptions("fp16"))
    assert planned_manifest(release / "server-1").engine == "tensorrt"
    assert planned_manifest(release / "server-0").engine == "onnxruntime"
    plan_release(release, None, PlanOptions("int8"))
    for index in range(2):
        plan = planned_manifest(release / f"server-{index}").plan
        assert plan is not msgspec.UNSET
        assert plan.precision == "int8"
    assert [path.name for path in release.parent.iterdir()] == ["release"]


def test_what_the_builder_is_told(release: Path, trt: ModuleType, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build = BuildOptions(1, 2**20, 4, version_compatible=True, hardware="ampere-plus", timing_cache=cache)
    plan_release(release / "server-0", None, PlanOptions("fp16", (0,), build))
    told = trt.Builder.last
    assert told.set == {"flags": {"VERSION_COMPATIBLE"}, "WORKSPACE": 2**20}
    assert told.builder_optimization_level == 4
    assert told.hardware_compatibility_level is trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert [sizes["share"][0][0] for sizes in told.profiles] == [1, 2]
    (file,) = cache.iterdir()
    assert file.name == "Stub-H-11.4.0.106.cache"
    plan_release(release / "server-0", None, PlanOptions("fp16", (0,), build))
    assert file.read_bytes() == b"timed timed "
    file.write_bytes(b"of another driver")
    plan_release(release / "server-0", None, PlanOptions("fp16", (0,), build))
    assert file.read_bytes() == b"timed "
    assert "version-compatible=true" in (release / "server-0" / "branch" / "config.pbtxt").read_text()


def test_two_kinds_of_gpus_get_a_plan_each(release: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVDFS_STUB_GPUS", "2")
    plan_release(release / "server-0", None, PlanOptions("fp16", (0, 1)))
    repository = read_repository(release / "server-0")
    assert dict(repository.model.config.cc_model_filenames) == {"9.0": "model.plan", "8.6": "model_sm86.plan"}
    assert repository.model.version_file("model_sm86.plan")
    assert check_repository(repository)


def test_local_mode_answers_from_a_planned_release(trained_release: Path, trt: ModuleType, tmp_path: Path) -> None:
    plan_release(trained_release, tmp_path / "planned", PlanOptions("int8"))
    image = np.zeros((28, 28, 1), np.uint8)
    with Client.local(trained_release) as given, Client.local(tmp_path / "planned") as planned:
        assert planned.predict(image).label == given.predict(image).label


# ------------------------------------------------------------------------------------------------------- bad input


def refused(release: Path, error: type[Exception], reason: str, *arguments: Any, **options: Any) -> None:
    """Planning fails so, and leaves every file as it was."""
    before = contents(release.parent)
    with pytest.raises(error, match=reason):
        plan_release(release, *arguments, **options)
    assert contents(release.parent) == before


def test_without_tensorrt(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    refused(release, TensorRTMissingError, "Run this in the container that will serve", None, PlanOptions("fp16"))


def test_without_a_driver(release: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_module, "LIBRARY", "libnosuchdriver.so.1")
    refused(release, TensorRTMissingError, "no NVIDIA driver here", None, PlanOptions("fp16"))


def test_without_a_gpu(release: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(release, TensorRTMissingError, r"no GPU 1 here \(1 found\)", None, PlanOptions("fp16", (1,)))
    monkeypatch.setenv("PRIVDFS_STUB_GPUS", "0")
    refused(release, TensorRTMissingError, "no GPU 0 here", None, PlanOptions("fp16"))


def test_rtx_is_no_engine_for_triton(release: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt, "__name__", "tensorrt_rtx")
    refused(release, EngineError, "no tritonserver loads plans of TensorRT-RTX", None, PlanOptions("fp16"))


def test_a_plan_that_computes_something_else_is_not_published(release: Path, trt: Any) -> None:
    for off in (0.5 * 200, float("nan")):
        trt.spoiled["off"] = off
        refused(release, ParityError, r"fp16 plan of .*: off by .* not published", None, PlanOptions("fp16"))


def test_a_changed_release_is_not_planned(release: Path, trt: ModuleType) -> None:
    graph = release / "server-1" / "branch" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    refused(release, BundleError, r"model\.onnx", None, PlanOptions("fp16"))


def test_an_existing_folder_is_no_place(release: Path, trt: ModuleType) -> None:
    refused(release, ExportError, "exists already", release / "server-0", PlanOptions("fp16"))


def test_int8_without_ranges(release: Path, trt: ModuleType) -> None:
    _drop(release / "server-0", "ranges.safetensors")
    refused(release, PrecisionError, "Export the release again", None, PlanOptions("int8"))


def test_without_golden_examples(release: Path, trt: ModuleType) -> None:
    _drop(release / "server-1", "golden.safetensors")
    refused(release, ExportError, "no golden examples to compare a plan with", None, PlanOptions("fp16"))


def test_a_signed_folder_is_not_changed_in_place(release: Path, trt: ModuleType, tmp_path: Path) -> None:
    (release / "server-0" / "manifest.sig").write_bytes(b"signature")
    refused(release, ExportError, r"is signed, and plans change it: .*--out", None, PlanOptions("fp16"))
    plan_release(release, tmp_path / "planned", PlanOptions("fp16"))
    assert not (tmp_path / "planned" / "server-0" / "manifest.sig").exists()


def test_a_wrong_precision_is_told_on_the_command_line(
    release: Path, trt: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(release), "--precision", "fp4"]) == 2
    assert "no precision 'fp4'. Choose one of fp32" in capsys.readouterr().err


def test_a_full_disk_leaves_the_release_as_it_was(
    release: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fails_for_the_second(path: Path, target: Path) -> Path:
        if path.name == "server-1":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_second)
    with pytest.raises(ExportError, match="No space left on device"):
        plan_release(release, None, PlanOptions("fp16"))
    assert planned_manifest(release / "server-1").engine == "onnxruntime"
    assert sorted(path.name for path in release.iterdir()) == ["client", "server-0", "server-1"]


# ---------------------------------------------------------------------------------------------------------- verify


def _drop(server: Path, name: str) -> None:
    """Take a file out of a folder and its manifest, as an older exporter would have left it."""
    manifest = planned_manifest(server)
    (server / name).unlink()
    files = {file: digest for file, digest in manifest.files.items() if file != name}
    (server / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))


def _edit(server: Path, name: str, old: str, new: str) -> None:
    """Change a text file, and its digest in the manifest with it."""
    path = server / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    manifest = planned_manifest_unchecked(server)
    files = manifest.files | {name: sha256_file(path)}
    (server / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))


def planned_manifest_unchecked(server: Path) -> ServerManifest:
    return msgspec.json.decode((server / "manifest.json").read_bytes(), type=ServerManifest)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("dims: 12", "dims: 13", r"says input {'share': \('int8', \[13\]\)}, graph and manifest say .*\[12\]"),
        ("TYPE_INT8", "TYPE_UINT8", r"\('uint8', \[12\]\)"),
        ('name: "logits"', 'name: "probabilities"', "says output"),
        ('backend: "onnxruntime"', 'backend: "tensorrt"', "says backend tensorrt"),
        ("tiny-1", "tiny-2", "says release tiny-2"),
        ("max_batch_size", "max_batchsize", "not a Triton configuration"),
    ],
)
def test_a_configuration_that_does_not_fit_its_graph(release: Path, old: str, new: str, reason: str) -> None:
    _edit(release / "server-0", "branch/config.pbtxt", old, new)
    with pytest.raises(RepositoryError, match=reason):
        check_repository(read_repository(release / "server-0"))


def test_golden_examples_that_do_not_come_out(release: Path) -> None:
    other = read_repository(release / "server-1")
    mine = read_repository(release / "server-0")
    mixed = dataclasses.replace(mine, files={**mine.files, "golden.safetensors": other.files["golden.safetensors"]})
    with pytest.raises(ParityError, match="golden examples through the graph of branch: off by"):
        check_repository(mixed)


def test_a_plan_of_another_tensorrt_names_both(release: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_release(release / "server-0", None, PlanOptions("fp16"))
    monkeypatch.setattr(trt, "__version__", "11.5.0.1")
    with pytest.raises(
        EngineMismatchError, match=r"built by TensorRT 11\.4\.0\.106, and this is 11\.5\.0\.1: build it again"
    ):
        check_repository(read_repository(release / "server-0"))


def test_a_truncated_plan(release: Path, trt: Any) -> None:
    plan = build_engine(onnx.load(release / "server-0" / "branch" / "1" / "model.onnx"), BuildOptions(8), trt)
    share = np.zeros((1, SHARE_LENGTH), np.int8)
    here = gpu_module.find_gpu()
    assert run_plan(trt, here, plan.data, {"share": share}, profile=0)["logits"].shape == (1, 4)
    with pytest.raises(EngineMismatchError, match=r"damaged, or of another TensorRT or GPU .the plan is truncated"):
        run_plan(trt, here, plan.data[:100], {"share": share}, profile=0)
    with pytest.raises(EngineMismatchError, match="no optimisation profile 2"):
        run_plan(trt, here, plan.data, {"share": share}, profile=2)
    with pytest.raises(EngineError, match=r"does not take share of shape \(1, 12\)"):
        run_plan(trt, here, plan.data, {"share": share}, profile=1)


def test_where_tensorrt_is_missing_verify_says_what_it_did_not_do(
    release: Path, trt: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_release(release, None, PlanOptions("fp16"))
    monkeypatch.setenv("PRIVDFS_STUB_GPUS", "0")
    assert main(["verify", str(release)]) == 0
    assert "server-0: branch plan: not run: there is no GPU 0 here" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main(["verify", str(release / "server-0")]) == 0
    assert "not compared with TensorRT" in capsys.readouterr().out


def test_versions_that_load_a_plan() -> None:
    def plan(version: str, *, compatible: bool) -> Any:
        return msgspec.convert(
            {
                "precision": "fp16",
                "tensorrt": version,
                "hardware": "none",
                "version_compatible": compatible,
                "date": "2026-11-25",
                "plans": [{"file": "model.plan", "gpu": "G", "compute_capability": "9.0", "difference": 0.0}],
            },
            ServerManifest.__annotations__["plan"].__args__[0],
        )

    assert loads(plan("11.4.0.106", compatible=False), "11.4.0.106")
    assert not loads(plan("11.4.0.106", compatible=False), "11.4.0.107")
    assert loads(plan("11.0.0.1", compatible=True), "11.4.0.106")
    assert loads(plan("10.16.1.11", compatible=True), "11.4.0.106")
    assert not loads(plan("11.4.0.106", compatible=True), "11.0.0.1")
    assert not loads(plan("10.16.1.11", compatible=True), "12.0.0.1")


def test_a_serving_host_needs_only_what_the_image_installs(release: Path) -> None:
    """deploy/Dockerfile lists the packages: neither torch nor what training needs is among them."""
    code = """
import sys
for name in ("torch", "rich", "onnxscript", "privdfs_training", "matplotlib"):
    sys.modules[name] = None
from privdfs_export.cli import main
sys.exit(main(sys.argv[1:]))
"""
    line = [sys.executable, "-c", code]
    done = subprocess.run([*line, "verify", str(release)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "server-1: golden examples: 6 through the graph" in done.stdout
    done = subprocess.run([*line, "plan", str(release)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "TensorRT's Python package cannot be imported" in done.stderr


def test_the_deployment_files_fit_the_project() -> None:
    root = Path(__file__).parents[2]
    subprocess.run(["sh", "-n", str(root / "deploy" / "plan.sh")], check=True)
    text = (root / "deploy" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) ", text, re.MULTILINE)
    assert copied == ["sdk/privdfs", "export/privdfs_export"]
    assert all((root / path).is_dir() for path in copied)
    readme = (root / "deploy" / "README.md").read_text()
    for option in ("--precision", "--timing-cache", "--device", "--hardware", "--version-compatible"):
        assert f"`{option}" in readme
