"""What finished networks say of images that come again as they are: computed once, for all epochs of a stage.

A stage that crops nothing shows finished networks (a teacher, a frozen head, frozen branches) the same training images
in every epoch, and their mirror images. On a processor they cost more than what is trained.
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Images computed at once. One number for all: last bits may depend on it, and a step has fewer images in each of
#: several processes.
CHUNK = 250
#: Of a table, in bytes; what would take more is computed in every step.
LARGEST = 2**30


class Known:
    """A function of images that finished networks compute, and a table of what it gives for the training images.

    Images are found by a 64-bit sum of their pixels with random factors: two of a million have one sum with a
    probability below 1e-5.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], images: Tensor, *, mirrored: bool) -> None:
        """Compute nothing yet.

        Args:
            compute: Images to float [batch, …], without a gradient.
            images: Those that come again, uint8 [images, channels, height, width].
            mirrored: Whether their mirror images come too.
        """
        self._compute, self._images, self._mirrored = compute, images, mirrored
        generator = torch.Generator().manual_seed(0)
        self._factors = torch.randint(-(2**63), 2**63 - 1, (images[0].numel(),), generator=generator)
        self.forget()

    def __repr__(self) -> str:
        """Sizes, never values."""
        return f"Known({len(self)} of {(1 + self._mirrored) * len(self._images)} images)"

    def __len__(self) -> int:
        """Rows of the table."""
        return len(self._sorted)

    @torch.no_grad()
    def prepare(self, report: Callable[[float], None]) -> None:
        """Fill the table, unless it would be larger than `LARGEST`. Before it every call computes.

        Args:
            report: Told how much is done, in 0..1.
        """
        count = len(self._images)
        rows = (1 + self._mirrored) * count
        keys, values = torch.empty(rows, dtype=torch.int64), torch.empty(0)
        for start in range(0, rows, CHUNK):
            report(start / rows)
            # A chunk may hold the last images as they are and the first ones mirrored.
            where = torch.arange(start, min(start + CHUNK, rows))
            chunk = self._images[where % count]
            chunk = torch.where((where >= count)[:, None, None, None], chunk.flip(3), chunk)
            found = self._compute(chunk)
            if start == 0:
                if found[0].nbytes * rows > LARGEST:
                    return
                values = found.new_empty(rows, *found.shape[1:])  # whole at once: parts put together take twice as much
            keys[where], values[where] = self._key(chunk), found
        self._sorted, self._order = keys.sort()
        self._values = values

    def forget(self) -> None:
        """Empty the table, when the networks change or it is not needed any more."""
        self._sorted, self._order = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self._values = torch.empty(0)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """What the networks say.

        Args:
            images: uint8 [batch, channels, height, width].

        Returns:
            float [batch, …]; computed where an image is not in the table.
        """
        if not len(self):
            return self._compute(images)
        keys = self._key(images)
        places = torch.searchsorted(self._sorted, keys).clamp(max=len(self) - 1)
        if not torch.equal(self._sorted[places], keys):
            return self._compute(images)
        return self._values[self._order[places]]

    def _key(self, images: Tensor) -> Tensor:
        return (images.flatten(1).long() * self._factors).sum(dim=1)  # int64 wraps around
