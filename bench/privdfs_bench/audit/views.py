"""What coalitions have: the views that attacks start from."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import torch
from torch import Tensor

from privdfs_bench.audit.coded import CodedJob, CodedVictim, coded_view
from privdfs_bench.audit.jobs import Job
from privdfs_bench.audit.keyed import Keys, partition_tables, user_partitions
from privdfs_bench.audit.through_head import before_rounding, through_graph
from privdfs_bench.audit.victim import Attacked, Victim
from privdfs_bench.releases import ENCODED_AT_ONCE, nhwc, partitions_of
from privdfs_export import evaluate
from privdfs_training.attacks.diffusion import DiffuseBudget
from privdfs_training.attacks.keys import other_partitions, placed, pool_of
from privdfs_training.attacks.optimise import OptimiseBudget
from privdfs_training.attacks.view import Relation, ServerView, side_by_side
from privdfs_training.errors import AttackError

THROUGH_HEAD = (OptimiseBudget, DiffuseBudget)


def view_of(victim: Attacked, job: Job) -> ServerView:
    """What the coalition of a job has; of one without members, what the undefended split sends."""
    if not job.members:
        return _undefended_view(victim, job)
    if isinstance(victim, CodedVictim) and isinstance(job, CodedJob):
        return coded_view(victim, job)
    assert isinstance(victim, Victim)  # noqa: S101  the other kind
    return _coalition_view(victim, job) if job.keys is None else _keyed_view(victim, job, job.keys)


def view_of_shares(
    *,
    images: Tensor,
    labels: Tensor,
    shares: Tensor,
    received: Tensor,
    members: tuple[int, ...] = (),
    relation: Relation = Relation.SAME_DISTRIBUTION,
    steps: Callable[[Tensor], Tensor] | None = None,
    limits: Tensor | None = None,
) -> ServerView:
    """A view without the branches' answers, from the arguments of `ServerView`; limits that are None are infinite."""
    return ServerView(
        members=members,
        relation=relation,
        images=images,
        labels=labels,
        shares=shares,
        answers=torch.zeros(len(images), 0),
        received=received,
        received_answers=torch.zeros(len(received), 0),
        steps=steps,
        limits=torch.full(received.shape[1:], torch.inf) if limits is None else limits,
    )


def flat(view: ServerView) -> ServerView:
    """The same view with every value in one row, as attacks through the head compare them."""
    steps = view.steps
    return replace(
        view,
        shares=view.shares.flatten(1),
        received=view.received.flatten(1),
        steps=None if steps is None else lambda pixels: steps(pixels).flatten(1),
    )


