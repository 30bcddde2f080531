"""Masks: who owns which element of the feature.

Every element has one owner among N servers and nobody, so shares are disjoint by construction, and every server owns
exactly `values` elements, so shares have one length. Owners are drawn with straight-through Gumbel noise (Jang, Gu,
Poole, arXiv 1611.01144; Maddison, Mnih, Teh, arXiv 1611.00712) while they are learned, and are frozen before the last
stage. The paper names "learnable binary masks" and "sparse and largely non-overlapping feature shares" (arXiv
2508.04346v2, abstract); the budgeted assignment is this project's own.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privdfs_training.errors import TrainingConfigError

NOBODY = -1


class OwnerMask(nn.Module):
    """Owner of every element of a feature.

    Attributes:
        logits: Learned preference, float32 [servers + 1, elements]; the last row is nobody.
        owner: Frozen owner of every element, int64 [elements], in 0..servers-1 or NOBODY.
        frozen: Whether `owner` decides, bool scalar.
    """

    owner: Tensor
    frozen: Tensor

    def __init__(self, shape: tuple[int, int, int], *, servers: int, values: int) -> None:
        """Start without preference.

        Args:
            shape: Channels, height, width of the feature.
            servers: Number of servers.
            values: Elements that each server owns.

        Raises:
            TrainingConfigError: The servers together want more elements than there are.
        """
        super().__init__()
        self.shape, self.servers, self.values = shape, servers, values
        elements = math.prod(shape)
        if servers * values > elements:
            message = (
                f"masks.values = {values} for each of {servers} servers needs {servers * values} elements, "
                f"but the feature has {elements} ({' x '.join(map(str, shape))}). Lower masks.values or raise "
                "head.channels."
            )
            raise TrainingConfigError(message)
        self.logits = nn.Parameter(torch.zeros(servers + 1, elements))
        self.register_buffer("owner", torch.full((elements,), NOBODY, dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))

    def forward(self, temperature: float, noise: float) -> Tensor:
        """Masks of all servers, hard in the forward pass.

        Args:
            temperature: Of the softmax whose gradient is used; no matter once frozen.
            noise: Factor of the Gumbel noise; 0 draws the preferred owners. No matter once frozen.

        Returns:
            Zeros and ones, float32 [servers, channels, height, width]; the gradient is that of the softmax.
        """
        if self.frozen:
            return self._one_hot(self.owner)
        uniform = torch.rand_like(self.logits).clamp_(1e-9, 1 - 1e-7)
        perturbed = self.logits - noise * torch.log(-torch.log(uniform))
        soft = torch.softmax(perturbed / temperature, dim=0)[: self.servers].view(self.servers, *self.shape)
        hard = self._one_hot(assign(perturbed.detach(), self.values))
        return hard + soft - soft.detach()

    def freeze(self) -> None:
        """Take the preferred owners, without noise, for good."""
        self.owner.copy_(assign(self.logits.detach(), self.values))
        self.frozen.fill_(True)

    def indices(self, server: int) -> Tensor:
        """Positions of one server's elements in the flattened feature, in the order in which its share packs them.

        Args:
            server: 0..servers-1.

        Returns:
            int64 [values], ascending.
        """
        return torch.nonzero(self.owner == server).flatten()

    def _one_hot(self, owner: Tensor) -> Tensor:
        return (owner == torch.arange(self.servers)[:, None]).float().view(self.servers, *self.shape)


def assign(scores: Tensor, values: int) -> Tensor:
    """Give every server its best elements, best pairs first, none to two servers.

    Args:
        scores: float [servers + 1, elements]; the last row is nobody's.
        values: Elements that each server gets.

    Returns:
        Owner of every element, int64 [elements]; NOBODY where none.
    """
    servers, elements = scores.shape[0] - 1, scores.shape[1]
    gain: NDArray[np.float32] = (scores[:servers] - scores[servers]).float().numpy()
    owner = np.full(elements, NOBODY, np.int64)
    missing = [values] * servers
    for pair in np.argsort(-gain, axis=None, kind="stable"):
        server, element = divmod(int(pair), elements)
        if missing[server] and owner[element] == NOBODY:
            owner[element] = server
            missing[server] -= 1
            if not any(missing):
                break
    return torch.from_numpy(owner)
