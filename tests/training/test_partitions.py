"""The family of keyed partitions: how it is derived, how it deals, and what is trained over it."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privdfs_training.data import load_data
from privdfs_training.errors import TrainingConfigError
from privdfs_training.masks import sparsity_and_overlap
from privdfs_training.models.system import System
from privdfs_training.parallel import mean
from privdfs_training.partitions import PartitionFamily, deal_orders, family_id
from privdfs_training.reading import config_from_dict
from privdfs_training.stages import stages
from tests.trained import tiny_config, tiny_values


def owners(servers: int, values: int, elements: int, *, overlap: int = 0) -> torch.Tensor:
    """Every server owns the `values` elements after the one before it, `overlap` of them shared; float masks."""
    owned = torch.zeros(servers, elements)
    for server in range(servers):
        start = server * (values - overlap)
        owned[server, start : start + values] = 1
    return owned[..., None, None]


def family(partitions: int = 20, **changes: int) -> PartitionFamily:
    return PartitionFamily(**{"partitions": partitions, "units": 24, "per_unit": 1, "values": 5, "seed": 7} | changes)


def keyed_system(**masks: Any) -> System:
    values = tiny_values() | {"keys": {"partitions": 16}}
    values["masks"] |= masks
    torch.manual_seed(0)
    return System(config_from_dict(values, "test"), image_shape=(1, 28, 28), classes=10)


def test_the_orders_are_those_of_the_documented_stream() -> None:
    orders = deal_orders(7, 3, 50)
    stream = hashlib.shake_256(b"privdfs deal" + (7).to_bytes(8, "big") + (2).to_bytes(8, "big")).digest(400)
    words = [int.from_bytes(stream[at : at + 8], "little") for at in range(0, 400, 8)]
    assert orders[2].tolist() == sorted(range(50), key=lambda unit: words[unit])
    assert not np.array_equal(orders[1], orders[2])
    assert not np.array_equal(orders[1], deal_orders(8, 3, 50)[1])


@pytest.mark.parametrize("overlap", [0, 2])
def test_every_partition_deals_the_whole_pool_and_gives_every_server_its_budget(overlap: int) -> None:
    masks = owners(3, 5, 24, overlap=overlap)
    dealt = family()(masks, torch.arange(20)).flatten(2)
    assert torch.equal(dealt[0], masks.flatten(1))
    assert torch.equal(dealt.sum(dim=2), torch.full((20, 3), 5.0))
    pool = masks.flatten(1).amax(dim=0)
    assert torch.equal(dealt.amax(dim=1), pool.expand(20, -1))
    assert len({tuple(row.flatten().tolist()) for row in dealt}) == 20
    if not overlap:
        assert dealt.sum(dim=1).max() == 1


def test_an_element_goes_to_every_server_equally_often() -> None:
    dealt = family(partitions=900)(owners(3, 5, 24), torch.arange(1, 900)).flatten(2).mean(dim=0)
    assert torch.allclose(dealt[:, :15], torch.full((3, 15), 1 / 3), atol=0.07)  # 4.5 standard deviations


def test_whole_channels_stay_whole() -> None:
    masks = owners(3, 8, 36).view(3, 9, 2, 2)
    dealt = family(units=9, per_unit=4, values=8)(masks, torch.arange(20))
    assert ((dealt.sum(dim=(3, 4)) == 0) | (dealt.sum(dim=(3, 4)) == 4)).all()
    assert torch.equal(dealt.sum(dim=(2, 3, 4)), torch.full((20, 3), 8.0))


def test_tables_are_the_deals_in_ascending_order_and_the_id_is_of_exactly_them() -> None:
    partitions, masks = family(), owners(3, 5, 24)
    tables = partitions.tables(masks.flatten(1) > 0.5)
    dealt = partitions(masks, torch.arange(20)).flatten(2)
    for partition in range(20):
        for server in range(3):
            assert tables[partition, server].tolist() == torch.nonzero(dealt[partition, server]).flatten().tolist()
    other = tables.clone()
    other[3, 0, 0] += 1
    assert family_id(tables) == family_id(tables.clone()) != family_id(other)
    assert len(family_id(tables)) == 32


def test_the_gradient_reaches_elements_inside_and_outside_the_pool() -> None:
    masks = owners(3, 5, 24).requires_grad_()
    weights = torch.rand(6, 3, 24, 1, 1, generator=torch.Generator().manual_seed(1))
    (family()(masks, torch.arange(1, 7)) * weights).sum().backward()
    assert masks.grad is not None
    assert (masks.grad > 0).all()


def test_the_same_image_and_partition_give_the_same_shares_and_another_partition_others() -> None:
    system = keyed_system().eval()
    system.masks.freeze()
    images = torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8).expand(3, -1, -1, -1)
    with torch.inference_mode():
        encoded = system.encode(images, partitions=torch.tensor([3, 3, 5]))
    assert torch.equal(encoded.shares[0], encoded.shares[1])
    assert not torch.equal(encoded.shares[0], encoded.shares[2])
    torch.testing.assert_close(encoded.shares[0].sum(dim=0), encoded.shares[2].sum(dim=0))  # the pool, dealt anew
    assert encoded.inputs.shape == (3, 3, 8, 7, 7)
    assert torch.equal(encoded.inputs[:, :, 4:], encoded.masks)
    assert mean(sparsity_and_overlap(encoded.masks)) == {"sparsity": pytest.approx(1 - 36 / 196), "overlap": 0}


def test_partition_zero_is_what_the_masks_learned() -> None:
    system = keyed_system().eval()
    system.masks.freeze()
    with torch.inference_mode():
        encoded = system.encode(torch.zeros(1, 1, 28, 28, dtype=torch.uint8), partitions=torch.tensor([0]))
    assert torch.equal(encoded.masks[0].flatten(1) > 0.5, system.masks.owned)


def test_a_system_without_keys_is_as_before() -> None:
    torch.manual_seed(0)
    system = System(tiny_config(), image_shape=(1, 28, 28), classes=10)
    assert system.family is None
    assert system.state_dict()["branches.0.conv1.weight"].shape[1] == 4
    encoded = system.encode(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))
    assert encoded.masks.ndim == 4
    assert encoded.inputs is encoded.shares


def test_the_family_is_not_part_of_a_checkpoint() -> None:
    assert not any(name.startswith("family") for name in keyed_system().state_dict())


@pytest.mark.parametrize("partitions", [0, 1, 65537])
def test_a_number_of_partitions_that_makes_no_sense_is_refused(partitions: int) -> None:
    with pytest.raises(TrainingConfigError, match=r"keys\.partitions must be from 2 to 65536"):
        tiny_config(partitions=partitions)


def test_the_other_terms_of_the_loss_work_on_dealt_shares(data_folder: Path) -> None:
    values = tiny_values() | {"keys": {"partitions": 16}, "adversary": {"weight": 1.0, "warm_up": 0, "width": 4}}
    values["loss"] |= {"rate": 0.1, "decorrelation": 0.1}
    config = config_from_dict(values, "test")
    data = load_data("fashion-mnist", data_folder)
    torch.manual_seed(0)
    system = System(config, image_shape=data.image_shape, classes=len(data.classes))
    _, masks, finetune = stages(config, system, data)
    images, labels = (part[:8] for part in data.sample("train"))
    for stage in (masks, finetune):
        stage.prepare()
        loss, terms = stage.loss(images, labels, 0.9)
        loss.backward()
        assert {"rate", "decorrelation", "adversary", "overlap"} <= set(terms)
        assert all(math.isfinite(value) for value in terms.values())
    assert system.masks.logits.grad is not None
