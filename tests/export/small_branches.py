"""Branch graphs of every kind, untrained: what an engine is built from does not depend on what was learned."""

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from privdfs_export import graphs
from privdfs_training.models.system import System
from privdfs_training.reading import config_from_dict
from tests.trained import tiny_values

SPLIT = {"resnet8": "layer2.0", "vit-tiny": "blocks.0"}


def untrained(
    backbone: dict[str, Any] | None = None,
    *,
    masks: dict[str, Any] | None = None,
    keys: dict[str, Any] | None = None,
    side: int = 16,
    stride: int = 1,
) -> System:
    """A system with random weights, ready to export; its branches are compact, or the rest of a given backbone."""
    torch.manual_seed(0)
    values = tiny_values(2) | ({} if keys is None else {"keys": keys})
    values["masks"] = values["masks"] | {"values": 16} | (masks or {})
    if backbone is not None:
        split = backbone.pop("split")
        values |= {"backbone": backbone, "branch": {"kind": "backbone"}}
        values["head"] = {"kind": "backbone", "split": split, "channels": 4, "stride": stride}
    system = System(config_from_dict(values, "tests"), image_shape=(3, side, side), classes=10)
    images = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8)
    for module in (system.baseline, system.head):
        module.normalise.fit(images)
    system.start_from_baseline()
    with torch.no_grad():
        for module in system.modules():
            if isinstance(module, torch.nn.BatchNorm2d):  # as different from a fresh one as a trained one is
                module.weight.uniform_(0.5, 1.5)
                module.running_mean.uniform_(-0.2, 0.2)  # pyright: ignore[reportOptionalMemberAccess]
                module.running_var.uniform_(0.5, 2)  # pyright: ignore[reportOptionalMemberAccess]
    system.masks.freeze()
    return system.eval()


def branch_inputs(model: onnx.ModelProto, count: int = 64) -> dict[str, NDArray[np.generic]]:
    """Random shares of three levels, and partitions where the graph takes them."""
    generator = np.random.default_rng(1)
    found: dict[str, NDArray[np.generic]] = {}
    for value in model.graph.input:
        length = value.type.tensor_type.shape.dim[1].dim_value
        if value.name == "partition":
            found["partition"] = generator.integers(0, 4, (count, 1), dtype=np.int32)
        else:
            found[value.name] = generator.integers(-1, 2, (count, length), dtype=np.int8)
    return found


def branch_models() -> dict[str, onnx.ModelProto]:
    """A small branch of every kind."""
    systems = {
        "compact": untrained(),
        "channels": untrained(masks={"unit": "channel", "values": 32}),
        "keyed": untrained(keys={"partitions": 4}),
        "resnet": untrained({"name": "resnet8", "width": 8, "split": "layer2.0"}),
        "vit": untrained({"name": "vit-tiny", "patch": 4, "depth": 2, "split": "blocks.0"}),
    }
    return {name: graphs.branch_graph(system, 1) for name, system in systems.items()}
