"""What malicious servers answer: cheap lies, and the strongest ones that a coalition of liars can choose.

Who lies is a bool `lying` [batch, servers]. Every function gives the whole answers, float [batch, servers, classes],
with the liars' rows replaced and the honest rows as they were. Two of them know everything, which no real coalition
does: the label, what the honest servers answer, and what the fusion makes of any answers. So accuracy under
`searched_lies` is a bound from below on accuracy under any lie, as far as the search finds the worst one.

All lies are answers that the SDK accepts: finite, and far below its limit on the size of a logit.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs._format import largest_minority

#: Logits float [batch, servers, classes] and who answered, bool [batch, servers], to fused scores [batch, classes].
Fuse = Callable[[Tensor, Tensor], Tensor]

#: Of a lie that drowns whatever is not bounded.
LOUD = 1e4
#: Chosen lies lie in 0..SPAN: beyond, a probability is below 1e-5, and a fusion that bounds answers sees no difference.
SPAN = 12.0
#: Standard deviation of random logits; trained branches have about a third of it, so most random lies are confident.
RANDOM_SCALE = 10.0
ASCENT_STEPS = 4
SEARCH_STEPS = 100
#: Classes that the search tries with certainty: those that the honest answers find most likely, the label among them.
SEARCH_CLASSES = 20


def random_lies(answers: Tensor, lying: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Liars answer noise.

    Args:
        answers: Honest logits, float [batch, servers, classes].
        lying: bool [batch, servers].
        generator: Of the noise; None means torch's own.

    Returns:
        float [batch, servers, classes].
    """
    noise = torch.randn(answers.shape, generator=generator, device=answers.device, dtype=answers.dtype)
    return torch.where(lying[:, :, None], RANDOM_SCALE * noise, answers)


def constant_lies(answers: Tensor, lying: Tensor, classes: Tensor, size: float = LOUD) -> Tensor:
    """All liars are very sure of one class.

    Args:
        answers: Honest logits, float [batch, servers, classes].
        lying: bool [batch, servers].
        classes: int64 [batch]; which class.
        size: Of its logit; the others are zero.

    Returns:
        float [batch, servers, classes].
    """
    lie = size * F.one_hot(classes, answers.shape[2]).to(answers.dtype)
    return torch.where(lying[:, :, None], lie[:, None], answers)


def flipped_lies(answers: Tensor, lying: Tensor) -> Tensor:
    """Liars answer the negative of their honest logits: the least likely class comes out first.

    Args:
        answers: Honest logits, float [batch, servers, classes].
        lying: bool [batch, servers].

    Returns:
        float [batch, servers, classes].
    """
    return torch.where(lying[:, :, None], -answers, answers)


def runner_up_lies(answers: Tensor, lying: Tensor) -> Tensor:
    """All liars are very sure of the class that comes second in their own honest answers, put together.

    The strongest of the cheap lies: it needs only what the coalition has, and pushes where the image is weakest.

    Args:
        answers: Honest logits, float [batch, servers, classes].
        lying: bool [batch, servers].

    Returns:
        float [batch, servers, classes].
    """
    theirs = torch.where(lying[:, :, None], answers.log_softmax(dim=2), 0.0).sum(dim=1)
    return constant_lies(answers, lying, theirs.topk(2, dim=1).indices[:, 1])


def ascended_lies(fuse: Fuse, answers: Tensor, answered: Tensor, lying: Tensor, labels: Tensor) -> Tensor:
    """Liars climb the fused cross-entropy by steps of the gradient's sign, from a random point.

    Projected gradient ascent of Madry et al., arXiv 1706.06083, section 2.1, in the space of the liars' logits.

    Args:
        fuse: The fusion; its parameters get no gradient.
        answers: Honest logits, float [batch, servers, classes].
        answered: bool [batch, servers].
        lying: bool [batch, servers].
        labels: int64 [batch].

    Returns:
        float [batch, servers, classes]; the lies carry no gradient.
    """
    honest, rows = answers.detach(), lying[:, :, None]
    lies = torch.where(rows, SPAN * torch.rand_like(honest), honest)
    for _ in range(ASCENT_STEPS):
        with torch.enable_grad():
            lies.requires_grad_()
            loss = F.cross_entropy(fuse(lies, answered), labels, reduction="sum")
            (slope,) = torch.autograd.grad(loss, lies)
        climbed = (lies.detach() + SPAN / ASCENT_STEPS * slope.sign()).clamp(0, SPAN)
        lies = torch.where(rows, climbed, honest)
    return torch.where(rows, lies, answers)


