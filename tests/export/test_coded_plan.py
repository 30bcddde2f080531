"""Plans of coded releases on the stand-ins of test_plan: float32 or exact INT8, a plan a round, no residue may differ.

They show what the commands do around an engine. That a real engine is exact is shown on the GPU host, by the same
comparison, before a plan is published.
"""

import base64
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from privdfs import BundleError, Client
from privdfs._coded_format import CodedServerManifest
from privdfs._files import sha256_file
from privdfs._manifest import encode_manifest
from privdfs_export import exact
from privdfs_export import gpu as gpu_module
from privdfs_export.cli import main
from privdfs_export.engine import BuildOptions, build_engine
from privdfs_export.engine_runtime import run_plan
from privdfs_export.errors import EngineError, EngineMismatchError, ExportError, ParityError, PrecisionError
from privdfs_export.plan import EXACT_PRECISIONS, PlanOptions, plan_release
from privdfs_export.precision import PRECISIONS
from privdfs_export.repository import read_repository
from privdfs_export.serve.tritonserver import command_line
from privdfs_export.verify import check_repository
from tests.coded_release import build_coded_release, drawn, noise
from tests.export import fake_tensorrt
from tests.export.folders import contents

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the stub driver")
ROUNDS = ("branch-1", "branch-2", "branch-3")


@pytest.fixture
def trt(driver: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A host with one GPU and TensorRT 11."""
    monkeypatch.setattr(gpu_module, "LIBRARY", str(driver))
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never change it; take `release` for that."""
    return build_coded_release(tmp_path_factory.mktemp("coded") / "release", servers=3)


@pytest.fixture
def release(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "release"))


