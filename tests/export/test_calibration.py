import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from privdfs import Bundle, BundleFormatError
from privdfs._format import CalibrationError
from privdfs._manifest import decode_client_manifest, encode_manifest
from privdfs._verify import verify
from privdfs_export import calibration, evaluate, graphs
from privdfs_export.calibrate import calibrate_release
from privdfs_export.cli import main
from privdfs_export.contents import Graph, Graphs
from privdfs_export.errors import ExportError, ParityError
from privdfs_export.tracing import export_graph
from privdfs_training.checkpoint import load_system
from privdfs_training.models.fusion import Fusion

CLASSES, SERVERS = 10, 3
#: As they are found on real releases: steep below fusion's floor, flat above.
SLOPES = np.array([[3.0, 0.9, 0.8], [4.0, 0.7, 0.9], [4.6, 0.5, 0.6]], np.float32)


class Fused(torch.nn.Module):
    """A fusion that was not trained, with and without a correcting network."""

    def __init__(self, hidden: int = 0) -> None:
        super().__init__()
        self.fusion = Fusion(servers=SERVERS, classes=CLASSES, hidden=hidden)

    def forward(self, logits: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
        return self.fusion(logits, answered).softmax(dim=1)


def fusion_model(hidden: int = 0) -> onnx.ModelProto:
    torch.manual_seed(0)
    inputs = (torch.zeros(2, SERVERS, CLASSES), torch.ones(2, SERVERS, dtype=torch.bool))
    return export_graph(Fused(hidden), inputs, ["logits", "answered"], ["probabilities"])


def heard(count: int, *, spread: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of servers, and who answered: any subset but none."""
    generator = np.random.default_rng(1)
    logits = (spread * generator.normal(size=(count, SERVERS, CLASSES))).astype(np.float32)
    answered = generator.random((count, SERVERS)) < 0.6
    answered[~answered.any(axis=1), 0] = True
    return logits, answered


def probabilities(model: onnx.ModelProto, logits: np.ndarray, answered: np.ndarray) -> np.ndarray:
    session = evaluate.session(model.SerializeToString())
    return np.asarray(session.run(None, {"logits": logits, "answered": answered})[0])


def test_the_error_is_the_mean_gap_of_fifteen_bins() -> None:
    """Two bins by hand: four images at 90 % of which three are right, two at 50 % of which none is."""
    stated = np.array([[0.9, 0.1]] * 4 + [[0.5, 0.4999]] * 2)
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert calibration.calibration_error(stated, labels) == pytest.approx((4 * 0.15 + 2 * 0.5) / 6)
    # In one bin, too sure and not sure enough cancel out; in two they do not.
    assert calibration.calibration_error(np.array([[0.99, 0.01], [0.95, 0.05]]), np.array([0, 0])) == pytest.approx(
        0.03
    )
    assert calibration.calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


@pytest.mark.parametrize("hidden", [0, 8])
def test_every_answered_vector_keeps_the_ranking_of_all_classes(hidden: int) -> None:
    plain = fusion_model(hidden)
    logits, answered = heard(4000)
    before = probabilities(plain, logits, answered)
    after = probabilities(calibration.calibrated_fusion(plain, SLOPES), logits, answered)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    # No two classes change places: sorted by the probabilities before, those after never fall.
    order = before.argsort(axis=1, kind="stable")
    assert (np.diff(np.take_along_axis(after, order, axis=1), axis=1) >= -1e-7).all()
    assert after.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert np.abs(before - after).max() > 0.02


def test_a_sure_answer_is_above_94_percent() -> None:
    plain = fusion_model()
    logits = np.zeros((1, SERVERS, CLASSES), np.float32)
    logits[:, :, 3] = 30
    answered = np.ones((1, SERVERS), bool)
    assert probabilities(plain, logits, answered).max() < 0.945
    assert probabilities(calibration.calibrated_fusion(plain, SLOPES), logits, answered).max() > 0.99


def test_a_minority_of_liars_cannot_change_a_sure_answer() -> None:
    model = calibration.calibrated_fusion(fusion_model(), SLOPES)
    logits, _ = heard(500)
    logits[:, :2] = 0
    logits[:, :2, 3] = 30
    everyone = np.ones((500, SERVERS), bool)
    assert (probabilities(model, logits, everyone).argmax(axis=1) == 3).all()


def test_the_graph_computes_what_the_parity_check_expects() -> None:
    plain = fusion_model(8)
    logits, answered = heard(300)
    found = probabilities(calibration.calibrated_fusion(plain, SLOPES), logits, answered)
    fused = torch.from_numpy(probabilities(plain, logits, answered))
    expected = calibration.mapped(fused, torch.from_numpy(answered), SLOPES).numpy()
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_slopes_are_in_the_graph_and_cost_no_multiplication_that_is_counted() -> None:
    plain = fusion_model(8)
    model = calibration.calibrated_fusion(plain, SLOPES)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert (constants["calibration_slopes"] == SLOPES).all()
    assert calibration.is_calibrated(model)
    assert not calibration.is_calibrated(plain)
    assert graphs.count_macs(model) == graphs.count_macs(plain)


def test_a_fusion_is_calibrated_once_and_only_where_it_ends_in_a_softmax() -> None:
    model = calibration.calibrated_fusion(fusion_model(), SLOPES)
    with pytest.raises(ExportError, match="calibrated already"):
        calibration.calibrated_fusion(model, SLOPES)
    other = fusion_model()
    other.graph.node[-1].op_type = "LogSoftmax"
    with pytest.raises(ExportError, match="does not end in a softmax"):
        calibration.calibrated_fusion(other, SLOPES)


def test_a_fit_finds_the_map_that_made_the_labels() -> None:
    """Labels drawn from mapped probabilities: the fit finds slopes that give those probabilities again."""
    generator = torch.Generator().manual_seed(0)
    logarithms = (3 * torch.randn(60_000, CLASSES, generator=generator)).double().log_softmax(dim=1)
    true = torch.tensor([0.5, 1.5, 0.8], dtype=torch.double)
    wanted = (calibration.segments(logarithms) * true).sum(dim=2).softmax(dim=1)
    labels = wanted.multinomial(1, generator=generator).squeeze(1)
    assert calibration.fit_slopes(logarithms, labels) == pytest.approx(true.numpy(), abs=0.05)


def test_views_are_new_and_always_the_same() -> None:
    images = torch.randint(0, 256, (6, 3, 12, 10), dtype=torch.uint8)
    views = calibration.unfamiliar(images, 1)
    assert views.shape == images.shape
    assert views.dtype == torch.uint8
    assert torch.equal(views, calibration.unfamiliar(images, 1))
    assert not torch.equal(views, images)
    assert not torch.equal(views, calibration.unfamiliar(images, 5))


def test_views_move_further_than_training_did(trained_release: Path) -> None:
    config = load_system(trained_release.parent / "run" / "system.safetensors").config
    assert calibration.familiar_shift(config) == 1
    baseline = msgspec.structs.replace(config.train.baseline, crop_padding=4)
    other = msgspec.structs.replace(config, train=msgspec.structs.replace(config.train, baseline=baseline))
    assert calibration.familiar_shift(other) == 1


def test_a_release_states_its_error(trained_release: Path) -> None:
    manifest = decode_client_manifest((trained_release / "client" / "manifest.json").read_bytes())
    assert isinstance(manifest.accuracy.calibration, CalibrationError)
    assert "520 training images" in manifest.accuracy.calibration.fitted_on
    model = onnx.load(trained_release / "client" / "fusion.onnx")
    assert calibration.is_calibrated(model)
    assert "expected calibration error" in Bundle.open(trained_release / "client", allow_unsigned=True).describe()


def test_an_older_manifest_is_read_and_written_without_the_new_field(trained_release: Path) -> None:
    values = json.loads((trained_release / "client" / "manifest.json").read_text())
    del values["accuracy"]["calibration"]
    manifest = decode_client_manifest(json.dumps(values).encode())
    assert manifest.accuracy.calibration is msgspec.UNSET
    assert b'"calibration"' not in encode_manifest(manifest)
    values["accuracy"]["calibration"] = {"before": 2.0, "after": 0.0, "fitted_on": ""}
    with pytest.raises(BundleFormatError):
        decode_client_manifest(json.dumps(values).encode())


@pytest.fixture(params=["trained_release", "keyed_trained_release"])
def older_release(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A release as it was before releases were calibrated: its fusion is the trained one, and nothing is stated."""
    release = tmp_path / "older"
    trained: Path = request.getfixturevalue(request.param)
    shutil.copytree(trained, release)
    client = release / "client"
    system = load_system(trained.parent / "run" / "system.safetensors").system
    data = graphs.fusion_graph(system).SerializeToString()
    (client / "fusion.onnx").write_bytes(data)
    manifest = decode_client_manifest((client / "manifest.json").read_bytes())
    files = dict(manifest.files)
    files["fusion.onnx"] = hashlib.sha256(data).hexdigest()
    accuracy = msgspec.structs.replace(manifest.accuracy, calibration=msgspec.UNSET)
    older = msgspec.structs.replace(manifest, files=files, accuracy=accuracy)
    (client / "manifest.json").write_bytes(encode_manifest(older))
    return release


def test_the_command_gives_an_older_release_what_an_export_gives(
    older_release: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same id as the export of the same system: the very same fusion."""
    out = tmp_path / "calibrated"
    assert main(["calibrate", str(older_release), "--out", str(out), "--data", str(data_folder)]) == 0
    old = decode_client_manifest((older_release / "client" / "manifest.json").read_bytes())
    new = decode_client_manifest((out / "client" / "manifest.json").read_bytes())
    assert new.release == old.release
    assert "calibrated" in capsys.readouterr().out
    verify(out)
    for path in older_release.rglob("*.onnx"):
        if path.name != "fusion.onnx":
            assert (out / path.relative_to(older_release)).read_bytes() == path.read_bytes()
    without = msgspec.structs.replace(new.accuracy, calibration=msgspec.UNSET)
    assert without == old.accuracy
    assert new.made_by.command.startswith(f"{old.made_by.command} && ")
    assert Bundle.open(out / "client", allow_unsigned=True).selftest().probability_error < 1e-4


def test_the_command_refuses_what_it_cannot_calibrate(trained_release: Path, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="calibrated already"):
        calibrate_release(trained_release, data_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def twin(trained_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose manifest says that training images were held out from the same config; its map is `SLOPES`."""
    release = tmp_path_factory.mktemp("twin") / "release"
    shutil.copytree(trained_release, release)
    client = release / "client"
    fusion = calibration.with_slopes(onnx.load(client / "fusion.onnx"), SLOPES).SerializeToString()
    (client / "fusion.onnx").write_bytes(fusion)
    rewrite(client, held_out=1500, files={"fusion.onnx": hashlib.sha256(fusion).hexdigest()})
    return release


FITTED = calibration.fitted_on_held_out(1500)


def rewrite(
    client: Path,
    *,
    files: dict[str, str] | None = None,
    held_out: int = 0,
    fitted_on: str = FITTED,
    **sections: dict[str, Any],
) -> None:
    """Change a manifest's digests, what its map was fitted on, and its config; with a name and a seed of its own."""
    manifest = decode_client_manifest((client / "manifest.json").read_bytes())
    config = json.loads(json.dumps(manifest.made_by.config)) | {"name": "twin", "seed": 9}
    for section, keys in ({"data": {"held_out": held_out}} | sections).items():
        config[section] |= keys
    assert isinstance(manifest.accuracy.calibration, CalibrationError)
    error = msgspec.structs.replace(manifest.accuracy.calibration, fitted_on=fitted_on)
    changed = msgspec.structs.replace(
        manifest,
        files=dict(manifest.files) | (files or {}),
        made_by=msgspec.structs.replace(manifest.made_by, config=config),
        accuracy=msgspec.structs.replace(manifest.accuracy, calibration=error),
    )
    (client / "manifest.json").write_bytes(encode_manifest(changed))


def test_a_release_takes_the_map_of_its_twin(
    trained_release: Path, twin: Path, data_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibrated"
    command = ["calibrate", str(trained_release), "--like", str(twin), "--out", str(out), "--data", str(data_folder)]
    assert main(command) == 0
    verify(out)
    slopes = calibration.slopes_of(onnx.load(out / "client" / "fusion.onnx"))
    assert slopes is not None
    assert np.array_equal(slopes, SLOPES)
    for path in trained_release.rglob("*.onnx"):
        if path.name != "fusion.onnx":
            assert (out / path.relative_to(trained_release)).read_bytes() == path.read_bytes()
    old, new = (
        decode_client_manifest((folder / "client" / "manifest.json").read_bytes()).accuracy
        for folder in (trained_release, out)
    )
    assert isinstance(old.calibration, CalibrationError)
    assert isinstance(new.calibration, CalibrationError)
    assert new.calibration.before == pytest.approx(old.calibration.before, abs=1e-6)  # without any map
    assert new.calibration.fitted_on == "1500 training images, held out from a second training by the same config"
    assert msgspec.structs.replace(new, calibration=old.calibration) == old


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"held_out": 999, "fitted_on": "999 training images that were held out"}, "images it had not seen"),
        ({"fitted_on": "1500 training images, each mirrored, turned, scaled and moved"}, "images it had not seen"),
        ({"fitted_on": "1500 training images, held out from a second training by the same config"}, "had not seen"),
        ({"loss": {"distillation": 0.25}}, "other settings in: loss"),
        ({"head": {"channels": 5}, "fusion": {"branch_dropout": 0.5}}, "other settings in: fusion, head"),
        ({"backbone": {"checkpoint": "weights.safetensors"}}, "other settings in: backbone"),
    ],
)
def test_a_twin_of_another_kind_is_refused(
    changes: dict[str, Any],
    problem: str,
    trained_release: Path,
    twin: Path,
    data_folder: Path,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    shutil.copytree(twin, other)
    given: dict[str, Any] = {"held_out": 1500} | changes
    rewrite(other / "client", **given)
    with pytest.raises(ExportError, match=problem):
        calibrate_release(trained_release, data_folder, tmp_path / "out", like=other)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("own", "other"), [("a", "b"), ("a", "a"), (None, "b")])