def pair_indices(victim: Attacked, job: Job) -> Tensor:
    """Which training images a job learns from; a shifted attacker has those of the first half of the classes."""
    chosen = torch.arange(job.pairs)
    if job.relation is Relation.SHIFTED:
        chosen = chosen[victim.data.train_labels[: job.pairs] < len(victim.data.classes) // 2]
    return chosen


def target_indices(victim: Attacked, job: Job) -> Tensor:
    """Which test images a job is after, in order; a shifted attacker those of the other half."""
    wanted = torch.arange(job.targets)
    if job.relation is Relation.SHIFTED:
        wanted = wanted[victim.data.test_labels[: job.targets] >= len(victim.data.classes) // 2]
    return wanted


def _coalition_view(victim: Victim, job: Job) -> ServerView:
    """Shares and answers of the members, side by side."""
    pairs, targets = pair_indices(victim, job), target_indices(victim, job)
    (shares, received), (answers, heard) = victim.shares, victim.answers
    limits = [torch.full((one.share_length,), (one.levels - 1) / 2) for one in victim.bundle.masked.servers]
    return ServerView(
        members=job.members,
        relation=job.relation,
        images=victim.data.train_images[pairs],
        labels=victim.data.train_labels[pairs],
        shares=side_by_side(shares, job.members)[pairs],
        answers=side_by_side(answers, job.members)[pairs],
        received=side_by_side(received, job.members)[targets],
        received_answers=side_by_side(heard, job.members)[targets],
        steps=_through_head(victim, job.members) if isinstance(job.budget, THROUGH_HEAD) else None,
        limits=torch.cat([limits[one] for one in job.members]),
    )


def _through_head(victim: Victim, members: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """The way from images to the members' values before rounding."""
    fixed = {} if victim.partition is None else {"partition": torch.tensor([[victim.partition]])}
    return through_graph(victim.encoder, before_rounding(victim.encoder, members), fixed, victim.device)


def _undefended_view(victim: Attacked, job: Job) -> ServerView:
    """What a server has to whom the baseline's feature after the first layer is sent as it is."""
    model, first = victim.baseline, _first_feature(victim.baseline)
    pairs, targets = victim.data.train_images[: job.pairs], victim.data.test_images[: job.targets]
    through = isinstance(job.budget, THROUGH_HEAD)
    return view_of_shares(
        relation=job.relation,
        images=pairs,
        labels=victim.data.train_labels[: job.pairs],
        shares=_features(model, first, pairs),
        received=_features(model, first, targets).float(),
        steps=through_graph(model, [first], {}, victim.device) if through else None,
        limits=torch.zeros(0),
    )


def _keyed_view(victim: Victim, job: Job, keys: Keys) -> ServerView:
    """What a coalition has of users whose keys pick certain partitions; answers and head are left out."""
    wanted = user_partitions(victim.bundle, victim.partition or 0, keys.requests)
    pairs, targets = pair_indices(victim, job), target_indices(victim, job)
    known, hidden = victim.data.train_images[pairs], victim.data.test_images[targets]
    mine = [torch.full((len(hidden),), partition) for partition in wanted]
    if keys.knows == "partition":
        theirs = [torch.full((len(known),), partition) for partition in wanted]
    else:
        theirs = [other_partitions(len(known), partitions_of(victim.bundle) or 1, wanted, seed=0)]
    shares, received = (
        torch.cat([_encode(victim.encoder, job.members, images, one) for one in partitions], dim=1)
        for images, partitions in ((known, theirs), (hidden, mine))
    )
    if keys.knows == "family":
        tables = partition_tables(victim.bundle, victim.encoder)
        pool = pool_of(tables, job.members)
        shares, received = (
            placed(share, tables[one[0]][:, list(job.members)].flatten(1), pool)
            for share, one in ((shares, theirs), (received, mine))
        )
    return view_of_shares(
        members=job.members,
        relation=job.relation,
        images=known,
        labels=victim.data.train_labels[pairs],
        shares=shares,
        received=received,
    )


def _encode(encoder: bytes, members: tuple[int, ...], images: Tensor, partitions: Tensor) -> Tensor:
    """The members' shares side by side, each image under its own partition, int8 [images, values]."""
    session, parts = evaluate.session(encoder), []
    for some, under in zip(images.split(ENCODED_AT_ONCE), partitions.split(ENCODED_AT_ONCE), strict=True):
        also = evaluate.partition_input(under.numpy().astype(np.int32))
        shares = [torch.from_numpy(one) for one in evaluate.run_batched(session, {"image": nhwc(some)} | also)]
        parts.append(side_by_side(shares, members))
    return torch.cat(parts)


def _first_feature(model: bytes) -> str:
    """Name of the first ReLU's output in a graph; without one, of the first convolution's."""
    for kind in ("Relu", "Conv"):
        for node in onnx.load_from_string(model).graph.node:
            if node.op_type == kind:
                return node.output[0]
    raise AttackError("the baseline has no convolution: there is no undefended split to compare with")


def _features(model: bytes, name: str, images: Tensor) -> Tensor:
    """A tensor of a graph for many images, float16 to halve the memory."""
    graph = onnx.load_from_string(model)
    del graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    cut = evaluate.session(graph.SerializeToString())
    parts = [
        np.asarray(cut.run([name], {"image": nhwc(some)})[0]).astype(np.float16)
        for some in images.split(ENCODED_AT_ONCE)
    ]
    return torch.from_numpy(np.concatenate(parts))
