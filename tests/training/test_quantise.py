import pytest
import torch

from privdfs_training.models.head import CompactHead
from privdfs_training.quantise import (
    WEIGHT_LIMIT,
    ActivationQuantiser,
    ShareQuantiser,
    _straight_through,
    fake_quantise_weight,
    round_to,
)


def in_feature_units(quantiser: ShareQuantiser, feature: torch.Tensor) -> torch.Tensor:
    return quantiser(quantiser.steps(feature.view(1, 1, 1, -1)))[0, :, 0, 0]


def test_shares_have_the_stated_levels_and_zero_is_one_of_them() -> None:
    quantiser = ShareQuantiser(5, servers=2, learned=False)
    for values in in_feature_units(quantiser, torch.linspace(-3, 3, 1001)):
        assert values.unique().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert quantiser.integers(torch.tensor([-9.0, 0.1, 0.6]), 1).tolist() == [-2.0, 0.0, 1.0]


def test_gradient_of_a_share_passes_inside_the_range_only() -> None:
    feature = torch.tensor([-2.0, -0.3, 0.7, 1.5], requires_grad=True)
    in_feature_units(ShareQuantiser(3, servers=1, learned=False), feature).sum().backward()
    assert feature.grad is not None
    assert feature.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_a_server_learns_its_step_and_a_price_on_bits_takes_levels_away() -> None:
    quantiser = ShareQuantiser(15, servers=2, learned=True)
    feature = torch.linspace(-1, 1, 101)
    optimizer = torch.optim.Adam(quantiser.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        error = (in_feature_units(quantiser, feature) - feature).square().mean(dim=1)
        # The second server pays for its bits, the first does not.
        (error.sum() + 0.05 * quantiser.bits()[1]).backward()
        optimizer.step()
    assert quantiser.limit(0) == 7
    assert quantiser.limit(1) < 7
    assert quantiser.scale(1) > quantiser.scale(0)
    values = in_feature_units(quantiser, feature).detach()[1] / quantiser.scale(1)
    assert torch.allclose(values, quantiser.integers(feature, 1), atol=1e-4)


def test_weights_have_seven_bits_per_channel() -> None:
    weight = torch.randn(4, 3, 3, 3) * torch.tensor([0.01, 1.0, 5.0, 100.0]).view(4, 1, 1, 1)
    rounded, scale = fake_quantise_weight(weight)
    steps = rounded / scale[:, None, None, None]
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert steps.abs().amax(dim=(1, 2, 3)).round().tolist() == [WEIGHT_LIMIT] * 4


@pytest.mark.parametrize("axis", [0, 1])
def test_a_gpu_rounds_weights_as_torch_does(axis: int) -> None:
    weight = (torch.randn(6, 5, 3, 3) * 3).requires_grad_()
    expected, scale = fake_quantise_weight(weight, axis)
    found = _straight_through(weight, scale, axis)
    assert torch.equal(found, expected)
    slope = torch.randn_like(weight)
    for result in (expected, found):
        assert torch.equal(torch.autograd.grad(result, weight, slope)[0], slope)


@pytest.mark.parametrize("signed", [True, False])
def test_activations_are_rounded_as_torchs_operator_does(*, signed: bool) -> None:
    quantiser = ActivationQuantiser(signed=signed)
    quantiser.maximum.fill_(5.3)
    quantiser.switch_on()
    halves = (torch.arange(-300, 300) + 0.5) * quantiser.scale
    activation = torch.cat([torch.randn(100_000) * 4, halves, torch.nextafter(halves, torch.tensor(9.0))])
    activation.requires_grad_()
    zero, limits = torch.zeros((), dtype=torch.int32), (-128, 127) if signed else (0, 255)
    expected = torch.fake_quantize_per_tensor_affine(activation, quantiser.scale, zero, *limits)
    found, slope = quantiser(activation), torch.randn_like(activation)
    assert torch.equal(found, expected)
    both = (torch.autograd.grad(result, activation, slope)[0] for result in (found, expected))
    assert torch.equal(*both)
    with torch.no_grad():
        assert torch.equal(quantiser(activation), expected)
    quantiser.maximum.zero_()  # where calibration saw nothing but zeros
    assert not quantiser(torch.zeros(5)).any()


def test_activation_range_follows_what_it_saw() -> None:
    quantiser = ActivationQuantiser(signed=False)
    activation = torch.rand(100) * 4
    assert torch.equal(quantiser(activation), activation)
    quantiser.calibrating = True
    quantiser(activation)
    quantiser.calibrating = False
    quantiser.switch_on()
    rounded = quantiser(activation)
    assert len(rounded.unique()) > 50
    assert torch.allclose(rounded, activation, atol=float(activation.max()) / 255)
    assert not torch.equal(rounded, activation)


def test_rounding_to_a_step_keeps_the_gradient() -> None:
    values = torch.tensor([0.9, 2.6], requires_grad=True)
    rounded = round_to(values, torch.tensor([0.5, 1.0]))
    rounded.sum().backward()
    assert rounded.tolist() == [1.0, 3.0]
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0]


def test_quantised_head_stays_close_to_the_float_head() -> None:
    torch.manual_seed(0)
    head = CompactHead(image_channels=3, stem=8, stages=((16, 2), (24, 1)), channels=4)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    head.normalise.fit(images)
    head.train()
    for _ in range(50):  # running statistics
        head(images)
    head.eval()
    head.calibrate(on=True)
    exact = head(images)
    head.calibrate(on=False)
    head.quantise()
    error = (head(images) - exact).abs().mean() / exact.abs().mean()
    assert 0 < error < 0.1
    assert exact.shape == (16, 4, 8, 8)
