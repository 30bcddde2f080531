"""All branches as one network: grouped convolutions, one group a server (Krizhevsky et al., NeurIPS 2012, section 3.5).

It computes what the branches compute one after the other, with N times fewer and wider operations. The parameters stay
where they are, in each server's own `Branch`, and are put side by side at every step. Which way is faster depends on
widths, precision and machine; bench/branches.py measures it.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.models.branch import Branch
from privdfs_training.models.resnet import BasicBlock


def grouped_answers(branches: Iterable[nn.Module], shares: Tensor) -> Tensor:
    """Every server's answer, as `System.answer`.

    Args:
        branches: One `Branch` a server, all of one shape and in the same mode.
        shares: float [batch, servers, channels, h, w].

    Returns:
        Logits, float [batch, servers, classes].
    """
    every = [cast("Branch", branch) for branch in branches]
    features = shares.flatten(1, 2).contiguous(memory_format=torch.channels_last)
    features = _convolution([branch.conv1 for branch in every], features)
    features = F.relu(_normalisation([branch.bn1 for branch in every], features))
    for group in zip(*(branch.blocks for branch in every), strict=True):
        blocks = [cast("BasicBlock", block) for block in group]
        change = _convolution([block.conv1 for block in blocks], features)
        change = F.relu(_normalisation([block.bn1 for block in blocks], change))
        change = _convolution([block.conv2 for block in blocks], change)
        features = F.relu(_normalisation([block.bn2 for block in blocks], change) + features)
    flat = features.contiguous().view(len(shares), len(every), -1).transpose(0, 1)
    weight = torch.stack([branch.fc.weight for branch in every])
    bias = torch.stack([branch.fc.bias for branch in every])
    return torch.baddbmm(bias[:, None], flat, weight.transpose(1, 2)).transpose(0, 1)


def _convolution(layers: list[nn.Conv2d], features: Tensor) -> Tensor:
    weight = torch.cat([layer.weight for layer in layers]).contiguous(memory_format=torch.channels_last)
    return F.conv2d(features, weight, None, 1, 1, 1, len(layers))


def _normalisation(layers: list[nn.BatchNorm2d], features: Tensor) -> Tensor:
    if type(layers[0]) is not nn.BatchNorm2d:  # synchronised between processes: each layer knows how
        parts = zip(layers, features.chunk(len(layers), 1), strict=True)
        return torch.cat([layer(part) for layer, part in parts], dim=1)
    first = layers[0]
    mean, variance = _beside(layers, "running_mean"), _beside(layers, "running_var")
    weight, bias = _beside(layers, "weight"), _beside(layers, "bias")
    momentum = 0.0 if first.momentum is None else first.momentum
    result = F.batch_norm(features, mean, variance, weight, bias, first.training, momentum, first.eps)
    if first.training:
        with torch.no_grad():
            for name, values in (("running_mean", mean), ("running_var", variance)):
                for layer, part in zip(layers, values.chunk(len(layers)), strict=True):
                    getattr(layer, name).copy_(part)
            for layer in layers:
                getattr(layer, "num_batches_tracked").add_(1)  # noqa: B009  typed as optional
    return result


def _beside(layers: list[nn.BatchNorm2d], name: str) -> Tensor:
    return torch.cat([getattr(layer, name) for layer in layers])
