"""`privdfs-export` of coded systems: every integer is compared before a byte is written; servers are added afterwards.

The systems are drawn, not trained, and the data set is the tiny one in the true format: what is exact does not depend
on what was learned.
"""

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console
from safetensors.numpy import load_file

from privdfs import Bundle, BundleError, Client
from privdfs._coded_format import CodedManifest, CodedServerManifest
from privdfs._files import sha256_file
from privdfs._manifest import encode_manifest, read_client_manifest
from privdfs._verify import verify
from privdfs.coding import decode, needed_answers
from privdfs_export import coded_contents, coded_writing, parity
from privdfs_export.cli import main
from privdfs_export.coded_release import export_coded
from privdfs_export.errors import ExportError, ParityError, RepositoryError
from privdfs_export.repository import read_repository
from privdfs_export.sessions import session
from privdfs_export.verify import check_repository
from privdfs_training.coded.system import TrainedCodedSystem, save_coded
from privdfs_training.data import ImageData, load_data
from privdfs_training.models.head import CompactHead
from tests.coded_release import build_coded_release, drawn
from tests.export.folders import contents
from tests.trained import QUIET

GOLDEN = "golden.safetensors"


def measured(kind: str, data: ImageData) -> TrainedCodedSystem:
    """A drawn system that says of itself what it reaches on the test images."""
    trained = drawn(kind).trained
    pixels, labels = data.sample("test")
    with torch.inference_mode():
        right = (trained.system(pixels).argmax(dim=1) == labels).float().mean().item()
    accuracy = {"baseline": 0.5, "coded": right, "readout": 0.5}
    return dataclasses.replace(trained, classes=data.classes, accuracy=accuracy)


@pytest.fixture(scope="module")
def data(data_folder: Path) -> ImageData:
    return load_data("fashion-mnist", data_folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data: ImageData) -> Path:
    """`system.safetensors` of a system of three rounds, the first of which skips to its own results."""
    trained = measured("rounds", data)
    path = tmp_path_factory.mktemp("run") / "system.safetensors"
    save_coded(path, trained.system, trained.config, data, trained.accuracy, trained.rounds)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, data_folder: Path) -> Path:
    """By the command, with the five servers that it makes unless told otherwise; never change it."""
    out = tmp_path_factory.mktemp("exported") / "release"
    assert main([str(checkpoint), "--out", str(out), "--data", str(data_folder)]) == 0
    return out


def client(release: Path) -> CodedManifest:
    manifest = read_client_manifest((release / "client" / "manifest.json").read_bytes())
    assert isinstance(manifest, CodedManifest)
    return manifest


def files(release: Path) -> set[str]:
    return {path.relative_to(release).as_posix() for path in release.rglob("*") if path.is_file()}


def test_layout_is_that_of_the_format(exported: Path) -> None:
    expected = {"client/" + name for name in ("encoder.onnx", "relay-1.onnx", "relay-2.onnx", "fusion.onnx")}
    expected |= {f"{folder}/{name}" for folder in ("client", "baseline") for name in ("manifest.json", GOLDEN)}
    expected |= {"baseline/baseline/config.pbtxt", "baseline/baseline/1/model.onnx", "baseline/baseline/1/model.py"}
    for server in range(5):
        expected |= {f"server-{server}/manifest.json", f"server-{server}/{GOLDEN}"}
        for number in (1, 2, 3):
            model = f"server-{server}/branch-{number}"
            expected |= {f"{model}/config.pbtxt", f"{model}/1/model.onnx", f"{model}/1/model.py"}
    assert files(exported) == expected


def test_the_manifest_says_what_was_measured(exported: Path, data: ImageData) -> None:
    manifest, trained = client(exported), measured("rounds", data)
    assert manifest.release.startswith("tiny-3-")
    assert (manifest.accuracy.images, manifest.accuracy.fused) == (1000, pytest.approx(trained.accuracy["coded"]))
    pixels, _ = data.sample("test")
    with torch.inference_mode():
        values = trained.system.values(pixels).numpy().astype(np.int64)
    _, results, _ = trained.system.run(values)
    for each, about, result in zip(manifest.rounds, trained.rounds, results, strict=True):
        assert (each.degree, each.moduli, each.bound, each.added) == (2, about.moduli, about.bound, about.skip)
        assert (each.values, each.outputs) == (math.prod(about.inputs), math.prod(about.outputs))
        # The head is floating point: between torch and ONNX Runtime a value may move by one level.
        assert each.seen == pytest.approx(np.abs(result).max(), rel=0.05)
        assert each.seen <= each.bound < math.prod(each.moduli) / 2
    macs = manifest.macs
    assert macs.branch == sum(about.macs * len(about.moduli) for about in trained.rounds)
    assert 0 < macs.fusion < macs.head < macs.baseline
    verify(exported)
    assert main(["verify", str(exported)]) == 0


