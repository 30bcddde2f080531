"""A whole coded release with weights drawn at random, made in seconds without data: real graphs, true golden examples.

What it computes means nothing, but it is exact: every check that holds for a trained release holds for this one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from privdfs._coded_format import CodedAccuracy, CodedManifest, RoundSpec
from privdfs._format import IMAGE, LOGITS
from privdfs_export.coded_contents import CodedGraphs, build_coded_graphs, coded_manifest
from privdfs_export.coded_release import client_examples, server_examples
from privdfs_export.coded_writing import write_coded_release
from privdfs_export.sessions import run_batched
from privdfs_export.triton import GraphEngine
from privdfs_export.writing import Sidecar
from privdfs_training.coded.system import TrainedCodedSystem, describe
from tests.training import coded_systems

#: The most primes that a round of these systems may need.
PRIMES = 6
CLASS_NAMES = tuple(f"class {index}" for index in range(coded_systems.CLASSES))


@dataclass(frozen=True, eq=False)
class Drawn:
    """A system that nobody trained, its graphs, and the client's manifest of both, still without files."""

    trained: TrainedCodedSystem
    graphs: CodedGraphs
    manifest: CodedManifest

    @property
    def rounds(self) -> Sequence[RoundSpec]:
        """As the manifest describes them."""
        return self.manifest.rounds


@cache
def drawn(kind: str = "rounds") -> Drawn:
    """A system of one of `tests.training.coded_systems.KINDS`; never change it."""
    system = coded_systems.drawn_system(kind)
    pixels = torch.from_numpy(noise(20)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        values = system.values(pixels).numpy().astype(np.int64)
    _, results, _ = system.run(values)
    seen = [int(np.abs(result).max()) for result in results]
    trained = TrainedCodedSystem(
        system=system,
        config=coded_systems.coded_of(kind),
        classes=CLASS_NAMES,
        accuracy={"baseline": 0.5, "coded": 0.5, "readout": 0.4},
        rounds=describe(system, seen, PRIMES),
    )
    graphs = build_coded_graphs(trained, 1.0)
    accuracy = CodedAccuracy(data="noise", images=8, baseline=0.5, fused=0.5, readout=0.4)
    return Drawn(trained, graphs, coded_manifest(trained, graphs, seen=seen, accuracy=accuracy))


def build_coded_release(
    folder: Path, kind: str = "rounds", *, servers: int = 3, engine: GraphEngine = "python"
) -> Path:
    """Write the release of a drawn system: client, servers and baseline.

    Args:
        folder: Of the release; must not exist.
        kind: "rounds" has three rounds of degree 2, "mixer" two and a linear one, "pooled" one of degree 2, "quartic"
            one of degree 4.
        servers: How many get a folder.
        engine: What Triton runs the rounds with.
    """
    made, images = drawn(kind), noise(6)
    (logits,) = run_batched(made.graphs.baseline.session, {IMAGE: images})
    write_coded_release(
        folder,
        made.manifest,
        made.graphs,
        engine=engine,
        servers=servers,
        golden=client_examples(made.graphs, made.rounds, images),
        server_golden=server_examples(made.graphs, made.rounds),
        baseline=Sidecar({IMAGE: images, LOGITS: logits}),
    )
    return folder


def noise(images: int, seed: int = 3) -> NDArray[np.uint8]:
    """Images for a drawn system, uint8 [images, height, width, channels]."""
    channels, height, width = coded_systems.IMAGE
    return np.random.default_rng(seed).integers(0, 256, (images, height, width, channels), dtype=np.uint8)
