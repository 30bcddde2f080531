"""The square of a round in training: what torch gives without any of its shortcuts."""

import pytest
import torch
from torch.nn import functional as F

from privdfs_training.coded import square
from privdfs_training.coded.square import squared


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("pool", [1, 2, 4])
def test_values_and_gradients_are_those_of_plain_operations(
    pool: int, progress: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(square, "PART", 1000)  # seven images make four parts, the last one smaller
    drawn = torch.Generator().manual_seed(pool)
    mapped = torch.randn(7, 6, 8, 8, generator=drawn, dtype=torch.float64).to(memory_format=torch.channels_last)
    k = torch.randn(6, generator=drawn, dtype=torch.float64)
    slopes = torch.randn(7, 6, 8 // pool, 8 // pool, generator=drawn, dtype=torch.float64)
    given = [(mapped.clone().requires_grad_(), k.clone().requires_grad_()) for _ in range(2)]

    found, mean, variance = squared(*given[0], unit=0.7, progress=progress, pool=pool)
    values = given[1][0] * 0.7
    curve = progress * values * (values + given[1][1][:, None, None]) + (1 - progress) * 2 * F.relu(values)
    wanted = F.avg_pool2d(curve, pool)

    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(mean, values.mean((0, 2, 3)))
    torch.testing.assert_close(variance, values.var((0, 2, 3), correction=0))
    gradients = [
        torch.autograd.grad((each * slopes).sum(), leaves) for each, leaves in zip((found, wanted), given, strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_is_squared_in_float32() -> None:
    mapped = torch.full((2, 3, 4, 4), 1.5, dtype=torch.bfloat16, requires_grad=True)
    found, _, _ = squared(mapped, torch.full((3,), 1 / 512), unit=1.0, progress=1.0, pool=1)
    assert found.dtype == torch.float32
    assert found[0, 0, 0, 0].item() == 1.5 * (1.5 + 1 / 512)
    found.sum().backward()
    assert mapped.grad is not None
    assert mapped.grad.dtype == torch.bfloat16


def test_what_does_not_vary_has_no_variance() -> None:
    mapped = torch.randn(1, 50, 1, 1).expand(8, 50, 4, 4) * 3
    _, mean, variance = squared(mapped, torch.zeros(50), unit=1.0, progress=1.0, pool=1)
    torch.testing.assert_close(mean, mapped[0, :, 0, 0])
    assert bool((variance >= 0).all())
    assert float(variance.max()) < 1e-4
