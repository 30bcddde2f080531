"""What a release is made of: its graphs, each built and opened once, and the client's manifest that goes with them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import msgspec
import onnx
import onnxruntime as ort

from privdfs._format import (
    ENCODER_NAME,
    FORMAT_VERSION,
    FUSION_NAME,
    Accuracy,
    ClientManifest,
    ImageSpec,
    KeySpec,
    Macs,
    MadeBy,
    ServerSpec,
)
from privdfs_export import graphs
from privdfs_export.sessions import session
from privdfs_training import provenance
from privdfs_training.config import Config, RunConfig
from privdfs_training.models.system import System
from privdfs_training.partitions import family_id

MAX_BATCH = 64


@dataclass(frozen=True, eq=False)
class Graph:
    """One graph: its model, and made once when they are asked for, its bytes and a session."""

    model: onnx.ModelProto

    def __repr__(self) -> str:
        """Its size, never its weights."""
        return f"Graph({self.model.ByteSize()} bytes)"

    @cached_property
    def data(self) -> bytes:
        """Serialised ONNX: what is written."""
        return self.model.SerializeToString()

    @cached_property
    def session(self) -> ort.InferenceSession:
        """On this machine's processor."""
        return session(self.data)


@dataclass(frozen=True, eq=False)
class Graphs:
    """All graphs of a release."""

    encoder: Graph
    branches: Sequence[Graph]
    fusion: Graph
    baseline: Graph

    @property
    def macs(self) -> Macs:
        """Multiply-accumulates of each for one image; all branches cost the same."""
        return Macs(
            head=graphs.count_macs(self.encoder.model),
            fusion=graphs.count_macs(self.fusion.model),
            branch=graphs.count_macs(self.branches[0].model),
            baseline=graphs.count_macs(self.baseline.model),
        )

    @property
    def client_files(self) -> dict[str, bytes]:
        """The device's graphs, by file name."""
        return {ENCODER_NAME: self.encoder.data, FUSION_NAME: self.fusion.data}

    @property
    def digest(self) -> str:
        """Of the graphs that answer, 12 hex digits: two releases with one digest answer alike."""
        digest = hashlib.sha256()
        for graph in (self.encoder, *self.branches, self.fusion):
            digest.update(hashlib.sha256(graph.data).digest())
        return digest.hexdigest()[:12]


def build_graphs(system: System) -> Graphs:
    """The graphs of a trained system, in evaluation mode."""
    return Graphs(
        encoder=Graph(graphs.encoder_graph(system)),
        branches=[Graph(graphs.branch_graph(system, server)) for server in range(system.masks.servers)],
        fusion=Graph(graphs.fusion_graph(system)),
        baseline=Graph(graphs.baseline_graph(system)),
    )


def client_manifest(
    system: System, built: Graphs, *, release: str, config: Config, classes: tuple[str, ...], accuracy: Accuracy
) -> ClientManifest:
    """The client's manifest, without its files; `write_release` fills them in.

    Args:
        system: Whose graphs are released.
        built: The graphs.
        release: The release's id.
        config: Of the training.
        classes: Their names, in the order of the logits.
        accuracy: As measured.

    Returns:
        The manifest.
    """
    channels, height, width = system.image_shape
    servers, quantiser = range(system.masks.servers), system.quantiser
    family = system.family
    return ClientManifest(
        format_version=FORMAT_VERSION,
        release=release,
        made_by=made_by(config),
        classes=classes,
        image=ImageSpec(height=height, width=width, channels=channels),  # pyright: ignore[reportArgumentType]  1 or 3: checked when encoded
        servers=tuple(
            ServerSpec(
                share_length=system.masks.values,
                levels=2 * quantiser.limit(server) + 1,
                scale=quantiser.scale(server),
            )
            for server in servers
        ),
        max_batch=MAX_BATCH,
        files={},
        accuracy=accuracy,
        macs=built.macs,
        keys=msgspec.UNSET
        if family is None
        else KeySpec(partitions=family.partitions, family=family_id(family.tables(system.masks.owned))),
    )


def made_by(config: RunConfig) -> MadeBy:
    """Where a release comes from: this command, and the config of its training."""
    return MadeBy(
        command=provenance.command_line(),
        commit=provenance.git_commit(),
        date=provenance.today(),
        seed=config.seed,
        config=msgspec.to_builtins(config),
        versions=provenance.versions(),
    )
