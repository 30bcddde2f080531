"""`graphs.json`: every graph of the small releases with inputs and what must come out."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privdfs import coding
from privdfs._coded_format import (
    RoundSpec,
    coded_encoder_signature,
    coded_fusion_signature,
    relay_name,
    relay_signature,
)
from privdfs._format import ClientManifest, Signature, encoder_signature, fusion_signature
from privdfs._onnx import Graph
from tests.conformance.form import RELEASES, array, tensor
from tests.conformance.releases import images, residues
from tests.conformance.servers import Small, open_small

ABOUT = (
    "One run of a graph of a release: the file `graph` of its client folder, fed with `inputs`, gives `outputs`. "
    "Integers must be the same, probabilities within 1e-5."
)

Arrays = dict[str, NDArray[Any]]


def make() -> Iterable[dict[str, Any]]:
    for name in ("masked", "keyed"):
        yield from _masked(open_small(name, 3))
    for name in ("coded", "coded-rounds"):
        for servers, colluding in ((3, 1), (5, 1), (5, 2)):
            yield from _coded(open_small(name, 5), servers, colluding)


def _masked(small: Small) -> Iterable[dict[str, Any]]:
    manifest = small.bundle.masked
    pixels = images(f"graphs {small.name}", 3, manifest.image)
    partitions: Arrays = {} if small.name == "masked" else {"partition": np.array([[0], [4], [2]], np.int32)}
    yield _run(small, "encoder.onnx", "4.1", encoder_signature(manifest), {"image": pixels, **partitions})
    logits = np.array([[[4, 0, -2, 1], [0, 3, 0.5, -1], [-6, 2, 2, 9]]], np.float32)
    who = [[bool(subset >> server & 1) for server in range(3)] for subset in range(1, 8)]
    feeds = {"logits": np.repeat(logits, 7, axis=0), "answered": np.array(who)}
    feeds["logits"][~feeds["answered"]] = 0
    yield _run(small, "fusion.onnx", "4.3", fusion_signature(manifest), feeds)


def _coded(small: Small, servers: int, colluding: int) -> Iterable[dict[str, Any]]:
    manifest = small.bundle.manifest
    assert not isinstance(manifest, ClientManifest)
    pixels = images(f"graphs {small.name}", 2, manifest.image)
    label, parties = f"graphs {small.name} {servers} {colluding}", f"{servers} servers of which {colluding} may collude"
    feeds: Arrays = {"image": pixels} | _fresh(label, manifest.rounds[0], len(pixels), servers, colluding)
    told = _run(small, "encoder.onnx", "5.4", coded_encoder_signature(manifest), feeds, parties)
    yield told
    outputs, shared = _outputs(told), list[NDArray[Any]]()
    for number, about in enumerate(manifest.rounds, 1):
        shared.append(outputs["values"])
        feeds = _answers(small, number, about, outputs["shares"], colluding)
        if number == len(manifest.rounds):
            yield _run(small, "fusion.onnx", "5.7", coded_fusion_signature(manifest), feeds, parties)
            return
        feeds |= _fresh(f"{label} {number}", manifest.rounds[number], len(pixels), servers, colluding)
        if about.added:
            feeds["added"] = shared[about.added - 1]
        told = _run(small, relay_name(number), "5.5", relay_signature(manifest, number), feeds, parties)
        yield told
        outputs = _outputs(told)


def _fresh(label: str, about: RoundSpec, batch: int, servers: int, colluding: int) -> Arrays:
    randomness = residues(label, (batch, colluding, about.values), about.moduli)
    return {"randomness": randomness, "powers": coding.powers(about.moduli, servers, colluding)}


def _answers(small: Small, number: int, about: RoundSpec, shares: NDArray[Any], colluding: int) -> Arrays:
    """The answers of the last servers that decode, since the first ones are what any client would think of."""
    needed = coding.needed_answers(about.degree, colluding)
    who: Sequence[int] = range(shares.shape[1] - needed, shares.shape[1])
    answers = [small.graphs[i][number - 1].run({"share": np.array(shares[:, i])})[0] for i in who]
    return {"answers": np.stack(answers, axis=1), "weights": coding.weights(about.moduli, [i + 1 for i in who])}


def _run(
    small: Small, file: str, section: str, signature: Signature, feeds: Arrays, parties: str = ""
) -> dict[str, Any]:
    graph = Graph(file, (RELEASES / small.name / "client" / file).read_bytes(), signature, 1)
    outputs = graph.run(feeds)
    names = [spec.name for spec in signature.outputs]
    return {
        "name": f"{small.name}, {file}" + (f", {parties}" if parties else ""),
        "section": section,
        "release": small.name,
        "graph": file,
        "inputs": {name: tensor(feed) for name, feed in feeds.items()},
        "outputs": {name: tensor(output) for name, output in zip(names, outputs, strict=True)},
    }


def _outputs(told: dict[str, Any]) -> Arrays:
    return {name: array(written) for name, written in told["outputs"].items()}
