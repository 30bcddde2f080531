"""Reconstruction guided by a diffusion prior: images that look real and whose shares are the received ones.

After DRAG (arXiv 2509.11724), the strongest published white-box attack on split inference, with spherical-Gaussian
guidance (DSG, arXiv 2402.03201): an image is sampled from the prior step by step, and part of the noise of every step
is replaced by the direction in which the estimated image explains better what was received, on the sphere where noise
of that step lies. Every step is repeated from renewed noise several times (self-recurrence). Two changes: the distance
is that of a quantised value (`optimise.interval_distance`), over the values that the coalition owns and nothing else,
so the attack knows masks and rounding; and the prior is one of velocities in continuous time (`prior`). Started from
another attack's images it is the paper's DRAG++. How much guidance is right differs much between a dense feature and a
share of a few values, so the attacker finds it out on its own images (`tune`).
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from privdfs_training.attacks.metrics import psnr
from privdfs_training.attacks.optimise import interval_distance
from privdfs_training.attacks.prior import Prior, signal_and_noise
from privdfs_training.attacks.view import ServerView
from privdfs_training.errors import AttackError
from privdfs_training.parallel import CPU

#: Decay of the mean gradient and of its mean square, and a floor: the smoothing is Adam's (arXiv 1412.6980).
DECAY, SQUARE_DECAY, TINY = 0.9, 0.999, 1e-8
#: What `tune` chooses from, on how many of the attacker's images, with what part of the passes.
GUIDANCES, TUNED_ON, TUNED_FOR = (0.02, 0.05, 0.1, 0.2, 0.5), 16, 4


@dataclass(frozen=True)
class DiffuseBudget:
    """How much an attacker spends; steps, recurrence, guidance and strength are DRAG's.

    Attributes:
        steps: From noise to image.
        recurrence: How often each is made.
        guidance: Share of the guiding direction in a step's noise, 0 to 1.
        strength: Where to begin when images are given to start from: the share of the steps that are made.
        samples: Images sampled for each that is wanted; their mean is the result. One looks real; the mean of many is
            the better guess in the squared sense.
    """

    steps: int = 250
    recurrence: int = 16
    guidance: float = 0.2
    strength: float = 0.3
    samples: int = 1


@dataclass(frozen=True)
class Diffused:
    """What came out.

    Attributes:
        images: Float [targets, channels, height, width] in 0..1.
        distance: Summed squared distance of every image's values from what was received, float [targets].
        gradient: Mean absolute gradient of the distance at the first step, over pixels. Zero: nothing guided.
        finished: False when the time ran out before the noise was gone.
    """

    images: Tensor
    distance: Tensor
    gradient: float
    finished: bool

    def __repr__(self) -> str:
        """Sizes, never values."""
        return f"Diffused({len(self.images)} images)"


def diffuse(
    view: ServerView,
    prior: Prior,
    budget: DiffuseBudget,
    *,
    seed: int,
    progress: Callable[[float, float], None],
    start: Tensor | None = None,
    seconds: float = math.inf,
    device: torch.device = CPU,
) -> Diffused:
    """Sample images that the prior finds likely and that explain what was received.

    Args:
        view: With `steps`.
        prior: Of the images' shape.
        budget: How much to spend.
        seed: Of all noise.
        progress: Called after every pass with the progress in 0..1 and the mean distance.
        start: Another attack's images, float [targets, channels, height, width] in 0..1; None starts from noise.
        seconds: Stop after so long, and take the estimate of that moment.
        device: Where the prior is and `view.steps` computes.

    Returns:
        The images, on the processor.

    Raises:
        AttackError: The view has no head, shapes differ, the budget is invalid, or the time is too short for a pass.
    """
    view = view.received_on(device)
    start = None if start is None else start.to(device)
    if view.steps is None:
        raise AttackError("the view has no head to go through: pass one with steps")
    if prior.image_shape != view.image_shape:
        raise AttackError(f"the prior is of images {prior.image_shape}, the view of {view.image_shape}: train another")
    least = min(budget.steps, budget.recurrence, budget.samples)
    if least < 1 or not (0 <= budget.guidance <= 1 and 0 < budget.strength <= 1):
        raise AttackError("a diffusion needs steps, recurrence, samples, a guidance of 0 to 1 and a strength up to 1")
    generator, began = torch.Generator().manual_seed(seed), time.monotonic()
    images, gradient, finished = [], 0.0, True
    for sample in range(budget.samples):

        def told(done: float, distance: float, sample: int = sample) -> None:
            progress((sample + done) / budget.samples, distance)

        left = seconds - (time.monotonic() - began)
        if images and left < 0:
            finished = False
            break
        found, gradient, whole = _sample(view, prior, budget, start, generator, told, left)
        images.append(found)
        finished &= whole
    mean = torch.stack(images).mean(dim=0)
    with torch.no_grad():
        distance = interval_distance(view.steps(mean), view.received, view.limits)
    return Diffused(mean.cpu(), distance.cpu(), gradient, finished)


def tune(
    view: ServerView,
    prior: Prior,
    budget: DiffuseBudget,
    *,
    seed: int,
    progress: Callable[[float, float], None],
    start: Callable[[Tensor], Tensor] | None = None,
    device: torch.device = CPU,
) -> DiffuseBudget:
    """The budget with the guidance that reconstructs some of the attacker's own images best.

    Args:
        view: As that of `diffuse`; its pairs are used.
        prior: The same.
        budget: The same.
        seed: Of all noise.
        progress: Called with the progress in 0..1 and the mean distance.
        start: From shares to another attack's images.
        device: As that of `diffuse`.

    Returns:
        The budget to attack with.

    Raises:
        AttackError: As `diffuse`.
    """
    shares, answers = view.shares[:TUNED_ON], view.answers[:TUNED_ON]
    shares = shares.float() if shares.is_floating_point() else shares
    own, images = replace(view, received=shares, received_answers=answers), view.images[:TUNED_ON].float() / 255
    short = replace(budget, steps=max(1, budget.steps // TUNED_FOR), samples=1)
    beginning = None if start is None else start(shares)

    def gain(at: int, guidance: float) -> float:
        def told(done: float, distance: float) -> None:
            progress((at + done) / len(GUIDANCES), distance)

        tried = replace(short, guidance=guidance)
        found = diffuse(own, prior, tried, seed=seed, progress=told, start=beginning, device=device)
        return float(psnr(found.images, images).mean())

    gains = {guidance: gain(at, guidance) for at, guidance in enumerate(GUIDANCES)}
    return replace(budget, guidance=max(gains, key=lambda guidance: gains[guidance]))


def _sample(
    view: ServerView,
    prior: Prior,
    budget: DiffuseBudget,
    start: Tensor | None,
    generator: torch.Generator,
    progress: Callable[[float, float], None],
    seconds: float,
) -> tuple[Tensor, float, bool]:
    """One image for every target; the mean absolute gradient at the first pass; whether the time was enough."""
    shape, began = (len(view.received), *view.image_shape), time.monotonic()
    device = view.received.device

    def noise() -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    count = budget.steps if start is None else max(1, round(budget.steps * budget.strength))
    times = torch.linspace(count / budget.steps, 0, count + 1).to(device)
    signal, sigma = _factors(times[0])
    noisy = noise() if start is None else signal * (2 * start - 1) + sigma * noise()
    guide, images, first = _Direction(torch.zeros(shape, device=device)), None, 0.0
    for done in range(count * budget.recurrence):
        if time.monotonic() - began > seconds:
            break
        at, again = divmod(done, budget.recurrence)
        (signal, sigma), (next_signal, next_sigma) = _factors(times[at]), _factors(times[at + 1])
        clean, rest, distance, slope = _look(view, prior, noisy, times[at])
        if images is None:
            first = float(slope.abs().mean())
        images = (clean + 1) / 2
        # The noise of a step is as much as keeps the variance that the time says (DDIM with eta = 1).
        spread = next_sigma / sigma * (1 - (signal / next_signal) ** 2).clamp(min=0).sqrt()
        fresh = _on_sphere(noise(), guide(slope), budget.guidance) * spread
        noisy = next_signal * clean + (next_sigma**2 - spread**2).clamp(min=0).sqrt() * rest + fresh
        if again + 1 < budget.recurrence:
            back = signal / next_signal
            noisy = back * noisy + (1 - back**2).clamp(min=0).sqrt() * noise()
        progress((done + 1) / (count * budget.recurrence), float(distance.mean()))
    else:
        done = count * budget.recurrence
    if images is None:
        raise AttackError(f"{seconds:.3g} seconds are too short for one pass of a diffusion: give it more")
    return images.clamp(0, 1), first, done == count * budget.recurrence


def _look(view: ServerView, prior: Prior, noisy: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Estimated image in -1..1 and noise; distance from what was received, and its gradient by the noisy image."""
    noisy = noisy.requires_grad_()
    signal, sigma = _factors(at)
    velocity = prior(noisy, at.expand(len(noisy)))
    clean, rest = signal * noisy - sigma * velocity, sigma * noisy + signal * velocity
    if view.steps is None:
        raise AttackError("the view has no head to go through: pass one with steps")
    distance = interval_distance(view.steps((clean + 1) / 2), view.received, view.limits)
    (slope,) = torch.autograd.grad(distance.sum(), noisy)
    return clean.detach(), rest.detach(), distance.detach(), slope


