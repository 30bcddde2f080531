"""The graphs of a coded release with drawn weights, without a folder: for what looks at shares alone."""

import hashlib
import math
from functools import cache

from privdfs._coded import CodedGraphs
from privdfs._coded_format import (
    CODED_FORMAT_VERSION,
    CodedAccuracy,
    CodedManifest,
    RoundSpec,
    relay_name,
    round_signature,
)
from privdfs._format import ImageSpec, Macs, MadeBy
from privdfs._onnx import Graph
from privdfs.coding import fewest_moduli
from privdfs_bench.coded import CodedNetworks
from privdfs_export import coded_graphs
from privdfs_training.coded.bounds import proven_bound
from privdfs_training.coded.rounds import Logits, Relay
from privdfs_training.data.fashion import CLASSES
from tests.training.coded_systems import IMAGE, drawn_system


@cache
def drawn_networks(kind: str = "pooled") -> CodedNetworks:
    """Graphs and a manifest of a drawn system."""
    system = drawn_system(kind)
    rounds = system.plain()
    specs, moduli = [], []
    for current in rounds:
        bound = proven_bound(current.network)
        primes = fewest_moduli(bound)
        assert primes is not None
        moduli.append(primes)
        values = math.prod(current.network.inputs)
        specs.append(
            RoundSpec(
                values=values,
                elements=values,
                levels=2 * current.network.largest + 1,
                outputs=math.prod(current.network.outputs),
                degree=current.network.degree,
                moduli=primes,
                bound=bound,
                seen=1,
                added=current.device.skip if isinstance(current.device, Relay) else 0,
                macs=1,
            )
        )
    _, height, width = IMAGE
    manifest = CodedManifest(
        format_version=CODED_FORMAT_VERSION,
        release=f"drawn-{kind}",
        made_by=MadeBy(command="", commit="", date="", seed=0, config={}, versions={}),
        classes=CLASSES,
        image=ImageSpec(height=height, width=width, channels=1),
        rounds=tuple(specs),
        max_batch=8,
        files={},
        accuracy=CodedAccuracy(data="none", images=1, baseline=0, fused=0, readout=0),
        macs=Macs(head=1, fusion=1, branch=1, baseline=1),
    )
    *others, last = rounds
    relays = [
        coded_graphs.relay_graph(current.network, current.device, moduli[at], moduli[at + 1])
        for at, current in enumerate(others)
        if isinstance(current.device, Relay)
    ]
    assert isinstance(last.device, Logits)
    files = {"encoder.onnx": coded_graphs.encoder_graph(system, moduli[0]).SerializeToString()}
    files |= {relay_name(number): graph.SerializeToString() for number, graph in enumerate(relays, 1)}
    files["fusion.onnx"] = coded_graphs.fusion_graph(last.network, last.device, moduli[-1]).SerializeToString()
    branches = [
        Graph("branch", coded_graphs.round_graph(current.network, primes).SerializeToString(), round_signature(spec), 1)
        for current, primes, spec in zip(rounds, moduli, specs, strict=True)
    ]
    digests = {name.removesuffix(".onnx"): hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return CodedNetworks(manifest, files, CodedGraphs(manifest, files), branches, digests)