def test_servers_differ_in_their_index_and_in_nothing_else(exported: Path) -> None:
    first = {name: data.replace(b'string_value: "0"', b"") for name, data in contents(exported / "server-0").items()}
    for server in range(1, 5):
        mark = f'string_value: "{server}"'.encode()
        other = {name: data.replace(mark, b"") for name, data in contents(exported / f"server-{server}").items()}
        differing = {name for name in first | other if first.get(name) != other.get(name)}
        assert differing == {"manifest.json"}
        ours, theirs = (json.loads(each["manifest.json"]) for each in (first, other))
        assert (ours.pop("server"), theirs.pop("server")) == (0, server)
        differing = {name for name in ours["files"] if ours["files"][name] != theirs["files"][name]}
        assert differing == {f"branch-{number}/config.pbtxt" for number in (1, 2, 3)}


def test_golden_examples_are_what_the_files_compute(exported: Path) -> None:
    manifest, golden = client(exported), load_file(exported / "client" / GOLDEN)
    system = drawn().trained.system
    pixels = torch.from_numpy(golden["images"]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        moved = np.abs(system.values(pixels).flatten(1).numpy() - golden["values_1"])
    assert moved.max() <= 1
    shape = (-1, *system.polynomials[0].inputs)
    shared, results, _ = system.run(golden["values_1"].reshape(shape).astype(np.int64))
    for number, about in enumerate(manifest.rounds, 1):
        answers, needed = golden[f"answers_{number}"], needed_answers(about.degree, 1)
        assert answers.shape == (8, needed, len(about.moduli), about.outputs)
        decoded = decode(answers, range(1, needed + 1), about.moduli)
        np.testing.assert_array_equal(decoded, results[number - 1].reshape(8, -1))
        np.testing.assert_array_equal(golden[f"values_{number}"], shared[number - 1].reshape(8, -1))
    names = {f"{kind}_{number}" for kind in ("values", "answers") for number in (1, 2, 3)}
    assert set(golden) == {"images", "probabilities"} | names, "no randomness and no share is recorded"
    server = load_file(exported / "server-3" / GOLDEN)
    for number, about in enumerate(manifest.rounds, 1):
        graph = session((exported / "server-3" / f"branch-{number}" / "1" / "model.onnx").read_bytes())
        np.testing.assert_array_equal(
            np.asarray(graph.run(None, {"share": server[f"share_{number}"]})[0]), server[f"residues_{number}"]
        )
        assert server[f"share_{number}"].shape == (8, len(about.moduli), about.values)


def test_the_release_answers_in_local_mode_as_the_system_does(exported: Path, data: ImageData) -> None:
    pixels, _ = data.sample("test", 50)
    system = drawn().trained.system
    with torch.inference_mode():
        expected = system(pixels).argmax(dim=1).tolist()
    with Client.local(exported) as local:
        found = [each.index for each in local.predict_batch(pixels.permute(0, 2, 3, 1).numpy())]
    assert np.mean(np.array(found) == expected) >= 0.96  # the head may move a value by one level
    assert Bundle.open(exported / "client", allow_unsigned=True).selftest().images == 8


def test_people_see_how_much_was_compared(data: ImageData, tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=160)
    trained = measured("mixer", data)
    export_coded(trained, data, tmp_path / "out", engine="onnxruntime", servers=2, console=console)
    outputs = [math.prod(about.outputs) for about in trained.rounds]
    compared = 1000 * (sum(outputs) + sum(outputs[:-1]))  # results of all rounds, and what is shared from them
    assert f"1000 images, {compared:,} integers: none differs from plain arithmetic" in screen.getvalue()
    assert not list((tmp_path / "out").rglob("model.py"))
    assert len(list((tmp_path / "out").glob("server-*"))) == 2


def test_without_a_head_the_device_computes_nothing_but_the_sharing(data: ImageData, tmp_path: Path) -> None:
    trained = measured("pixels", data)
    manifest = export_coded(trained, data, tmp_path / "out", engine="python", servers=3, console=QUIET)
    assert manifest.macs.head == 0
    assert manifest.macs.fusion > 0
    assert manifest.rounds[0].values == 28 * 28
    verify(tmp_path / "out")


def test_the_release_id_does_not_depend_on_the_number_of_servers(
    exported: Path, checkpoint: Path, data_folder: Path, tmp_path: Path
) -> None:
    line = [str(checkpoint), "--out", str(tmp_path / "four"), "--data", str(data_folder), "--servers", "4"]
    assert main(line) == 0
    assert client(tmp_path / "four").release == client(exported).release


# ---------------------------------------------------------------------------------------------- graphs that are wrong


def misprinted(model: onnx.ModelProto, wanted: Callable[[np.ndarray], bool]) -> onnx.ModelProto:
    """A graph one of whose constants has another number in one place."""
    wrong = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in wrong.graph.initializer:
        values = numpy_helper.to_array(tensor).copy()
        if wanted(values):
            values.flat[0] += values.flat[0] + 1 if values.dtype == np.int64 else 1
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            return wrong
    raise AssertionError


def is_weight(values: np.ndarray) -> bool:
    return values.dtype == np.int8 and values.size > 50


def is_multiplier(values: np.ndarray) -> bool:
    return values.dtype == np.int64 and values.size > 2  # one for each result; less are axes and steps


@pytest.mark.parametrize(
    ("name", "wanted", "told"),
    [
        ("round_graph", is_weight, "round 1: .* integers differ from plain arithmetic"),
        ("relay_graph", is_multiplier, "round [12]: .* integers differ"),
        ("fusion_graph", lambda values: values.dtype == np.float64, "fusion: differs from the trained network"),
    ],
)
def test_one_wrong_number_in_a_graph_and_nothing_is_written(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, wanted: Any, told: str
) -> None:
    build = getattr(coded_contents.coded_graphs, name)
    monkeypatch.setattr(coded_contents.coded_graphs, name, lambda *given: misprinted(build(*given), wanted))
    with pytest.raises(ParityError, match=told):
        export_coded(measured("rounds", data), data, tmp_path / "out", engine="python", servers=3, console=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_is_not_of_the_trained_head(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, build = measured("pooled", data), coded_contents.coded_graphs.encoder_graph
    head = trained.system.head
    assert isinstance(head, CompactHead)

    def other_head(*given: Any) -> onnx.ModelProto:
        with torch.no_grad():
            weight = head.narrow.conv.weight
            kept = weight.clone()
            weight.mul_(1.3)
            graph = build(*given)
            weight.copy_(kept)
        return graph

    monkeypatch.setattr(coded_contents.coded_graphs, "encoder_graph", other_head)
    with pytest.raises(ParityError, match=r"encoder: .* of the int8 values equal the trained head's"):
        export_coded(trained, data, tmp_path / "out", engine="python", servers=3, console=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_that_is_not_the_trained_one(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, build = measured("pooled", data), coded_contents.graphs.baseline_graph
    wrong = misprinted(build(trained.system), lambda values: values.dtype == np.float32 and values.ndim == 2)
    monkeypatch.setattr(coded_contents.graphs, "baseline_graph", lambda _system: wrong)
    with pytest.raises(ParityError, match="baseline: differs from the trained network"):
        export_coded(trained, data, tmp_path / "out", engine="python", servers=3, console=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_residues_that_are_congruent_and_not_centred_are_refused() -> None:
    good = np.array([[[120, -120], [119, -119]]], np.int8)
    parity.check_residues("round 1", good, (241, 239))
    with pytest.raises(ParityError, match="round 1: 1 of 4 residues exceed half their prime") as caught:
        parity.check_residues("round 1", np.array([[[120, -120], [120, -119]]], np.int8), (241, 239))
    assert (caught.value.measured, caught.value.allowed) == (1, 0)


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("servers", "told"), [("1", "2 to 16 servers"), ("2", "of degree 2 has folders for 3 to 16"), ("17", "2 to 16")]
)
def test_a_number_of_servers_that_no_client_takes(
    checkpoint: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], servers: str, told: str
) -> None:
    out = tmp_path / "out"
    assert main([str(checkpoint), "--out", str(out), "--data", str(data_folder), "--servers", servers]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_servers_are_not_chosen_for_masked_shares(
    trained_release: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masked = trained_release.parent / "run" / "system.safetensors"
    line = [str(masked), "--out", str(tmp_path / "out"), "--data", str(data_folder), "--servers", "3"]
    assert main(line) == 2
    assert "trained for 3 servers: leave out --servers" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_that_the_system_was_not_measured_on_are_refused(data: ImageData, tmp_path: Path) -> None:
    trained = dataclasses.replace(measured("pooled", data), accuracy={"baseline": 0, "coded": 0.99, "readout": 0})
    with pytest.raises(ExportError, match="these are not the images that it was measured on"):
        export_coded(trained, data, tmp_path / "out", engine="python", servers=3, console=QUIET)
    other = dataclasses.replace(trained, classes=tuple(f"c{i}" for i in range(10)))
    with pytest.raises(ExportError, match="other classes"):
        export_coded(other, data, tmp_path / "out", engine="python", servers=3, console=QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_explained(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "system.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:-100])
    assert main([str(damaged), "--out", str(tmp_path / "out")]) == 2
    assert str(damaged) in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = coded_writing.write_models

    def no_space(folder: Path, *given: Any, **options: Any) -> None:
        if folder.name == "server-2":
            raise OSError(28, "No space left on device")
        write(folder, *given, **options)

    monkeypatch.setattr(coded_writing, "write_models", no_space)
    with pytest.raises(ExportError, match=r"No space left on device\. Free some disk space"):
        export_coded(measured("pooled", data), data, tmp_path / "out", engine="python", servers=3, console=QUIET)
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- more servers


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return build_coded_release(tmp_path / "release", "rounds", servers=3)


def test_servers_are_added_and_the_rest_stays(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(release)
    assert main(["servers", str(release), "--servers", "5"]) == 0
    assert "server-4: written" in capsys.readouterr().out
    after = contents(release)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"server-3", "server-4"}
    verify(release)
    for server in range(5):
        repository = read_repository(release / f"server-{server}")
        assert (repository.manifest.server, len(check_repository(repository))) == (server, 6)
    with Client.local(release, colluding=2) as five:
        assert five.predict_batch(np.zeros((2, 28, 28, 1), np.uint8))


@pytest.mark.parametrize(("servers", "told"), [("3", "has 3 servers already"), ("2", "already"), ("17", "2 to 16")])
def test_servers_that_are_there_or_too_many(
    release: Path, capsys: pytest.CaptureFixture[str], servers: str, told: str
) -> None:
    before = contents(release)
    assert main(["servers", str(release), "--servers", servers]) == 2
    assert told in capsys.readouterr().err
    assert contents(release) == before


def test_a_masked_release_has_no_further_servers(trained_release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["servers", str(trained_release), "--servers", "5"]) == 2
    assert "is a masked release" in capsys.readouterr().err


def test_a_damaged_release_gets_no_further_servers(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = release / "server-1" / "branch-2" / "1" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    assert main(["servers", str(release), "--servers", "5"]) == 2
    assert "model.onnx" in capsys.readouterr().err
    assert not (release / "server-3").exists()


def test_a_disk_that_fills_up_while_servers_are_added(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, write = contents(release), coded_writing.write_models

    def no_space(folder: Path, *given: Any, **options: Any) -> None:
        if folder.name == "server-4":
            raise OSError(28, "No space left on device")
        write(folder, *given, **options)

    monkeypatch.setattr(coded_writing, "write_models", no_space)
    with pytest.raises(ExportError, match="nothing was left behind"):
        coded_writing.add_servers(release, 5)
    assert contents(release) == before


# ----------------------------------------------------------------------------------------------------------- verify


def edited(server: Path, name: str, data: bytes) -> None:
    """Change a file, and its digest in the manifest with it."""
    (server / name).write_bytes(data)
    manifest = msgspec.json.decode((server / "manifest.json").read_bytes(), type=CodedServerManifest)
    changed = msgspec.structs.replace(manifest, files={**manifest.files, name: sha256_file(server / name)})
    (server / "manifest.json").write_bytes(encode_manifest(changed))


def test_one_residue_that_does_not_come_out(release: Path) -> None:
    server = release / "server-1"
    model = onnx.load(server / "branch-3" / "1" / "model.onnx")
    edited(server, "branch-3/1/model.onnx", misprinted(model, is_weight).SerializeToString())
    with pytest.raises(ParityError, match=r"through the graph of branch-3: \d+ residues? differs? .allowed: none"):
        check_repository(read_repository(server))
    with pytest.raises(BundleError, match="all servers of a coded release run the same networks"):
        verify(release)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"TYPE_INT8", b"TYPE_UINT8", "says input"),
        (b'name: "residues"', b'name: "logits"', "says output"),
        (b'string_value: "1"', b'string_value: "2"', "says server 2"),
        (b"branch-2", b"branch-1", "says name branch-1"),
    ],
)
def test_a_configuration_that_does_not_fit_its_round(release: Path, old: bytes, new: bytes, told: str) -> None:
    server, name = release / "server-1", "branch-2/config.pbtxt"
    text = (server / name).read_bytes()
    assert old in text
    edited(server, name, text.replace(old, new))
    with pytest.raises(RepositoryError, match=told):
        check_repository(read_repository(server))


def test_golden_examples_of_a_round_are_missing(release: Path) -> None:
    server = release / "server-0"
    shutil.copy(release / "client" / GOLDEN, server / GOLDEN)
    edited(server, GOLDEN, (server / GOLDEN).read_bytes())
    with pytest.raises(RepositoryError, match="has no examples of round 1"):
        check_repository(read_repository(server))
