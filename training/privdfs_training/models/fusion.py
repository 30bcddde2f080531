"""Fusion: the answers of any subset of the servers to one answer. It runs on the device, so it stays light."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Fusion(nn.Module):
    """The mean of the answers' log-probabilities, corrected by a small network that knows who answered."""

    def __init__(self, *, servers: int, classes: int, hidden: int) -> None:
        """Build the fusion; it starts as the plain mean.

        Args:
            servers: Number of servers.
            classes: Number of classes.
            hidden: Width of the correcting network.
        """
        super().__init__()
        self.hidden = nn.Linear(servers * (classes + 1), hidden)
        self.correction = nn.Linear(hidden, classes)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    def forward(self, logits: Tensor, answered: Tensor) -> Tensor:
        """Fuse.

        Args:
            logits: float [batch, servers, classes]; what a silent server's row holds does not matter.
            answered: bool [batch, servers]; at least one per row.

        Returns:
            Fused logits, float [batch, classes].
        """
        present = answered[:, :, None]
        # Where, not a product: a silent server's row may hold anything, and zero times infinity is not zero.
        answers = torch.where(present, F.log_softmax(torch.where(present, logits, 0.0), dim=-1), 0.0)
        presence = answered.to(answers.dtype)
        mean = answers.sum(dim=1) / presence.sum(dim=1, keepdim=True)
        hidden = F.relu(self.hidden(torch.cat([answers.flatten(1), presence], dim=1)))
        return mean + self.correction(hidden)


class AttributeFusion(nn.Module):
    """Fusion of answers about yes-or-no attributes: each one is a choice of two, all fused by the same network."""

    def __init__(self, *, servers: int, hidden: int) -> None:
        """Build the fusion.

        Args:
            servers: Number of servers.
            hidden: Width of the correcting network.
        """
        super().__init__()
        self.each = Fusion(servers=servers, classes=2, hidden=hidden)

    def forward(self, logits: Tensor, answered: Tensor) -> Tensor:
        """Fuse.

        Args:
            logits: float [batch, servers, attributes].
            answered: bool [batch, servers]; at least one per row.

        Returns:
            Fused logits, float [batch, attributes].
        """
        attributes = logits.shape[2]
        choices = torch.stack([-logits / 2, logits / 2], dim=3).transpose(1, 2).flatten(0, 1)
        fused = self.each(choices, answered.repeat_interleave(attributes, dim=0))
        return (fused[:, 1] - fused[:, 0]).view(-1, attributes)