def test_every_round_of_every_server_gets_a_plan(
    release: Path, trt: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = contents(release), tmp_path / "planned"
    assert main(["plan", str(release), "--out", str(out)]) == 0  # no --precision: a coded release is planned in fp32
    assert contents(release) == before
    said = capsys.readouterr().out
    for name in ROUNDS:
        assert said.count(f"fp32 plan of {name}, ") == 3
    assert said.count("no residue differs on golden examples") == 9
    assert said.count("fp32 plan of baseline, ") == 1
    for index in range(3):
        repository = read_repository(out / f"server-{index}")
        assert (repository.manifest.engine, len(repository.plans)) == ("tensorrt", 3)
        for model, name in zip(repository.models, ROUNDS, strict=True):
            assert model.plan is not None
            assert (model.name, model.plan.precision, model.plan.plans[0].difference) == (name, "fp32", 0)
            assert model.graph == before[f"server-{index}/{name}/1/model.onnx"]
            assert model.version_file("model.plan")
            assert model.golden is not None
            warm = (out / f"server-{index}" / name / "warmup" / "share").read_bytes()
            assert warm == model.golden["share"][:1].tobytes()
            parameters = {key: value.string_value for key, value in model.config.parameters.items()}
            assert parameters == {"privdfs_release": drawn().manifest.release, "privdfs_server": str(index)}
    assert main(["verify", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.count("8 golden examples on Stub H, no residue differs") == 9


def test_int8_where_it_is_exact(release: Path, trt: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The baseline, of which no exact answer is asked and no range was measured, is planned in FP32 beside it."""
    out = tmp_path / "planned"
    assert main(["plan", str(release), "--precision", "int8", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert [said.count(f"int8 plan of {name}, ") for name in ROUNDS] == [3, 3, 3]
    assert said.count("no residue differs on golden examples") == 9
    assert said.count("fp32 plan of baseline, ") == 1
    for model in read_repository(out / "server-1").models:
        assert model.plan is not None
        assert (model.plan.precision, model.plan.plans[0].difference) == ("int8", 0)
        kinds = [
            node.op_type for node in onnx.load_from_string(planned_graph(model.version_file("model.plan"))).graph.node
        ]
        assert kinds.count("QuantizeLinear") == kinds.count("Conv") > 0
        assert "QuantizeLinear" not in {node.op_type for node in onnx.load_from_string(model.graph).graph.node}
    (baseline,) = read_repository(out / "baseline").plans
    assert baseline.precision == "fp32"
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out.count("8 golden examples on Stub H, no residue differs") == 9


def planned_graph(plan: bytes) -> bytes:
    """The graph that a stand-in's plan was built from."""
    return base64.b64decode(json.loads(plan)["graph"])


def test_one_residue_that_differs_in_int8_and_nothing_is_published(release: Path, trt: Any) -> None:
    trt.spoiled["off"] = 1.0
    told = r"int8 plan of .*server-0, branch-1, on Stub H: 1 residue differs .*allowed: none.* not published"
    refused(release, ParityError, told, PlanOptions("int8"))


def test_a_round_that_int8_cannot_compute_exactly(release: Path, trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "EXACT", 1000)  # no trained round has sums near 2^24
    refused(release, PrecisionError, "proven exact in INT8: .*--precision fp32", PlanOptions("int8"))


def test_a_baseline_alone_has_no_ranges_for_int8(release: Path, trt: Any) -> None:
    refused(release / "baseline", PrecisionError, "measures them in masked releases, or take", PlanOptions("int8"))


def test_no_kernel_may_round_to_tf32(release: Path, trt: Any) -> None:
    """TensorRT allows it unless it is told otherwise, and a sum would then have 11 bits of its 24."""
    plan_release(release / "server-0", None, PlanOptions())
    assert trt.Builder.last.set["flags"] == set()


def test_local_mode_answers_from_a_planned_release(release: Path, trt: Any, tmp_path: Path) -> None:
    plan_release(release, tmp_path / "planned", PlanOptions())
    images = noise(4)
    with Client.local(release) as given, Client.local(tmp_path / "planned") as planned:
        here, there = given.predict_batch(images), planned.predict_batch(images)
    assert [each.probability for each in here] == [each.probability for each in there]


def test_two_kinds_of_gpus_get_a_plan_each_for_every_round(
    release: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVDFS_STUB_GPUS", "2")
    plan_release(release / "server-0", None, PlanOptions(devices=(0, 1)))
    repository = read_repository(release / "server-0")
    for model in repository.models:
        assert dict(model.config.cc_model_filenames) == {"9.0": "model.plan", "8.6": "model_sm86.plan"}
    assert check_repository(repository)


def test_a_server_trusts_version_compatible_plans_only(release: Path, trt: Any) -> None:
    trust = "--backend-config=tensorrt,version-compatible=true"

    def line() -> list[str]:
        return command_line(Path("tritonserver"), read_repository(release / "server-0"), release, "a", [])

    plan_release(release / "server-0", None, PlanOptions())
    assert trust not in line()
    plan_release(release / "server-0", None, PlanOptions(build=BuildOptions(1, version_compatible=True)))
    assert trust in line()


# ------------------------------------------------------------------------------------------------------- bad input


def refused(release: Path, error: type[Exception], reason: str, options: PlanOptions) -> None:
    """Planning fails so, and leaves every file as it was."""
    before = contents(release)
    with pytest.raises(error, match=reason):
        plan_release(release, None, options)
    assert contents(release) == before


@pytest.mark.parametrize("precision", [each for each in PRECISIONS if each not in EXACT_PRECISIONS])
def test_what_would_round_is_refused_before_anything_is_built(
    release: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # nothing of TensorRT is asked for
    told = f"come out exactly: {precision} would round them. .*--precision fp32 or int8"
    refused(release, PrecisionError, told, PlanOptions(precision))
    refused(release / "server-1", PrecisionError, f"{precision} would round them", PlanOptions(precision))


@pytest.mark.parametrize("precision", ["fp8", "tf32"])
def test_a_precision_that_no_release_has(
    release: Path, trt: Any, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    assert main(["plan", str(release), "--precision", precision]) == 2
    assert f"no precision {precision!r}" in capsys.readouterr().err


def test_torch_tensorrt_builds_no_rounds(release: Path, trt: Any, tmp_path: Path) -> None:
    refused(release, EngineError, "--via onnx", PlanOptions("fp32", system=tmp_path / "system.safetensors"))


def test_one_residue_that_differs_and_nothing_is_published(release: Path, trt: Any) -> None:
    trt.spoiled["off"] = 1.0
    told = r"fp32 plan of .*server-0, branch-1, on Stub H: 1 residue differs .*allowed: none.* not published"
    refused(release, ParityError, told, PlanOptions())


def test_the_last_round_of_the_last_server_counts_as_much(
    release: Path, trt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, built = trt.Builder.build_serialized_network, list[int]()

    def ninth_is_off(*arguments: Any) -> Any:
        built.append(1)
        trt.spoiled["off"] = 1.0 if len(built) == 9 else 0.0
        return build(*arguments)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", ninth_is_off)
    refused(release, ParityError, "server-2, branch-3, on Stub H: 1 residue differs", PlanOptions())


def test_a_plan_that_was_exchanged_is_found_before_it_is_served(release: Path, trt: Any) -> None:
    server = release / "server-0"
    plan_release(server, None, PlanOptions())
    trt.spoiled["off"] = 1.0
    model = read_repository(server).models[1]
    other = build_engine(onnx.load_from_string(model.graph), BuildOptions(64), trt)
    replace(server, "branch-2/1/model.plan", other.data)
    with pytest.raises(ParityError, match=r"through the fp32 plan of branch-2: 1 residue differs .allowed: none"):
        check_repository(read_repository(server))


def test_a_plan_of_another_tensorrt(release: Path, trt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_release(release / "server-0", None, PlanOptions())
    monkeypatch.setattr(trt, "__version__", "11.5.0.1")
    with pytest.raises(EngineMismatchError, match=r"built by TensorRT 11\.4\.0\.106, and this is 11\.5\.0\.1"):
        check_repository(read_repository(release / "server-0"))


def test_a_signed_folder_is_not_changed_in_place(release: Path, trt: Any) -> None:
    (release / "server-2" / "manifest.sig").write_bytes(b"signature")
    refused(release, ExportError, r"is signed, and plans change it: .*--out", PlanOptions())


def test_a_changed_round_is_not_planned(release: Path, trt: Any) -> None:
    graph = release / "server-1" / "branch-3" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    refused(release, BundleError, r"model\.onnx", PlanOptions())


def test_folders_with_plans_are_not_copied_to_other_servers(release: Path, trt: Any) -> None:
    plan_release(release, None, PlanOptions())
    before = contents(release)
    assert main(["servers", str(release), "--servers", "4"]) == 2
    assert contents(release) == before


def replace(server: Path, name: str, data: bytes) -> None:
    """Change a file, and its digest in the manifest with it."""
    (server / name).write_bytes(data)
    manifest = msgspec.json.decode((server / "manifest.json").read_bytes(), type=CodedServerManifest)
    files = {**manifest.files, name: sha256_file(server / name)}
    (server / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=files)))


def test_a_round_gives_int8_through_the_plan(trt: Any) -> None:
    made = drawn("pooled")
    graph = made.graphs.rounds[0].model
    plan = build_engine(graph, BuildOptions(8), trt)
    about = made.rounds[0]
    share = np.zeros((1, len(about.moduli), about.values), np.int8)
    found = run_plan(trt, gpu_module.find_gpu(), plan.data, {"share": share}, profile=0)["residues"]
    assert (found.dtype, found.shape) == (np.int8, (1, len(about.moduli), about.outputs))
