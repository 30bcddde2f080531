"""Reconstruction by optimisation through the public head: no training, white box, mask-aware.

The regularised maximum likelihood of He, Zhang and Lee (ACSAC 2019, section 3), with two changes. The likelihood is
that of a quantised value: any feature that rounds to what was received explains it equally well, and beyond the last
level there is no upper end. And in the place of total variation the prior may be a Gaussian fitted to the attacker's
own images, whose maximum a posteriori is found in its principal coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.attacks.view import ServerView
from privdfs_training.errors import AttackError
from privdfs_training.parallel import CPU

#: Principal directions kept, and images that they come from.
DIRECTIONS, FITTED = 256, 10_000
AMSGRAD_EPSILON = 1e-3


@dataclass(frozen=True)
class OptimiseBudget:
    """How much an attacker spends.

    Attributes:
        steps: Of Adam, in every restart.
        restarts: From different starts; for every image the one with the lowest objective counts.
        prior: `variation`: total variation of the pixels; `gaussian`: of the attacker's own images.
        weight: Of the prior, beside the summed squared distance of values from what was received.
        learning_rate: Of Adam.
    """

    steps: int
    restarts: int = 2
    prior: Literal["variation", "gaussian"] = "gaussian"
    weight: float = 0.3
    learning_rate: float = 0.05


@dataclass(frozen=True)
class Optimised:
    """What came out.

    Attributes:
        images: float [targets, channels, height, width] in 0..1.
        distance: Summed squared distance of every image's values from what was received, float [targets].
        gradient: Mean absolute gradient of the distance at the start, over pixels. Zero: nothing was optimised.
    """

    images: Tensor
    distance: Tensor
    gradient: float

    def __repr__(self) -> str:
        """Sizes, never values."""
        return f"Optimised({len(self.images)} images)"


def optimise(
    view: ServerView,
    budget: OptimiseBudget,
    *,
    seed: int,
    progress: Callable[[float, float], None],
    device: torch.device = CPU,
) -> Optimised:
    """Find images whose shares are the received ones.

    Args:
        view: With `steps`.
        budget: How much to spend.
        seed: Of the starts.
        progress: Called after every step with the progress in 0..1 and the mean objective.
        device: Where `view.steps` computes.

    Returns:
        The images, on the processor.

    Raises:
        AttackError: The view has no way through the head.
    """
    view = view.received_on(device)
    if view.steps is None:
        raise AttackError("this view has no head to go through: give it `steps`, or use a decoder")
    generator = torch.Generator().manual_seed(seed)
    prior = _gaussian(view, device) if budget.prior == "gaussian" else _variation(view)
    best = gradient = None
    for restart in range(budget.restarts):
        free = prior.start(len(view.received), restart, generator).to(device).requires_grad_()
        # epsilon and amsgrad as in the published attack
        optimizer = torch.optim.Adam([free], budget.learning_rate, eps=AMSGRAD_EPSILON, amsgrad=True)
        for step in range(budget.steps):
            images = prior.images(free)
            distance = interval_distance(view.steps(images), view.received, view.limits)
            if gradient is None:
                gradient = float(torch.autograd.grad(distance.sum(), images, retain_graph=True)[0].abs().mean())
            objective = distance + budget.weight * prior.cost(free, images)
            optimizer.zero_grad()
            objective.sum().backward()
            optimizer.step()
            progress(
                (restart * budget.steps + step + 1) / (budget.restarts * budget.steps), float(objective.detach().mean())
            )
        with torch.no_grad():
            images = prior.images(free).clamp(0, 1)
            distance = interval_distance(view.steps(images), view.received, view.limits)
            objective = distance + budget.weight * prior.cost(free, images)
        found = (objective, distance, images)
        best = found if best is None else _better(best, found)
    if best is None or gradient is None:
        raise AttackError("an optimisation needs at least one step and one restart: give it more")
    return Optimised(images=best[2].detach().cpu(), distance=best[1].cpu(), gradient=gradient)


def interval_distance(steps: Tensor, received: Tensor, limits: Tensor) -> Tensor:
    """How far values are from what rounds to the received ones.

    Args:
        steps: Values in quantisation steps, float [images, values]; or of the received shape.
        received: int8 [images, values]; or float of any shape, when nothing was rounded.
        limits: Largest integer of every value, float [values]; values beyond it are cut to it.

    Returns:
        Sum over values of the squared distance, float [images].
    """
    if received.is_floating_point():
        return (steps.flatten(1) - received.flatten(1)).square().sum(dim=1)
    middle = received.float()
    above = torch.where(middle >= limits, 0.0, F.relu(steps - middle - 0.5))
    below = torch.where(middle <= -limits, 0.0, F.relu(middle - 0.5 - steps))
    return (above + below).square().sum(dim=1)


@dataclass(frozen=True)
class _Prior:
    """Free numbers that images are made of, and what unlikely ones cost."""

    start: Callable[[int, int, torch.Generator], Tensor]
    images: Callable[[Tensor], Tensor]
    cost: Callable[[Tensor, Tensor], Tensor]


def _variation(view: ServerView) -> _Prior:
    """Pixels are free, neighbours should be alike; the first start is grey, others are noise."""

    def start(count: int, restart: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(count, *view.image_shape, generator=generator)
        return noise * (0.5 if restart else 0.05)  # not zero: a flat image may be a kink of every ReLU

    def cost(_free: Tensor, images: Tensor) -> Tensor:
        down = (images[:, :, 1:] - images[:, :, :-1]).abs().flatten(1).sum(dim=1)
        return down + (images[..., 1:] - images[..., :-1]).abs().flatten(1).sum(dim=1)

    return _Prior(start, torch.sigmoid, cost)


def _gaussian(view: ServerView, device: torch.device) -> _Prior:
    """Coordinates along the principal directions of the attacker's images, in deviations; first from the mean."""
    pixels = view.images[:FITTED].flatten(1).float() / 255
    mean = pixels.mean(dim=0)
    directions = min(DIRECTIONS, *pixels.shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # pca_lowrank draws its start
        _, deviations, axes = torch.pca_lowrank(pixels, directions, center=True, niter=2)
    mean, scaled = mean.to(device), (axes * deviations / max(1, len(pixels) - 1) ** 0.5).to(device)

    def start(count: int, restart: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, directions, generator=generator) * (1.0 if restart else 0.0)

    def images(free: Tensor) -> Tensor:
        return (mean + free @ scaled.T).unflatten(1, view.image_shape)

    def cost(free: Tensor, _images: Tensor) -> Tensor:
        return free.square().sum(dim=1)

    return _Prior(start, images, cost)


def _better(one: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Of every image the result with the lower objective."""
    objective, distance, images = (
        torch.where((other[0] < one[0]).view(-1, *(1 for _ in mine.shape[1:])), theirs, mine)
        for mine, theirs in zip(one, other, strict=True)
    )
    return objective, distance, images
