"""Partitions of a keyed release: what attackers know of them, and which one is attacked."""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from privdfs import Bundle, UserKey
from privdfs_bench.errors import BenchError
from privdfs_bench.releases import partitions_of, shares_of
from privdfs_training.attacks.keys import placed, pool_of
from privdfs_training.attacks.linear import rank_groups

#: Under how many keys the same image is sent.
REQUESTS = (1, 2, 4, 8)
#: Partitions that are looked at for the one to attack.
SCANNED = 1000


@dataclass(frozen=True)
class Keys:
    """What an attacker of a keyed release knows, and how often the image was sent.

    Attributes:
        requests: Keys under which the same image was sent; the attacker puts what came together.
        knows: `partition`: the user's, under which it makes its pairs; `family`: where every value of a share
            belongs, from pairs under other partitions than the user's; `nothing`: shares under other partitions.
    """

    requests: int
    knows: Literal["partition", "family", "nothing"]

    @property
    def attack(self) -> str:
        """Its name."""
        return {
            "partition": f"dense, {self.requests} keys" if self.requests > 1 else "dense, 1 key",
            "family": "dense, other keys, placed",
            "nothing": "dense, other keys, unaware",
        }[self.knows]


def keyed_settings(partitions: int) -> list[Keys]:
    """The attackers of a release with so many partitions, the strongest kind first."""
    repeated = [Keys(count, "partition") for count in REQUESTS if count <= partitions]
    return [*repeated, Keys(1, "family"), Keys(1, "nothing")]


#: Of all attackers of keyed releases.
ATTACK_NAMES = tuple(one.attack for one in keyed_settings(max(REQUESTS)))


def user_partitions(bundle: Bundle, first: int, count: int) -> list[int]:
    """Different partitions that some users' keys pick, after the first, that of the user whom attackers are after."""
    found, number = [first], 0
    while len(found) < count:
        partition = bundle.partition(UserKey(number.to_bytes(16, "big")))
        number += 1
        if partition is not None and partition not in found:
            found.append(partition)
    return found


def most_telling_partition(bundle: Bundle, tables: Tensor, train: Tensor, test: Tensor, minority: int) -> int:
    """The partition under which a linear map inverts the shares of some largest minority best.

    Every partition deals the same values, so one look at all of them tells about every deal. (Where servers have
    learned steps of their own, about nearly the same values.) Of a large family the first partitions stand for all: the
    deals are random.

    Args:
        bundle: Of a keyed release.
        tables: As `partition_tables` gives them.
        train: The attacker's images, uint8 [pairs, channels, height, width].
        test: Those that it is after, as above.
        minority: Servers in the coalition.
    """
    pool = pool_of(tables, range(bundle.n_servers))
    # Partition 0 is a deal of the whole pool.
    dealt = (torch.cat(shares_of(bundle, some, 0), dim=1) for some in (train, test))
    places = tables[0].flatten().expand(len(train) + len(test), -1)
    own, received = (
        placed(shares, places[: len(shares)], pool)[:, : len(pool)].to(torch.int8).split(1, dim=1) for shares in dealt
    )
    partition_of = {}
    for partition, table in enumerate(tables[:SCANNED]):
        for members in itertools.combinations(range(bundle.n_servers), minority):
            held = torch.searchsorted(pool, torch.unique(table[list(members)]))
            partition_of.setdefault(tuple(held.tolist()), partition)
    return partition_of[rank_groups(own, train, received, test, partition_of)[0]]


def partition_tables(bundle: Bundle, encoder: bytes) -> Tensor:
    """Where every partition puts the values of every server, int64 [partitions, servers, values]; the encoder has it.

    Raises:
        BenchError: It has not.
    """
    shape = (partitions_of(bundle) or 0, bundle.n_servers, bundle.masked.servers[0].share_length)
    for one in onnx.load_from_string(encoder).graph.initializer:
        if tuple(one.dims) == shape and one.data_type in {onnx.TensorProto.INT32, onnx.TensorProto.INT64}:
            return torch.from_numpy(numpy_helper.to_array(one).astype(np.int64))
    raise BenchError("the encoder has no table of its partitions: export the release again")
