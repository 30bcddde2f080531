import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from privdfs_training import loop
from privdfs_training.checkpoint import load_system, read_checkpoint, write_checkpoint
from privdfs_training.config import Config
from privdfs_training.data import load_data
from privdfs_training.errors import CheckpointError, TrainingConfigError
from privdfs_training.models.resnet import ResNet, cifar_resnet
from privdfs_training.models.system import System
from privdfs_training.pretrained import load_cut, load_pretrained
from privdfs_training.reading import config_from_dict
from privdfs_training.stages import stages
from tests.trained import BRANCHES_STAGE, FUSION_STAGE, QUIET, tiny_values


def small(classes: int = 10, width: int = 4) -> ResNet:
    return cifar_resnet("resnet8", width=width, channels=1, classes=classes)


def foreign(path: Path, classes: int = 10, width: int = 4, **changes: torch.Tensor | None) -> Path:
    """A file as somebody else would write it: no normalisation of pixels, no metadata."""
    tensors = {
        name: value for name, value in small(classes, width).state_dict().items() if not name.startswith("normalise")
    }
    for name, value in changes.items():
        if value is None:
            del tensors[name.replace("__", ".")]
        else:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, path)
    return path


def test_a_foreign_file_brings_everything_but_the_normalisation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = foreign(tmp_path / "file.safetensors", fc__bias=torch.arange(10.0))
    network = small()
    network.normalise.mean.fill_(7)
    load_pretrained(network, path)
    assert network.fc.bias.tolist() == list(range(10))
    assert float(network.normalise.mean) == 7


