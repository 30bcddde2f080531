"""Every committed config runs, on small files in the official layout of its data set."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import save_file

from privdfs_training.checkpoint import load_system
from privdfs_training.coded.config import coded_config
from privdfs_training.coded.system import load_coded
from privdfs_training.coded.train import check_coded, train_coded
from privdfs_training.data import load_data
from privdfs_training.loop import train
from privdfs_training.models.backbone import build_backbone
from privdfs_training.reading import config_from_dict, load_config, read_toml
from tests.official import write_official
from tests.trained import QUIET
from tests.training.own_models import small as small_model

COMMITTED = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
CODED = [path for path in COMMITTED if "[sharing]" in path.read_text()]
CONFIGS = [path for path in COMMITTED if path not in CODED]


def small(values: dict[str, Any]) -> dict[str, Any]:
    """The same kinds of networks and the same stages, for a few steps: shallow or narrow, on smaller images."""
    if values["backbone"]["name"].startswith("vit"):
        values["backbone"]["depth"] = 3
    if values["branch"].get("width"):
        values["branch"]["width"] = 8
    if values["data"]["name"] == "imagenet":
        values["data"]["image_size"] = 64
    if values["data"]["name"] == "celeba-identity":
        values["data"]["identity_images"] = 10
    if "checkpoint" not in values["head"]:  # a finished head comes with its masks
        values["masks"]["values"] = 8
    for stage in values["train"].values():
        stage |= {"epochs": min(1, stage["epochs"]), "batch": 8}  # none where finished weights are taken
    return values


def run_small(values: dict[str, Any], folder: Path) -> None:
    """Train the small version of a config, and open what came out."""
    config = config_from_dict(small(values), "tests")
    data = load_data(config.data, write_official(config.data.name, config.data.layout, folder / "data"))
    trained = load_system(train(config, data, folder / "run", QUIET))
    assert trained.classes == data.classes
    assert bool(trained.system.masks.frozen)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_committed_config_runs(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    run_small(msgspec.to_builtins(config), tmp_path)


@pytest.mark.parametrize("path", CODED, ids=lambda path: path.stem)
def test_a_committed_coded_config_runs(path: Path, tmp_path: Path) -> None:
    """With fewer channels in the squares, so that ranges are proven soon; ImageNet's on smaller images."""
    raw = read_toml(path)
    assert coded_config(raw, path).name == path.stem
    if raw["data"].get("held_out"):
        raw["data"]["held_out"] = 4
    for planned in raw["rounds"]:
        for layer in planned.get("hidden", []):
            layer["outputs"] = 16 if layer.get("over") == "positions" else 8  # positions: those of 64 pixels
    if raw["data"]["name"] == "imagenet":
        raw["data"]["image_size"] = 64
        raw["rounds"][-1]["pool"] = 2
    if raw["backbone"]["name"].startswith("vit"):
        raw["backbone"]["depth"] = 3
    for stage in raw["train"].values():
        stage |= {"epochs": min(1, stage["epochs"]), "batch": 8}
    wanted, factory = coded_config(raw, path).data, None
    data = load_data(wanted, write_official(wanted.name, wanted.layout, tmp_path / "data"))
    if raw["backbone"]["name"] == "custom":  # a model and weights that the user has
        factory = raw["backbone"]["factory"] = "tests.training.own_models:small"
        raw["backbone"]["checkpoint"] = str(tmp_path / "weights.safetensors")
        save_file(small_model(data.image_shape, len(data.classes)).state_dict(), raw["backbone"]["checkpoint"])
    if "teacher" in raw:  # that the user has trained
        raw["teacher"] = {"name": "resnet8", "width": 8, "checkpoint": str(tmp_path / "teacher.safetensors")}
        planned = coded_config(raw, path).teacher
        assert planned is not None
        teacher = build_backbone(planned, data.image_shape, len(data.classes))
        save_file(teacher.state_dict(), raw["teacher"]["checkpoint"])
    config = coded_config(raw, path)
    check_coded(config)
    trained = load_coded(train_coded(config, data, tmp_path / "run", QUIET), factory=factory)
    assert trained.classes == data.classes
    assert len(trained.rounds) == len(raw["rounds"])


def test_imagenet_may_come_in_shards(tmp_path: Path) -> None:
    (path,) = (path for path in CONFIGS if path.stem == "imagenet-resnet50")
    values = msgspec.to_builtins(load_config(path))
    values["data"]["layout"] = "shards"
    run_small(values, tmp_path)


def test_every_data_set_has_a_resnet_and_a_vit() -> None:
    found = {(config.data.name, config.backbone.name[:3]) for config in map(load_config, CONFIGS)}
    sets = ("fashion-mnist", "cifar10", "cifar100", "celeba-attributes", "imagenet")
    assert {(name, kind) for name in sets for kind in ("res", "vit")} <= found
