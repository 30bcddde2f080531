"""Attacks on another device than the processor find what they find there, and forget no tensor on the way."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.attacks import decoder
from privdfs_training.attacks.decoder import DecoderBudget, Form, reconstruct, train_decoder
from privdfs_training.attacks.diffusion import GUIDANCES, DiffuseBudget, diffuse, tune
from privdfs_training.attacks.optimise import OptimiseBudget, optimise
from privdfs_training.attacks.prior import Prior
from privdfs_training.attacks.view import Relation, ServerView
from privdfs_training.parallel import CPU
from tests.elsewhere import ELSEWHERE, SecondDevice

IMAGES = torch.randint(256, (48, 1, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def quiet(_done: float, _loss: float) -> None:
    """No progress."""


def steps(images: Tensor) -> Tensor:
    """A head without constants: it computes wherever its images are."""
    return 9 * F.avg_pool2d(images, 4).flatten(1) - 4


def view() -> ServerView:
    shares = steps(IMAGES.float() / 255).round().to(torch.int8)
    nothing = torch.zeros(len(IMAGES), 0)
    return ServerView(
        members=(0,),
        relation=Relation.SAME_DISTRIBUTION,
        images=IMAGES[8:],
        labels=torch.zeros(40, dtype=torch.int64),
        shares=shares[8:],
        answers=nothing[8:],
        received=shares[:8],
        received_answers=nothing[:8],
        steps=steps,
        limits=torch.full((9,), 3.0),
    )


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "autocast", lambda _device: nullcontext())


def test_the_other_device_refuses_what_a_gpu_refuses() -> None:
    with SecondDevice():
        there = torch.ones(3, device=ELSEWHERE)
        assert (there * torch.tensor(2.0)).cpu().tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(there, torch.ones(3))
        with pytest.raises(RuntimeError, match="same device"):
            torch.ones(3).index_select(0, there.long())


@pytest.mark.parametrize("form", decoder.FORMS)
def test_a_decoder(form: Form) -> None:
    told = view()
    budget = DecoderBudget(epochs=2, batch=16, width=8, blocks=1)

    def guess(device: torch.device) -> Tensor:
        loss = decoder.squared_error_and_similarity
        network = train_decoder(
            told.shares, told.images, budget, seed=0, progress=quiet, form=form, loss_of=loss, device=device
        )
        assert {value.device.type for value in network.state_dict().values()} == {device.type}
        return reconstruct(network, told.received)

    here = guess(CPU)
    with SecondDevice():
        there = guess(ELSEWHERE)
    assert there.device == CPU
    assert torch.equal(here, there)


@pytest.mark.parametrize("budget", [OptimiseBudget(3), OptimiseBudget(3, prior="variation")])
def test_an_optimisation(budget: OptimiseBudget) -> None:
    here = optimise(view(), budget, seed=0, progress=quiet)
    with SecondDevice():
        there = optimise(view(), budget, seed=0, progress=quiet, device=ELSEWHERE)
    assert there.images.device == there.distance.device == CPU
    assert torch.equal(here.images, there.images)
    assert torch.equal(here.distance, there.distance)
    assert here.gradient == there.gradient


@pytest.mark.parametrize("started", [False, True])
def test_a_diffusion(*, started: bool) -> None:
    torch.manual_seed(0)
    prior = Prior((1, 12, 12), width=8, blocks=1).eval().requires_grad_(requires_grad=False)
    budget = DiffuseBudget(steps=8, recurrence=2, samples=2)
    start = (lambda shares: torch.full((len(shares), 1, 12, 12), 0.5)) if started else None

    def found(device: torch.device) -> tuple[Tensor, Tensor, float, float]:
        tuned = tune(view(), prior, budget, seed=0, progress=quiet, start=start, device=device)
        begin = None if start is None else start(view().received)
        one = diffuse(view(), prior, tuned, seed=0, progress=quiet, start=begin, device=device)
        return one.images, one.distance, one.gradient, tuned.guidance

    here = found(CPU)
    assert here[3] in GUIDANCES
    with SecondDevice():
        prior.to(ELSEWHERE)
        there = found(ELSEWHERE)
    assert there[0].device == there[1].device == CPU
    # Attention is computed in another order.
    torch.testing.assert_close(here[0], there[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(here[1], there[1], rtol=1e-3, atol=1e-3)
    assert here[2:] == pytest.approx(there[2:], rel=1e-3)
