"""Which attacks an effort makes on which coalitions."""

import math
from dataclasses import dataclass, replace

from privdfs_bench.audit.effort import EVERY_COALITION, QUERIES, UNDEFENDED_IMAGES, Budget
from privdfs_bench.audit.keyed import Keys, keyed_settings
from privdfs_bench.audit.victim import Attacked, Victim
from privdfs_bench.releases import partitions_of
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.attacks.diffusion import TUNED_ON
from privdfs_training.attacks.linear import rank_by_linear_score
from privdfs_training.attacks.view import Relation


@dataclass(frozen=True)
class Job:
    """One attack of one coalition. All that decides its result but the release and the data.

    Attributes:
        attack: Its name in the table of attacks.
        members: Of the coalition; none for the undefended split.
        pairs: The attacker's own images.
        targets: Test images.
        relation: Of those to the pairs.
        budget: Of the attack.
        start: Of the decoder whose images it starts from.
        keys: Of a keyed release, whose partitions it is about; None is the benchmark's own user's alone.
    """

    attack: str
    members: tuple[int, ...]
    pairs: int
    targets: int
    relation: Relation
    budget: Budget
    start: DecoderBudget | None = None
    keys: Keys | None = None


def jobs(victim: Victim) -> dict[str, list[Job]]:
    """What an effort runs.

    Args:
        victim: With its effort.

    Returns:
        `coalitions`, `queries`, `shifted`, `keys` and `undefended`, each with its jobs.
    """
    effort, ranked = victim.effort, _ranked(victim)
    every = victim.servers <= EVERY_COALITION
    minority = ranked[victim.minority][0]
    linear = [one for found in ranked.values() for one in (found if every else found[:10])]
    strong = ranked if effort.sizes else [victim.minority]
    optimised = replace(job(victim, "optimisation", minority), targets=min(effort.optimised, victim.targets))
    fully = job(victim, "dense", minority)
    partitions = partitions_of(victim.bundle)
    settings = () if partitions is None else keyed_settings(partitions)
    return {
        "coalitions": [
            *(job(victim, "linear", members) for members in linear),
            *(job(victim, "dense", found[0]) for found in ranked.values()),
            *(job(victim, "decoder", ranked[count][0]) for count in strong),
            *(job(victim, attack, minority) for attack in effort.forms),
            optimised,
            *guided(victim, minority),
        ],
        "queries": [
            replace(fully, pairs=count, budget=_for_fewer(effort.dense, count, victim))
            for count in QUERIES
            if count < victim.pairs
        ],
        "shifted": [replace(fully, relation=Relation.SHIFTED)],
        "keys": [replace(fully, attack=one.attack, keys=one) for one in settings],
        "undefended": undefended(victim),
    }


def job(victim: Attacked, attack: str, members: tuple[int, ...]) -> Job:
    """An attack with all that the victim's effort gives it."""
    same = Relation.SAME_DISTRIBUTION
    return Job(attack, members, victim.pairs, victim.targets, same, victim.effort.budget(attack))


def _ranked(victim: Victim) -> dict[int, list[tuple[int, ...]]]:
    """By size, all coalitions, the one that ridge regression finds worst first."""
    train, test = victim.data.train_images[: victim.pairs], victim.data.test_images[: victim.targets]
    own, received = victim.shares
    return {count: rank_by_linear_score(own, train, received, test, count) for count in range(1, victim.servers + 1)}


def guided(victim: Attacked, minority: tuple[int, ...]) -> list[Job]:
    """Attacks by the diffusion prior, if the effort makes them."""
    if victim.effort.diffuse is None:
        return []
    few = min(victim.effort.diffused, victim.targets)
    one, mean, started = (
        replace(job(victim, attack, minority), targets=few)
        for attack in ("diffusion", "diffusion-mean", "diffusion+dense")
    )
    return [one, mean, replace(started, start=victim.effort.dense)]


def undefended(victim: Attacked) -> list[Job]:
    """Attacks on the baseline's own feature, sent as it is."""
    effort = victim.effort
    decoder, variation = job(victim, "decoder", ()), job(victim, "optimisation-tv", ())
    return [
        replace(decoder, pairs=min(effort.undefended, victim.pairs), targets=min(UNDEFENDED_IMAGES, victim.targets)),
        replace(variation, pairs=1, targets=min(effort.optimised, victim.targets)),
        *(replace(one, pairs=TUNED_ON) for one in guided(victim, ())[:1]),
    ]


def _for_fewer(budget: DecoderBudget, pairs: int, victim: Victim) -> DecoderBudget:
    """The same number of steps at least a third, whatever the number of pairs: more passes over fewer."""
    passes = math.ceil(budget.epochs * victim.pairs / max(pairs, budget.batch) / 3)
    return replace(budget, epochs=max(budget.epochs, passes))
