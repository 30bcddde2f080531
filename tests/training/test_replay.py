"""Recorded networks. What a recording gives is compared where there is a GPU; that nothing changes elsewhere, here."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from privdfs_training.config import Config
from privdfs_training.data import DataSet
from privdfs_training.loop import run_stages
from privdfs_training.models.system import System
from privdfs_training.reading import config_from_dict
from privdfs_training.replay import replayed, replayed_networks
from privdfs_training.run import Compute, Run
from privdfs_training.stages import stages
from tests.trained import BRANCHES_STAGE, FUSION_STAGE, tiny_config, tiny_values


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Skip a test where there is none."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing can be recorded")
    return pytest.mark.gpu(skip(test))


def system_of(config: Config) -> System:
    return System(config, image_shape=(1, 28, 28), classes=10)


def test_on_a_processor_networks_are_called_as_they_are() -> None:
    network = nn.Linear(3, 2)
    values = torch.rand(4, 3)
    expected = network(values)
    with replayed_networks([network]):
        assert torch.equal(network(values), expected)
        network(values).sum().backward()
    assert network.weight.grad is not None
    assert "forward" not in vars(network)


def test_an_error_leaves_the_networks_as_they_were() -> None:
    network = nn.Linear(3, 2)
    with pytest.raises(RuntimeError), replayed_networks([network]):
        network(torch.rand(4, 5))
    assert "forward" not in vars(network)


def test_a_replayed_function_has_no_gradient() -> None:
    network = nn.Linear(3, 2)
    call = replayed(network)
    assert torch.equal(call(torch.ones(4, 3)), network(torch.ones(4, 3)))
    assert not call(torch.ones(4, 3)).requires_grad


@needs_gpu
def test_a_recorded_network_gives_what_it_gave() -> None:
    torch.manual_seed(0)
    plain = system_of(tiny_config()).head.to("cuda")
    recorded = copy.deepcopy(plain)
    batches = torch.randint(0, 256, (3, 16, 1, 28, 28), dtype=torch.uint8, device="cuda")
    with replayed_networks([recorded]):
        for images in batches:
            features = [network(images) for network in (plain, recorded)]
            torch.testing.assert_close(features[1], features[0], rtol=1e-3, atol=1e-3)
            slope = torch.randn_like(features[0])
            slopes = [
                torch.autograd.grad(feature, list(network.parameters()), slope)
                for feature, network in zip(features, (plain, recorded), strict=True)
            ]
            for one, other in zip(*slopes, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-2)
        for (name, one), other in zip(plain.named_buffers(), recorded.buffers(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3, msg=name)
        recorded.eval()
        assert len(recorded(batches[0, :5])) == 5  # evaluation takes batches of any size


@needs_gpu
def test_every_stage_can_be_recorded(tmp_path: Path) -> None:
    values = tiny_values()
    values["train"] |= {"branches": BRANCHES_STAGE, "fusion": FUSION_STAGE}
    config = config_from_dict(values, "tests")
    images, labels = torch.randint(0, 256, (256, 1, 28, 28), dtype=torch.uint8), torch.randint(0, 10, (256,))
    data = DataSet("fashion-mnist", tuple("abcdefghij"), images, labels, images, labels)
    system = system_of(config).to("cuda")
    todo, compute = stages(config, system, data), Compute(torch.device("cuda"), replay=True)
    result = run_stages(todo, Run(config, system, data, tmp_path, Console(quiet=True), compute))
    assert list(result) == ["baseline", "masks", "finetune", "branches", "fusion"]
