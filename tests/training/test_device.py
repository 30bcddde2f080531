"""What a GPU would trip over, without one: torch's meta device holds no values, so it fails where one is read."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from privdfs_training import parallel
from privdfs_training.augment import crop_and_flip
from privdfs_training.data import DataSet
from privdfs_training.models.system import System
from privdfs_training.quantise import ActivationQuantiser
from privdfs_training.reading import config_from_dict
from privdfs_training.stage import trained_modules
from privdfs_training.stages import stages
from tests.trained import BRANCHES_STAGE, FUSION_STAGE, tiny_values


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device, with stand-ins for what torch has no meta kernels of."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _device: False)
    monkeypatch.setattr(torch, "autocast", lambda *_arguments, **_names: nullcontext())
    monkeypatch.setattr(torch, "fake_quantize_per_tensor_affine", lambda values, scale, zero, *_: values * scale + zero)
    monkeypatch.setattr(
        torch, "fake_quantize_per_channel_affine", lambda values, scale, zero, *_: values * scale.sum() + zero.sum()
    )
    return torch.device("meta")


@pytest.mark.parametrize(
    ("name", "section", "change"),
    [
        ("baseline", "train", {}),
        ("finetune", "train", {}),
        ("finetune", "loss", {"decorrelation": 0.1}),
        ("finetune", "loss", {"rate": 0.1}),
        ("finetune", "masks", {"levels": 5, "learned_levels": True}),
        ("branches", "train", {}),
        ("fusion", "train", {}),
    ],
)
def test_a_step_stays_on_the_device_and_reads_nothing_from_it(
    meta: torch.device, name: str, section: str, change: dict[str, Any]
) -> None:
    values = tiny_values()
    values["train"] |= {"branches": BRANCHES_STAGE, "fusion": FUSION_STAGE}
    values[section] |= change
    config = config_from_dict(values, "tests")
    images, labels = torch.zeros(32, 1, 28, 28, dtype=torch.uint8), torch.zeros(32, dtype=torch.long)
    data = DataSet("fashion-mnist", tuple("abcdefghij"), images, labels, images, labels)
    system = System(config, image_shape=(1, 28, 28), classes=10).to(meta)
    stage = next(one for one in stages(config, system, data) if one.name == name)
    system.masks.switch_on()  # while they are learned, the processor deals the elements: one read in a step
    for module in system.head.modules():
        if isinstance(module, ActivationQuantiser):
            module.switch_on()
    pixels = crop_and_flip(images.to(meta), padding=2, flip=True)
    loss, terms = stage.loss(pixels, labels.to(meta), 0.5)
    loss.backward()
    assert loss.device == meta
    assert all(isinstance(value, torch.Tensor) for value in terms.values())
    gradients = [value.grad for value in trained_modules(system, stage).parameters() if value.grad is not None]
    assert gradients
    assert {one.device for one in gradients} == {meta}
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        parallel.mean({"loss": loss})  # the one read, which the loop makes when the step is on its way
