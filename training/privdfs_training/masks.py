"""Masks: who owns which element of the feature.

Every server owns exactly `values` elements, so shares have one length and are balanced by construction; the rest
belongs to nobody. Shares are disjoint unless an overlap is allowed. Owners are drawn with straight-through Gumbel
noise (Jang, Gu, Poole, arXiv 1611.01144; Maddison, Mnih, Teh, arXiv 1611.00712) while they are learned, and are frozen
before the last stage. The paper names "learnable binary masks" and "sparse and largely non-overlapping feature shares"
(arXiv 2508.04346v2, abstract); the budgeted assignment is this project's own.

A mask decides over units: single elements (of a ViT's feature, one channel of one token), or whole channels.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privdfs_training.config import MaskConfig
from privdfs_training.errors import TrainingConfigError
from privdfs_training.parallel import Terms
from privdfs_training.switch import Switched


class OwnerMask(Switched):
    """Owners of every element of a feature.

    Attributes:
        logits: Learned preference, float32 [servers + 1, units]; the last row is nobody.
        owned: Frozen ownership, bool [servers, elements].
        on: Whether they are frozen, so that `owned` decides.
    """

    owned: Tensor

    def __init__(self, shape: tuple[int, int, int], config: MaskConfig, *, seed: int) -> None:
        """Start without preference, or with the owners that a fixed assignment gives.

        Args:
            shape: Channels, height, width of the feature.
            config: Servers, budget, unit and assignment.
            seed: Of a random assignment.

        Raises:
            TrainingConfigError: The servers together want more elements than there are, or a budget that is not a
                multiple of a unit.
        """
        super().__init__("frozen")
        self.shape, self.servers, self.values = shape, config.servers, config.values
        elements = math.prod(shape)
        self._per_unit = shape[1] * shape[2] if config.unit == "channel" else 1
        if self.servers * self.values > elements:
            message = (
                f"masks.values = {self.values} for each of {self.servers} servers needs {self.servers * self.values} "
                f"elements, but the feature has {elements} ({' x '.join(map(str, shape))}). Lower masks.values or "
                "raise head.channels."
            )
            raise TrainingConfigError(message)
        if self.values % self._per_unit:
            message = (
                f"masks.values = {self.values} is not a multiple of the {shape[1]} x {shape[2]} elements of a channel. "
                f"Take a multiple of {self._per_unit}, or masks.unit = 'element'."
            )
            raise TrainingConfigError(message)
        self._budget = self.values // self._per_unit
        self._shared = int(config.overlap * self._budget)
        units = elements // self._per_unit
        self.logits = nn.Parameter(torch.zeros(self.servers + 1, units), config.assignment == "learned")
        self.register_buffer("owned", torch.zeros(self.servers, elements, dtype=torch.bool))
        if config.assignment != "learned":
            order = torch.arange(units)
            if config.assignment == "random":
                order = torch.randperm(units, generator=torch.Generator().manual_seed(seed))
            owned = torch.zeros(self.servers, units, dtype=torch.bool)
            for server, chosen in enumerate(order.split(self._budget)[: self.servers]):
                owned[server, chosen] = True
            self._freeze(owned)

    def forward(self, temperature: float, noise: float) -> Tensor:
        """Masks of all servers, hard in the forward pass.

        Args:
            temperature: Of the softmax whose gradient is used; no matter once frozen.
            noise: Factor of the Gumbel noise; 0 draws the preferred owners. No matter once frozen.

        Returns:
            Zeros and ones, float32 [servers, channels, height, width]; the gradient is that of the softmax.
        """
        if self.on:
            return self.owned.float().view(self.servers, *self.shape)
        uniform = torch.rand_like(self.logits).clamp_(1e-9, 1 - 1e-7)
        perturbed = self.logits - noise * torch.log(-torch.log(uniform))
        soft = torch.softmax(perturbed / temperature, dim=0)[: self.servers]
        hard = assign(perturbed.detach(), self._budget, self._shared).to(soft)
        return self._spread(hard + soft - soft.detach()).view(self.servers, *self.shape)

    def freeze(self) -> None:
        """Fix the preferred owners: no noise any more, and no way back."""
        if not self.on:
            self._freeze(assign(self.logits.detach(), self._budget, self._shared).to(self.logits.device))

    def indices(self, server: int) -> Tensor:
        """Positions of one server's elements in the flattened feature, in the order in which its share packs them.

        Args:
            server: 0..servers-1.

        Returns:
            int64 [values], ascending.
        """
        return torch.nonzero(self.owned[server]).flatten()

    def _freeze(self, owned: Tensor) -> None:
        self.owned.copy_(self._spread(owned))
        self.switch_on()

    def _spread(self, units: Tensor) -> Tensor:
        """[servers, units] to [servers, elements]: the elements of a channel lie side by side."""
        return units.repeat_interleave(self._per_unit, dim=1)


def assign(scores: Tensor, budget: int, shared: int = 0) -> Tensor:
    """Give every server its best units, best pairs first.

    Args:
        scores: float [servers + 1, units]; the last row is nobody's.
        budget: Units that each server gets.
        shared: Of these, how many another server may own too.

    Returns:
        Ownership, bool [servers, units]; every row has `budget` ones.
    """
    servers, units = scores.shape[0] - 1, scores.shape[1]
    gain: NDArray[np.float32] = (scores[:servers] - scores[servers]).float().cpu().numpy()
    owned = np.zeros((servers, units), np.bool_)
    missing, sharing = [budget] * servers, [shared] * servers
    for pair in np.argsort(-gain, axis=None, kind="stable"):
        server, unit = divmod(int(pair), units)
        owners = np.flatnonzero(owned[:, unit])
        if not missing[server] or (len(owners) and not sharing[server]):
            continue
        # Whoever owned it alone so far shares it from now on.
        if len(owners) == 1 and not sharing[owners[0]]:
            continue
        if len(owners):
            sharing[server] -= 1
            if len(owners) == 1:
                sharing[owners[0]] -= 1
        owned[server, unit] = True
        missing[server] -= 1
        if not any(missing):
            break
    return torch.from_numpy(owned)


def sparsity_and_overlap(masks: Tensor) -> Terms:
    """What a draw of the masks looks like, reported with every epoch.

    Args:
        masks: Zeros and ones, float [servers, channels, height, width], or for every image [batch, servers, …].

    Returns:
        `sparsity`: the fraction of the feature that nobody gets; `overlap`: the fraction of what servers get that
        several of them get.
    """
    owners = masks.detach().sum(dim=-4)
    taken, several = (owners > 0.5).sum().double(), (owners > 1.5).sum()
    return {"sparsity": 1 - taken / owners.numel(), "overlap": several / taken.clamp(min=1)}
