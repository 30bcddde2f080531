"""A device that stands for a GPU on machines without one: real values, and a refusal to mix them with the processor's.

Its tensors say that they are of the device `meta`. The processor computes what they become, so results can be compared;
an operation that is also given a tensor of the processor fails, as on a GPU, but for numbers without dimensions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ELSEWHERE = torch.device("meta")
#: What may move values from one device to the other.
TRANSFERS = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Elsewhere(Tensor):
    """A tensor of the device."""

    held: Tensor

    @staticmethod
    def __new__(cls: type["Elsewhere"], values: Tensor) -> "Elsewhere":  # noqa: PYI034  torch makes it, not `object`
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, values.stride(), values.storage_offset(), dtype=values.dtype, device=ELSEWHERE
        )
        made.held = values
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, _types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on the device or moved to it."""

    def __torch_dispatch__(
        self, func: Any, _types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    there = [one for one in given if isinstance(one, Elsewhere)]
    if there and func not in TRANSFERS and any(one.ndim for one in given if not isinstance(one, Elsewhere)):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    device = kwargs.get("device")
    to_there = bool(there) if device is None else torch.device(device) == ELSEWHERE
    plain_args, plain = tree_map_only(Elsewhere, lambda one: one.held, (tuple(args), dict(kwargs)))
    if device is not None:
        plain["device"] = torch.device("cpu")
    found = func(*plain_args, **plain)
    if func._schema.is_mutable:  # in place: what was given is what comes out
        return args[0]
    return tree_map_only(Tensor, Elsewhere, found) if to_there else found
