"""A coded release under attack: what coalitions have of it, and what is attacked by whom."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from privdfs import coding
from privdfs._coded_format import RoundSpec
from privdfs._format import ENCODER_NAME, largest_coalition
from privdfs.coding import Residues
from privdfs_bench.audit.attacks import NAMED
from privdfs_bench.audit.effort import Effort
from privdfs_bench.audit.jobs import Job, guided, job, undefended
from privdfs_bench.audit.through_head import through_graph
from privdfs_bench.audit.victim import Attacked
from privdfs_bench.coded import CodedNetworks, Plain, open_coded
from privdfs_bench.releases import ENCODED_AT_ONCE, manifest_data, nhwc
from privdfs_training.attacks.diffusion import DiffuseBudget
from privdfs_training.attacks.optimise import OptimiseBudget
from privdfs_training.attacks.perceptual import Lpips
from privdfs_training.attacks.view import ServerView
from privdfs_training.data import DataSet
from privdfs_training.errors import AttackError
from privdfs_training.parallel import CPU

#: Of so many servers an audit attacks the largest minority.
SERVERS = (3, 5)
#: Pairs for ridge regression on thousands of values, which solves with one unknown for a pair.
LINEAR_PAIRS = 4000


@dataclass(frozen=True)
class CodedJob(Job):
    """An attack of a coalition of a coded release, of at most `colluding` servers; of more, on what they decode.

    Attributes:
        servers: N.
        colluding: T.
    """

    servers: int = 0
    colluding: int = 0


class CodedVictim(Attacked):
    """A coded release, its data set, and what its device and servers make of it.

    Attributes:
        networks: Its graphs. What travels comes from their `encode` and `relay`, fresh for every image.
    """

    def __init__(
        self,
        networks: CodedNetworks,
        release: Path,
        data: DataSet,
        effort: Effort,
        prior: Path | None = None,
        lpips: Lpips | None = None,
        device: torch.device = CPU,
    ) -> None:
        """Nothing is computed yet; arguments are those of `Attacked`, and the graphs.

        Raises:
            BenchError: There are too few images.
        """
        self.networks = networks
        super().__init__(release, networks.manifest.release, data, effort, prior, lpips, device)

    @cached_property
    def plain(self) -> tuple[Plain, Plain]:
        """What the rounds compute of pairs and targets, whoever serves."""
        train, test = self.data.train_images[: self.pairs], self.data.test_images[: self.targets]
        return self.networks.plain(nhwc(train)), self.networks.plain(nhwc(test))

    @cached_property
    def probabilities(self) -> tuple[Tensor, Tensor]:
        """The answer to pairs and targets, float [images, classes]."""
        train, test = (torch.from_numpy(each.probabilities) for each in self.plain)
        return train, test

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of all graphs, in hex."""
        return {"baseline": hashlib.sha256(self.baseline).hexdigest(), **self.networks.digests}

    @cached_property
    def grid(self) -> tuple[str, tuple[int, ...]]:
        """Of the feature before it is cut to levels: the name of its tensor, and channels, height, width.

        Raises:
            AttackError: The encoder is not built as the exporter builds it.
        """
        graph = onnx.load_from_string(self.networks.files[ENCODER_NAME])
        made_by = {node.output[0]: node for node in graph.graph.node}
        node = made_by.get("values")
        while node is not None and node.op_type in {"Cast", "Flatten", "Reshape", "Mul", "Add"}:
            node = made_by.get(node.input[0])
        if node is None or node.op_type != "Clip":
            raise AttackError("the encoder does not end with cutting and rounding: export it again")
        name = node.input[0]
        pixels = torch.zeros(1, *self.data.image_shape)
        elements = self.networks.rounds[0].elements
        known = onnx.shape_inference.infer_shapes(graph).graph.value_info
        shapes = [
            tuple(axis.dim_value for axis in one.type.tensor_type.shape.dim)[1:] for one in known if one.name == name
        ]
        if not shapes or np.prod(shapes[0]) != elements:
            values = through_graph(self.networks.files[ENCODER_NAME], [name], {})(pixels)
            return name, (values.shape[1],)
        return name, shapes[0]


