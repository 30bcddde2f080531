"""A moving average of what a stage trains, which usually generalises better than the weights of its last step.

Averaging over steps is as in Polyak and Juditsky (1992) and Izmailov et al. (arXiv 1803.05407, section 3). Unlike the
latter, the average is exponential, and running statistics are averaged as weights are, not measured again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AVERAGE = "average."  # how the names of its tensors in a checkpoint begin
#: Early steps have too few before them: the share that they keep is at most (1 + step) / (WARM_UP + step).
WARM_UP = 10


class MovingAverage:
    """Exponential moving average of weights and running statistics; without a share to keep, the weights themselves."""

    def __init__(self, modules: nn.Module, kept: float) -> None:
        """Start with the weights as they are.

        Args:
            modules: What is trained, on the device where it stays.
            kept: Share of the average that each step keeps, from 0 to below 1.
        """
        self._modules, self._kept = modules, kept
        self.start()

    def start(self) -> None:
        """Start again with the weights as they are now."""
        # The tensors themselves, which training changes in place.
        self._live = self._modules.state_dict() if self._kept else {}
        self._mean = {name: value.clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step.

        Args:
            step: How many steps were done before it.
        """
        share = 1 - min(self._kept, (1 + step) / (WARM_UP + step))
        for name, value in self._mean.items():
            if value.is_floating_point():
                value.lerp_(self._live[name], share)
            else:
                value.copy_(self._live[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the modules have the average, as long as the context lasts."""
        before = {name: value.clone() for name, value in self._live.items()}
        self.take_over()
        try:
            yield
        finally:
            _copy(before, self._live)

    def weights(self) -> dict[str, Tensor]:
        """The average, under the names of the modules."""
        return dict(self._mean) or self._modules.state_dict()

    def take_over(self) -> None:
        """Let the modules have the average for good."""
        _copy(self._mean, self._live)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs, to go on."""
        return {AVERAGE + name: value for name, value in self._mean.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what a checkpoint has, after its weights are in place.

        Args:
            tensors: All of the checkpoint.
        """
        self.start()
        _copy({name: tensors[AVERAGE + name] for name in self._mean}, self._mean)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy values into tensors that stay where they are."""
    for name, value in target.items():
        value.copy_(source[name])
