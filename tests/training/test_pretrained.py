from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from privdfs_training import loop
from privdfs_training.checkpoint import load_system, read_checkpoint
from privdfs_training.config import config_from_dict
from privdfs_training.data import load_data
from privdfs_training.errors import CheckpointError
from privdfs_training.models.resnet import ResNet, cifar_resnet
from privdfs_training.pretrained import load_pretrained
from tests.trained import QUIET, tiny_values


def small(classes: int = 10) -> ResNet:
    return cifar_resnet("resnet8", width=4, channels=1, classes=classes)


def foreign(path: Path, classes: int = 10, **changes: torch.Tensor | None) -> Path:
    """A file as somebody else would write it: no normalisation of pixels, no metadata."""
    tensors = {name: value for name, value in small(classes).state_dict().items() if not name.startswith("normalise")}
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
