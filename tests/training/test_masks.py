import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privdfs_training.errors import TrainingConfigError
from privdfs_training.masks import NOBODY, OwnerMask, assign


@given(servers=st.integers(2, 5), values=st.integers(1, 6), spare=st.integers(0, 20), seed=st.integers(0, 99))
def test_every_server_owns_exactly_its_budget_and_no_element_twice(
    servers: int, values: int, spare: int, seed: int
) -> None:
    elements = servers * values + spare
    scores = torch.randn(servers + 1, elements, generator=torch.Generator().manual_seed(seed))
    owner = assign(scores, values)
    assert [int((owner == server).sum()) for server in range(servers)] == [values] * servers
    assert int((owner == NOBODY).sum()) == spare


def test_the_best_elements_are_taken_first() -> None:
    scores = torch.tensor([[5.0, 1.0, 0.0, 3.0], [4.0, 2.0, 0.0, 3.5], [0.0, 0.0, 9.0, 0.0]])
    assert assign(scores, 1).tolist() == [0, NOBODY, NOBODY, 1]


def test_masks_are_hard_disjoint_and_pass_gradients_to_the_preferences() -> None:
    torch.manual_seed(0)
    mask = OwnerMask((2, 4, 4), servers=3, values=5)
    drawn = mask(temperature=1.0, noise=1.0)
    assert torch.allclose(drawn, drawn.round(), atol=1e-6)
    assert drawn.detach().round().sum(dim=(1, 2, 3)).tolist() == [5, 5, 5]
    assert drawn.detach().round().sum(dim=0).max() == 1
    (drawn * torch.randn_like(drawn)).sum().backward()
    assert mask.logits.grad is not None
    assert mask.logits.grad.abs().sum() > 0


def test_noise_changes_the_draw_and_its_absence_does_not() -> None:
    torch.manual_seed(0)
    mask = OwnerMask((2, 4, 4), servers=3, values=5)
    assert not torch.equal(mask(1.0, 1.0).round(), mask(1.0, 1.0).round())
    assert torch.equal(mask(0.1, 0.0).round(), mask(0.1, 0.0).round())


def test_frozen_masks_are_the_preferred_ones_and_stay() -> None:
    torch.manual_seed(0)
    mask = OwnerMask((2, 4, 4), servers=3, values=5)
    mask.logits.data.normal_()
    preferred = mask(0.1, 0.0).detach().round()
    mask.freeze()
    mask.logits.data.normal_()
    assert torch.equal(mask(1.0, 1.0), preferred)
    owned = torch.cat([mask.indices(server) for server in range(3)])
    assert len(owned.unique()) == 15
    for server in range(3):
        assert torch.equal(mask.indices(server), preferred[server].flatten().nonzero().flatten())


def test_a_budget_beyond_the_feature_says_what_to_change() -> None:
    with pytest.raises(TrainingConfigError, match=r"needs 33 elements, but the feature has 32 \(2 x 4 x 4\)"):
        OwnerMask((2, 4, 4), servers=3, values=11)
