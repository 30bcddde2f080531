"""ImageNet's sizes through TensorRT-RTX, with random weights: branches of ResNet-50 and ViT-B/16, and coded rounds.

They take minutes and gigabytes, so they run only when asked for: PRIVDFS_LARGE=1 pytest -m large -s
"""

import os
from pathlib import Path
from typing import Any

import pytest

from privdfs_bench.speed.random_release import random_coded_system
from privdfs_export import coded_graphs, graphs
from privdfs_export.engine import BuildOptions, build_engine, check_graph
from privdfs_export.exact import with_exact_int8
from privdfs_export.precision import Precision, measure_ranges, with_precision
from privdfs_training.coded.config import coded_config
from privdfs_training.reading import read_toml
from tests.export.small_branches import branch_inputs, untrained

rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has wheels for Linux on x86-64 only")

pytestmark = [
    pytest.mark.large,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("PRIVDFS_LARGE" not in os.environ, reason="takes minutes: set PRIVDFS_LARGE=1"),
]
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet50": {"name": "resnet50", "stem": "imagenet", "split": "layer1.1"},
    "vit-base": {"name": "vit-base", "patch": 16, "split": "blocks.0"},
}


CODED = ("imagenet-resnet50-coded", "imagenet-vit-small-coded")


@pytest.mark.parametrize("name", CODED)
def test_large_rounds_build(name: str) -> None:
    path = Path(__file__).parents[2] / "configs" / f"{name}.toml"
    trained = random_coded_system(coded_config(read_toml(path), path), (3, 224, 224), 1000)
    for number, (current, about) in enumerate(zip(trained.system.plain(), trained.rounds, strict=True), 1):
        model = coded_graphs.round_graph(current.network, about.moduli)
        for precision, graph in (("fp32", model), ("int8", with_exact_int8(model))):
            check_graph(graph)
            plan = build_engine(graph, BuildOptions(32), rtx)
            told = f"{plan.seconds:.1f} s, {len(plan.data)} bytes, weights {plan.weights}"
            print(f"\n{name} round {number} {precision}: {told}")  # noqa: T201  figures are what it is run for
            assert plan.data
            assert not [text for severity, text in plan.messages if severity.endswith("ERROR")]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_large_branch_builds_in_every_precision(name: str) -> None:
    model = graphs.branch_graph(untrained(dict(BACKBONES[name]), side=224), 0)
    ranges = measure_ranges(model, branch_inputs(model, count=2))
    weights, sizes = {}, {}
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    for precision in precisions:
        plan = build_engine(with_precision(model, precision, ranges), BuildOptions(32), rtx)
        weights[precision], sizes[precision] = plan.weights or 0, len(plan.data)
        print(f"\n{name} {precision}: {plan.seconds:.1f} s, {len(plan.data)} bytes, weights {plan.weights}")  # noqa: T201  figures are what it is run for
    assert weights["fp16"] < 0.6 * weights["fp32"]
    assert weights["int8"] < 0.4 * weights["fp32"]
    assert sizes["int8"] < sizes["fp16"] < sizes["fp32"]
