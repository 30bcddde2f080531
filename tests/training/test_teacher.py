"""[teacher]: a finished network that teaches in the baseline's place, and the baseline too."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from privdfs_training.checkpoint import read_checkpoint, read_tensors, write_checkpoint
from privdfs_training.cli import main
from privdfs_training.coded.config import coded_config
from privdfs_training.coded.system import CodedSystem
from privdfs_training.coded.train import check_coded, coded_stages, train_coded
from privdfs_training.config import RunConfig
from privdfs_training.data import DataSet, in_memory, load_data
from privdfs_training.errors import CheckpointError, TrainingConfigError
from privdfs_training.loop import check
from privdfs_training.losses import distillation
from privdfs_training.models.backbone import Backbone, build_backbone
from privdfs_training.models.system import System
from privdfs_training.reading import config_from_dict
from privdfs_training.rivals.config import rival_config
from privdfs_training.rivals.system import RivalSystem
from privdfs_training.rivals.train import rival_stages
from privdfs_training.stage import Stage, teacher_of
from privdfs_training.stages import stages
from tests.trained import QUIET, tiny_values, write_toml
from tests.training.coded_systems import CLASSES, IMAGE, coded_values
from tests.training.rival_configs import rival_values

KINDS = ("masked", "coded", "rival")


def weights_of(name: str, path: Path, seed: int, **keys: Any) -> dict[str, Any]:
    """A section for a backbone whose finished weights are in a file: drawn, with statistics of drawn images."""
    values = {"name": name, **keys, "checkpoint": str(path)}
    config = coded_config(coded_values() | {"backbone": values}, "tests").backbone
    torch.manual_seed(seed)
    backbone = build_backbone(config, IMAGE, CLASSES)
    backbone.train()(torch.randint(0, 256, (64, *IMAGE), dtype=torch.uint8))
    save_file(backbone.state_dict(), path)
    return values


@pytest.fixture(scope="module")
def data(data_folder: Path) -> DataSet:
    return in_memory(load_data("fashion-mnist", data_folder))


@pytest.fixture
def teacher(tmp_path: Path) -> dict[str, Any]:
    return weights_of("resnet8", tmp_path / "teacher.safetensors", 1, width=16)


def taught(kind: str, teacher: dict[str, Any], **baseline: Any) -> RunConfig:
    """A config with a teacher, and some keys of the baseline stage."""
    values = {"masked": tiny_values, "coded": coded_values, "rival": lambda: rival_values("none")}[kind]()
    values["teacher"] = teacher
    values["train"]["baseline"] |= baseline
    if kind == "masked":
        return config_from_dict(values, "tests")
    return coded_config(values, "tests") if kind == "coded" else rival_config(values, Path("tests"))


def stages_of(kind: str, teacher: dict[str, Any], data: DataSet, **keys: Any) -> tuple[Backbone, tuple[Stage, ...]]:
    """The baseline, and the first two stages."""
    config: Any = taught(kind, teacher, **keys)
    make, plan = {
        "masked": (System, stages),
        "coded": (CodedSystem, coded_stages),
        "rival": (RivalSystem, rival_stages),
    }[kind]
    system: Any = make(config, image_shape=data.image_shape, classes=CLASSES)
    return system.baseline, plan(config, system, data)[:2]  # type: ignore[operator]


@pytest.mark.parametrize("kind", KINDS)
def test_the_baseline_learns_from_the_teacher(kind: str, teacher: dict[str, Any], data: DataSet) -> None:
    baseline, (first, _) = stages_of(kind, teacher, data)
    first.prepare()
    images, labels = (part[:8] for part in data.sample("train"))
    baseline.eval()
    total, terms = first.loss(images, labels, 0.5)
    config: Any = taught(kind, teacher)
    with torch.no_grad():
        answers, theirs = baseline(images), teacher_of(config, baseline, data).eval()(images)
        wanted = distillation(answers, theirs, 4.0)
        plain = torch.nn.functional.cross_entropy(answers, labels)
    assert float(wanted) > 0.01
    assert float(terms["distillation"]) == pytest.approx(float(wanted), rel=1e-4)
    assert float(total.detach()) == pytest.approx(float(plain + config.loss.distillation * wanted), rel=1e-4)


@pytest.mark.parametrize("blend", ["mixup", "cutmix"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_tells_the_baseline_what_blends_show(
    kind: str, blend: str, teacher: dict[str, Any], data: DataSet
) -> None:
    baseline, (first, _) = stages_of(kind, teacher, data, **{blend: 0.5})
    first.prepare()
    images, labels = (part[:8] for part in data.sample("train"))
    shown = list[torch.Tensor]()
    baseline.register_forward_pre_hook(lambda _, given: shown.append(given[0]))
    others = (labels + 1) % CLASSES

    def loss(given: torch.Tensor) -> float:
        torch.manual_seed(3)
        return float(first.loss(images, given, 0.5)[0].detach())

    found = loss(labels)
    assert (shown[0][:4] != images[:4]).flatten(1).any(1).sum() > 2  # a rectangle may lie where all images are black
    assert torch.equal(shown[0][4:], images[4:])
    config: Any = taught(kind, teacher, **{blend: 0.5})
    with torch.no_grad():
        answers, theirs = baseline(shown[0]), teacher_of(config, baseline, data).eval()(shown[0])
        wanted = torch.nn.functional.cross_entropy(answers[4:], labels[4:])
        wanted += config.loss.distillation * distillation(answers, theirs, 4.0)
    assert found == pytest.approx(float(wanted), rel=1e-4)
    assert loss(torch.cat([others[:4], labels[4:]])) == found
    assert loss(torch.cat([labels[:4], others[4:]])) != found


@pytest.mark.parametrize("kind", KINDS)
def test_the_split_model_learns_from_the_teacher_and_not_from_the_baseline(
    kind: str, teacher: dict[str, Any], data: DataSet
) -> None:
    baseline, (_, second) = stages_of(kind, teacher, data)
    second.prepare()
    asked = list[bool]()
    baseline.register_forward_hook(lambda *_: asked.append(True))
    images, labels = (part[:8] for part in data.sample("train"))
    _, terms = second.loss(images, labels, 0.5)
    assert not asked
    assert any("distillation" in name for name in terms)


def test_a_stage_may_be_taught_by_the_baseline_instead(teacher: dict[str, Any], data: DataSet) -> None:
    values = coded_values() | {"teacher": teacher}
    values["train"]["finetune"]["taught_by"] = "baseline"
    config = coded_config(values, "tests")
    system = CodedSystem(config, image_shape=data.image_shape, classes=CLASSES)
    _, rounds, finetune = coded_stages(config, system, data)
    asked = list[bool]()
    system.baseline.register_forward_hook(lambda *_: asked.append(True))
    images, labels = (part[:8] for part in data.sample("train"))
    for stage, calls in ((rounds, 0), (finetune, 1)):
        stage.prepare()
        _, terms = stage.loss(images, labels, 0.5)
        assert len(asked) == calls
        assert "coded_distillation" in terms


def test_a_run_does_not_depend_on_its_baseline_and_keeps_nothing_of_the_teacher(
    teacher: dict[str, Any], data: DataSet, tmp_path: Path
) -> None:
    """So a baseline can be trained beside the split model."""
    found = []
    for seed in (2, 3):
        values = coded_values() | {"teacher": teacher}
        values["backbone"] = weights_of("resnet8", tmp_path / "baseline.safetensors", seed, width=8)
        values["train"]["baseline"]["epochs"] = 0
        values["train"]["rounds"]["epochs"] = 1
        config = coded_config(values, "tests")
        check_coded(config)
        found.append(read_checkpoint(train_coded(config, data, tmp_path / f"run-{seed}", QUIET)).tensors)
    differing = {name for name, value in found[0].items() if not torch.equal(value, found[1][name])}
    assert differing
    assert all(name.startswith("baseline.") for name in differing)
    assert {name.split(".")[0] for name in found[0]} == {"baseline", "head", "rounds", "readout"}


def test_a_stage_of_another_teacher_is_refused(teacher: dict[str, Any], data: DataSet, tmp_path: Path) -> None:
    values = coded_values() | {"teacher": teacher}
    values["train"]["baseline"]["epochs"] = values["train"]["rounds"]["epochs"] = 1
    train_coded(coded_config(values, "tests"), data, tmp_path / "run", QUIET)
    values["teacher"] = weights_of("resnet8", tmp_path / "other.safetensors", 4, width=8)
    with pytest.raises(CheckpointError, match=r"other settings in: teacher.*rounds\.safetensors was made with"):
        train_coded(coded_config(values, "tests"), data, tmp_path / "run", QUIET)


@pytest.mark.parametrize("section", ["teacher", "backbone"])
def test_a_stage_is_refused_whose_file_was_replaced(
    section: str, teacher: dict[str, Any], data: DataSet, tmp_path: Path
) -> None:
    values = coded_values() | {section: teacher}
    values["train"]["baseline"]["epochs"] = values["train"]["rounds"]["epochs"] = 1
    config = coded_config(values, "tests")
    train_coded(config, data, tmp_path / "run", QUIET)
    trained = Path(teacher["checkpoint"]).read_bytes()
    weights_of("resnet8", Path(teacher["checkpoint"]), 4, width=16)
    with pytest.raises(CheckpointError, match=r"made with another \S+teacher\.safetensors.*remove"):
        train_coded(config, data, tmp_path / "run", QUIET)
    Path(teacher["checkpoint"]).write_bytes(trained)
    train_coded(config, data, tmp_path / "run", QUIET)
    rounds = tmp_path / "run" / "rounds.safetensors"
    older = read_checkpoint(rounds)
    del older.about["made_by"]["files"]
    write_checkpoint(rounds, dict(older.tensors), older.about)  # as older versions left it
    train_coded(config, data, tmp_path / "run", QUIET)


@pytest.mark.parametrize(
    ("change", "weight", "problem"),
    [
        ({"checkpoint": None}, 1.0, r"teacher\.checkpoint is missing"),
        ({"mean": [0.5]}, 1.0, r"teacher\.mean and teacher\.std go together"),
        ({}, 0.0, r"\[teacher\] teaches nothing where loss\.distillation is 0"),
        ({"width": "wide"}, 1.0, "Expected `int`"),
        ({"kind": "large"}, 1.0, "teacher"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_cannot_teach_is_refused(
    kind: str, change: dict[str, Any], weight: float, problem: str, teacher: dict[str, Any]
) -> None:
    section = {key: value for key, value in (teacher | change).items() if value is not None}
    values = {"masked": tiny_values(), "coded": coded_values(), "rival": rival_values("none")}[kind]
    values |= {"teacher": section}
    values["loss"]["distillation"] = weight
    read: Any = {"masked": config_from_dict, "coded": coded_config, "rival": rival_config}[kind]
    with pytest.raises(TrainingConfigError, match=problem):
        read(values, Path("tests"))


def test_a_teacher_of_the_users_own_is_not_for_rivals() -> None:
    own = {"name": "custom", "factory": "package.module:function", "checkpoint": "weights.safetensors"}
    with pytest.raises(TrainingConfigError, match=r"teacher\.name = 'custom' is not for rivals"):
        taught("rival", own)
    with pytest.raises(TrainingConfigError, match=r"teacher\.factory is 'nonsense'"):
        taught("masked", own | {"factory": "nonsense"})


def test_a_teacher_that_does_not_fit_or_has_not_finished_is_named(teacher: dict[str, Any], data: DataSet) -> None:
    path = Path(teacher["checkpoint"])
    for about, values, problem in (
        ({"finished": True}, teacher | {"width": 8}, r"\[teacher\]: .*does not fit"),
        ({"finished": False}, teacher, r"\[teacher\]: .*has not ended"),
    ):
        tensors = read_tensors(path)[0]
        write_checkpoint(path, tensors, about)
        with pytest.raises(CheckpointError, match=problem):
            stages_of("coded", values, data)


def test_the_answers_of_a_teacher_are_computed_ahead_where_images_come_again(
    teacher: dict[str, Any], data: DataSet
) -> None:
    values = coded_values() | {"teacher": teacher}
    values["train"]["baseline"] |= {"crop_padding": 0, "epochs": 3}
    config = coded_config(values, "tests")
    system = CodedSystem(config, image_shape=data.image_shape, classes=CLASSES)
    first = coded_stages(config, system, data)[0]
    assert stages_of("coded", teacher, data, crop_padding=0, epochs=3, mixup=0.1)[1][0].known is None
    assert first.known is not None
    first.known.prepare(lambda _: None)
    assert len(first.known) == data.train_size


def test_attributes_are_taught_as_choices(teacher: dict[str, Any], data: DataSet) -> None:
    """Ten yes-or-no answers of each image, as of CelebA's forty."""
    baseline, (first, _) = stages_of("masked", teacher, data)
    first.prepare()
    images = data.sample("train")[0][:8]
    total, terms = first.loss(images, torch.randint(0, 2, (8, CLASSES), dtype=torch.uint8), 0.5)
    assert torch.isfinite(total)
    assert float(terms["distillation"]) > 0
    assert baseline.training


def test_a_teacher_expects_pixels_as_its_section_says(teacher: dict[str, Any], data: DataSet) -> None:
    config = taught("coded", teacher | {"mean": [0.25], "std": [0.5]})
    given = read_tensors(Path(teacher["checkpoint"]))[0]
    save_file({name: value for name, value in given.items() if "normalise" not in name}, teacher["checkpoint"])
    baseline = build_backbone(config.backbone, IMAGE, CLASSES)
    assert float(teacher_of(config, baseline, data).normalise.mean) == pytest.approx(63.75)


def test_a_missing_teacher_is_noticed_before_images_are_read(
    teacher: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(teacher["checkpoint"]).unlink()
    rival = write_toml(tmp_path / "rival.toml", rival_values("none") | {"teacher": teacher})
    assert main([str(rival), "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)]) == 2
    assert "teacher.safetensors" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors"):
        check_coded(coded_config(coded_values() | {"teacher": teacher}, "tests"))
    with pytest.raises(CheckpointError, match=r"teacher\.safetensors"):
        check(config_from_dict(tiny_values() | {"teacher": teacher}, "tests"))
