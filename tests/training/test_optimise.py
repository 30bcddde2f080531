"""Reconstruction through the head, on heads small enough to know the answer."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.attacks.metrics import score
from privdfs_training.attacks.optimise import OptimiseBudget, interval_distance, optimise
from privdfs_training.attacks.selfchecks import Measured, check_each
from privdfs_training.attacks.view import Relation, ServerView
from privdfs_training.errors import AttackError
from tests.training.shipped import shipped_images


def quiet(_done: float, _loss: float) -> None:
    """No progress."""


def view_through(steps: Callable[[Tensor], Tensor], received: Tensor, known: Tensor) -> ServerView:
    nothing = torch.zeros(len(known), 0)
    return ServerView(
        members=(0,),
        relation=Relation.SAME_DISTRIBUTION,
        images=known,
        labels=torch.zeros(len(known), dtype=torch.int64),
        shares=received[:1].expand(len(known), -1),
        answers=nothing,
        received=received,
        received_answers=torch.zeros(len(received), 0),
        steps=steps,
        limits=torch.full(received.shape[1:], 1.0),
    )


def shallow(images: Tensor) -> Tensor:
    """A random 3x3 convolution of 32 channels and a ReLU, in standard units, flat."""
    weight = torch.randn(32, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    return F.relu(F.conv2d(images - 0.3, weight, padding=1)).flatten(1)


def test_an_attacker_who_knows_the_mask_sees_what_one_who_does_not_cannot() -> None:
    """A fifth of a shallow feature: the gap that makes a weak attacker's figure worthless (at least 10 dB)."""
    images = shipped_images()[:2]
    feature = shallow(images.float() / 255)
    owned = torch.rand(feature.shape[1], generator=torch.Generator().manual_seed(2)) < 0.2
    budget = OptimiseBudget(steps=120, restarts=1, prior="variation", weight=1e-3, learning_rate=0.2)
    aware = view_through(lambda x: shallow(x)[:, owned], feature[:, owned], images)
    unaware = view_through(shallow, feature * owned, images)  # takes what it did not get for zeros
    knows = score(optimise(aware, budget, seed=0, progress=quiet).images, images).psnr
    ignorant = score(optimise(unaware, budget, seed=0, progress=quiet).images, images).psnr
    assert knows >= ignorant + 10
    assert knows > 25
    told = Measured("optimisation", (0,), ignorant, (ignorant, ignorant), 200, 5.0, 20, "", aware=False)
    assert [flag.check for flag in check_each([told])] == ["unaware"]


def test_a_value_explains_everything_that_rounds_to_it() -> None:
    steps = torch.tensor([[0.4, -0.4, 0.7, 5.0, -5.0, 0.0]])
    received = torch.tensor([[0, 0, 0, 1, -1, 1]], dtype=torch.int8)
    assert interval_distance(steps[:, :2], received[:, :2], torch.ones(2)).item() == 0
    assert interval_distance(steps[:, 2:3], received[:, 2:3], torch.ones(1)).item() == pytest.approx(0.04)
    # Beyond the last level values are cut, so nothing above it is too much; with more levels it is.
    assert interval_distance(steps[:, 3:5], received[:, 3:5], torch.ones(2)).item() == 0
    assert interval_distance(steps[:, 3:4], received[:, 3:4], torch.full((1,), 2.0)).item() == pytest.approx(3.5**2)
    assert interval_distance(steps[:, 5:], received[:, 5:], torch.ones(1)).item() == pytest.approx(0.25)


def test_the_gaussian_prior_makes_of_few_values_an_image_of_the_attackers_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(3, 1, 12, 12, generator=generator)

    def drawn(count: int) -> Tensor:
        weights = torch.rand(count, 3, 1, 1, 1, generator=generator)
        return ((weights * patterns).mean(dim=1) * 255).to(torch.uint8)

    known, wanted = drawn(200), drawn(8)

    def steps(images: Tensor) -> Tensor:
        return images[:, 0, :, :3].flatten(1)

    view = view_through(steps, steps(wanted.float() / 255), known)
    budget = OptimiseBudget(steps=150, restarts=2, weight=1e-4)
    found = optimise(view, budget, seed=0, progress=quiet)
    assert found.gradient > 0
    assert score(found.images, wanted).psnr > 25  # three quarters of the image were never seen


def test_a_head_without_gradients_is_noticed() -> None:
    images = shipped_images()[:4]
    flat = view_through(lambda x: x.flatten(1)[:, :5].round() * 0 + x.sum() * 0, torch.ones(4, 5), images)
    found = optimise(flat, OptimiseBudget(steps=2, restarts=1), seed=0, progress=quiet)
    assert found.gradient == 0
    one = Measured("optimisation", (0,), 14.0, (13.9, 14.1), 1000, 10.0, 20, "", gradient=found.gradient)
    assert [flag.check for flag in check_each([one])] == ["no gradient"]


def test_without_a_head_there_is_no_attack_through_it() -> None:
    view = view_through(shallow, torch.zeros(2, 5), shipped_images()[:2])
    with pytest.raises(AttackError, match="no head"):
        optimise(replace(view, steps=None), OptimiseBudget(steps=1), seed=0, progress=quiet)
    with pytest.raises(AttackError, match="at least one"):
        optimise(view, OptimiseBudget(steps=1, restarts=0), seed=0, progress=quiet)
