"""Coded releases as the benchmarks run them: the client's own code for sharing and decoding, many images at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privdfs import ConfigError
from privdfs._coded import Coded, CodedGraphs
from privdfs._coded_format import CodedManifest, RoundSpec
from privdfs._files import read_manifest_bytes, read_verified
from privdfs._format import CLIENT_FOLDER, SHARE
from privdfs._kinds import Answered, Outcome, Sent
from privdfs._local import open_branches
from privdfs._manifest import read_client_manifest
from privdfs._onnx import Graph
from privdfs.coding import Residues
from privdfs_bench.releases import coded_digests
from privdfs_export.sessions import BATCH


@dataclass(frozen=True)
class Plain:
    """What the rounds compute of some images, seen without shares; for each round one array.

    Attributes:
        values: All that the device has before it shares, int8 [images, elements].
        shared: Of those, what travels, int8 [images, values].
        residues: What a server would answer to values that are not hidden, int8 [images, primes, outputs].
        probabilities: float32 [images, classes].
    """

    values: tuple[NDArray[np.int8], ...] = field(repr=False)
    shared: tuple[NDArray[np.int8], ...] = field(repr=False)
    residues: tuple[Residues, ...] = field(repr=False)
    probabilities: NDArray[np.float32] = field(repr=False)

    def first(self, count: int) -> "Plain":
        """Of the first images alone."""
        values, shared, residues = (
            tuple(one[:count] for one in each) for each in (self.values, self.shared, self.residues)
        )
        return Plain(values, shared, residues, self.probabilities[:count])


@dataclass(frozen=True)
class CodedNetworks:
    """The graphs of a coded release.

    Attributes:
        manifest: The client's.
        files: The client's, by name.
        device: The client's graphs.
        branches: One for each round, the same for every server.
        digests: SHA-256 of all graphs, in hex: `encoder`, `relay-1`, …, `fusion`, `branch-1`, ….
    """

    manifest: CodedManifest
    files: Mapping[str, bytes] = field(repr=False)
    device: CodedGraphs = field(repr=False)
    branches: Sequence[Graph] = field(repr=False)
    digests: Mapping[str, str] = field(repr=False)

    @property
    def rounds(self) -> tuple[RoundSpec, ...]:
        """Of the manifest."""
        return self.manifest.rounds

    def plain(self, images: NDArray[np.uint8]) -> Plain:
        """Run all rounds without hiding anything: one "server" whose share are the values themselves.

        Args:
            images: uint8 [images, height, width, channels].

        Returns:
            The integers of every round, which no number of servers changes, and the answer.
        """
        parts = [self._plain(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
        values, shared, residues = (
            tuple(np.concatenate(column) for column in zip(*each, strict=True))
            for each in (
                [part.values for part in parts],
                [part.shared for part in parts],
                [part.residues for part in parts],
            )
        )
        return Plain(values, shared, residues, np.concatenate([part.probabilities for part in parts]))

    def _plain(self, images: NDArray[np.uint8]) -> Plain:
        shares, values = self.device.encode(images, *_unhidden(self.rounds[0], len(images)))
        seen, shared, residues = [values], [shares[:, 0, 0]], [self.answer(0, shares[:, 0])]
        for index, about in enumerate(self.rounds[:-1]):
            answers, ones = residues[-1][:, np.newaxis], np.ones((len(about.moduli), 1), np.int8)
            hidden = _unhidden(self.rounds[index + 1], len(images))
            added = seen[about.added - 1] if about.added else None
            shares, values = self.device.relay(index, answers, ones, *hidden, added)
            seen.append(values)
            shared.append(shares[:, 0, 0])
            residues.append(self.answer(index + 1, shares[:, 0]))
        ones = np.ones((len(self.rounds[-1].moduli), 1), np.int8)
        probabilities = self.device.fuse(residues[-1][:, np.newaxis], ones)
        return Plain(tuple(seen), tuple(shared), tuple(residues), probabilities)

    def answer(self, index: int, share: Residues) -> Residues:
        """What a server answers in a round, counted from 0.

        Args:
            index: Of the round.
            share: int8 [images, primes, values].

        Returns:
            int8 [images, primes, outputs].
        """
        parts = [
            self.branches[index].run({SHARE: np.ascontiguousarray(share[at : at + BATCH])})[0]
            for at in range(0, len(share), BATCH)
        ]
        return np.concatenate(parts)

    def sharings(
        self,
        images: NDArray[np.uint8],
        plain: Plain,
        servers: int,
        colluding: int,
        members: Sequence[int] | None = None,
    ) -> list[Residues]:
        """One sharing of every image in every round: all that travels to servers, made by the client's code.

        Args:
            images: uint8 [images, height, width, channels].
            plain: What the rounds compute of them. The client decodes these integers, whoever answers.
            servers: N.
            colluding: T.
            members: Servers whose shares are kept; None keeps all.

        Returns:
            For each round int8 [images, servers kept, primes, values].
        """
        kept = range(servers) if members is None else members
        kind = Coded.check(self.device, self.manifest, servers, colluding)
        parts: list[list[Residues]] = [[] for _ in self.rounds]
        for at in range(0, len(images), BATCH):
            sent: Sent | Answered = kind.begin(images[at : at + BATCH])
            for index, residues in enumerate(plain.residues):
                assert isinstance(sent, Sent)  # noqa: S101  only the last round is followed by an answer
                parts[index].append(np.stack([sent.shares[one] for one in kept], axis=1))
                # Answers that lie on a constant polynomial decode to the same integers as the servers' own.
                answers = residues[at : at + BATCH]
                sent = kind.take(sent, [Outcome(server, 0.0, answers) for server in range(kind.needed)])
        return [np.concatenate(part) for part in parts]


def _unhidden(about: RoundSpec, images: int) -> tuple[Residues, Residues]:
    """Randomness of zeros for a single server, whose share are the values, and powers of ones."""
    primes = len(about.moduli)
    return np.zeros((images, 1, primes, about.values), np.int8), np.ones((primes, 1, 1), np.int8)


def open_coded(release: Path) -> CodedNetworks:
    """Open a coded release with the graphs of its device and of one server, which all servers have.

    Args:
        release: Its folder.

    Returns:
        Its graphs, checked against the manifests.

    Raises:
        BundleError: A file is missing or changed.
        ConfigError: The release is masked.
    """
    client = release / CLIENT_FOLDER
    manifest = read_client_manifest(read_manifest_bytes(client))
    if not isinstance(manifest, CodedManifest):
        raise ConfigError(f"{release} is a masked release, and this is for coded ones: pass the folder of one")
    files, branches = read_verified(client, manifest.files), open_branches(release, manifest, 0)
    digests = coded_digests(release, manifest)
    return CodedNetworks(manifest, files, CodedGraphs(manifest, files), branches, digests)
