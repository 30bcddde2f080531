"""Shares under other keys, on a feature small enough to see the answer."""

import torch

from privdfs_training.attacks.decoder import DecoderBudget, reconstruct, train_decoder
from privdfs_training.attacks.keys import other_partitions, placed, pool_of
from privdfs_training.attacks.metrics import score
from privdfs_training.attacks.selfchecks import check_keys

#: Two servers with two of the elements 1, 3, 4, 6 each, in three partitions.
TABLES = torch.tensor([[[1, 3], [4, 6]], [[1, 4], [3, 6]], [[3, 6], [1, 4]]])


def test_values_are_put_where_they_belong() -> None:
    assert pool_of(TABLES, [0]).tolist() == [1, 3, 4, 6]
    assert pool_of(TABLES[:2], [0]).tolist() == [1, 3, 4]
    shares = torch.tensor([[5, -7], [2, 0]], dtype=torch.int8)
    places = TABLES[torch.tensor([0, 1])][:, 0]
    assert placed(shares, places, pool_of(TABLES, [0])).tolist() == [
        [5, -7, 0, 0, 1, 1, 0, 0],
        [2, 0, 0, 0, 1, 0, 1, 0],
    ]


def test_pairs_of_others_are_never_under_the_users_own_partition() -> None:
    drawn = other_partitions(200, 5, [1, 3], seed=0)
    assert set(drawn.tolist()) == {0, 2, 4}
    assert torch.equal(drawn, other_partitions(200, 5, [1, 3], seed=0))


def test_who_knows_what_a_value_means_learns_from_other_users_and_who_does_not_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    partitions = 24
    orders = torch.stack([torch.randperm(16, generator=generator) for _ in range(partitions)])
    images = torch.randint(0, 256, (600, 1, 4, 4), generator=generator, dtype=torch.uint8)
    feature = (images.flatten(1).int() - 128).to(torch.int8)
    wanted, known = images[500:].repeat(1, 1, 3, 3), images[:500].repeat(1, 1, 3, 3)
    places = orders[:, :8].sort(dim=1).values
    theirs = places[other_partitions(500, partitions, [0], seed=0)]
    mine = places[torch.zeros(100, dtype=torch.int64)]
    shares, received = feature[:500].gather(1, theirs), feature[500:].gather(1, mine)
    pool, budget = torch.arange(16), DecoderBudget(epochs=40, batch=100, width=4, blocks=1, learning_rate=1e-2)

    def attack(seen: torch.Tensor, got: torch.Tensor) -> float:
        decoder = train_decoder(seen, known, budget, seed=0, progress=lambda *_: None, form="dense")
        return score(reconstruct(decoder, got), wanted).psnr

    aware = attack(placed(shares, theirs, pool), placed(received, mine, pool))
    assert aware > attack(shares, received) + 1


def test_more_keys_that_show_less_are_flagged() -> None:
    assert check_keys({1: 14.0, 2: 14.5, 4: 14.4}) == []
    (flag,) = check_keys({1: 14.0, 2: 15.0, 4: 14.5})
    assert flag.check == "more keys"
    assert "under 4 keys: 14.50 dB, less than 15.00 dB under 2" in flag.message
