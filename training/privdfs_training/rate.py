"""The class-conditional rate: how many bits a share holds beyond the class.

A share S is a function of the image X. What it tells an attacker who already knows the class Y is the conditional
mutual information I(X; S | Y) = H(S | Y), and the cross-entropy of any model q(s | y) bounds that from above. So a
model of the shares' values given the class is trained beside the head, and the head is trained to need few bits under
it: to lose what differs between images of one class. In training, real values are softly assigned to the levels, so
the reported bits are of that relaxation. Few bits need not mean little leakage: what they do to a reconstruction is for
attacks to say.

The entropy model and its relaxation to real values follow learned compression (Balle et al., arXiv 1802.01436; for
features, Singh et al., arXiv 2007.11797, and Matsubara et al., arXiv 2108.11898); the condition on the class, and its
use as a bound on leakage, are this project's own.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Variance, in squared quantisation steps, of the soft assignment of a real value to the levels.
SOFTNESS = 0.15
# The tables are few parameters with small gradients: under Adam this is ten times the learning rate.
TABLE_GAIN = 10.0


class ClassRate(nn.Module):
    """A table of level probabilities for every class, server and element: q(s | y) = product over elements.

    Attributes:
        table: Unnormalised log-probabilities, float32 [classes, servers, elements, levels], divided by TABLE_GAIN.
    """

    def __init__(self, *, classes: int, servers: int, elements: int, levels: int) -> None:
        """Start from uniform probabilities.

        Args:
            classes: Number of classes.
            servers: Number of servers.
            elements: Of the feature.
            levels: Of one value; odd.
        """
        super().__init__()
        self.limit = (levels - 1) // 2
        self.table = nn.Parameter(torch.zeros(classes, servers, elements, levels))

    def forward(self, steps: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
        """Bits of each server's share given the class.

        Args:
            steps: The values before rounding, in quantisation steps, float [batch, servers, channels, height, width].
            masks: Zeros and ones, float [servers, channels, height, width], or for every image [batch, servers, …]; no
                gradient flows into them.
            labels: int64 [batch].

        Returns:
            Mean over the batch, float [servers]; the gradient flows into the values and the table.
        """
        levels = torch.arange(-self.limit, self.limit + 1, device=steps.device)
        values = steps.float().clamp(-self.limit, self.limit).flatten(2)
        soft = torch.softmax(-((values[..., None] - levels) ** 2) / SOFTNESS, dim=-1)
        log_probability = F.log_softmax(TABLE_GAIN * self.table, dim=-1)[labels]
        bits = -(soft * log_probability).sum(dim=-1) / math.log(2)
        return (bits * masks.detach().flatten(-3)).sum(dim=-1).mean(dim=0)
