from pathlib import Path

import pytest
import torch

from privdfs_training.data import load_data
from privdfs_training.losses import distillation, random_answered, split_loss
from privdfs_training.models.fusion import Fusion
from privdfs_training.models.normalise import Normalise
from privdfs_training.models.resnet import cifar_resnet
from privdfs_training.models.system import System
from privdfs_training.reading import config_from_dict
from privdfs_training.stages import stages
from tests.trained import tiny_config, tiny_values


def test_resnet20_has_the_parameters_of_the_paper_and_torchvisions_names() -> None:
    model = cifar_resnet("resnet20", width=16, channels=3, classes=10)
    # He et al., arXiv 1512.03385, table 6: 0.27 M; the projection shortcuts of option B add a little.
    assert 0.27e6 < sum(value.numel() for value in model.parameters()) < 0.28e6
    names = dict(model.named_parameters())
    assert {
        "conv1.weight",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer3.2.bn2.bias",
        "fc.bias",
    } < set(names)
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


def test_normalised_pixels_have_zero_mean_and_unit_variance() -> None:
    images = torch.randint(0, 200, (50, 3, 8, 8), dtype=torch.uint8)
    normalise = Normalise(3)
    normalise.fit(images)
    values = normalise(images)
    assert values.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (values.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_a_constant_channel_does_not_divide_by_zero() -> None:
    normalise = Normalise(1)
    normalise.fit(torch.full((4, 1, 8, 8), 7, dtype=torch.uint8))
    assert torch.isfinite(normalise(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))).all()


def test_fresh_fusion_is_closer_to_the_median_than_the_mean_is() -> None:
    fusion = Fusion(servers=3, classes=4, hidden=8)
    logits = torch.tensor([[[4.0, 0, 0, 0], [3.0, 0, 0, 1], [0, 3.0, 0, 0]]]).expand(3, -1, -1)
    answered = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    fused, each = fusion(logits, answered), logits[0].log_softmax(-1)
    median = each.median(dim=0).values
    assert (fused[0] - median).abs().sum() < 0.7 * (each.mean(dim=0) - median).abs().sum()
    assert torch.allclose(fused[1], (each[0] + each[2]) / 2, atol=1e-6)
    assert torch.allclose(fused[2], each[1], atol=1e-6)


def test_a_fusion_without_a_correction_weighs_ranks_alone() -> None:
    torch.manual_seed(0)
    with_correction, without = (Fusion(servers=3, classes=4, hidden=hidden) for hidden in (8, 0))
    assert [name for name, _ in without.named_parameters()] == ["ranks"]
    logits, answered = torch.randn(20, 3, 4), torch.rand(20, 3) < 0.7
    answered[:, 0] = True
    # A fresh correction is zero, so that both start as the same function; and it belongs to no server.
    assert torch.equal(without(logits, answered), with_correction(logits, answered))
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(without(logits[:, order], answered[:, order]), without(logits, answered), atol=1e-6)


def test_one_servers_veto_is_finite() -> None:
    fusion, answered = Fusion(servers=3, classes=4, hidden=8), torch.ones(1, 3, dtype=torch.bool)
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = -1e6
    assert fusion(logits, answered).min() > -5


def test_what_a_silent_server_says_does_not_matter() -> None:
    fusion = Fusion(servers=3, classes=4, hidden=8)
    torch.nn.init.normal_(fusion.get_parameter("correction.weight"))
    logits, answered = torch.randn(1, 3, 4), torch.tensor([[True, False, True]])
    wild = logits.clone()
    wild[0, 1] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30])
    assert torch.equal(fusion(logits, answered), fusion(wild, answered))
    assert torch.isfinite(fusion(wild, answered)).all()


def test_a_branch_sees_its_own_share_only() -> None:
    torch.manual_seed(0)
    system = System(tiny_config(), image_shape=(1, 28, 28), classes=10).eval()
    system.masks.logits.data.normal_()
    system.masks.freeze()
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    shares = system.encode(images).shares
    before = system.answer(shares)
    # Whatever the others get, server 0's answer stays.
    disturbed = torch.cat([shares[:, :1], torch.randn_like(shares[:, 1:])], dim=1)
    assert torch.allclose(system.answer(disturbed)[:, 0], before[:, 0], atol=1e-6)
    assert before.shape == (4, 3, 10)
    # And its share holds nothing where it owns nothing.
    owned = system.masks.owned.view(3, *system.masks.shape)
    assert all((shares[:, server][:, ~owned[server]] == 0).all() for server in range(3))
    assert (shares != 0).any()


def test_somebody_always_answers_in_training() -> None:
    torch.manual_seed(0)
    answered = random_answered(2000, 3, dropout=0.9)
    assert answered.any(dim=1).all()
    assert 0.3 < answered.float().mean() < 0.5


def test_distillation_is_zero_for_the_teachers_own_answer_and_positive_otherwise() -> None:
    teacher = torch.randn(8, 10)
    assert abs(float(distillation(teacher, teacher, 4.0))) < 1e-5
    assert float(distillation(torch.randn(8, 10), teacher, 4.0)) > 0.1


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    config = tiny_config().loss
    fused, student, teacher = torch.randn(3, 8, 10)
    total, terms = split_loss(fused, student, torch.randn(8, 3, 10), torch.randint(0, 10, (8,)), teacher, config)
    assert terms["distillation"] == distillation(student, teacher, config.distillation_temperature)
    expected = terms["fused"] + config.auxiliary * terms["auxiliary"] + config.distillation * terms["distillation"]
    assert abs(float(total) - expected) < 1e-4


@pytest.mark.parametrize("hidden", [0, 8])
def test_branches_that_know_what_the_teacher_knows_cost_nothing_where_the_fusion_cannot_say_it(
    hidden: int, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tiny_values()
    values["fusion"]["hidden"] = hidden
    config, data = config_from_dict(values, "tests"), load_data("fashion-mnist", data_folder)
    torch.manual_seed(0)
    system = System(config, image_shape=data.image_shape, classes=10)
    images, labels = next(iter(data.train_batches(0, 64)))
    teacher = 100 * torch.randn(64, 10)  # far below the fusion's floor, but for one class
    monkeypatch.setattr(system.baseline, "forward", lambda _images: teacher)
    monkeypatch.setattr(system, "answer", lambda _inputs: teacher[:, None].expand(-1, 3, -1))
    _, terms = stages(config, system, data)[1].loss(images, labels, 0.5)
    assert (float(terms["distillation"]) < 1e-3) == (hidden == 0)


def test_without_a_teacher_the_loss_has_no_distillation() -> None:
    config = tiny_config().loss
    fused, student = torch.randn(2, 8, 10)
    total, terms = split_loss(fused, student, torch.randn(8, 3, 10), torch.randint(0, 10, (8,)), None, config)
    assert set(terms) == {"fused", "auxiliary"}
    assert abs(float(total) - terms["fused"] - config.auxiliary * terms["auxiliary"]) < 1e-4
