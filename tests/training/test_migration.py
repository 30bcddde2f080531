"""Checkpoints, manifests and files of versions whose heads and branches did not always name their kind."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from privdfs_training.checkpoint import load_system, read_checkpoint, write_checkpoint
from privdfs_training.coded.config import coded_config
from privdfs_training.data import load_data
from privdfs_training.errors import CheckpointError
from privdfs_training.loop import train
from privdfs_training.migration import migrated
from privdfs_training.reading import config_from_dict
from privdfs_training.rivals.config import rival_config
from tests.trained import QUIET

RELEASES = sorted((Path(__file__).parents[2] / "model_repository").glob("*/client/manifest.json"))

# What the commit before the kinds wrote into the files of a run, word for word.
_STAGE = (
    '{"epochs": 1, "batch": 64, "optimizer": "adamw", "learning_rate": 0.005, "weight_decay": 0.01, "crop_padding": 1}'
)
_SHARED = (
    '"seed": 3, "data": {"name": "fashion-mnist", "flip": false}, "masks": {"servers": 3, "values": 12, "levels": 5, '
    '"temperature": [1.0, 0.1], "settled": 0.5}, "fusion": {"hidden": 16, "branch_dropout": 0.2}, "loss": {"auxiliary":'
    ' 0.5, "distillation": 0.5, "distillation_temperature": 4.0, "label_smoothing": 0.0}'
)
_COMPACT = (
    '"backbone": {"name": "resnet8", "width": 8}, "head": {"channels": 4, "stem": 8, "stages": [[16, 2], [24, 1]]}, '
    '"branch": {"width": 16, "blocks": 1}'
)
_BACKBONE = (
    '"backbone": {"name": "resnet8", "width": 8}, "head": {"channels": 4, "kind": "backbone", "split": "layer1.0", '
    '"stride": 1}, "branch": {"kind": "backbone"}'
)
_VIT = (
    '"backbone": {"name": "vit-tiny", "patch": 7, "depth": 12}, "head": {"channels": 4, "stem": 8, "stages": [[16, 1]],'
    ' "stem_stride": 1}, "branch": {"kind": "backbone", "split": "blocks.10"}'
)


def old_config(networks: str) -> dict[str, Any]:
    """A finished system's."""
    train = f'"train": {{"baseline": {_STAGE}, "masks": {_STAGE}, "finetune": {_STAGE}}}'
    return json.loads(f'{{"name": "old", {_SHARED}, {networks}, {train}}}')


def old_made_by(networks: str, stage: str) -> dict[str, Any]:
    """A stage's."""
    earlier = ("baseline", "masks", "finetune")
    budgets = "".join(f'"train.{name}": {_STAGE}, ' for name in earlier[: earlier.index(stage)])
    sections = f"{{{_SHARED}, {networks}, {budgets}" + f'"train": {_STAGE}}}'
    made_by = json.loads(sections)
    return made_by if stage != "baseline" else {key: made_by[key] for key in ("seed", "data", "backbone", "train")}


@pytest.mark.parametrize("networks", [_COMPACT, _BACKBONE, _VIT], ids=["compact", "backbone", "vit"])
def test_an_old_config_is_what_this_version_writes_for_the_same_run(networks: str) -> None:
    old = old_config(networks)
    kept = json.dumps(old)
    now = json.loads(msgspec.json.encode(config_from_dict(old, "tests")))
    assert now != old
    assert migrated(old) == now
    assert migrated(now) == now
    assert json.dumps(old) == kept


@pytest.mark.parametrize("networks", [_COMPACT, _BACKBONE], ids=["compact", "backbone"])
def test_an_old_run_is_continued_and_its_system_opens(networks: str, tmp_path: Path, data_folder: Path) -> None:
    data = load_data("fashion-mnist", data_folder)
    config = config_from_dict(old_config(networks), "tests")
    system = train(config, data, tmp_path, QUIET)
    stages = ("baseline", "masks", "finetune")
    for name in stages:
        file = read_checkpoint(tmp_path / f"{name}.safetensors")
        assert file.about["made_by"] == migrated(old_made_by(networks, name))
        write_checkpoint(
            tmp_path / f"{name}.safetensors", file.tensors, file.about | {"made_by": old_made_by(networks, name)}
        )
    file = read_checkpoint(system)
    write_checkpoint(system, file.tensors, file.about | {"config": old_config(networks)})

    assert load_system(system).config == config
    before = {name: (tmp_path / f"{name}.safetensors").read_bytes() for name in stages}
    metrics = (tmp_path / "metrics.jsonl").read_text()
    train(config, data, tmp_path, QUIET)
    assert {name: (tmp_path / f"{name}.safetensors").read_bytes() for name in stages} == before
    assert (tmp_path / "metrics.jsonl").read_text() == metrics  # nothing was trained again

    other = old_config(networks)
    other["head"]["channels"] = 5
    with pytest.raises(CheckpointError, match=r"masks\.safetensors was made with other settings in: head;"):
        train(config_from_dict(other, "tests"), data, tmp_path, QUIET)


def test_an_old_rival_opens_even_with_grouped_branches() -> None:
    old = old_config(_COMPACT)
    del old["masks"], old["fusion"], old["loss"]["auxiliary"]
    old |= {"defence": {"kind": "none"}, "train": {"baseline": json.loads(_STAGE), "split": json.loads(_STAGE)}}
    config = rival_config(old, Path("tests"))
    old["branch"]["together"] = True
    assert rival_config(migrated(old), Path("tests")) == config


@pytest.mark.parametrize("path", RELEASES, ids=lambda path: path.parts[-3])
def test_the_config_in_a_released_manifest_opens(path: Path) -> None:
    config = json.loads(path.read_text())["made_by"]["config"]
    opened = coded_config(config, path) if "sharing" in config else config_from_dict(config, str(path))
    assert json.loads(msgspec.json.encode(opened)) == migrated(config)


def test_there_are_released_manifests() -> None:
    assert len(RELEASES) >= 5
