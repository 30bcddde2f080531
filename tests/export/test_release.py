import dataclasses
import gzip
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from google.protobuf import text_format
from onnx import numpy_helper
from rich.console import Console
from safetensors.numpy import load_file
from tritonclient.grpc import model_config_pb2

from privdfs import Bundle
from privdfs._files import refuse_unlisted, verify_files
from privdfs._manifest import decode_client_manifest, decode_server_manifest
from privdfs_export import contents, evaluate, graphs, parity, release, writing
from privdfs_export.cli import main
from privdfs_export.errors import ExportError, ParityError
from privdfs_training.checkpoint import load_system
from privdfs_training.data import load_data
from privdfs_training.models.head import CompactHead
from tests.trained import QUIET, write_data, write_idx

SERVERS = (0, 1, 2)


def test_layout_is_that_of_the_format(trained_release: Path) -> None:
    files = {path.relative_to(trained_release).as_posix() for path in trained_release.rglob("*") if path.is_file()}
    repository = {"manifest.json", "golden.safetensors", "ranges.safetensors"}
    repository |= {"{model}/config.pbtxt", "{model}/1/model.onnx", "{model}/1/model.py"}
    expected = {f"client/{name}" for name in ("manifest.json", "encoder.onnx", "fusion.onnx", "golden.safetensors")}
    for server in SERVERS:
        expected |= {f"server-{server}/{name.format(model='branch')}" for name in repository}
    expected |= {f"baseline/{name.format(model='baseline')}" for name in repository}
    assert files == expected


def test_manifests_tell_what_is_there_and_nothing_else_is(trained_release: Path) -> None:
    client = decode_client_manifest((trained_release / "client" / "manifest.json").read_bytes())
    assert client.release.startswith("tiny-3-")
    assert (client.image.height, client.image.width, client.image.channels) == (28, 28, 1)
    assert [(server.share_length, server.levels, server.scale) for server in client.servers] == [(12, 5, 0.5)] * 3
    assert client.accuracy.images == 1000
    assert {subset.answered for subset in client.accuracy.subsets} == {
        (0,),
        (1,),
        (2,),
        (0, 1),
        (0, 2),
        (1, 2),
        SERVERS,
    }
    assert client.macs.head > 0 < client.macs.fusion
    assert client.made_by.config["masks"]["servers"] == 3
    verify_files(trained_release / "client", client.files)
    for name in ("server-0", "server-1", "server-2", "baseline"):
        folder = trained_release / name
        manifest = decode_server_manifest((folder / "manifest.json").read_bytes())
        assert manifest.release == client.release
        verify_files(folder, manifest.files)
        refuse_unlisted(folder, manifest.files)


def test_a_server_folder_knows_nothing_of_the_others(trained_release: Path) -> None:
    """No weight of another branch, of the head or of the fusion, and only its own positions."""
    system = load_system(trained_release.parent / "run" / "system.safetensors").system
    constants = []
    for server in SERVERS:
        model = onnx.load(trained_release / f"server-{server}" / "branch" / "1" / "model.onnx")
        constants.append([numpy_helper.to_array(tensor) for tensor in model.graph.initializer])
        places = next(array for array in constants[-1] if array.dtype == np.int64 and array.size == 4 * 7 * 7)
        # Every position of another server looks exactly like one that nobody owns.
        assert (places.ravel() < 12).tolist() == (system.masks.owned[server]).tolist()
        assert set(places.ravel()[places.ravel() >= 12]) == {12}
    for server in SERVERS:
        mine = {array.tobytes() for array in constants[server] if array.size > 16}
        for other in set(SERVERS) - {server}:
            foreign = {array.tobytes() for array in constants[other] if array.size > 16}
            shapes_only = {array.tobytes() for array in constants[server] if array.dtype == np.int64}
            assert not (mine & foreign) - shapes_only
        everything = b"".join(path.read_bytes() for path in (trained_release / f"server-{server}").rglob("*.onnx"))
        for name in ("fusion.hidden.weight", "head.narrow.conv.weight"):
            weight = dict(system.named_parameters())[name].detach().numpy()
            assert weight.tobytes() not in everything


def test_config_states_what_the_graph_has(trained_release: Path) -> None:
    text = (trained_release / "server-1" / "branch" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())  # pyright: ignore[reportAttributeAccessIssue]
    session = ort.InferenceSession(str(trained_release / "server-1" / "branch" / "1" / "model.onnx"))
    assert [(one.name, list(one.dims)) for one in config.input] == [
        (one.name, one.shape[1:]) for one in session.get_inputs()
    ]
    assert [(one.name, list(one.dims)) for one in config.output] == [
        (one.name, one.shape[1:]) for one in session.get_outputs()
    ]
    manifest = json.loads((trained_release / "server-1" / "manifest.json").read_text())
    assert config.parameters["privdfs_release"].string_value == manifest["release"]
    assert config.parameters["privdfs_server"].string_value == "1"