def test_a_foreign_file_sees_pixels_as_it_was_trained_to(tmp_path: Path, data_folder: Path) -> None:
    values = tiny_values()
    torch.manual_seed(0)
    given = {"checkpoint": str(foreign(tmp_path / "file.safetensors", width=8)), "mean": [0.4], "std": [0.2]}
    values["backbone"] |= given
    values["train"]["baseline"]["epochs"] = 0
    data = load_data("fashion-mnist", data_folder)
    system = System(config_from_dict(values, "tests"), image_shape=data.image_shape, classes=10)
    (baseline, *_) = stages(config_from_dict(values, "tests"), system, data)
    baseline.prepare()
    assert system.baseline.normalise(torch.full((1, 1, 28, 28), 102, dtype=torch.uint8)).abs().max() < 1e-6
    assert system.baseline.normalise(torch.full((1, 1, 28, 28), 153, dtype=torch.uint8)).unique() == pytest.approx(1)

    values["backbone"] |= {"mean": [0.4] * 3, "std": [0.2] * 3}
    with pytest.raises(TrainingConfigError, match="mean has 3 values, but the images 1 channels"):
        stages(config_from_dict(values, "tests"), system, data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc__bias": None, "bn1__weight": None}, r"54 of its 54 tensors do\. Missing: bn1\.weight; fc\.bias\. Set"),
        ({"layer9": torch.zeros(1)}, r"Left over: layer9\."),
        ({"bn1__bias": torch.zeros(8)}, r"55 of its 56.*Of another shape: bn1\.bias is \(8,\), not \(4,\)\. Set"),
        ({"classes": 1000}, r"fc\.weight is \(1000, 16\), not \(10, 16\).*All but the classifier fits"),
    ],
)
def test_what_does_not_fit_is_listed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(small(), foreign(tmp_path / "file.safetensors", **changes))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    torch.save(small().state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_pretrained(small(), tmp_path / "file.pth")


def test_a_finished_baseline_is_used_as_it_is(tmp_path: Path, data_folder: Path, trained_release: Path) -> None:
    earlier = trained_release.parent / "run" / "baseline.safetensors"
    values = tiny_values()
    values["backbone"]["checkpoint"] = str(earlier)
    values["train"]["baseline"] = values["train"]["baseline"] | {"epochs": 0}
    values["train"]["masks"] = values["train"]["masks"] | {"epochs": 1}
    data, config = load_data("fashion-mnist", data_folder), config_from_dict(values, "tests")
    loop.train(config, data, tmp_path / "run", QUIET)
    trained = load_system(loop.train(config, data, tmp_path / "run", QUIET))  # now all stages are there
    theirs = load_system(trained_release.parent / "run" / "system.safetensors")
    assert trained.accuracy["baseline"] == theirs.accuracy["baseline"]
    before, after = read_checkpoint(earlier).tensors, read_checkpoint(tmp_path / "run" / "baseline.safetensors").tensors
    assert all(torch.equal(after[name], value) for name, value in before.items())


def of_a_finished_system(run: Path, **changes: dict[str, Any]) -> Config:
    """A keyed run that takes its baseline, head and masks from an earlier one."""
    values = tiny_values() | {"name": "later", "keys": {"partitions": 64}}
    values["backbone"]["checkpoint"] = values["head"]["checkpoint"] = str(run / "system.safetensors")
    for stage in ("baseline", "masks", "finetune"):
        values["train"][stage] = values["train"][stage] | {"epochs": 0}
    values["train"] |= {"branches": BRANCHES_STAGE | {"epochs": 4}, "fusion": FUSION_STAGE}
    for section, change in changes.items():
        values[section] |= change
    return config_from_dict(values, "tests")


def test_a_keyed_system_grows_on_the_head_and_masks_of_a_finished_one(
    tmp_path: Path, trained_release: Path, data_folder: Path
) -> None:
    earlier = trained_release.parent / "run"
    data = load_data("fashion-mnist", data_folder)
    path = loop.train(of_a_finished_system(earlier), data, tmp_path / "run", QUIET)
    before, after = load_system(earlier / "system.safetensors").system, load_system(path)
    images = data.test_images[:64]
    with torch.no_grad():
        shares = before.encode(images).shares
        # Partition 0 is the ownership that the masks learned; the others deal the same values to other servers.
        assert torch.equal(after.system.encode(images, partitions=torch.zeros(64, dtype=torch.int64)).shares, shares)
        dealt = after.system.encode(images, partitions=torch.ones(64, dtype=torch.int64)).shares
    assert not torch.equal(dealt, shares)
    assert torch.equal(dealt.sum(dim=1), shares.sum(dim=1))
    assert after.accuracy["fused"] > 0.3  # of ten classes, on partitions that the head was never trained for


def test_a_run_is_refused_whose_head_was_replaced(tmp_path: Path, trained_release: Path, data_folder: Path) -> None:
    earlier = trained_release.parent / "run"
    head = Path(shutil.copy(earlier / "system.safetensors", tmp_path / "head.safetensors"))
    config = of_a_finished_system(earlier, head={"checkpoint": str(head)})
    data = load_data("fashion-mnist", data_folder)
    loop.train(config, data, tmp_path / "run", QUIET)
    trained = read_checkpoint(head)
    other = {name: value + 1 if name == "masks.logits" else value for name, value in trained.tensors.items()}
    write_checkpoint(head, other, trained.about)
    with pytest.raises(CheckpointError, match=r"made with another \S+head\.safetensors.*remove"):
        loop.train(config, data, tmp_path / "run", QUIET)


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("masks", {}, r"is of a stage before fine-tuning\. Pass finetune\.safetensors or system\.safetensors"),
        (
            "finetune",
            {"masks": {"values": 8}},
            "has 12 values of 5 fixed levels for a server, the config 8 values of 5",
        ),
        ("finetune", {"masks": {"levels": 3}}, "has 12 values of 5 fixed .*, the config 12 values of 3 fixed levels"),
        ("finetune", {"masks": {"learned_levels": True}}, "has 12 values of 5 fixed .* of 5 learned levels"),
        (
            "finetune",
            {"masks": {"servers": 5, "values": 4}},
            r"does not fit this model: .*masks\.logits is \(4, 196\), not \(6, 196\)",
        ),
        ("baseline", {}, r"does not fit this model: head\.normalise\.mean is missing"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    trained_release: Path, stage: str, changes: dict[str, Any], message: str
) -> None:
    run = trained_release.parent / "run"
    config = of_a_finished_system(run, **changes)
    system = System(config, image_shape=(1, 28, 28), classes=10)
    with pytest.raises(CheckpointError, match=message):
        load_cut(system, run / f"{stage}.safetensors")


def test_a_head_of_a_stage_that_still_runs_is_refused(trained_release: Path, tmp_path: Path) -> None:
    run, path = trained_release.parent / "run", tmp_path / "finetune.safetensors"
    checkpoint = read_checkpoint(run / "finetune.safetensors")
    write_checkpoint(path, checkpoint.tensors, checkpoint.about | {"finished": False})
    system = System(of_a_finished_system(run), image_shape=(1, 28, 28), classes=10)
    with pytest.raises(CheckpointError, match="has not ended"):
        load_cut(system, path)


def test_a_head_that_is_not_there_is_refused_before_time_is_spent(
    tmp_path: Path, trained_release: Path, data_folder: Path
) -> None:
    run = trained_release.parent / "run"
    config = of_a_finished_system(run, head={"checkpoint": str(tmp_path / "none.safetensors")})
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*none\.safetensors"):
        loop.train(config, load_data("fashion-mnist", data_folder), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


def test_the_branches_stage_teaches_each_branch_alone(trained_release: Path, data_folder: Path) -> None:
    config = of_a_finished_system(trained_release.parent / "run")
    data = load_data("fashion-mnist", data_folder)
    torch.manual_seed(0)
    system = System(config, image_shape=(1, 28, 28), classes=10)
    todo = {stage.name: stage for stage in stages(config, system, data)}
    assert list(todo) == ["baseline", "masks", "finetune", "branches", "fusion"]
    system.eval()
    todo["branches"].loss(data.train_images[:64], data.train_labels[:64], 0.5)[0].backward()
    taught = {name.split(".")[0] for name, value in system.named_parameters() if value.grad is not None}
    assert taught == {"branches"}
    assert all(value.grad is not None and value.grad.any() for value in system.branches.parameters())
