"""The attacks by name, and the one driver that runs them: for the audit of a release, its rivals, and sweeps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from privdfs_bench.audit import keyed
from privdfs_bench.audit.effort import SEED, Budget, Progress
from privdfs_training.attacks import decoder
from privdfs_training.attacks.decoder import DecoderBudget, Form, train_decoder
from privdfs_training.attacks.diffusion import DiffuseBudget, diffuse, tune
from privdfs_training.attacks.floors import mean_image
from privdfs_training.attacks.linear import HELD_OUT, STEPS, linear_reconstruct, linear_sums, wide_reconstruct
from privdfs_training.attacks.optimise import OptimiseBudget, optimise
from privdfs_training.attacks.prior import Prior
from privdfs_training.attacks.view import ServerView
from privdfs_training.errors import AttackError
from privdfs_training.parallel import CPU


@dataclass(frozen=True)
class Attack:
    """What an attack is, whatever it spends.

    Attributes:
        source: Where it comes from, for result files.
        form: Of its decoder, or of the decoder whose images it starts from; None where nothing is learned from pairs
            but by ridge regression.
        loss: Of the decoder: reconstruction and images to one number.
        hears_answers: Whether it is told the branches' answers beside the shares.
    """

    source: str
    form: Form | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = decoder.squared_error
    hears_answers: bool = False


#: The attacks that an audit can name.
NAMED: Mapping[str, Attack] = {
    "linear": Attack("ridge regression of the pixels on the levels"),
    "dense": Attack("inverse network (He et al., ACSAC 2019), fully connected", "dense"),
    "decoder": Attack("inverse network (He et al., ACSAC 2019), residual", "residual"),
    "unet": Attack("inverse network, U-Net (Ronneberger et al., 2015)", "unet"),
    "decoder-ssim": Attack(
        "inverse network, residual, squared error and SSIM", "residual", decoder.squared_error_and_similarity
    ),
    "dense+answers": Attack(
        "inverse network, fully connected, told the branches' logits too", "dense", hears_answers=True
    ),
    "optimisation": Attack("maximum a posteriori through the head (He et al., ACSAC 2019), Gaussian prior"),
    "diffusion": Attack("sampled, guided by a diffusion prior through the head (DRAG, arXiv 2509.11724)"),
    "diffusion-mean": Attack("the mean of several such samples"),
    "diffusion+dense": Attack("one sample, started from the fully connected decoder's images (DRAG++)", "dense"),
    "optimisation-tv": Attack("maximum likelihood and total variation through the head (He et al., ACSAC 2019)"),
}
#: Those and the fully connected decoder under the names that attackers of keyed releases give it.
ATTACKS: Mapping[str, Attack] = {**NAMED, **dict.fromkeys(keyed.ATTACK_NAMES, NAMED["dense"])}


@dataclass(frozen=True)
class Found:
    """What an attack reconstructed.

    Attributes:
        images: float [targets, channels, height, width].
        notes: What else a result file says of it.
    """

    images: Tensor
    notes: dict[str, Any]

    def __repr__(self) -> str:
        """No images."""
        return f"Found({len(self.images)} images)"


#: Indicators, one for each level of each value, up to which ridge regression has a weight for each.
WIDEST = 8000


def quiet(_done: float, _loss: float) -> None:
    """Show no progress."""


def reconstruct(
    view: ServerView,
    attack: Attack,
    budget: Budget,
    *,
    start: DecoderBudget | None = None,
    prior: tuple[Prior, str] | None = None,
    seconds: float = math.inf,
    progress: Progress = quiet,
    device: torch.device = CPU,
) -> Found:
    """Run an attack.

    Args:
        view: What the attacker has.
        attack: One of the table.
        budget: What it spends, of its kind.
        start: Of an attack by diffusion that starts from a decoder's images, what that decoder spends.
        prior: Of an attack by diffusion, its network, and the SHA-256 of its file.
        seconds: Stop training and sampling after so long.
        progress: Called with the progress in 0..1 and the loss.
        device: Where networks are trained and attacks go through the head.

    Returns:
        What it reconstructed.

    Raises:
        AttackError: It cannot be run on this view.
    """
    if budget is None and view.shares.shape[1] * STEPS > WIDEST:
        return Found(wide_reconstruct(view.shares, view.images, view.received), {})
    if budget is None:
        sums, _ = linear_sums([view.shares], view.images)
        return Found(linear_reconstruct(sums, (0,), [view.received]), {})
    if isinstance(budget, OptimiseBudget):
        found = optimise(view, budget, seed=SEED, progress=progress, device=device)
        return Found(found.images, {"gradient": found.gradient})
    limits: dict[str, Any] = {"seconds": seconds, "progress": progress, "device": device}
    if isinstance(budget, DecoderBudget):
        told = view.with_answers_as_shares() if attack.hears_answers else view
        decode, finished = _trained(told, attack, budget, **limits)
        return Found(decode(told.received), {"finished": finished})
    if prior is None:
        raise AttackError("an attack by diffusion needs a prior: pass it")
    begin = None if start is None else _trained(view, attack, start, **limits)[0]
    return _sampled(view, budget, begin, prior, **limits)


def reconstruct_or_mean(view: ServerView, attack: Attack, budget: Budget, **limits: Any) -> Found:  # noqa: ANN401  as `reconstruct`'s
    """Run an attack that learns from pairs, and believe it as far as it is right on pairs kept aside.

    What was learned by heart from shares that say nothing is worse than the mean image. An attacker notices: it takes
    the best mixture of its guess and the mean image, by least squares on a tenth of its own pairs.

    Args:
        view: As for `reconstruct`, with at least two pairs.
        attack: As there, one that learns from pairs.
        budget: As there.
        limits: As there.

    Returns:
        What it reconstructed; the notes say how far it was believed.

    Raises:
        AttackError: It cannot be run on this view.
    """
    held = max(1, int(HELD_OUT * len(view.images)))
    known = len(view.images) - held
    own = replace(
        view,
        images=view.images[:known],
        labels=view.labels[:known],
        shares=view.shares[:known],
        answers=view.answers[:known],
        received=torch.cat([view.shares[known:].to(view.received.dtype), view.received]),
        received_answers=torch.cat([view.answers[known:], view.received_answers]),
    )
    found = reconstruct(own, attack, budget, **limits)
    mean = mean_image(own.images)
    guess, wanted = found.images[:held] - mean, view.images[known:].float() / 255 - mean
    believed = float(((guess * wanted).sum() / guess.square().sum().clamp(min=1e-9)).clamp(0, 1))
    return Found(mean + believed * (found.images[held:] - mean), found.notes | {"believed": round(believed, 4)})


def _trained(
    view: ServerView,
    attack: Attack,
    budget: DecoderBudget,
    *,
    seconds: float,
    progress: Progress,
    device: torch.device,
) -> tuple[Callable[[Tensor], Tensor], bool]:
    """A decoder from shares to images, and whether its training came to its end."""
    if attack.form is None:
        raise AttackError("a decoder's budget needs an attack with a decoder: pass one of the table")
    last = 0.0

    def step(done: float, loss: float) -> None:
        nonlocal last
        last = done
        progress(done, loss)

    network = train_decoder(
        view.shares,
        view.images,
        budget,
        seed=SEED,
        progress=step,
        form=attack.form,
        loss_of=attack.loss,
        seconds=seconds,
        device=device,
        again=view.again,
    )
    return partial(decoder.reconstruct, network), last >= 1


def _sampled(
    view: ServerView,
    budget: DiffuseBudget,
    begin: Callable[[Tensor], Tensor] | None,
    prior: tuple[Prior, str],
    *,
    seconds: float,
    progress: Progress,
    device: torch.device,
) -> Found:
    """By a diffusion prior, from noise or from what `begin` makes of shares."""
    network, digest = prior
    budget = tune(view, network, budget, seed=SEED, progress=progress, start=begin, device=device)
    start = None if begin is None else begin(view.received)
    found = diffuse(view, network, budget, seed=SEED, progress=progress, start=start, seconds=seconds, device=device)
    notes = {"gradient": found.gradient, "finished": found.finished, "guidance": budget.guidance}
    return Found(found.images, notes | {"prior_sha256": digest})
