"""Coded releases as the benchmarks run them: all graphs of a release in this process, many images at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from privdfs import ConfigError, coding
from privdfs._coded_format import (
    ADDED,
    ANSWERS,
    POWERS,
    RANDOMNESS,
    WEIGHTS,
    CodedManifest,
    RoundSpec,
    branch_file,
    relay_name,
)
from privdfs._files import read_manifest_bytes, read_verified
from privdfs._format import CLIENT_FOLDER, ENCODER_NAME, FUSION_NAME, IMAGE, SHARE, server_folder
from privdfs._manifest import read_client_manifest, read_server_manifest
from privdfs.coding import Residues
from privdfs_export.sessions import BATCH, session

#: How randomness is drawn: `coding.draw`, as the client does. Tests put broken ones in its place.
Draw = Callable[[tuple[int, int, int], Sequence[int]], Residues]


@dataclass(frozen=True)
class Plain:
    """What the rounds compute of some images, seen without shares; for each round one array.

    Attributes:
        values: All that the device has before it shares, int8 [images, elements].
        shared: Of those, what travels, int8 [images, values].
        residues: What a server would answer to values that are not hidden, int8 [images, primes, outputs].
        probabilities: float32 [images, classes].
    """

    values: tuple[NDArray[np.int8], ...]
    shared: tuple[NDArray[np.int8], ...]
    residues: tuple[Residues, ...]
    probabilities: NDArray[np.float32]

    def __repr__(self) -> str:
        """No values."""
        return f"Plain({len(self.probabilities)} images)"


@dataclass(frozen=True)
class CodedNetworks:
    """The graphs of a coded release.

    Attributes:
        manifest: The client's.
        encoder: ONNX, as all of these.
        branches: One for each round, the same for every server.
        relays: One for each round but the last.
        fusion: Of the last round.
        draw: Where randomness comes from.
    """

    manifest: CodedManifest
    encoder: bytes
    branches: tuple[bytes, ...]
    relays: tuple[bytes, ...]
    fusion: bytes
    draw: Draw = coding.draw

    def __repr__(self) -> str:
        """Its name."""
        return f"CodedNetworks({self.manifest.release})"

    @property
    def rounds(self) -> tuple[RoundSpec, ...]:
        """Of the manifest."""
        return self.manifest.rounds

    @cached_property
    def _encoder(self) -> ort.InferenceSession:
        return session(self.encoder)

    @cached_property
    def _branches(self) -> list[ort.InferenceSession]:
        return [session(graph) for graph in self.branches]

    @cached_property
    def _relays(self) -> list[ort.InferenceSession]:
        return [session(graph) for graph in self.relays]

    @cached_property
    def _fusion(self) -> ort.InferenceSession:
        return session(self.fusion)

    def plain(self, images: NDArray[np.uint8]) -> Plain:
        """Run all rounds without hiding anything: one "server" whose share are the values themselves.

        Args:
            images: uint8 [images, height, width, channels].

        Returns:
            The integers of every round, which no number of servers changes, and the answer.
        """
        parts = [self._plain(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
        return Plain(
            *(
                tuple(np.concatenate(column) for column in zip(*(getattr(part, name) for part in parts), strict=True))
                for name in ("values", "shared", "residues")
            ),
            np.concatenate([part.probabilities for part in parts]),
        )

    def _plain(self, images: NDArray[np.uint8]) -> Plain:
        shares, values = self._encoder.run(None, {IMAGE: images, **_unhidden(self.rounds[0], len(images))})
        seen, shared, residues = [values], [shares[:, 0, 0]], []
        for number, each in enumerate(self.rounds, 1):
            residues.append(self.answer(number, shares[:, 0]))
            answered = {ANSWERS: residues[-1][:, np.newaxis], WEIGHTS: np.ones((len(each.moduli), 1), np.int8)}
            if number == len(self.rounds):
                break
            hidden = _unhidden(self.rounds[number], len(images))
            shares, values = self._relays[number - 1].run(None, answered | hidden | _added(each, seen))
            seen.append(values)
            shared.append(shares[:, 0, 0])
        return Plain(tuple(seen), tuple(shared), tuple(residues), self._fusion.run(None, answered)[0])

    def answer(self, number: int, share: Residues) -> Residues:
        """What a server answers in a round, counted from 1.

        Args:
            number: Of the round.
            share: int8 [images, primes, values].

        Returns:
            int8 [images, primes, outputs].
        """
        branch = self._branches[number - 1]
        parts = [
            branch.run(None, {SHARE: np.ascontiguousarray(share[at : at + BATCH])})[0]
            for at in range(0, len(share), BATCH)
        ]
        return np.concatenate(parts)

    def encode(self, images: NDArray[np.uint8], servers: int, colluding: int) -> Residues:
        """The first round's shares as `Client.encode` gives them: other ones each time.

        Args:
            images: uint8 [images, height, width, channels].
            servers: N.
            colluding: T.

        Returns:
            int8 [images, N, primes, values].
        """
        parts = []
        for at in range(0, len(images), BATCH):
            some = images[at : at + BATCH]
            parts.append(self._encoder.run(["shares"], {IMAGE: some, **self._hidden(0, len(some), servers, colluding)}))
        return np.concatenate([part[0] for part in parts])

    def relay(self, number: int, plain: Plain, servers: int, colluding: int) -> Residues:
        """The shares that follow a round, counted from 1, as the client's relay gives them.

        Args:
            number: Of the round.
            plain: What was computed of the images. The relay sees the same integers, whoever answered.
            servers: N.
            colluding: T.

        Returns:
            int8 [images, N, primes, values].
        """
        each, parts = self.rounds[number - 1], []
        for at in range(0, len(plain.probabilities), BATCH):
            chosen = slice(at, at + BATCH)
            answers = plain.residues[number - 1][chosen]
            feed = {ANSWERS: answers[:, np.newaxis], WEIGHTS: np.ones((len(each.moduli), 1), np.int8)}
            feed |= self._hidden(number, len(answers), servers, colluding)
            feed |= _added(each, [values[chosen] for values in plain.values])
            parts.append(self._relays[number - 1].run(["shares"], feed)[0])
        return np.concatenate(parts)

    def sharings(self, images: NDArray[np.uint8], plain: Plain, servers: int, colluding: int) -> list[Residues]:
        """One sharing of every image in every round: all that travels to servers.

        Args:
            images: uint8 [images, height, width, channels].
            plain: What was computed of them.
            servers: N.
            colluding: T.

        Returns:
            For each round int8 [images, N, primes, values].
        """
        later = (self.relay(number, plain, servers, colluding) for number in range(1, len(self.rounds)))
        return [self.encode(images, servers, colluding), *later]

    def _hidden(self, index: int, images: int, servers: int, colluding: int) -> dict[str, Residues]:
        """Fresh randomness, and what it counts for."""
        each = self.rounds[index]
        return {
            RANDOMNESS: self.draw((images, colluding, each.values), each.moduli),
            POWERS: coding.powers(each.moduli, servers, colluding),
        }


def _unhidden(each: RoundSpec, images: int) -> dict[str, Residues]:
    """Randomness of zeros for a single server: its share are the values."""
    primes = len(each.moduli)
    return {
        RANDOMNESS: np.zeros((images, 1, primes, each.values), np.int8),
        POWERS: np.ones((primes, 1, 1), np.int8),
    }


def _added(each: RoundSpec, values: Sequence[NDArray[np.int8]]) -> dict[str, NDArray[np.int8]]:
    """What a relay takes of an earlier round, where it adds any."""
    return {ADDED: values[each.added - 1]} if each.added else {}


def is_coded(release: Path) -> bool:
    """Whether a folder holds a coded release.

    Raises:
        BundleError: It holds none at all, or a damaged one.
    """
    return isinstance(read_client_manifest(read_manifest_bytes(release / CLIENT_FOLDER)), CodedManifest)


def open_coded(release: Path) -> CodedNetworks:
    """Open a coded release with the graphs of its device and of one server, which all servers have.

    Args:
        release: Its folder.

    Returns:
        Its graphs, checked against the manifests.

    Raises:
        BundleError: A file is missing or changed.
        ConfigError: The release is not coded, or has no graphs as ONNX.
    """
    client, server = release / CLIENT_FOLDER, release / server_folder(0)
    manifest = read_client_manifest(read_manifest_bytes(client))
    if not isinstance(manifest, CodedManifest):
        raise ConfigError(f"{release} is a masked release, and this is for coded ones")
    files, listed = read_verified(client, manifest.files), read_server_manifest(read_manifest_bytes(server)).files
    names = [branch_file(number) for number in range(1, len(manifest.rounds) + 1)]
    missing = [name for name in names if name not in listed]
    if missing:
        raise ConfigError(f"{server} has no {missing[0]}: measure a release of the engine 'python' or 'onnxruntime'")
    graphs = read_verified(server, {name: listed[name] for name in names})
    return CodedNetworks(
        manifest=manifest,
        encoder=files[ENCODER_NAME],
        branches=tuple(graphs[name] for name in names),
        relays=tuple(files[relay_name(number)] for number in range(1, len(manifest.rounds))),
        fusion=files[FUSION_NAME],
    )
