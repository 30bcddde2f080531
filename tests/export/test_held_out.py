"""Releases of systems that training images were held out of: calibrated with those, measured on the test images."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from privdfs._coded_format import CodedManifest
from privdfs._format import CalibrationError, ClientManifest
from privdfs._manifest import read_client_manifest
from privdfs_bench.releases import manifest_data
from privdfs_export import calibration
from privdfs_export.calibration import calibrate, fit_temperature
from privdfs_export.cli import main
from privdfs_export.coded_contents import build_coded_graphs
from privdfs_export.coded_release import export_coded
from privdfs_export.contents import build_graphs
from privdfs_export.errors import ExportError
from privdfs_export.release import export_release
from privdfs_training.checkpoint import TrainedSystem, load_system
from privdfs_training.coded.system import TrainedCodedSystem, save_coded
from privdfs_training.data import DataSet, as_trained, load_data
from tests.coded_release import drawn
from tests.trained import QUIET

HELD_OUT = 130


@pytest.fixture(autouse=True)
def _enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny set has too few images to hold out as many as a map needs."""
    monkeypatch.setattr(calibration, "FEWEST_HELD_OUT", HELD_OUT)


@pytest.fixture(scope="module")
def data(data_folder: Path) -> DataSet:
    return load_data("fashion-mnist", data_folder)


def with_other_labels(data: DataSet) -> DataSet:
    """The same images, but of those held out each has another label."""
    labels = data.train_labels.clone()
    labels[-HELD_OUT:] = (labels[-HELD_OUT:] + 1) % len(data.classes)
    return dataclasses.replace(data, train_labels=labels)


def masked(trained_release: Path, data: DataSet) -> TrainedSystem:
    """A system that says of itself what it reaches on the images that were held out."""
    trained = load_system(trained_release.parent / "run" / "system.safetensors")
    config = msgspec.structs.replace(
        trained.config, data=msgspec.structs.replace(trained.config.data, held_out=HELD_OUT)
    )
    accuracy = trained.accuracy | {"fused": right(trained.system, data)}
    return dataclasses.replace(trained, config=config, accuracy=accuracy)


def coded(data: DataSet) -> TrainedCodedSystem:
    """The same of a drawn coded system."""
    trained = drawn("rounds").trained
    config = msgspec.structs.replace(
        trained.config, data=msgspec.structs.replace(trained.config.data, held_out=HELD_OUT)
    )
    accuracy = {"baseline": 0.5, "coded": right(trained.system, data), "readout": 0.5}
    return dataclasses.replace(trained, config=config, classes=data.classes, accuracy=accuracy)


def right(system: torch.nn.Module, data: DataSet) -> float:
    pixels, labels = as_trained(data, HELD_OUT).sample("test")
    with torch.inference_mode():
        return (system(pixels).argmax(dim=1) == labels).float().mean().item()


def stated(manifest: ClientManifest | CodedManifest) -> CalibrationError:
    assert isinstance(manifest.accuracy.calibration, CalibrationError)
    return manifest.accuracy.calibration


def test_a_masked_release(trained_release: Path, data: DataSet, tmp_path: Path) -> None:
    trained = masked(trained_release, data)
    manifest = export_release(trained, data, tmp_path / "release", engine="python", console=QUIET)
    assert stated(manifest).fitted_on == f"{HELD_OUT} training images that were held out"
    assert manifest.accuracy.images == data.test_size
    assert manifest.accuracy.fused == pytest.approx(
        load_system(trained_release.parent / "run" / "system.safetensors").accuracy["fused"]
    )


def test_a_coded_release(data: DataSet, tmp_path: Path) -> None:
    trained = coded(data)
    manifest = export_coded(trained, data, tmp_path / "release", engine="python", servers=3, console=QUIET)
    assert stated(manifest).fitted_on == f"{HELD_OUT} training images that were held out"
    assert manifest.accuracy.images == data.test_size
    pixels, labels = as_trained(data, HELD_OUT).sample("test")
    with torch.inference_mode():
        logits = trained.system(pixels).numpy()
    built = build_coded_graphs(trained, fit_temperature(logits, labels.numpy()))
    assert built.fusion.data == (tmp_path / "release" / "client" / "fusion.onnx").read_bytes()


def test_the_command_and_the_benches_take_the_test_images(data: DataSet, data_folder: Path, tmp_path: Path) -> None:
    trained, path, out = coded(data), tmp_path / "system.safetensors", tmp_path / "release"
    save_coded(path, trained.system, trained.config, data, trained.accuracy, trained.rounds)
    assert main([str(path), "--out", str(out), "--data", str(data_folder), "--servers", "3"]) == 0
    manifest = read_client_manifest((out / "client" / "manifest.json").read_bytes())
    assert manifest.made_by.config["data"]["held_out"] == HELD_OUT
    assert manifest.accuracy.images == data.test_size
    measured_on = manifest_data(manifest, data_folder)
    assert torch.equal(measured_on.test_images, data.test_images)
    assert torch.equal(measured_on.test_labels, data.test_labels)


def test_images_held_out_and_no_others_decide_the_map(trained_release: Path, data: DataSet) -> None:
    trained = masked(trained_release, data)
    plain = build_graphs(trained.system)
    others = dataclasses.replace(
        data,
        test_labels=(data.test_labels + 1) % 10,
        train_labels=torch.cat([data.train_labels[:-HELD_OUT] * 0, data.train_labels[-HELD_OUT:]]),
    )
    slopes = [calibrate(plain, each, trained.config, None).slopes for each in (data, others, with_other_labels(data))]
    assert np.array_equal(slopes[0], slopes[1])
    assert not np.allclose(slopes[0], slopes[2])


def test_other_images_than_those_that_were_held_out_are_refused(
    trained_release: Path, data: DataSet, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match="not the images that it was measured on"):
        export_release(
            masked(trained_release, data), with_other_labels(data), tmp_path / "masked", engine="python", console=QUIET
        )
    with pytest.raises(ExportError, match="not the images that it was measured on"):
        export_coded(
            coded(data), with_other_labels(data), tmp_path / "coded", engine="python", servers=3, console=QUIET
        )
    assert not list(tmp_path.iterdir())


def test_too_few_images_held_out_decide_nothing(
    trained_release: Path, data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "FEWEST_HELD_OUT", HELD_OUT + 1)
    plain = masked(trained_release, data)
    manifests = (
        export_release(plain, data, tmp_path / "masked", engine="python", console=QUIET),
        export_coded(coded(data), data, tmp_path / "coded", engine="python", servers=3, console=QUIET),
    )
    for manifest in manifests:
        others = data.train_size - HELD_OUT
        assert (
            stated(manifest).fitted_on == f"{others} training images, each mirrored, turned, scaled and moved at random"
        )
        assert manifest.accuracy.images == data.test_size