def test_a_twin_starts_from_other_weights_than_the_release(
    own: str | None, other: str, trained_release: Path, twin: Path, data_folder: Path, tmp_path: Path
) -> None:
    """Those of the release have seen all training images."""
    release, second = tmp_path / "release", tmp_path / "twin"
    for folder, source, name, count in ((release, trained_release, own, 0), (second, twin, other, 1500)):
        shutil.copytree(source, folder)
        rewrite(folder / "client", held_out=count, backbone={} if name is None else {"checkpoint": name})
    if (own, other) == ("a", "b"):
        assert calibrate_release(release, data_folder, tmp_path / "out", like=second)
    else:
        with pytest.raises(ExportError, match="other settings in: backbone"):
            calibrate_release(release, data_folder, tmp_path / "out", like=second)


def test_a_release_that_held_images_out_takes_no_other_map(twin: Path, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="held out training images of its own"):
        calibrate_release(twin, data_folder, tmp_path / "out", like=twin)


def test_a_twin_without_a_map_is_refused(
    older_release: Path, trained_release: Path, data_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"images it had not seen|other settings"):
        calibrate_release(trained_release, data_folder, tmp_path / "out", like=older_release)


def test_a_keyed_release_takes_a_map_too(keyed_trained_release: Path, data_folder: Path, tmp_path: Path) -> None:
    second, out = tmp_path / "twin", tmp_path / "out"
    shutil.copytree(keyed_trained_release, second)
    rewrite(second / "client", held_out=1500)
    new = calibrate_release(keyed_trained_release, data_folder, out, like=second)
    old = decode_client_manifest((keyed_trained_release / "client" / "manifest.json").read_bytes())
    assert new.release == old.release  # the twin's map is its own here
    verify(out)


