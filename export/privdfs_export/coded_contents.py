"""What a coded release is made of: its graphs, each built and opened once, and the client's manifest for them."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor, nn

from privdfs._coded_format import (
    CODED_FORMAT_VERSION,
    CodedAccuracy,
    CodedManifest,
    RoundSpec,
    relay_name,
)
from privdfs._format import ENCODER_NAME, FUSION_NAME, IMAGE, ImageSpec, Macs
from privdfs_export import coded_graphs, graphs
from privdfs_export.contents import MAX_BATCH, Graph, made_by
from privdfs_export.tracing import export_graph
from privdfs_training.coded.rounds import Logits, Relay, Round
from privdfs_training.coded.system import CodedSystem, TrainedCodedSystem

#: Answers per result, and shares per value, that the device's multiply-accumulates are counted for: three servers.
COUNTED_SERVERS = 3


@dataclass(frozen=True, eq=False)
class CodedGraphs:
    """All graphs of a coded release.

    Attributes:
        encoder: Image to shares.
        rounds: Of each round, what every server computes.
        relays: What the device does after each round but the last.
        fusion: What it does after the last.
        baseline: The unprotected model.
        macs: Multiply-accumulates for one image: `branch` over all rounds and primes, `fusion` sharing and decoding for
            three servers.
    """

    encoder: Graph
    rounds: Sequence[Graph]
    relays: Sequence[Graph]
    fusion: Graph
    baseline: Graph
    macs: Macs

    @property
    def client_files(self) -> dict[str, bytes]:
        """The device's graphs, by file name."""
        relays = {relay_name(number): graph.data for number, graph in enumerate(self.relays, 1)}
        return {ENCODER_NAME: self.encoder.data, **relays, FUSION_NAME: self.fusion.data}

    @property
    def digest(self) -> str:
        """Of the graphs that answer, 12 hex digits: two releases with one digest answer alike."""
        digest = hashlib.sha256()
        for graph in (self.encoder, *self.rounds, *self.relays, self.fusion):
            digest.update(hashlib.sha256(graph.data).digest())
        return digest.hexdigest()[:12]


class _Head(nn.Module):
    """Pixels to what is shared, without the sharing: for counting."""

    def __init__(self, system: CodedSystem) -> None:
        super().__init__()
        self.system = system

    def forward(self, image: Tensor) -> Tensor:
        return self.system.values(image.permute(0, 3, 1, 2)).flatten(1)


def build_coded_graphs(trained: TrainedCodedSystem, temperature: float) -> CodedGraphs:
    """The graphs of a trained coded system.

    Args:
        trained: In evaluation mode.
        temperature: What the logits are divided by.

    Returns:
        The graphs.

    Raises:
        ExportError: A round cannot be computed exactly.
    """
    system, plain, described = trained.system, trained.system.plain(), trained.rounds
    relays, fusion = list[Graph](), None
    for index, (current, about) in enumerate(zip(plain, described, strict=True)):
        if isinstance(current.device, Relay):
            model = coded_graphs.relay_graph(current.network, current.device, about.moduli, described[index + 1].moduli)
            relays.append(Graph(model))
        else:
            logits = cooled(current.device, temperature)
            fusion = Graph(coded_graphs.fusion_graph(current.network, logits, about.moduli))
    assert fusion is not None  # noqa: S101 - the last round gives logits
    channels, height, width = system.image_shape
    image = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    head = graphs.count_macs(export_graph(_Head(system), (image,), [IMAGE], ["values"]))
    baseline = Graph(graphs.baseline_graph(system))
    return CodedGraphs(
        encoder=Graph(coded_graphs.encoder_graph(system, described[0].moduli, described[0].sent)),
        rounds=[
            Graph(coded_graphs.round_graph(current.network, about.moduli, about.sent))
            for current, about in zip(plain, described, strict=True)
        ],
        relays=relays,
        fusion=fusion,
        baseline=baseline,
        macs=Macs(
            head=head,
            fusion=sum(map(_sharing_and_decoding, described)),
            branch=sum(each.macs * len(each.moduli) for each in described),
            baseline=graphs.count_macs(baseline.model),
        ),
    )


def cooled(logits: Logits, temperature: float) -> Logits:
    """The last round's factors, for logits divided by a temperature."""
    return replace(logits, gain=logits.gain / temperature, bias=logits.bias / temperature)


def coded_manifest(
    trained: TrainedCodedSystem, built: CodedGraphs, *, seen: Sequence[int], accuracy: CodedAccuracy
) -> CodedManifest:
    """The client's manifest, without its files; `write_coded_release` fills them in.

    Args:
        trained: Whose graphs are released.
        built: The graphs.
        seen: Largest magnitude of each round's results on the test images.
        accuracy: As measured.

    Returns:
        The manifest.
    """
    channels, height, width = trained.system.image_shape
    return CodedManifest(
        format_version=CODED_FORMAT_VERSION,
        release=f"{trained.config.name}-{built.digest}",
        made_by=made_by(trained.config),
        classes=trained.classes,
        image=ImageSpec(height=height, width=width, channels=channels),  # pyright: ignore[reportArgumentType]  1 or 3: checked when encoded
        rounds=tuple(
            msgspec.structs.replace(each, seen=largest)
            for each, largest in zip(round_specs(trained.rounds), seen, strict=True)
        ),
        max_batch=MAX_BATCH,
        files={},
        accuracy=accuracy,
        macs=built.macs,
    )


def round_specs(rounds: Sequence[Round]) -> tuple[RoundSpec, ...]:
    """Trained rounds as a manifest describes them; the largest results are those that training saw."""
    return tuple(map(_round_spec, rounds))


def _round_spec(about: Round) -> RoundSpec:
    elements = math.prod(about.inputs)
    return RoundSpec(
        values=len(about.sent) or elements,
        elements=elements,
        levels=2 * about.largest + 1,
        outputs=math.prod(about.outputs),
        degree=about.degree,
        moduli=about.moduli,
        bound=about.bound,
        seen=about.seen,
        added=about.skip,
        macs=about.macs * len(about.moduli),
    )


def _sharing_and_decoding(about: Round) -> int:
    values, outputs = len(about.sent) or math.prod(about.inputs), math.prod(about.outputs)
    return COUNTED_SERVERS * len(about.moduli) * (values + outputs)
