"""What finished networks say of images that come again: the same numbers, and the networks are left alone."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privdfs_training import known, loop, parallel, stages
from privdfs_training.checkpoint import read_checkpoint
from privdfs_training.data import DataSet, ImageData
from privdfs_training.interruption import InterruptedTrainingError, StopRequest
from privdfs_training.known import Known
from privdfs_training.models.system import System
from privdfs_training.reading import config_from_dict
from privdfs_training.run import Compute, Run
from tests.trained import FUSION_STAGE, QUIET, tiny_values
from tests.training.interrupting import until_done

IMAGES = torch.randint(0, 256, (600, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Counted:
    """A function of images that counts how many it was asked about."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return images.flatten(1).float().cumsum(dim=1)[:, ::100]


def test_images_and_their_mirror_images_are_computed_once() -> None:
    counted, told = Counted(), list[float]()
    table = Known(counted, IMAGES, mirrored=True)
    table.prepare(told.append)
    assert (counted.asked, len(table)) == (1200, 1200)
    assert told == sorted(told)
    assert told[0] == 0
    assert told[-1] < 1
    mixed = torch.cat([IMAGES[70:90], IMAGES[400:440].flip(3)])
    assert torch.equal(table(mixed), Counted()(mixed))
    assert counted.asked == 1200
    table.forget()
    table(mixed)
    assert counted.asked == 1260


def test_other_images_are_computed() -> None:
    counted = Counted()
    table = Known(counted, IMAGES, mirrored=False)
    table.prepare(lambda _: None)
    other = torch.cat([IMAGES[:3], IMAGES[3:4].flip(3)])
    assert torch.equal(table(other), Counted()(other))
    assert counted.asked == 604


def test_before_it_is_prepared_every_call_computes() -> None:
    counted = Counted()
    table = Known(counted, IMAGES, mirrored=True)
    assert torch.equal(table(IMAGES[:5]), Counted()(IMAGES[:5]))
    assert counted.asked == 5


def test_a_table_that_would_be_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "LARGEST", 1000)
    counted = Counted()
    table = Known(counted, IMAGES, mirrored=True)
    table.prepare(lambda _: None)
    before = counted.asked
    assert before < 600
    table(IMAGES[:5])
    assert counted.asked == before + 5


def values_of(padding: int) -> dict[str, Any]:
    """Stages that show finished networks each image, mirrored or not, more often than twice."""
    values = copy.deepcopy(tiny_values())
    budget = FUSION_STAGE | {"batch": 32, "epochs": 3, "crop_padding": padding}
    plain = {key: value for key, value in budget.items() if key != "malicious"}
    values["train"] = {name: plain.copy() for name in ("masks", "finetune", "branches")} | {"fusion": budget}
    values["train"] |= {"baseline": plain | {"epochs": 1}, "precision": "float32"}
    values["data"]["flip"] = True
    return values


def data_of(images: Tensor) -> DataSet:
    labels = torch.arange(len(images)) % 10
    return DataSet("fashion-mnist", tuple("abcdefghij"), images, labels, images[:20], labels[:20])


def known_stages(values: dict[str, Any], data: ImageData) -> set[str]:
    config = config_from_dict(values, "tests")
    todo = stages.stages(config, System(config, image_shape=(1, 28, 28), classes=10), data)
    return {stage.name for stage in todo if stage.known is not None}


def test_stages_that_crop_nothing_know_ahead() -> None:
    data = data_of(IMAGES)
    assert known_stages(values_of(0), data) == {"masks", "finetune", "branches", "fusion"}
    assert known_stages(values_of(2), data) == set()
    values = values_of(0)
    values["train"]["masks"] |= {"crop_padding": 2}
    values["train"]["fusion"] |= {"epochs": 2}  # each image as it is and mirrored: as much as a table takes
    assert known_stages(values, data) == {"finetune", "branches"}


def test_where_no_teacher_is_asked_there_is_none_to_know() -> None:
    values = values_of(0)
    values["loss"]["distillation"] = 0.0
    assert known_stages(values, data_of(IMAGES)) == {"branches", "fusion"}


def test_what_depends_on_a_partition_drawn_for_the_step_is_not_known() -> None:
    values = values_of(0) | {"name": "tiny-keyed", "keys": {"partitions": 4}}
    assert known_stages(values, data_of(IMAGES)) == {"masks", "finetune"}  # the teacher's answers


def test_streamed_images_are_not_known() -> None:
    data = data_of(IMAGES)
    streamed = SimpleNamespace(train_size=600, test_size=20, image_shape=data.image_shape, classes=data.classes)
    assert known_stages(values_of(0), streamed) == set()  # pyright: ignore[reportArgumentType]  as much as is used


def test_several_processes_fill_a_table_each_so_it_has_to_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 2)
    assert known_stages(values_of(0), data_of(IMAGES)) == set()


class CountedRun:
    """One training, whose teacher counts the images that it is asked about."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self._folder, self._teach = folder, stages.teach
        monkeypatch.setattr(stages, "teach", self._count)

    def _count(self, baseline: nn.Module, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self._teach(baseline, images)  # pyright: ignore[reportArgumentType]  a backbone

    def train(self) -> dict[str, Tensor]:
        """To the end, from where it was; the weights."""
        config = config_from_dict(values_of(0), "tests")
        return read_checkpoint(loop.train(config, data_of(IMAGES[:96]), self._folder, QUIET)).tensors


def test_training_gives_what_it_gives_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CountedRun(tmp_path / "ahead", monkeypatch)
    ahead = run.train()
    assert run.asked == 2 * 2 * 96  # masks and finetune, of three epochs each
    monkeypatch.setattr(known, "LARGEST", 0)
    other = CountedRun(tmp_path / "each", monkeypatch)
    each = other.train()
    assert other.asked == 2 * (3 * 96 + 2 * 96)  # every step, after a first chunk that told how large a table would be
    for name, value in each.items():
        assert torch.allclose(ahead[name].float(), value.float(), rtol=1e-3, atol=1e-4), name


def test_an_interrupted_run_ends_as_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CountedRun(tmp_path / "whole", monkeypatch).train()
    # In an epoch of masks, finetune, branches and fusion.
    resumed, _ = until_done(CountedRun(tmp_path / "parts", monkeypatch).train, 5, 14, 24, 33)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_ctrl_c_ends_it_before_all_is_asked(tmp_path: Path) -> None:
    config, data = config_from_dict(values_of(0), "tests"), data_of(IMAGES)
    system = System(config, image_shape=(1, 28, 28), classes=10)
    stage = stages.stages(config, system, data)[1]
    with pytest.raises(InterruptedTrainingError):
        loop.run_stage(stage, Run(config, system, data, tmp_path, QUIET), StopRequest(wanted=True))
    assert not (tmp_path / "masks.safetensors").exists()


def test_elsewhere_nothing_is_asked_ahead() -> None:
    config = config_from_dict(values_of(0), "tests")
    stage = stages.stages(config, System(config, image_shape=(1, 28, 28), classes=10), data_of(IMAGES))[1]
    loop._ask_ahead(stage, Compute(torch.device("meta")), StopRequest(wanted=True), QUIET, print)
    assert stage.known is not None
    assert not len(stage.known)