def open_victim(
    release: Path,
    data_folder: Path | None,
    effort: Effort,
    prior: Path | None,
    lpips: Lpips | None,
    device: torch.device,
) -> CodedVictim:
    """Open a coded release to attack it; arguments are those of `Victim`.

    Raises:
        Error: The release or the data set cannot be used.
    """
    networks = open_coded(release)
    data = manifest_data(networks.manifest, data_folder)
    victim = CodedVictim(networks, release, data, effort, prior, lpips, device)
    victim.again = partial(open_victim, release, data_folder, effort, prior, lpips, device)  # for another process
    return victim


def settings() -> list[tuple[int, int]]:
    """N and T that an audit looks at."""
    return [(servers, largest_coalition(servers)) for servers in SERVERS]


def coalition_jobs(victim: Attacked, servers: int, colluding: int) -> list[CodedJob]:
    """Ridge regression by every coalition of T servers."""
    found = [job(victim, "linear", members) for members in combinations(range(servers), colluding)]
    return [coded_job(replace(one, pairs=min(LINEAR_PAIRS, one.pairs)), servers, colluding) for one in found]


def strong_jobs(victim: Attacked, members: tuple[int, ...], servers: int, colluding: int) -> list[CodedJob]:
    """The other attacks, by one coalition of at most T servers.

    None goes through the head: to fewer servers than decode, every image explains every share equally well.
    """
    attacks = dict.fromkeys(("dense", "decoder", *victim.effort.forms))
    return [coded_job(job(victim, attack, members), servers, colluding) for attack in attacks]


def cliff_jobs(victim: Attacked) -> list[CodedJob]:
    """All attacks on what T + 1 servers decode. That is the same for every T, so T is 1."""
    members = (0, 1)
    few = min(victim.effort.optimised, victim.targets)
    names = dict.fromkeys(("linear", "dense", "decoder", *victim.effort.forms))
    found = [job(victim, attack, members) for attack in names if attack != "dense+answers"]  # answers follow from it
    found[0] = replace(found[0], pairs=min(LINEAR_PAIRS, found[0].pairs))
    found.append(replace(job(victim, "optimisation", members), targets=few))
    return [coded_job(one, 3, 1) for one in [*found, *guided(victim, members)]]


def undefended_jobs(victim: Attacked) -> list[Job]:
    """Attacks on the baseline's own feature, which must succeed."""
    return undefended(victim)


def coded_view(victim: CodedVictim, job: CodedJob) -> ServerView:
    """What a coalition has: its shares and answers of all rounds, or, of more than T servers, the decoded feature."""
    if len(job.members) > job.colluding:
        return _decoded_view(victim, job)
    networks, (train, test) = victim.networks, victim.plain
    known, hidden = victim.data.train_images[: job.pairs], victim.data.test_images[: job.targets]
    own, hears = _Coalition(networks, job), NAMED[job.attack].hears_answers
    parts = [
        own.sees(
            networks.sharings(nhwc(images), plain.first(len(images)), job.servers, job.colluding, job.members),
            hears=hears,
        )
        for images, plain in ((known, train), (hidden, test))
    ]
    return ServerView(
        members=job.members,
        relation=job.relation,
        images=known,
        labels=victim.data.train_labels[: job.pairs],
        shares=parts[0][0],
        answers=parts[0][1],
        received=parts[1][0],
        received_answers=parts[1][1],
        steps=None,
        limits=torch.full(parts[0][0].shape[1:], torch.inf),
        again=own.shares_again(train),
    )