@pytest.mark.parametrize("slopes", [SLOPES[:2], SLOPES[:, :2]])
def test_a_map_of_another_shape_is_refused(slopes: np.ndarray) -> None:
    plain = fusion_model()
    for fusion in (plain, calibration.calibrated_fusion(plain, SLOPES)):
        with pytest.raises(ExportError, match="is not for a fusion of 3 servers"):
            calibration.with_slopes(fusion, slopes)


def test_slopes_of_one_change_no_probability() -> None:
    plain = fusion_model()
    logits, answered = heard(500)
    same = calibration.calibrated_fusion(plain, np.ones_like(SLOPES))
    assert np.allclose(probabilities(same, logits, answered), probabilities(plain, logits, answered), atol=1e-6)


def test_the_temperature_makes_answers_as_sure_as_they_are_right() -> None:
    drawn = np.random.default_rng(0)
    logits = 4 * drawn.normal(size=(20_000, CLASSES))
    stated = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (stated.cumsum(axis=1) > drawn.random((len(logits), 1))).argmax(axis=1)
    temperature = calibration.fit_temperature(2.5 * logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.03)
    cooled = np.exp(2.5 * logits / temperature)
    sure = (cooled / cooled.sum(axis=1, keepdims=True)).max(axis=1).mean()
    assert sure == pytest.approx((logits.argmax(axis=1) == labels).mean(), abs=0.004)


def test_a_map_that_changes_a_class_is_refused() -> None:
    """Were a slope negative, the check before writing would see it."""
    plain = fusion_model()
    broken = calibration.calibrated_fusion(plain, -SLOPES)
    logits, _ = heard(20)

    def drawn(*_: object) -> np.ndarray:
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "server_answers", drawn)
        one = Graphs(Graph(plain), [Graph(plain)] * SERVERS, Graph(plain), Graph(plain))
        other = Graphs(Graph(plain), [Graph(plain)] * SERVERS, Graph(broken), Graph(plain))
        calibrated = calibration.Calibrated(other, -SLOPES, "nothing")
        with pytest.raises(ParityError, match="changed the class"):
            calibration.measure(one, calibrated, np.zeros((20, 2, 2, 1), np.uint8), np.zeros(20, np.int64), None)
