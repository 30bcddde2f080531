import torch

from privdfs_training.models.head import CompactHead
from privdfs_training.quantise import WEIGHT_LIMIT, ActivationQuantiser, ShareQuantiser, fake_quantise_weight, round_to


def test_shares_have_the_stated_levels_and_zero_is_one_of_them() -> None:
    quantiser = ShareQuantiser(5)
    values = quantiser(torch.linspace(-3, 3, 1001))
    assert values.unique().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert quantiser.integers(torch.tensor([-9.0, 0.1, 0.6])).tolist() == [-2.0, 0.0, 1.0]


def test_gradient_of_a_share_passes_inside_the_range_only() -> None:
    feature = torch.tensor([-2.0, -0.3, 0.7, 1.5], requires_grad=True)
    ShareQuantiser(3)(feature).sum().backward()
    assert feature.grad is not None
    assert feature.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_weights_have_seven_bits_per_channel() -> None:
    weight = torch.randn(4, 3, 3, 3) * torch.tensor([0.01, 1.0, 5.0, 100.0]).view(4, 1, 1, 1)
    rounded, scale = fake_quantise_weight(weight)
    steps = rounded / scale[:, None, None, None]
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert steps.abs().amax(dim=(1, 2, 3)).round().tolist() == [WEIGHT_LIMIT] * 4


def test_activation_range_follows_what_it_saw() -> None:
    quantiser = ActivationQuantiser(signed=False)
    activation = torch.rand(100) * 4
    assert torch.equal(quantiser(activation), activation)
    quantiser.calibrating = True
    quantiser(activation)
    quantiser.calibrating = False
    quantiser.enabled.fill_(True)
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