def test_golden_examples_are_what_the_files_compute(trained_release: Path) -> None:
    golden = load_file(trained_release / "client" / "golden.safetensors")
    encoder = ort.InferenceSession(str(trained_release / "client" / "encoder.onnx"))
    shares = [np.asarray(share) for share in encoder.run(None, {"image": golden["images"]})]
    for server in SERVERS:
        assert (shares[server] == golden[f"share_{server}"]).mean() > 0.99
        branch = ort.InferenceSession(str(trained_release / f"server-{server}" / "branch" / "1" / "model.onnx"))
        logits = np.asarray(branch.run(None, {"share": golden[f"share_{server}"]})[0])
        assert np.allclose(logits, golden["logits"][:, server], atol=1e-4)


def test_golden_images_are_of_the_test_half_where_the_licence_allows_it(
    trained_release: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, system = load_data("fashion-mnist", data_folder), trained_release.parent / "run" / "system.safetensors"
    real = data.test_images[:8].permute(0, 2, 3, 1).numpy()
    assert (load_file(trained_release / "client" / "golden.safetensors")["images"] == real).all()

    monkeypatch.setattr(release, "MAY_BE_PASSED_ON", frozenset())
    release.export_release(load_system(system), data, tmp_path / "drawn", engine="python", console=QUIET)

    drawn = load_file(tmp_path / "drawn" / "client" / "golden.safetensors")["images"]
    assert drawn.shape == real.shape
    assert drawn.std(axis=(1, 2, 3)).min() > 20  # pictures, not grey
    assert not any((image == drawn).all(axis=(1, 2, 3)).any() for image in data.test_images.permute(0, 2, 3, 1).numpy())
    assert Bundle.open(tmp_path / "drawn" / "client", allow_unsigned=True).selftest().images == 8


def test_stated_accuracies_are_those_of_the_files(trained_release: Path, data_folder: Path) -> None:
    data = load_data("fashion-mnist", data_folder)
    images = np.ascontiguousarray(data.test_images.permute(0, 2, 3, 1).numpy())
    encoder = evaluate.session((trained_release / "client" / "encoder.onnx").read_bytes())
    branches = [
        evaluate.session((trained_release / f"server-{server}" / "branch" / "1" / "model.onnx").read_bytes())
        for server in SERVERS
    ]
    fusion = evaluate.session((trained_release / "client" / "fusion.onnx").read_bytes())
    answers = evaluate.server_answers(encoder, branches, images)
    client = decode_client_manifest((trained_release / "client" / "manifest.json").read_bytes())
    for subset in client.accuracy.subsets:
        heard = evaluate.fuse(fusion, answers, subset.answered)
        assert evaluate.fraction_right(heard, data.test_labels.numpy()) == subset.accuracy
    assert client.accuracy.fused > 0.5


def test_the_same_system_gives_the_same_release_id(trained_release: Path, data_folder: Path, tmp_path: Path) -> None:
    trained = load_system(trained_release.parent / "run" / "system.safetensors")
    data = load_data("fashion-mnist", data_folder)
    again = release.export_release(trained, data, tmp_path / "again", engine="onnxruntime", console=QUIET)
    first = decode_client_manifest((trained_release / "client" / "manifest.json").read_bytes())
    assert again.release == first.release
    assert not list((tmp_path / "again").rglob("model.py"))
    assert 'backend: "onnxruntime"' in (tmp_path / "again" / "server-0" / "branch" / "config.pbtxt").read_text()


def test_data_that_the_system_was_not_measured_on_are_refused(
    trained_release: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The id is that of the graphs, so it would stand for two accuracies."""
    other = write_data(tmp_path / "other")
    labels = "t10k-labels-idx1-ubyte.gz"
    values = np.frombuffer(gzip.decompress((other / labels).read_bytes()), np.uint8, offset=8)
    write_idx(other / labels, np.where(np.arange(len(values)) % 3 == 0, (values + 1) % 10, values).astype(np.uint8))
    checkpoint = trained_release.parent / "run" / "system.safetensors"
    assert main([str(checkpoint), "--out", str(tmp_path / "out"), "--data", str(other)]) == 2
    said = capsys.readouterr().err
    assert "these are not the images that it was measured on" in said
    assert f"reached {load_system(checkpoint).accuracy['fused']:.2%} at the end of its training" in said
    assert not (tmp_path / "out").exists()


def test_a_sample_may_differ_by_chance_alone() -> None:
    parity.check_data("set", 0.5, 0.5019, None)
    with pytest.raises(ExportError, match="not the images"):
        parity.check_data("set", 0.5, 0.5021, None)
    parity.check_data("set", 0.5, 0.55, 1000)
    with pytest.raises(ExportError, match="not the images"):
        parity.check_data("set", 0.5, 0.55, 20_000)


def test_an_encoder_that_is_not_the_trained_one_is_refused_and_nothing_is_written(
    trained_release: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_system(trained_release.parent / "run" / "system.safetensors")
    build = graphs.encoder_graph
    head = trained.system.head
    assert isinstance(head, CompactHead)

    def other_head(system: torch.nn.Module) -> onnx.ModelProto:
        with torch.no_grad():
            weight = head.narrow.conv.weight
            kept = weight.clone()
            weight.mul_(1.3)
            graph = build(trained.system)
            weight.copy_(kept)
        return graph

    monkeypatch.setattr(graphs, "encoder_graph", other_head)
    data = load_data("fashion-mnist", data_folder)
    with pytest.raises(ParityError, match=r"encoder, share_0: .* of the int8 values equal") as caught:
        release.export_release(trained, data, tmp_path / "out", engine="python", console=QUIET)
    assert caught.value.measured > caught.value.allowed
    assert pickle.loads(pickle.dumps(caught.value)).graph == "encoder, share_0"  # noqa: S301  our own bytes
    assert list(tmp_path.iterdir()) == []


def test_parity_fails_on_nan_shape_and_accuracy() -> None:
    good = np.zeros((4, 3), np.float32)
    parity.check_floats("branch 0", good, good)
    with pytest.raises(ParityError, match="differs from the trained network by nan"):
        parity.check_floats("branch 0", np.full_like(good, np.nan), good)
    with pytest.raises(ParityError, match=r"gives shape \(4, 3\)"):
        parity.check_floats("branch 0", good, good[:, :2])
    with pytest.raises(ParityError, match=r"exported files reach 90\.00%"):
        parity.check_accuracy(0.9, 0.903)
    parity.check_accuracy(0.9, 0.9019)


def test_every_graph_is_opened_once(
    trained_release: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bytes] = []

    def session(data: bytes) -> ort.InferenceSession:
        opened.append(data)
        return evaluate.session(data)

    monkeypatch.setattr(contents, "session", session)
    trained = load_system(trained_release.parent / "run" / "system.safetensors")
    data = load_data("fashion-mnist", data_folder)
    release.export_release(trained, data, tmp_path / "out", engine="python", console=QUIET)
    written = [trained_release / "client" / "encoder.onnx", trained_release / "client" / "fusion.onnx"]
    written += [trained_release / f"server-{server}" / "branch" / "1" / "model.onnx" for server in range(3)]
    written.append(trained_release / "baseline" / "baseline" / "1" / "model.onnx")
    # The fusion as it is before calibration is opened too.
    plain = graphs.fusion_graph(trained.system).SerializeToString()
    assert sorted(opened) == sorted([plain, *(path.read_bytes() for path in written)])


def test_a_full_disk_leaves_nothing(
    trained_release: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load_system(trained_release.parent / "run" / "system.safetensors")

    def no_space(*_args: object, **_kwargs: object) -> list[str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_repository", no_space)
    with pytest.raises(ExportError, match=r"No space left on device\. Free some disk space"):
        release.export_release(
            trained, load_data("fashion-mnist", data_folder), tmp_path / "out", engine="python", console=QUIET
        )
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(
    trained_release: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained_release / "client" / "manifest.json").read_bytes()
    checkpoint = trained_release.parent / "run" / "system.safetensors"
    assert main([str(checkpoint), "--out", str(trained_release), "--data", str(data_folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (trained_release / "client" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_command_explains_a_bad_checkpoint(
    trained_release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    checkpoint = tmp_path / "system.safetensors"
    if damage == "truncated":
        shutil.copy(trained_release.parent / "run" / "system.safetensors", checkpoint)
        checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    assert main([str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert str(checkpoint) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_of_other_classes_are_refused(trained_release: Path, data_folder: Path, tmp_path: Path) -> None:
    trained = load_system(trained_release.parent / "run" / "system.safetensors")
    data = load_data("fashion-mnist", data_folder)
    other = dataclasses.replace(data, classes=("cat", *data.classes[1:]))
    with pytest.raises(ExportError, match="other classes"):
        release.export_release(trained, other, tmp_path / "out", engine="python", console=QUIET)


def test_people_see_what_happens(trained_release: Path, data_folder: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    trained = load_system(trained_release.parent / "run" / "system.safetensors")
    console = Console(file=screen, width=120)
    release.export_release(
        trained, load_data("fashion-mnist", data_folder), tmp_path / "out", engine="python", console=console
    )
    assert "parity with torch on 512 test images" in screen.getvalue()
    assert "fused" in screen.getvalue()