class _Direction:
    """Gradients of many passes to one direction for each image, smoothed as Adam does."""

    def __init__(self, nothing: Tensor) -> None:
        self.mean, self.square, self.passes = nothing, nothing, 0

    def __call__(self, gradient: Tensor) -> Tensor:
        """The unit direction after one more gradient; zero where there was none."""
        self.passes += 1
        one = _unit(gradient)
        self.mean = DECAY * self.mean + (1 - DECAY) * one
        self.square = SQUARE_DECAY * self.square + (1 - SQUARE_DECAY) * one**2
        scale = (self.square / (1 - SQUARE_DECAY**self.passes)).sqrt() + TINY
        # What is explained already is not pushed on by the memory of what was not.
        return _unit(self.mean / scale) * (one.flatten(1).norm(dim=1) > 0).view(-1, 1, 1, 1)


def _on_sphere(noise: Tensor, direction: Tensor, guidance: float) -> Tensor:
    """Noise of unit deviation that leans against a direction, scaled to the length that noise has."""
    length = math.sqrt(noise[0].numel())
    return length * _unit((1 - guidance) * noise - guidance * length * direction)


def _unit(values: Tensor) -> Tensor:
    """Every image's values at length one; zero stays zero."""
    length = values.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return values / torch.where(length > 0, length, 1.0)


def _factors(one: Tensor) -> tuple[Tensor, Tensor]:
    """`signal_and_noise` of a single time."""
    signal, sigma = signal_and_noise(one[None])
    return signal, sigma