@torch.no_grad()
def searched_lies(
    fuse: Fuse, answers: Tensor, lying: Tensor, labels: Tensor, *, steps: int = SEARCH_STEPS, seed: int = 0
) -> Tensor:
    """Liars try each likely class with certainty, then search at random for what fools the fusion.

    It needs no gradient, so it works on an exported fusion. For a fusion that is monotone in every class, such as a
    median, certainty about the right class is already the strongest lie.

    Args:
        fuse: The fusion.
        answers: Honest logits of servers that all answer, float [batch, servers, classes].
        lying: bool [batch, servers].
        labels: int64 [batch].
        steps: Of the random search, on the images that are still right.
        seed: Of the search.

    Returns:
        float [batch, servers, classes]: the lies with which the label fares worst against the best other class.
    """
    generator = torch.Generator().manual_seed(seed)
    answered = torch.ones(answers.shape[:2], dtype=torch.bool)
    best, lies = torch.full((len(labels),), -torch.inf), answers.clone()

    def improve(images: Tensor, tried: Tensor) -> None:
        if not len(images):
            return
        found = _margin(fuse(tried, answered[images]), labels[images])
        better = found > best[images]
        best[images[better]], lies[images[better]] = found[better], tried[better]

    every = torch.arange(len(labels))
    honest = torch.where(lying[:, :, None], 0.0, answers.log_softmax(dim=2)).sum(dim=1)
    likely = honest.argsort(dim=1, descending=True)[:, :SEARCH_CLASSES]
    for size in (SPAN, LOUD):
        for wanted in likely.unbind(dim=1):
            images = every[(best < 0) & (labels != wanted)]
            improve(images, constant_lies(answers[images], lying[images], wanted[images], size))
    for step in range(steps):
        images = every[best < 0]
        now, shape = lies[images], lies[images].shape
        # Wide jumps and small moves take turns; the share of logits that change shrinks.
        if step % 2:
            moved = now + torch.randn(shape, generator=generator)
        else:
            moved = SPAN * torch.rand(shape, generator=generator)
        changed = torch.rand(shape, generator=generator) < (0.5 if step < steps // 3 else 0.2)
        improve(images, torch.where(changed & lying[images][:, :, None], moved, now))
    return lies


def random_minority(answered: Tensor) -> Tensor:
    """Who lies in training: of every image, a minority of those who answer, of any size.

    Args:
        answered: bool [batch, servers].

    Returns:
        bool [batch, servers]: at least one and fewer than half of the answering servers of each image; none where
        one or two answer.
    """
    batch, device = len(answered), answered.device
    most = cast("Tensor", largest_minority(cast("int", answered.sum(dim=1))))  # of every image at once
    liars = (torch.rand(batch, device=device) * most).floor() + 1
    liars = torch.where(most > 0, liars, 0)
    order = torch.where(answered, torch.rand(answered.shape, device=device), 2.0).argsort(dim=1).argsort(dim=1)
    return order < liars[:, None]


def mixed_lies(fuse: Fuse, answers: Tensor, answered: Tensor, labels: Tensor) -> Tensor:
    """Answers as the fusion hears them in training while a minority lies, of every image in one way.

    Args:
        fuse: The fusion that is trained; its parameters get no gradient here.
        answers: Honest logits, float [batch, servers, classes].
        answered: bool [batch, servers].
        labels: int64 [batch].

    Returns:
        float [batch, servers, classes]. No gradient flows through a lie.
    """
    lying, honest = random_minority(answered), answers.detach()
    batch, device = len(answers), answers.device
    classes = torch.randint(0, answers.shape[2], (batch,), device=device)
    kinds = torch.stack(
        [
            random_lies(honest, lying),
            constant_lies(honest, lying, classes),
            flipped_lies(honest, lying),
            runner_up_lies(honest, lying),
            ascended_lies(fuse, honest, answered, lying, labels),
        ]
    )
    chosen = kinds[torch.randint(0, len(kinds), (batch,), device=device), torch.arange(batch, device=device)]
    return torch.where(lying[:, :, None], chosen, answers)


def _margin(scores: Tensor, labels: Tensor) -> Tensor:
    """How far the best other class is above the label, float [batch]; below zero where the answer is right."""
    right = scores.gather(1, labels[:, None])[:, 0]
    return scores.scatter(1, labels[:, None], -torch.inf).amax(dim=1) - right
