"""bfloat16 where the processor computes it, float32 where it would only be emulated."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: What `torch.backends.cpu.get_cpu_capability` calls x86 processors without instructions for bfloat16.
WITHOUT_BFLOAT16 = frozenset({"DEFAULT", "NO AVX", "AVX2"})


def has_bfloat16(device: str) -> bool:
    """Whether convolutions and products in bfloat16 pay on a kind of device.

    A processor without instructions for it emulates them: one with AVX2 took 13 times as long for a convolution, and
    6 times for a matrix product, as it did in float32.

    Args:
        device: "cpu", "cuda", ….
    """
    return device != "cpu" or torch.backends.cpu.get_cpu_capability() not in WITHOUT_BFLOAT16


def autocast(device: str, precision: str = "bfloat16") -> torch.autocast:
    """The context in which losses are computed.

    Args:
        device: As above.
        precision: "bfloat16", or "float32", which is also what is used where bfloat16 does not pay.
    """
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16" and has_bfloat16(device))


def autocast_unless(device: str, *, exact: bool) -> torch.autocast:
    """The caller's autocast, or none where values have to keep all bits.

    Args:
        device: As above.
        exact: Whether they have to.
    """
    return torch.autocast(device, enabled=torch.is_autocast_enabled(device) and not exact)


@contextmanager
def uncached_autocast(device: str) -> Iterator[None]:
    """The caller's autocast, without its cache of cast weights.

    Args:
        device: As above.
    """
    with torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    ):
        yield
