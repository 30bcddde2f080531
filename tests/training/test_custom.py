"""A backbone of the user's own: named in a config, refused with a reason, never imported because a file names it."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bench import accuracy
from privdfs import Bundle
from privdfs_export import cli as export_cli
from privdfs_export import graphs
from privdfs_export.errors import ExportError
from privdfs_training import cli
from privdfs_training.checkpoint import load_system, read_checkpoint, write_checkpoint
from privdfs_training.coded.system import load_coded
from privdfs_training.config import CustomConfig
from privdfs_training.errors import CheckpointError, TrainingConfigError
from privdfs_training.models.custom import CustomBackbone, custom_backbone
from privdfs_training.pretrained import load_pretrained
from privdfs_training.reading import load_config
from privdfs_training.rivals.config import rival_config
from tests.trained import tiny_values, write_toml
from tests.training.coded_systems import coded_values

MODULE = "tests.training.own_models"
SMALL = f"{MODULE}:small"
OWN: dict[str, Any] = {"name": "custom", "factory": SMALL, "arguments": {"width": 6}}
SHAPE = (1, 28, 28)


def built(function: str, **arguments: float) -> CustomBackbone:
    return custom_backbone(CustomConfig(factory=f"{MODULE}:{function}", arguments=arguments), SHAPE, 10)


def run_of(folder: Path, data_folder: Path, values: dict[str, Any]) -> Path:
    """Train by the command; gives the finished system."""
    config = write_toml(folder / "config.toml", values)
    assert cli.main([str(config), "--data", str(data_folder), "--out", str(folder), "--device", "cpu"]) == 0
    return folder / values["name"] / "system.safetensors"


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    return run_of(tmp_path_factory.mktemp("masked"), data_folder, tiny_values() | {"backbone": OWN})


@pytest.fixture(scope="session")
def coded(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("coded")
    values = coded_values() | {"backbone": OWN}
    config = folder / "config.toml"
    write_toml(config, values)
    return run_of(folder, data_folder, values)


def test_a_masked_run_is_trained_and_exported(
    masked: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load_system(masked, factory=SMALL)
    assert isinstance(trained.system.baseline, CustomBackbone)
    command = [str(masked), "--data", str(data_folder), "--out", str(tmp_path / "release")]
    assert export_cli.main([*command, "--factory", SMALL]) == 0
    capsys.readouterr()
    assert export_cli.main(["verify", str(tmp_path / "release")]) == 0
    bundle = Bundle.open(tmp_path / "release" / "client", allow_unsigned=True)
    assert bundle.manifest.made_by.config["backbone"] == OWN
    assert bundle.manifest.accuracy.baseline == pytest.approx(trained.accuracy["baseline"], abs=0.002)
    assert bundle.manifest.macs.baseline == macs_by_hand(6)


def macs_by_hand(width: int) -> int:
    """Of `own_models.Small` on 28 x 28 grey pixels."""
    stem, conv = 28 * 28 * 9 * width, 7 * 7 * 9 * width * 2 * width
    return stem + conv + 7 * 7 * 9 * (2 * width) ** 2 + 2 * width * 10


def test_a_coded_run_is_trained_and_exported(coded: Path, data_folder: Path, tmp_path: Path) -> None:
    trained = load_coded(coded, factory=SMALL)
    assert isinstance(trained.system.baseline, CustomBackbone)
    command = [str(coded), "--data", str(data_folder), "--out", str(tmp_path / "release"), "--servers", "3"]
    assert export_cli.main([*command, "--factory", SMALL]) == 0
    bundle = Bundle.open(tmp_path / "release" / "client", allow_unsigned=True)
    assert bundle.manifest.macs.baseline == macs_by_hand(6)


def test_a_finished_run_goes_on_from_its_checkpoints(
    masked: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = masked.parents[1] / "config.toml"
    before = read_checkpoint(masked).tensors
    assert cli.main([str(config), "--data", str(data_folder), "--out", str(masked.parents[1]), "--device", "cpu"]) == 0
    after = read_checkpoint(masked).tensors
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    other = write_toml(
        masked.parents[1] / "other.toml", tiny_values() | {"backbone": OWN | {"arguments": {"width": 7}}}
    )
    assert cli.main([str(other), "--data", str(data_folder), "--out", str(masked.parents[1]), "--device", "cpu"]) == 2
    assert "was made with other settings in: backbone" in capsys.readouterr().err


def test_commands_take_a_factory_with_a_system_alone(trained_release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_cli.main(["plan", str(trained_release), "--factory", SMALL]) == 2
    assert "--factory makes the backbone of --system system.safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        accuracy.main([str(trained_release), "--factory", SMALL])
    assert "--factory makes the backbone of --checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["masked", "coded"])
def test_training_ends_with_the_command_that_exports(
    kind: str, data_folder: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = request.getfixturevalue(kind)
    config = str(path.parents[1] / "config.toml")
    assert cli.main([config, "--data", str(data_folder), "--out", str(path.parents[1]), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"next: privdfs-export {path} --factory {SMALL} --data {data_folder} --out model_repository/tiny-3" in said


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that leaves a trace once it is imported."""
    folder = tmp_path / "strangers"
    folder.mkdir()
    (folder / "stranger_models.py").write_text(
        "import pathlib\n"
        f"pathlib.Path({str(tmp_path / 'imported')!r}).touch()\n"
        "from tests.training.own_models import small as build\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "stranger_models", raising=False)
    return "stranger_models:build"


def strange(path: Path, section: str, factory: str, out: Path) -> Path:
    """The same system, in a file that names somebody else's function."""
    checkpoint = read_checkpoint(path)
    checkpoint.about[section]["backbone"]["factory"] = factory
    write_checkpoint(out, checkpoint.tensors, checkpoint.about)
    return out


@pytest.mark.parametrize("kind", ["masked", "coded"])
def test_opening_a_file_imports_what_its_reader_names_alone(
    kind: str,
    stranger: str,
    tmp_path: Path,
    data_folder: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    section, load = {"masked": ("config", load_system), "coded": ("coded", load_coded)}[kind]
    path = strange(request.getfixturevalue(kind), section, stranger, tmp_path / "system.safetensors")
    reason = r"names 'stranger_models:build' as the code.*Nothing was imported.*--factory stranger_models:build"
    with pytest.raises(CheckpointError, match=reason):
        load(path)
    command = [str(path), "--data", str(data_folder), "--out", str(tmp_path / "release")]
    assert export_cli.main(command) == 2
    assert "Nothing was imported" in capsys.readouterr().err
    assert not (tmp_path / "release").exists()
    backbone = load(path, factory=SMALL).config.backbone
    assert isinstance(backbone, CustomConfig)
    assert backbone.factory == SMALL
    assert not (tmp_path / "imported").exists()
    load(path, factory=stranger)
    assert (tmp_path / "imported").exists()


def test_a_factory_has_a_form_and_a_use(masked: Path, trained_release: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has the form 'package\.module:function'"):
        load_system(masked, factory="own_models.small")
    with pytest.raises(CheckpointError, match=r"has the backbone resnet8.*leave out the factory"):
        load_system(trained_release.parent / "run" / "system.safetensors", factory=SMALL)
    with pytest.raises(TrainingConfigError, match="there is no module nowhere"):
        load_system(masked, factory="nowhere:build")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("nothing", r"has no nothing\. Functions there: small, transposed"),
        ("A_NUMBER", "is a int, not a function"),
        ("takes_nothing", r"takes_nothing\(image_shape, classes\) failed with TypeError.*image_shape = \(1, 28, 28\)"),
        ("not_a_module", "gave a int, not a torch.nn.Module"),
        ("failing", r"failed on images float32 \(2, 1, 28, 28\) with RuntimeError"),
        ("two_answers", "gives tuple, not logits as one float32 tensor"),
        ("labels", "gives torch.int64, not logits as one float32 tensor"),
        ("of_doubles", "gives torch.float64, not logits as one float32 tensor"),
        ("too_few", r"of shape \(2, 9\) for 2 images and 10 classes; logits are \(2, 10\)"),
        ("tied", "2.weight and 3.weight share their memory"),
        ("infinite", "NaN or infinite values in mask: register it with persistent=False"),
        ("by_value", "computes something else when it is traced"),
        ("of_two_images", "cannot be exported"),
        ("without_onnx", "cannot be exported"),
        ("recurrent", "GRU, whose multiply-accumulates are not counted"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(function: str, reason: str) -> None:
    with pytest.raises(TrainingConfigError, match=reason):
        built(function)


def test_a_module_that_does_not_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for factory, reason in {
        "needs_more:build": "needs the module not_installed_anywhere, which is not installed",
        "breaks:build": "importing breaks failed with ZeroDivisionError",
        "no_such.package:build": "there is no module no_such.*PYTHONPATH",
    }.items():
        with pytest.raises(TrainingConfigError, match=reason):
            custom_backbone(CustomConfig(factory=factory), SHAPE, 10)


def test_networks_are_tried_before_images_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for values in (tiny_values(), coded_values()):
        values["backbone"] = {"name": "custom", "factory": f"{MODULE}:too_few"}
        config = write_toml(tmp_path / "config.toml", values)
        assert cli.main([str(config), "--data", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
        assert "logits are (2, 2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"factory": "package.module"}, "it has the form 'package.module:function'"),
        ({"factory": "../models.py:build"}, "it has the form 'package.module:function'"),
        ({"arguments": {"path": "/etc/passwd"}}, r"`\$\.backbone\.arguments\[\.\.\.\]`"),
        ({"width": 8}, r"Known keys of name = 'custom': arguments, checkpoint, factory, mean, std"),
        ({"mean": [0.5]}, "go together"),
    ],
)
def test_a_section_that_is_wrong_is_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    for read, values in ((load_config, tiny_values()), (read_coded, coded_values())):
        values["backbone"] = OWN | change
        with pytest.raises(TrainingConfigError, match=reason):
            read(write_toml(tmp_path / "config.toml", values))


def read_coded(path: Path) -> object:
    return cli._read(path)


def test_weights_come_from_a_file_of_the_models_own_names(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other, network = built("small", width=6), built("small", width=6)
    save_file(other.model.state_dict(), tmp_path / "own.safetensors")
    network.normalise.mean.fill_(7)
    load_pretrained(network, tmp_path / "own.safetensors")
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(network.parameters(), other.parameters(), strict=True))
    assert float(network.normalise.mean) == 7
    save_file(other.state_dict(), tmp_path / "ours.safetensors")
    load_pretrained(network, tmp_path / "ours.safetensors")
    assert float(network.normalise.mean) == 0
    with pytest.raises(CheckpointError, match=r"does not fit the backbone.*model\.stem\.1\.bias is \(6,\), not \(7,\)"):
        load_pretrained(built("small", width=7), tmp_path / "own.safetensors")


def test_rivals_have_backbones_that_everybody_has(tmp_path: Path) -> None:
    values = {key: value for key, value in tiny_values().items() if key not in {"masks", "fusion", "train", "loss"}}
    stage = tiny_values()["train"]["baseline"]
    values |= {"defence": {"kind": "none"}, "train": {"baseline": stage, "split": stage}, "backbone": OWN}
    values["loss"] = {"distillation": 0.5, "distillation_temperature": 4.0, "label_smoothing": 0.0}
    with pytest.raises(TrainingConfigError, match="is not for rivals"):
        rival_config(values, tmp_path)


@pytest.mark.parametrize(
    ("function", "macs"),
    [
        ("transposed", 28 * 28 * 2 * 9 + 2 * 57 * 57 * 10),
        ("shuffled", 26 * 26 * 4 * 9 + 24 * 24 * 6 * 2 * 9 + 6 * 10),  # sizes that the graph itself computes
        ("small", macs_by_hand(8)),
    ],
)
def test_macs_are_those_counted_by_hand(function: str, macs: int) -> None:
    example = (torch.zeros(2, *SHAPE),)
    assert graphs.count_macs(graphs.export_graph(built(function).model, example, ["image"], ["logits"])) == macs


def test_what_cannot_be_counted_is_said() -> None:
    class Contracted(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bchw,bchv->bwv", image, image).mean(2)

    graph = graphs.export_graph(Contracted(), (torch.zeros(2, *SHAPE),), ["image"], ["logits"])
    with pytest.raises(ExportError, match="Einsum, whose multiply-accumulates are not counted"):
        graphs.count_macs(graph)
