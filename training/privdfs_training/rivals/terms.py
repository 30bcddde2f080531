"""What defences compute of batches: the measures in their terms, and the turned gradient of an opponent."""

from typing import Any

import torch
from torch import Tensor


def distance_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Sample distance correlation (Szekely, Rizzo, Bakirov, Annals of Statistics 2007, definition 5).

    Args:
        first: float32 [batch, ...].
        second: float32 [batch, ...].

    Returns:
        Scalar in 0..1: 1 where one is a scaled copy of the other. Independent values give little, but not zero: the
        fewer images in the batch and the more dimensions, the more.
    """
    one, two = _centred_distances(first), _centred_distances(second)
    covariance, variances = (one * two).mean(), one.square().mean() * two.square().mean()
    return (covariance.clamp(min=0) / variances.sqrt().clamp(min=1e-12) + 1e-12).sqrt()


def _centred_distances(values: Tensor) -> Tensor:
    values = values.float().flatten(1)
    distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")  # exact where values are close
    return distances - distances.mean(dim=0, keepdim=True) - distances.mean(dim=1, keepdim=True) + distances.mean()


def information_bound(values: Tensor, centroids: Tensor, labels: Tensor, nearest: Tensor, noise: float) -> Tensor:
    """CEM's bound on what a noisy feature tells of the image beyond its component, without the constant.

    Args:
        values: float32 [batch, dimensions].
        centroids: float32 [classes, components, dimensions].
        labels: int64 [batch].
        nearest: Component of each value within its class, int64 [batch].
        noise: Standard deviation of what is added.

    Returns:
        Scalar, nats for one dimension; the mean over the classes in the batch.
    """
    components = centroids.shape[1]
    group = labels * components + nearest
    squares, counts = per_group((values - centroids[labels, nearest]).square(), group, centroids.shape[0] * components)
    variances = squares / counts.clamp(min=1)[:, None]
    information = 0.5 * torch.log1p(variances / noise**2).mean(dim=1)
    by_class, of_class = information.view(-1, components), counts.view(-1, components)
    present = of_class.sum(dim=1)
    return ((by_class * of_class).sum(dim=1) / present.clamp(min=1)).sum() / (present > 0).sum()


def per_group(values: Tensor, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Sums and counts of values by group.

    Args:
        values: float [batch, dimensions].
        group: Of each value, int64 [batch].
        groups: How many there are.

    Returns:
        float [groups, dimensions] and float [groups].
    """
    totals = values.new_zeros(groups, values.shape[1]).index_add(0, group, values)
    return totals, torch.bincount(group, minlength=groups).to(values.dtype)


class _TurnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:  # noqa: ANN401  torch's own context
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  torch's own context
        return ctx.factor * gradients[0], None


def turn_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values, whose gradient is multiplied on the way back; a negative factor makes an opponent.

    Args:
        values: float, any shape.
        factor: Of the gradient.

    Returns:
        float, same shape.
    """
    return _TurnGradient.apply(values, factor)  # pyright: ignore[reportReturnType]  apply has no types
