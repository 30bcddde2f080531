"""The attacker's way through an exported encoder is the encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper

from privdfs_bench.audit.through_head import before_rounding, through_graph
from privdfs_export import evaluate
from privdfs_training.errors import AttackError
from tests.trained import shifted_images


@pytest.mark.parametrize("release", ["trained_release", "keyed_trained_release"])
def test_cut_and_rounded_it_gives_the_bytes_of_the_bundle(release: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(release)
    encoder = (folder / "client" / "encoder.onnx").read_bytes()
    pixels = shifted_images(2, 5)[0][..., None]
    partitions = np.full(len(pixels), 7, np.int32) if "keyed" in release else None
    sent = evaluate.run_batched(evaluate.session(encoder), {"image": pixels, **evaluate.partition_input(partitions)})
    fixed = {} if partitions is None else {"partition": torch.full((1, 1), 7, dtype=torch.int32)}
    way = through_graph(encoder, before_rounding(encoder, [0, 2]), fixed)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).requires_grad_()
    found = way(images)
    received = torch.from_numpy(np.concatenate([sent[0], sent[2]], axis=1)).float()
    # Sums of floats may round the other way; levels are integers, so one that differs is off by one.
    assert (found.clamp(-2, 2).round() == received).float().mean() > 0.999
    found.sum().backward()
    assert images.grad is not None
    assert images.grad.flatten(1).any(dim=1).all()


def test_a_head_with_an_operator_that_is_not_known_is_refused_by_name() -> None:
    nodes = [helper.make_node("Det", ["image"], ["cut"]), helper.make_node("Relu", ["cut"], ["share_0"])]
    model = helper.make_model(helper.make_graph(nodes, "head", [], [])).SerializeToString()
    with pytest.raises(AttackError, match="the operators Det are not known"):
        through_graph(model, ["share_0"], {})
    with pytest.raises(AttackError, match="does not end with cutting, rounding and casting"):
        before_rounding(model, [0])
