import math

import torch

from privdfs_training.rate import ClassRate


def trained_bits(steps: torch.Tensor, labels: torch.Tensor, classes: int) -> float:
    rate = ClassRate(classes=classes, servers=1, elements=steps.shape[2], levels=3)
    masks, optimizer = torch.ones(1, steps.shape[2], 1, 1), torch.optim.Adam(rate.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        rate(steps[..., None, None], masks, labels).sum().backward()
        optimizer.step()
    return float(rate(steps[..., None, None], masks, labels).detach())


def test_a_share_that_says_the_class_alone_costs_nothing() -> None:
    labels = torch.arange(90) % 3
    assert trained_bits((labels.float() - 1)[:, None, None].expand(90, 1, 4), labels, 3) < 0.3


def test_a_share_that_says_something_else_costs_its_bits() -> None:
    torch.manual_seed(0)
    labels = torch.arange(900) % 3
    other = torch.randint(-1, 2, (900, 1, 4)).float()
    assert abs(trained_bits(other, labels, 3) - 4 * math.log2(3)) < 0.2


def test_only_owned_values_count_and_the_gradient_reaches_the_values() -> None:
    rate = ClassRate(classes=2, servers=2, elements=3, levels=3)
    masks = torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]]).view(2, 3, 1, 1)
    steps = torch.randn(5, 2, 3, 1, 1, requires_grad=True)
    bits = rate(steps, masks, torch.zeros(5, dtype=torch.int64))
    # A fresh table calls all levels equally likely.
    assert torch.allclose(bits, torch.tensor([math.log2(3), 2 * math.log2(3)]), atol=1e-5)
    torch.nn.init.normal_(rate.table)
    rate(steps, masks, torch.zeros(5, dtype=torch.int64)).sum().backward()
    assert steps.grad is not None
    assert (steps.grad != 0).any()
    assert (steps.grad[:, 0, 1:] == 0).all()
