"""Every backbone with every kind of head: two steps of training, then parity of all graphs with torch."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.nn import functional as F

from privdfs_export import graphs, modules, parity
from privdfs_training.models.system import System
from privdfs_training.precision import autocast
from privdfs_training.reading import config_from_dict
from tests.trained import tiny_values

BACKBONES: dict[str, tuple[dict[str, Any], str]] = {
    "resnet8": ({"name": "resnet8", "width": 8}, "layer2.0"),
    "resnet18-cifar": ({"name": "resnet18", "stem": "cifar"}, "layer1.0"),
    "resnet50-imagenet": ({"name": "resnet50", "stem": "imagenet"}, "layer1.1"),
    "custom": ({"name": "custom", "factory": "tests.training.own_models:small"}, "norm"),
    "vit": ({"name": "vit-tiny", "patch": 4, "depth": 2}, "blocks.0"),
}
COMPACT = {"stem": 4, "stages": [[8, 1]], "channels": 4}
RESIDUAL = {"width": 8, "blocks": 1}


def trained(backbone: dict[str, Any], head: dict[str, Any], branch: dict[str, Any], images: torch.Tensor) -> System:
    torch.manual_seed(0)
    values = tiny_values(2) | {"backbone": backbone, "head": head, "branch": branch}
    values["masks"]["values"] = 4
    system = System(config_from_dict(values, "tests"), image_shape=(3, 16, 16), classes=10)
    system.baseline.normalise.fit(images)
    system.head.normalise.fit(images)
    system.start_from_baseline()
    optimizer = torch.optim.AdamW(system.parameters(), 1e-3)
    system.train()
    for step in range(2):
        with autocast("cpu", "bfloat16"):
            loss = F.cross_entropy((system(images) + system.baseline(images)).float(), (torch.arange(16) + step) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    system.masks.freeze()
    with torch.no_grad():
        for _ in range(30):  # running statistics
            system.head(images)
        system.eval()
        system.head.calibrate(on=True)
        system.head(images)
        system.head.calibrate(on=False)
    system.head.quantise()
    return system


@pytest.mark.parametrize("kinds", ["compact-residual", "compact-backbone", "backbone-backbone"])
@pytest.mark.parametrize("name", BACKBONES)
def test_graphs_compute_what_the_trained_networks_do(name: str, kinds: str) -> None:
    backbone, split = BACKBONES[name]
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    head, branch = {
        "compact-residual": (COMPACT, RESIDUAL),
        "compact-backbone": (COMPACT, {"kind": "backbone", "split": split}),
        "backbone-backbone": ({"kind": "backbone", "split": split, "channels": 4}, {"kind": "backbone"}),
    }[kinds]
    system = trained(backbone, head, branch, images)
    pixels = images.permute(0, 2, 3, 1).contiguous()
    with torch.inference_mode():
        shares = [share.numpy() for share in modules.Encoder(system)(pixels)]
        answers = system.answer(system.encode(images).shares).numpy()
        baseline = system.baseline(images).numpy()
    assert len(np.unique(shares)) > 1
    encoder = ort.InferenceSession(graphs.encoder_graph(system).SerializeToString())
    exported = encoder.run(None, {"image": pixels.numpy()})
    for server, (ours, theirs) in enumerate(zip(exported, shares, strict=True)):
        assert np.abs(np.asarray(ours, np.int16) - theirs).max() <= parity.SHARE_STEPS
        assert (np.asarray(ours) == theirs).mean() > 0.98  # of 64 values, one may sit on a rounding tie
        branch = ort.InferenceSession(graphs.branch_graph(system, server).SerializeToString())
        parity.check_floats("branch", np.asarray(branch.run(None, {"share": theirs})[0]), answers[:, server])
    session = ort.InferenceSession(graphs.baseline_graph(system).SerializeToString())
    parity.check_floats("baseline", np.asarray(session.run(None, {"image": pixels.numpy()})[0]), baseline)


def test_macs_of_attention_are_counted() -> None:
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    backbone, split = BACKBONES["vit"]
    wide = {"kind": "backbone", "split": split, "channels": 4}
    system = trained(backbone, wide, {"kind": "backbone"}, images)
    patches, tokens, width = 16, 17, 192
    embedding = patches * width * 3 * 4 * 4
    block = tokens * width * width * (3 + 1 + 4 + 4) + 2 * tokens * tokens * width  # of the latter: scores, then mixing
    assert graphs.count_macs(graphs.baseline_graph(system)) == embedding + 2 * block + width * 10
    assert graphs.count_macs(graphs.encoder_graph(system)) == embedding + block + patches * width * 4
    assert graphs.count_macs(graphs.branch_graph(system, 0)) == patches * 4 * width + block + width * 10
