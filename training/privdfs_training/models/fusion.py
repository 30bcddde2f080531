"""Fusion: the answers of any subset of the servers to one answer, also when a minority of them lies.

It runs on the device, so it stays light.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Log-probabilities below this are raised to it, so that one server's veto against a class is finite. Lower floors gave
#: nothing on honest answers, and higher ones little against liars.
FLOOR = -5.0
#: How much less a rank counts at first for each place that it is away from the middle; training changes it.
PEAK = 1.0


class Fusion(nn.Module):
    """A weighted mean of each class's sorted log-probabilities, and perhaps a correction by a small network.

    The weights belong to ranks, not to servers, one set for each number of answers: an L-estimator (Huber, Robust
    Statistics, 1981, section 3.3), which can be the mean, a trimmed mean or the median. It starts between the mean and
    the median, which no lying minority can move out of the range of the honest answers; training with liars moves it
    close to the median. The correction knows who said what: it makes more of branches that know different things, and
    is a way for lies into the fused answer.
    """

    def __init__(self, *, servers: int, classes: int, hidden: int) -> None:
        """Build the fusion; a correction starts at zero.

        Args:
            servers: Number of servers.
            classes: Number of classes.
            hidden: Width of the correcting network; 0 for none.
        """
        super().__init__()
        self.servers = servers
        counts, ranks = torch.arange(1, servers + 1)[:, None], torch.arange(servers)
        self.unused: Tensor
        self.register_buffer("unused", ranks >= counts, persistent=False)
        self.ranks = nn.Parameter(-PEAK * (ranks - (counts - 1) / 2).abs().masked_fill(self.unused, 0.0))
        self.hidden = self.correction = None
        if hidden:
            self.hidden, self.correction = nn.Linear(servers * (classes + 1), hidden), nn.Linear(hidden, classes)
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
        answers = F.log_softmax(torch.where(present, logits, 0.0), dim=-1).clamp(min=FLOOR)
        # Below the floor, the rows of silent servers come last, where no rank counts. Not `sort`, nor a size that
        # is traced: the exported graph would not know its own shapes.
        descending = torch.where(present, answers, FLOOR - 1).topk(self.servers, dim=1).values
        weights = self.ranks.masked_fill(self.unused, -torch.inf).softmax(dim=1)[answered.sum(dim=1) - 1]
        middle = (descending * weights[:, :, None]).sum(dim=1)
        if self.hidden is None or self.correction is None:
            return middle
        heard = torch.where(present, answers, 0.0).flatten(1)
        hidden = F.relu(self.hidden(torch.cat([heard, answered.to(heard.dtype)], dim=1)))
        return middle + self.correction(hidden)


class AttributeFusion(nn.Module):
    """Fusion of answers about yes-or-no attributes: each one is a choice of two, all fused by the same network."""

    def __init__(self, *, servers: int, hidden: int) -> None:
        """Build the fusion.

        Args:
            servers: Number of servers.
            hidden: Width of the correcting network; 0 for none.
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