class _Coalition:
    """What some servers see of sharings."""

    def __init__(self, networks: CodedNetworks, job: CodedJob) -> None:
        self.networks, self.job = networks, job
        self.members = list(job.members)

    def sees(self, sharings: Sequence[Residues], *, hears: bool) -> tuple[Tensor, Tensor]:
        """Shares and, to an attack that hears them, answers of all rounds, from what travels to the members."""
        if not hears:
            return self._shares(sharings), torch.zeros(len(sharings[0]), 0)
        answers = [
            self.networks.answer(number, shares[:, column]).reshape(len(shares), -1)
            for number, shares in enumerate(sharings)
            for column in range(len(self.members))
        ]
        return self._shares(sharings), torch.from_numpy(np.concatenate(answers, axis=1)).float()

    def shares_again(self, plain: Plain) -> Callable[[Tensor], Tensor]:
        """Other sharings of images, as the device makes them."""
        rounds, (servers, colluding) = self.networks.rounds, (self.job.servers, self.job.colluding)

        def again(chosen: Tensor) -> Tensor:
            wanted = chosen.numpy()
            return self._shares(
                [
                    coding.share(
                        values[wanted].astype(np.int64),
                        each.moduli,
                        coding.draw((len(wanted), colluding, each.values), each.moduli),
                        servers,
                    )[:, self.members]
                    for each, values in zip(rounds, plain.shared, strict=True)
                ]
            )

        return again

    def _shares(self, sharings: Sequence[Residues]) -> Tensor:
        """Of the members; and, since they know how sharing works, what they would decode if they were enough."""
        parts: list[NDArray[np.int8]] = []
        for each, shares in zip(self.networks.rounds, sharings, strict=True):
            parts.append(shares.reshape(len(shares), -1))
            if len(self.members) > 1:
                factors = coding.weights(each.moduli, [member + 1 for member in self.members]).astype(np.int64)
                parts.append(np.concatenate([_interpolated(some, each, factors) for some in _pieces(shares)]))
        return torch.from_numpy(np.concatenate(parts, axis=1))


def _pieces(shares: Residues) -> list[Residues]:
    """Some images at a time: int64 takes eight times the memory."""
    return [shares[at : at + ENCODED_AT_ONCE] for at in range(0, len(shares), ENCODED_AT_ONCE)]


def _interpolated(shares: Residues, about: RoundSpec, factors: NDArray[np.int64]) -> NDArray[np.int8]:
    """What shares decode to modulo each prime, int8 [images, primes * values]."""
    decoded = np.einsum("pa,bapv->bpv", factors, shares.astype(np.int64))
    centred = [coding.centred(decoded[:, column], prime) for column, prime in enumerate(about.moduli)]
    return np.concatenate(centred, axis=1).astype(np.int8)


def _decoded_view(victim: CodedVictim, job: CodedJob) -> ServerView:
    """What more than T servers have: the feature, decoded from their shares of the first round."""
    networks, first = victim.networks, victim.networks.rounds[0]
    known, hidden = victim.data.train_images[: job.pairs], victim.data.test_images[: job.targets]
    places = [member + 1 for member in job.members]
    decoded = []
    for images, plain in ((known, victim.plain[0]), (hidden, victim.plain[1])):
        first_of = plain.first(len(images))
        shares = networks.sharings(nhwc(images), first_of, job.servers, job.colluding, job.members)[0]
        values = coding.decode(shares, places, first.moduli).astype(np.int8)
        if not np.array_equal(values, plain.shared[0][: len(images)]):
            raise AttackError(f"servers {job.members} do not decode what was shared: this is not Shamir's scheme")
        decoded.append(_placed(values, plain.values[0][: len(images)]))
    name, shape = victim.grid
    through = isinstance(job.budget, (OptimiseBudget, DiffuseBudget))
    flat = through or job.budget is None
    shares, received = (torch.from_numpy(values).unflatten(1, (-1,) if flat else shape) for values in decoded)
    largest = (first.levels - 1) / 2
    # A value that never travels is zero, and excludes no image.
    limits = torch.from_numpy(decoded[0].any(axis=0)).float() * largest
    return ServerView(
        members=job.members,
        relation=job.relation,
        images=known,
        labels=victim.data.train_labels[: job.pairs],
        shares=shares,
        answers=torch.zeros(len(known), 0),
        received=received,
        received_answers=torch.zeros(len(hidden), 0),
        steps=through_graph(networks.files[ENCODER_NAME], [name], {}, victim.device) if through else None,
        limits=limits,
    )


def _placed(values: NDArray[np.int8], feature: NDArray[np.int8]) -> NDArray[np.int8]:
    """Decoded values in their places of the feature, which are public; zero where nothing travels."""
    return feature if values.shape[1] < feature.shape[1] else values


def coded_job(one: Job, servers: int, colluding: int) -> CodedJob:
    """The same attack, of servers of which so many may collude."""
    fields = {name: getattr(one, name) for name in Job.__dataclass_fields__}
    return CodedJob(**fields, servers=servers, colluding=colluding)
