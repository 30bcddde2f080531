"""A whole coded release of a system that was drawn, not trained: real graphs, manifests and golden examples."""

from pathlib import Path

import numpy as np

from privdfs._coded_format import CodedAccuracy
from privdfs._format import IMAGE, LOGITS
from privdfs_export.coded_contents import build_coded_graphs, coded_manifest
from privdfs_export.coded_release import client_examples, server_examples
from privdfs_export.coded_writing import write_coded_release
from privdfs_export.writing import Sidecar
from privdfs_training.coded.system import TrainedCodedSystem, describe
from tests.training.coded_systems import CLASSES, coded_of, drawn_system


def build_drawn_release(folder: Path, kind: str = "rounds", servers: int = 3) -> Path:
    """Write a release of one of `tests.training.coded_systems.KINDS`."""
    system = drawn_system(kind)
    trained = TrainedCodedSystem(
        system=system,
        config=coded_of(kind),
        classes=tuple(f"class {index}" for index in range(CLASSES)),
        accuracy={"baseline": 0.5, "coded": 0.5, "readout": 0.4},
        rounds=describe(system, [1] * len(system.polynomials), 6),
    )
    built = build_coded_graphs(trained, 1.0)
    accuracy = CodedAccuracy(data="noise", images=8, baseline=0.5, fused=0.5, readout=0.4)
    client = coded_manifest(trained, built, seen=[1] * len(trained.rounds), accuracy=accuracy)
    images = np.random.default_rng(3).integers(0, 256, (6, 28, 28, 1), dtype=np.uint8)
    write_coded_release(
        folder,
        client,
        built,
        engine="python",
        servers=servers,
        golden=client_examples(built, client.rounds, images),
        server_golden=server_examples(built, client.rounds),
        baseline=Sidecar({IMAGE: images, LOGITS: np.zeros((6, CLASSES), np.float32)}),
    )
    return folder
