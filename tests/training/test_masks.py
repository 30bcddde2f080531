import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privdfs_training.config import MaskConfig
from privdfs_training.errors import TrainingConfigError
from privdfs_training.masks import OwnerMask, assign, sparsity_and_overlap
from privdfs_training.parallel import mean
from tests.trained import tiny_config


def masks_of(shape: tuple[int, int, int] = (2, 4, 4), **changes: object) -> OwnerMask:
    values = {"servers": 3, "values": 5, "levels": 3, "temperature": (1.0, 0.1), "settled": 0.5}
    return OwnerMask(shape, msgspec.convert(values | changes, MaskConfig), seed=0)


@given(
    servers=st.integers(2, 5),
    budget=st.integers(1, 6),
    spare=st.integers(0, 20),
    shared=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_every_server_owns_exactly_its_budget_and_shares_no_more_than_allowed(
    servers: int, budget: int, spare: int, shared: int, seed: int
) -> None:
    units = servers * budget + spare
    scores = torch.randn(servers + 1, units, generator=torch.Generator().manual_seed(seed))
    owned = assign(scores, budget, shared)
    assert owned.sum(dim=1).tolist() == [budget] * servers
    several = owned.sum(dim=0) > 1
    assert int((owned & several).sum(dim=1).max()) <= min(shared, budget)


def test_an_allowed_overlap_is_used_where_it_is_worth_it() -> None:
    scores = torch.zeros(3, 6)
    scores[:2, :2] = torch.tensor([[9.0, 8.0], [7.0, 6.0]])  # both servers want the first two
    assert assign(scores, 2, 0).sum(dim=0).max() == 1
    assert assign(scores, 2, 1).tolist()[0][:2] == [True, True]
    assert int((assign(scores, 2, 1).sum(dim=0) == 2).sum()) == 1
    assert int((assign(scores, 2, 2).sum(dim=0) == 2).sum()) == 2


def test_the_best_elements_are_taken_first() -> None:
    scores = torch.tensor([[5.0, 1.0, 0.0, 3.0], [4.0, 2.0, 0.0, 3.5], [0.0, 0.0, 9.0, 0.0]])
    assert assign(scores, 1).int().tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_masks_are_hard_disjoint_and_pass_gradients_to_the_preferences() -> None:
    torch.manual_seed(0)
    mask = masks_of()
    drawn = mask(temperature=1.0, noise=1.0)
    assert torch.allclose(drawn, drawn.round(), atol=1e-6)
    assert drawn.detach().round().sum(dim=(1, 2, 3)).tolist() == [5, 5, 5]
    assert drawn.detach().round().sum(dim=0).max() == 1
    (drawn * torch.randn_like(drawn)).sum().backward()
    assert mask.logits.grad is not None
    assert mask.logits.grad.abs().sum() > 0


def test_noise_changes_the_draw_and_its_absence_does_not() -> None:
    torch.manual_seed(0)
    mask = masks_of()
    assert not torch.equal(mask(1.0, 1.0).round(), mask(1.0, 1.0).round())
    assert torch.equal(mask(0.1, 0.0).round(), mask(0.1, 0.0).round())


def test_frozen_masks_are_the_preferred_ones_and_stay() -> None:
    torch.manual_seed(0)
    mask = masks_of()
    mask.logits.data.normal_()
    preferred = mask(0.1, 0.0).detach().round()
    mask.freeze()
    mask.logits.data.normal_()
    assert torch.equal(mask(1.0, 1.0), preferred)
    owned = torch.cat([mask.indices(server) for server in range(3)])
    assert len(owned.unique()) == 15
    for server in range(3):
        assert torch.equal(mask.indices(server), preferred[server].flatten().nonzero().flatten())


def test_channel_masks_own_whole_channels() -> None:
    mask = masks_of((6, 2, 2), values=8, unit="channel")
    mask.logits.data.normal_()
    drawn = mask(1.0, 1.0).detach().round()
    assert all(len(channel.unique()) == 1 for server in drawn for channel in server)
    assert drawn.sum(dim=(1, 2, 3)).tolist() == [8, 8, 8]


def test_fixed_masks_are_frozen_from_the_start() -> None:
    block = masks_of((4, 2, 2), values=4, assignment="channel-block")
    assert [block.indices(server).tolist() for server in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    drawn, again = masks_of(assignment="random"), masks_of(assignment="random")
    assert torch.equal(drawn.owned, again.owned)
    assert drawn.owned.sum(dim=0).max() == 1
    assert drawn.owned.sum(dim=1).tolist() == [5, 5, 5]
    before = drawn.owned.clone()
    drawn.freeze()
    assert torch.equal(drawn.owned, before)
    assert not drawn.logits.requires_grad


def test_sparsity_and_overlap_of_a_draw() -> None:
    masks = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0]]).view(2, 1, 1, 4)
    assert mean(sparsity_and_overlap(masks)) == {"sparsity": 0.25, "overlap": 1 / 3}


def test_a_budget_beyond_the_feature_says_what_to_change() -> None:
    with pytest.raises(TrainingConfigError, match=r"needs 33 elements, but the feature has 32 \(2 x 4 x 4\)"):
        masks_of(values=11)


def test_a_budget_of_broken_channels_says_what_would_fit() -> None:
    with pytest.raises(TrainingConfigError, match="Take a multiple of 16"):
        masks_of(unit="channel")


def test_the_config_of_the_tests_leaves_something_to_nobody() -> None:
    config = tiny_config().masks
    assert OwnerMask((4, 7, 7), config, seed=0).logits.shape == (4, 196)
