import pytest
import torch

from privdfs_training.attacks.reidentify import by_classifier, by_nearest, rank_hits

PEOPLE = torch.arange(8).repeat(30)
VALUES = torch.randint(-1, 2, (8, 12), dtype=torch.int8, generator=torch.Generator().manual_seed(0))


def noisy(seed: int) -> torch.Tensor:
    """Shares of which one value in five is anything."""
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(-1, 2, (len(PEOPLE), 12), dtype=torch.int8, generator=generator)
    return torch.where(torch.rand(len(PEOPLE), 12, generator=generator) < 0.2, other, VALUES[PEOPLE])


@pytest.mark.parametrize("attack", ["nearest", "classifier"])
def test_shares_that_depend_on_the_person_tell_who_it_is_and_others_do_not(attack: str) -> None:
    def rate(gallery: torch.Tensor, probes: torch.Tensor, rank: int = 1) -> float:
        scores = (
            by_nearest(gallery, PEOPLE, probes)
            if attack == "nearest"
            else by_classifier(gallery, PEOPLE, probes, seed=0)
        )
        return float(rank_hits(scores, PEOPLE, rank).mean())

    assert rate(noisy(1), noisy(2)) > 0.85
    blind = torch.randint(-1, 2, (len(PEOPLE), 12), dtype=torch.int8, generator=torch.Generator().manual_seed(3))
    assert rate(blind, noisy(2)) < 0.3
    assert rate(blind, noisy(2), rank=8) == 1.0
