"""What a coalition learns of the class: a network that guesses it from shares, trained from scratch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privdfs_training.attacks.decoder import WARM_UP, DecoderBudget, Standardise, order
from privdfs_training.attacks.view import ServerView
from privdfs_training.parallel import CPU


def guess_class(
    view: ServerView,
    classes: int,
    budget: DecoderBudget,
    *,
    seed: int,
    progress: Callable[[float, float], None],
    device: torch.device = CPU,
) -> Tensor:
    """Train a classifier on the attacker's own images and let it guess.

    Args:
        view: What the attacker has.
        classes: How many there are.
        budget: What it spends; of `width` and `blocks` it makes hidden layers as a dense decoder does.
        seed: Of weights and order.
        progress: Called after every step with the progress in 0..1 and the loss.
        device: Where the network is trained.

    Returns:
        The guessed class of every target, int64 [targets].
    """
    torch.manual_seed(seed)
    hidden, seen = 16 * budget.width, tuple(view.shares.shape[1:])
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(math.prod(seen), hidden), nn.ReLU()]
    for _ in range(budget.blocks):
        layers += [nn.Linear(hidden, hidden), nn.ReLU()]
    standardise = Standardise(seen)
    standardise.fit(view.shares)
    network = nn.Sequential(standardise, *layers, nn.Linear(hidden, classes)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=budget.learning_rate, weight_decay=1e-2)
    batch = min(budget.batch, len(view.shares))
    steps = len(view.shares) // batch * budget.epochs
    for step, chosen in enumerate(order(len(view.shares), batch, budget.epochs, CPU)):
        for group in optimizer.param_groups:
            group["lr"] = budget.learning_rate * min(step / steps / WARM_UP, (1 - step / steps) / (1 - WARM_UP))
        shares = view.shares[chosen] if view.again is None else view.again(chosen)
        loss = F.cross_entropy(network(shares.to(device).float()), view.labels[chosen].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        progress((step + 1) / steps, float(loss.detach()))
    with torch.inference_mode():
        return torch.cat([network(part.to(device).float()).argmax(dim=1).cpu() for part in view.received.split(1000)])
