"""A switch of a module that a checkpoint remembers."""

import torch
from torch import nn


class Switched(nn.Module):
    """A module with one switch: off at first, then on for good.

    It is a buffer, so that a checkpoint brings it back, and a Python bool beside it: a GPU has to finish all its work
    before the processor can look at a buffer, and modules look in every step.

    Attributes:
        on: Whether it is on.
    """

    def __init__(self, name: str) -> None:
        """Start with the switch off.

        Args:
            name: Of the buffer, bool scalar.
        """
        super().__init__()
        self._name, self.on = name, False
        self.register_buffer(name, torch.zeros((), dtype=torch.bool))
        self.register_load_state_dict_post_hook(_look)

    def switch_on(self) -> None:
        """Turn it on for good."""
        getattr(self, self._name).fill_(True)
        self.on = True

    def look(self) -> None:
        """Read the buffer."""
        self.on = bool(getattr(self, self._name))


def _look(module: nn.Module, _keys: object) -> None:
    """After a checkpoint was loaded."""
    if isinstance(module, Switched):
        module.look()
