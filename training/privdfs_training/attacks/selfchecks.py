"""Checks of the evaluation itself: signs that a figure of leakage is low because the attack was weak.

After the flags of AutoAttack (Croce and Hein, ICML 2020): none proves anything, each asks for a second look. An audit
without flags is still a lower bound of what can be learned.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: The least that an attack must gain on the undefended split over what a class tells, in dB.
BROKEN = 8.0
#: What two runs of an attack may differ by for no reason, in dB.
NOISE = 0.15
#: A wider interval of the mean, on either side in dB, says too little; and so do fewer images.
WIDE, FEW = 0.5, 100


@dataclass(frozen=True)
class Measured:
    """One attack of one coalition, as far as the checks need it.

    Attributes:
        attack: Its name.
        members: Indices of the servers.
        psnr: Mean over images, in dB.
        interval: Of that mean.
        images: How many.
        blind_floor: The mean image's PSNR on the same images, in dB.
        pairs: That the attacker learned from.
        relation: Of its images to those that it was after.
        aware: Whether the attacker knew the masks.
        gradient: Mean absolute gradient through the head where one was used.
        finished: False when the time ran out.
    """

    attack: str
    members: tuple[int, ...]
    psnr: float
    interval: tuple[float, float]
    images: int
    blind_floor: float
    pairs: int
    relation: str
    aware: bool = True
    gradient: float | None = None
    finished: bool = True

    @property
    def who(self) -> str:
        """For messages."""
        return f"{self.attack}, servers {', '.join(map(str, self.members))}"


@dataclass(frozen=True)
class Flag:
    """A reason not to trust a figure.

    Attributes:
        check: Its name.
        message: What was seen, and what to do.
        attack: Of the figure that it speaks against; None where it speaks against all figures of the audit.
        members: Servers of that figure.
        pairs: That its attacker learned from.
        relation: Of its attacker's images to those that it was after.
    """

    check: str
    message: str
    attack: str | None = None
    members: tuple[int, ...] = ()
    pairs: int | None = None
    relation: str | None = None


def _flag(one: Measured, check: str, message: str) -> Flag:
    """A flag of one figure."""
    return Flag(check, message, one.attack, one.members, one.pairs, one.relation)


def check_undefended(undefended: Mapping[str, float], used: Iterable[str], floor: float) -> list[Flag]:
    """An attack must break the split that nothing defends, or its failure elsewhere means nothing.

    Args:
        undefended: PSNR of attacks on the undefended split, in dB.
        used: Attacks that gave figures of the release; at least one kind of attack must have been tried.
        floor: The class mean's, in dB.
    """
    if not undefended:
        return [Flag("undefended", f"none of {', '.join(sorted(used))} was tried on the undefended split: try one")]
    return [
        Flag(
            "undefended",
            f"{attack} reaches {psnr:.1f} dB on the undefended split, where the class mean has {floor:.1f} dB and "
            f"{floor + BROKEN:.1f} dB are asked for: it is too weak to say anything, give it more",
        )
        for attack, psnr in undefended.items()
        if psnr < floor + BROKEN
    ]


def check_views(results: Sequence[Measured]) -> list[Flag]:
    """A coalition knows what each part of it knows, so it must not do worse by the same attack."""
    return [
        _flag(
            large,
            "stronger view",
            f"{large.who} reaches {large.psnr:.2f} dB, less than servers {', '.join(map(str, small.members))} with "
            f"{small.psnr:.2f} dB: the attack was not trained to its end",
        )
        for large in results
        for small in results
        if _same_setting(large, small)
        and large.pairs == small.pairs
        and set(small.members) < set(large.members)
        and large.psnr < small.psnr - NOISE
    ]


def check_more(results: Sequence[Measured]) -> list[Flag]:
    """More pairs must not make an attack worse."""
    return [
        _flag(
            more,
            "more pairs",
            f"{more.who} reaches {more.psnr:.2f} dB from {more.pairs} pairs, less than {less.psnr:.2f} dB from "
            f"{less.pairs}: give the larger run more steps",
        )
        for more in results
        for less in results
        if _same_setting(more, less)
        and more.members == less.members
        and more.pairs > less.pairs
        and more.psnr < less.psnr - NOISE
    ]


def check_keys(requests: Mapping[int, float]) -> list[Flag]:
    """The same image under more keys must not be harder to see.

    Args:
        requests: PSNR in dB by the number of keys.
    """
    return [
        Flag(
            "more keys",
            f"the image under {more} keys: {requests[more]:.2f} dB, less than {requests[less]:.2f} dB under {less}: "
            "the attack was not trained to its end",
        )
        for more in requests
        for less in requests
        if more > less and requests[more] < requests[less] - NOISE
    ]


def check_each(results: Sequence[Measured]) -> list[Flag]:
    """What one result alone shows: unaware of masks, no gradient, below the floor, too few images, no time."""
    flags = []
    for one in results:
        if not one.aware:
            flags.append(_flag(one, "unaware", f"{one.who}: did not know the masks, so its figure protects nobody"))
        if one.gradient == 0:
            flags.append(
                _flag(one, "no gradient", f"{one.who}: the gradient through the head is zero, nothing was optimised")
            )
        if one.psnr < one.blind_floor - NOISE:
            flags.append(
                _flag(
                    one,
                    "below the floor",
                    f"{one.who}: {one.psnr:.2f} dB is less than the mean image's {one.blind_floor:.2f} dB, which "
                    "takes no attack at all: it says nothing of the shares",
                )
            )
        if one.images < FEW or one.interval[1] - one.interval[0] > 2 * WIDE:
            low, high = one.interval
            flags.append(
                _flag(
                    one,
                    "few images",
                    f"{one.who}: {one.images} images, mean within {low:.2f} to {high:.2f} dB: use more",
                )
            )
        if not one.finished:
            flags.append(_flag(one, "cut short", f"{one.who}: the time ran out before the training did: give it more"))
    return flags


def _same_setting(one: Measured, other: Measured) -> bool:
    """Whether two results may be compared: one attack, one kind of knowledge, the same images."""
    return (one.attack, one.relation, one.aware, one.images) == (
        other.attack,
        other.relation,
        other.aware,
        other.images,
    )
