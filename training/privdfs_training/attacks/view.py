"""What an attack gets to see: exactly what a coalition has, frozen. The images it is after are not in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from privdfs_training.errors import AttackError


class Relation(Enum):
    """How the attacker's own images stand to those that it is after."""

    SAME_DISTRIBUTION = "other images of the same distribution"
    SHIFTED = "images of other classes"


@dataclass(frozen=True)
class ServerView:
    """A coalition's knowledge. Values of several servers stand side by side, in the order of `members`.

    Attributes:
        members: Indices of the servers.
        relation: Of `images` to the images that the attacker is after.
        images: The attacker's own, uint8 [pairs, channels, height, width].
        labels: Of those, int64 [pairs].
        shares: What the device would send for them, int8 [pairs, values]; of an undefended split a dense float
            feature [pairs, channels, height, width].
        answers: What the members' branches answer to them, logits, float [pairs, members * classes].
        received: The bytes that travelled, int8 [targets, values], or as `shares`.
        received_answers: What the members' branches answered, float [targets, members * classes].
        steps: The public head and masks: images, float [batch, channels, height, width] in 0..1, to the members'
            values in quantisation steps, not yet rounded or cut, float [batch, values], with a gradient. None where an
            attack through the head cannot be made. It computes on the device that such an attack is made on.
        limits: Largest integer of every value, float [values].
        again: Where a device makes other shares of an image each time: other ones of the attacker's own images, by
            their indices, as `shares`. Whoever learns from fresh ones learns nothing by heart.
    """

    members: tuple[int, ...]
    relation: Relation
    images: Tensor
    labels: Tensor
    shares: Tensor
    answers: Tensor
    received: Tensor
    received_answers: Tensor
    steps: Callable[[Tensor], Tensor] | None
    limits: Tensor
    again: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Refuse what does not fit together.

        Raises:
            AttackError: There are no pairs or no targets, or lengths differ.
        """
        pairs = {len(self.images), len(self.labels), len(self.shares), len(self.answers)}
        targets = {len(self.received), len(self.received_answers)}
        if len(pairs) > 1 or len(targets) > 1 or self.shares.shape[1:] != self.received.shape[1:]:
            raise AttackError("images, labels, shares and answers of a view differ in number or in length: pass equal")
        if 0 in pairs | targets:
            raise AttackError("an attack needs at least one pair to learn from and one image to be after: pass more")

    def __repr__(self) -> str:
        """Sizes, never values."""
        return f"ServerView(servers {self.members}, {len(self.images)} pairs, {len(self.received)} targets)"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def with_targets(self, count: int) -> "ServerView":
        """The view of an attacker who is after the first `count` images alone."""
        return replace(self, received=self.received[:count], received_answers=self.received_answers[:count])

    def received_on(self, device: torch.device) -> "ServerView":
        """The same view, with what attacks through the head compare with, `received` and `limits`, on a device."""
        return replace(self, received=self.received.to(device), limits=self.limits.to(device))

    def with_answers_as_shares(self) -> "ServerView":
        """The same knowledge, as one vector: values as they are, and behind them the logits of the branches.

        Attacks through the head do not apply to it.
        """
        both = [
            torch.cat([share.float(), answer.float()], dim=1)
            for share, answer in ((self.shares, self.answers), (self.received, self.received_answers))
        ]
        return replace(self, shares=both[0], received=both[1], steps=None, again=None)


def side_by_side(parts: Sequence[Tensor], members: Sequence[int]) -> Tensor:
    """Values of the members of a coalition: [images, values] each, to [images, all values]."""
    return torch.cat([parts[one] for one in members], dim=1)
