"""Re-identification: which of some known people a share is a photograph of.

Its own question beside reconstruction: a share too small for a picture can still tell people apart, as a checksum does.
All attackers hold labelled photographs of everybody (the gallery) and make shares of them as the device would.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, EPOCHS, BATCH, LEARNING_RATE = 256, 15, 256, 2e-3


def by_nearest(gallery: Tensor, people: Tensor, probes: Tensor) -> Tensor:
    """How near each person's nearest gallery entry is, after removing the gallery's mean (eigenfaces' first step).

    Args:
        gallery: Photographs, reconstructions or shares, [entries, ...], any type.
        people: Whose, int64 [entries]; every number from 0 on occurs.
        probes: As the gallery, [probes, ...].

    Returns:
        Cosine similarity, float [probes, people].
    """
    rows = gallery.flatten(1).float()
    mean = rows.mean(dim=0)
    near = F.normalize(probes.flatten(1).float() - mean, dim=1) @ F.normalize(rows - mean, dim=1).t()
    return torch.stack([near[:, people == one].amax(dim=1) for one in range(int(people.max()) + 1)], dim=1)


def by_classifier(shares: Tensor, people: Tensor, probes: Tensor, *, seed: int) -> Tensor:
    """What a network says that was trained to tell people by their shares.

    Args:
        shares: int8 [entries, values]; augmented photographs make it stronger.
        people: Whose, int64 [entries].
        probes: int8 [probes, values].
        seed: Of weights and order.

    Returns:
        Logits, float [probes, people].
    """
    torch.manual_seed(seed)
    levels = shares.unique()
    network = nn.Sequential(
        nn.Linear(shares.shape[1] * len(levels), WIDTH),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(WIDTH, int(people.max()) + 1),
    )
    known, wanted = _one_hot(shares, levels), _one_hot(probes, levels)
    steps = EPOCHS * -(-len(known) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(known)).split(BATCH):
            loss = F.cross_entropy(network(known[chosen]), people[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return network.eval()(wanted)


def rank_hits(scores: Tensor, people: Tensor, rank: int) -> Tensor:
    """Whether the right person is among the first.

    Args:
        scores: float [probes, people], the higher the likelier.
        people: Whose the probes are, int64 [probes].
        rank: How many persons may be named.

    Returns:
        float [probes], zeros and ones.
    """
    return (scores.topk(rank, dim=1).indices == people[:, None]).any(dim=1).float()


def _one_hot(shares: Tensor, levels: Tensor) -> Tensor:
    return (shares[:, :, None] == levels).flatten(1).float()
