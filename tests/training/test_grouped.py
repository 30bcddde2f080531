import copy

import pytest
import torch
from torch import nn

from privdfs_training.config import config_from_dict
from privdfs_training.models.branch import Branch
from privdfs_training.models.grouped import grouped_answers
from privdfs_training.models.system import System
from tests.trained import tiny_values


@pytest.mark.parametrize("training", [True, False])
def test_grouped_branches_compute_what_the_branches_compute(*, training: bool) -> None:
    torch.manual_seed(0)
    branches = nn.ModuleList(Branch((4, 5, 3), width=8, blocks=2, classes=6) for _ in range(3))
    with torch.no_grad():
        for _ in range(3):  # statistics that differ from fresh ones
            for branch in branches:
                branch(torch.randn(16, 4, 5, 3))
    branches.train(training)
    together = copy.deepcopy(branches)
    shares = torch.randn(16, 3, 4, 5, 3)
    one_by_one = torch.stack([branch(shares[:, server]) for server, branch in enumerate(branches)], dim=1)
    grouped = grouped_answers(together, shares)
    assert torch.allclose(one_by_one, grouped, atol=1e-5)
    weights = torch.randn_like(grouped)
    (one_by_one * weights).sum().backward()
    (grouped * weights).sum().backward()
    ours, theirs = dict(together.named_parameters()), dict(branches.named_parameters())
    assert all(torch.allclose(ours[name].grad, value.grad, rtol=1e-3, atol=1e-3) for name, value in theirs.items())  # type: ignore[arg-type]
    states = together.state_dict()
    assert all(torch.allclose(states[name], value, atol=1e-5) for name, value in branches.state_dict().items())


def test_a_system_may_compute_its_branches_together(monkeypatch: pytest.MonkeyPatch) -> None:
    values = tiny_values()
    values["branch"]["together"] = True
    torch.manual_seed(0)
    system = System(config_from_dict(values, "tests"), image_shape=(1, 28, 28), classes=10).eval()
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    fused = system(images)
    monkeypatch.setattr(Branch, "forward", None)  # not called
    assert torch.equal(system(images), fused)
    monkeypatch.undo()
    system.together = False
    assert torch.allclose(system(images), fused, atol=1e-5)
