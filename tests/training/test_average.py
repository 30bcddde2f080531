"""`average`: what the moving average of a stage's weights is, that it is the stage's result, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privdfs_training import loop
from privdfs_training.average import MovingAverage
from privdfs_training.checkpoint import read_checkpoint
from privdfs_training.coded.config import CodedConfig, coded_config
from privdfs_training.coded.system import load_coded
from privdfs_training.coded.train import train_coded
from privdfs_training.data import DataSet, in_memory, load_data
from privdfs_training.errors import CheckpointError, TrainingConfigError
from privdfs_training.stage import accuracy
from tests.trained import QUIET
from tests.training.coded_systems import coded_values
from tests.training.interrupting import until_done


@pytest.fixture(scope="module")
def data(data_folder: Path) -> DataSet:
    return in_memory(load_data("fashion-mnist", data_folder))


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def step(module: nn.Module) -> dict[str, Tensor]:
    """Change weights, running statistics and the count of batches; return them."""
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value))
    module.train()(torch.randn(8, 3, 2, 2))
    return copied(module)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_each_step_moves_the_average_by_its_share() -> None:
    module = small()
    average = MovingAverage(module, 0.3)
    expected = copied(module)
    for number in range(8):
        now = step(module)
        average.update(number)
        share = 1 - min(0.3, (1 + number) / (10 + number))
        for name, value in now.items():
            moved = expected[name] + share * (value - expected[name]) if value.is_floating_point() else value
            expected[name] = moved
    found = average.weights()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert int(found["1.num_batches_tracked"]) == 8


def test_the_average_stands_in_for_the_weights_and_gives_them_back() -> None:
    module = small()
    average = MovingAverage(module, 0.9)
    before = step(module)
    average.update(0)
    with average.in_place():
        assert same(copied(module), average.weights())
        assert not same(copied(module), before)
    assert same(copied(module), before)
    with pytest.raises(RuntimeError), average.in_place():
        raise RuntimeError
    assert same(copied(module), before)
    average.take_over()
    assert same(copied(module), average.weights())


def test_the_average_starts_with_what_the_stage_starts_with() -> None:
    """Also where preparing the stage replaced tensors."""
    module = small()
    average = MovingAverage(module, 0.5)
    with torch.no_grad():
        module[1].running_var = torch.full((4,), 9.0)  # type: ignore[index]
    average.start()
    assert float(average.weights()["1.running_var"][0]) == 9.0
    step(module)
    average.update(0)
    average.take_over()
    assert same(copied(module), average.weights())


def test_without_a_share_the_last_weights_count_and_nothing_is_kept() -> None:
    module = small()
    average = MovingAverage(module, 0.0)
    last = step(module)
    average.update(0)
    with average.in_place():
        assert same(copied(module), last)
    average.take_over()
    assert same(average.weights(), last)
    assert average.tensors() == {}


def test_a_checkpoint_brings_the_average_back() -> None:
    module, other = small(), small()
    average = MovingAverage(module, 0.9)
    step(module)
    average.update(0)
    other.load_state_dict(module.state_dict())
    restored = MovingAverage(other, 0.9)
    restored.restore({"optimizer.0.step": torch.zeros(()), **average.tensors()})
    assert same(restored.weights(), average.weights())


def config_of(**keys: Any) -> CodedConfig:
    values = coded_values()
    values["train"]["rounds"] |= {"epochs": 2}
    values["train"]["finetune"] |= {"epochs": 1}
    for stage in ("rounds", "finetune"):
        values["train"][stage] |= {"average": 0.9} | keys
    return coded_config(values, "tests")


@pytest.fixture(scope="module")
def run(data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, in whose every step and measurement the average is what the weights so far say it is."""
    stages, checked = list[tuple[nn.Module, dict[str, Tensor]]](), list[str]()

    def expected(name: str, value: Tensor, now: Tensor, number: int) -> Tensor:
        share = 1 - min(0.9, (1 + number) / (10 + number))
        return value.lerp(now, share) if value.is_floating_point() else now

    class Watched(MovingAverage):
        def __init__(self, modules: nn.Module, kept: float) -> None:
            super().__init__(modules, kept)
            self.number, self.modules, self.averaged = 0, modules, bool(kept)

        def start(self) -> None:
            super().start()
            self.mine = copied(self._modules)

        def update(self, step: int) -> None:
            super().update(step)
            assert step == self.number
            now = copied(self.modules)
            self.mine = {name: expected(name, value, now[name], step) for name, value in self.mine.items()}
            self.number += 1
            if self.averaged:
                stages[:] = [(self.modules, self.mine)]
                checked.append("step")
                assert same(self.weights(), self.mine)

    measure = loop.accuracy

    def measured(*args: Any) -> float:
        for modules, mine in stages:
            assert same(copied(modules), mine)
            checked.append("measurement")
        return measure(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "MovingAverage", Watched)
        patch.setattr(loop, "accuracy", measured)
        path = train_coded(config_of(), data, tmp_path_factory.mktemp("average"), QUIET)
    ((_, mine),) = stages
    assert same(read_checkpoint(path.parent / "finetune.safetensors").tensors, mine)
    assert checked.count("step") > 20
    assert checked.count("measurement") > 5
    return path


def test_the_result_of_a_stage_is_the_average(run: Path, data: DataSet) -> None:
    trained = load_coded(run)
    weights = trained.system.state_dict()
    finished = read_checkpoint(run.parent / "finetune.safetensors").tensors
    assert all(torch.equal(weights[name], value) for name, value in finished.items())
    # The accuracy on record is that of the average, too.
    assert accuracy(trained.system, data.test_batches(500)) == trained.accuracy["coded"]


def test_an_interrupted_run_has_the_same_average(tmp_path: Path, data: DataSet, run: Path) -> None:
    # In the middle of epochs of the stages that have one.
    path, _ = until_done(lambda: train_coded(config_of(), data, tmp_path / "run", QUIET), 11, 22, 29)
    whole, resumed = read_checkpoint(run), read_checkpoint(path)
    assert same(resumed.tensors, whole.tensors)
    assert resumed.about == whole.about


def test_a_stage_of_another_average_is_refused(run: Path, data: DataSet) -> None:
    with pytest.raises(CheckpointError, match=r"finetune\.safetensors was made with other settings in: train"):
        train_coded(config_of(average=0.8), data, run.parent, QUIET)


def test_an_average_of_no_steps_is_refused() -> None:
    values = coded_values()
    values["backbone"]["checkpoint"] = "somewhere.safetensors"
    values["train"]["baseline"] |= {"epochs": 0, "average": 0.9}
    with pytest.raises(TrainingConfigError, match=r"train\.baseline\.average is of steps, and the stage has none"):
        coded_config(values, "tests")


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(TrainingConfigError, match=r"train\.rounds\.average is (1\.0|-0\.1); it is a share"):
        config_of(average=share)
