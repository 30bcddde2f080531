"""What attackers of a keyed release have: shares under a user's partitions, or under those of others."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import torch
from _common import ENCODED_AT_ONCE, BenchError, shares_of
from onnx import numpy_helper
from torch import Tensor

from privdfs import UserKey
from privdfs._manifest import key_spec
from privdfs_export import evaluate
from privdfs_training.attacks.keys import other_partitions, placed, pool_of
from privdfs_training.attacks.linear import rank_groups
from privdfs_training.attacks.view import ServerView, side_by_side

if TYPE_CHECKING:
    from _audit import Job, Victim

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


def keyed_view(victim: "Victim", job: "Job", keys: Keys) -> ServerView:
    """What a coalition has of users whose keys pick certain partitions; answers and head are left out."""
    wanted = user_partitions(victim, keys.requests)
    pairs, targets = victim.pair_indices(job), victim.target_indices(job)
    known, hidden = victim.data.train_images[pairs], victim.data.test_images[targets]
    mine = [torch.full((len(hidden),), partition) for partition in wanted]
    if keys.knows == "partition":
        theirs = [torch.full((len(known),), partition) for partition in wanted]
    else:
        spec = key_spec(victim.bundle.manifest)
        theirs = [other_partitions(len(known), spec.partitions if spec else 1, wanted, seed=0)]
    shares, received = (
        torch.cat([_encode(victim, job.members, images, one) for one in partitions], dim=1)
        for images, partitions in ((known, theirs), (hidden, mine))
    )
    if keys.knows == "family":
        tables = _tables(victim)
        pool = pool_of(tables, job.members)
        shares, received = (
            placed(share, tables[one[0]][:, list(job.members)].flatten(1), pool)
            for share, one in ((shares, theirs), (received, mine))
        )
    return ServerView(
        members=job.members,
        relation=job.relation,
        images=known,
        labels=victim.data.train_labels[pairs],
        shares=shares,
        answers=torch.zeros(len(known), 0),
        received=received,
        received_answers=torch.zeros(len(hidden), 0),
        steps=None,
        limits=torch.full(received.shape[1:], torch.inf),
    )


def user_partitions(victim: "Victim", count: int) -> list[int]:
    """Different partitions that some users' keys pick; the first is that of the user whom all attackers are after."""
    found, number = [victim.partition or 0], 0
    while len(found) < count:
        partition = victim.bundle.partition(UserKey(number.to_bytes(16, "big")))
        number += 1
        if partition is not None and partition not in found:
            found.append(partition)
    return found


def most_telling_partition(victim: "Victim") -> int:
    """The partition under which a linear map inverts the shares of some largest minority best.

    Every partition deals the same values, so one look at all of them tells about every deal. (Where servers have
    learned steps of their own, about nearly the same values.) Of a large family the first partitions stand for all: the
    deals are random.

    Args:
        victim: A keyed release.
    """
    tables = _tables(victim)
    pool = pool_of(tables, range(victim.servers))
    images = victim.data.train_images[: victim.pairs], victim.data.test_images[: victim.targets]
    # Partition 0 is a deal of the whole pool.
    dealt = (torch.cat(shares_of(victim.bundle, some, 0), dim=1) for some in images)
    places = tables[0].flatten().expand(victim.pairs + victim.targets, -1)
    train, test = (
        placed(shares, places[: len(shares)], pool)[:, : len(pool)].to(torch.int8).split(1, dim=1) for shares in dealt
    )
    partition_of = {}
    for partition, table in enumerate(tables[:SCANNED]):
        for members in itertools.combinations(range(victim.servers), victim.minority):
            held = torch.searchsorted(pool, torch.unique(table[list(members)]))
            partition_of.setdefault(tuple(held.tolist()), partition)
    return partition_of[rank_groups(train, images[0], test, images[1], partition_of)[0]]


def _encode(victim: "Victim", members: Sequence[int], images: Tensor, partitions: Tensor) -> Tensor:
    """The members' shares side by side, each image under its own partition, int8 [images, values]."""
    encoder = evaluate.session((victim.release / "client" / "encoder.onnx").read_bytes())
    parts = []
    for some, under in zip(images.split(ENCODED_AT_ONCE), partitions.split(ENCODED_AT_ONCE), strict=True):
        inputs = {"image": np.ascontiguousarray(some.permute(0, 2, 3, 1).numpy())}
        also = evaluate.partition_input(under.numpy().astype(np.int32))
        shares = [torch.from_numpy(one) for one in evaluate.run_batched(encoder, inputs | also)]
        parts.append(side_by_side(shares, members))
    return torch.cat(parts)


def _tables(victim: "Victim") -> Tensor:
    """Where every partition puts the values of every server, int64 [partitions, servers, values]; the encoder has it.

    Raises:
        BenchError: It has not.
    """
    spec = key_spec(victim.bundle.manifest)
    shape = (spec.partitions if spec else 0, victim.servers, victim.bundle.manifest.servers[0].share_length)
    graph = onnx.load_from_string((victim.release / "client" / "encoder.onnx").read_bytes()).graph
    for one in graph.initializer:
        if tuple(one.dims) == shape and one.data_type in {onnx.TensorProto.INT32, onnx.TensorProto.INT64}:
            return torch.from_numpy(numpy_helper.to_array(one).astype(np.int64))
    raise BenchError("the encoder has no table of its partitions: export the release again")
