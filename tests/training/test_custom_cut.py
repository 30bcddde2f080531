"""Cutting a custom backbone: heads and branches compute what its layers do, and what has no int8 form is refused."""

from typing import Any

import pytest
import torch

from privdfs_training.config import CustomConfig
from privdfs_training.errors import TrainingConfigError
from privdfs_training.models.backbone_branch import backbone_branch
from privdfs_training.models.backbone_head import BackboneHead
from privdfs_training.models.custom import CustomBackbone, custom_backbone
from privdfs_training.models.custom_cut import CustomBranch, CustomFront
from privdfs_training.models.system import System
from privdfs_training.quantise import ActivationQuantiser
from privdfs_training.reading import config_from_dict
from tests.trained import tiny_values
from tests.training import own_models

SHAPE = (3, 28, 28)


def moved(function: str) -> CustomBackbone:
    """A backbone whose weights and statistics are far from fresh ones."""
    torch.manual_seed(0)
    backbone = custom_backbone(CustomConfig(factory=f"tests.training.own_models:{function}"), SHAPE, 10)
    with torch.no_grad():
        for value in backbone.model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.3)
    return backbone


def until(model: own_models.Row, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the layers of `Row` give, by the names at which it can be cut."""
    first = model.norm0(model.stem(pixels)).relu()
    wide = model.wide(torch.nn.functional.max_pool2d(first, 2))
    return {"norm0": first, "wide": wide, "wide.1": wide, "wide.2": wide, "pool": model.pool(wide)}


@pytest.mark.parametrize("split", ["norm0", "wide", "wide.1", "wide.2", "pool"])
def test_a_head_computes_what_the_first_layers_do(split: str) -> None:
    backbone = moved("row")
    pixels = torch.randn(4, *SHAPE)
    front = CustomFront(ActivationQuantiser(signed=True), backbone, split)
    front.start_from(backbone)
    assert isinstance(backbone.model, own_models.Row)
    with torch.no_grad():
        expected = until(backbone.model, pixels)[split]
        torch.testing.assert_close(front.eval()(pixels), expected, rtol=1e-4, atol=1e-4)
    assert front.width == expected.shape[1]


@pytest.mark.parametrize("split", ["norm0", "wide", "pool"])
def test_a_quantised_head_stays_close_to_the_float_one(split: str) -> None:
    backbone = moved("row")
    backbone.normalise.set([0.4] * 3, [0.3] * 3)
    head = BackboneHead(backbone, split, channels=4, stride=1).eval()
    images = torch.randint(0, 256, (64, *SHAPE), dtype=torch.uint8)
    with torch.no_grad():
        head.narrow.conv.weight.copy_(torch.randn_like(head.narrow.conv.weight))
        plain = head(images)
        head.calibrate(on=True)
        head(images)
        head.calibrate(on=False)
        head.quantise()
        assert all(module.on for module in head.modules() if isinstance(module, ActivationQuantiser))
        assert (head(images) - plain).abs().mean() < 0.05 * plain.std()


@pytest.mark.parametrize(
    ("function", "split"), [("row", "pool"), ("row", "smooth"), ("small", "norm"), ("small", "pool")]
)
def test_a_branch_computes_what_the_last_layers_do(function: str, split: str) -> None:
    backbone = moved(function)
    images = torch.randint(0, 256, (4, *SHAPE), dtype=torch.uint8)
    seen: dict[str, torch.Tensor] = {}
    layer = backbone.model.get_submodule(split)
    hook = layer.register_forward_hook(lambda _module, _given, found: seen.update({split: found.clone()}))
    with torch.no_grad():
        expected = backbone(images)
        hook.remove()
        at_cut = torch.relu(seen[split]) if split == "norm" else seen[split]
        branch = backbone_branch(backbone, split, (4, at_cut.shape[2], at_cut.shape[3]), "head.split")
        assert isinstance(branch, CustomBranch)
        torch.testing.assert_close(branch.rest.eval()(at_cut), expected)
        for value in branch.rest.parameters():
            value.zero_()
        branch.start_from(backbone)
        torch.testing.assert_close(branch.rest(at_cut), expected)


@pytest.mark.parametrize(
    ("function", "split", "reason"),
    [
        ("row", "layer1", r"head\.split is 'layer1', which this backbone does not have\. Its layers: stem, norm0, "),
        ("row", "stem", r"where no head can end.*can end at norm0, wide\.1, pool\. Or use head\.kind = 'compact'"),
        ("row", "norm1", "where no head can end"),
        ("row", "smooth", "where no head can end"),
        ("small", "last", r"can end at stem\.1, pool, norm"),
        ("normed", "1", "where no head can end"),
        ("hooked", "1", "where no head can end"),
        ("looping", "norm", "torch.fx cannot follow the module of"),
        ("transposed", "0", "where no head can end: a head is a row"),
    ],
)
def test_a_head_that_has_no_int8_form_is_refused(function: str, split: str, reason: str) -> None:
    with pytest.raises(TrainingConfigError, match=reason):
        BackboneHead(moved(function), split, channels=4, stride=1)


@pytest.mark.parametrize(
    ("function", "split", "grid", "reason"),
    [
        ("small", "last", (7, 7), r"cannot be cut behind last: relu, which is computed before it, is needed behind it"),
        ("row", "fc", (7, 7), r"behind fc the backbone has \(10,\), not channels, height and width"),
        ("row", "dilated", (6, 7), r"behind dilated take 7 x 7 positions, and the feature has 6 x 7"),
    ],
)
def test_a_branch_that_cannot_be_cut_is_refused(function: str, split: str, grid: tuple[int, int], reason: str) -> None:
    with pytest.raises(TrainingConfigError, match=reason):
        backbone_branch(moved(function), split, (4, *grid), "branch.split")


def test_a_system_starts_from_what_the_baseline_became() -> None:
    values: dict[str, Any] = tiny_values() | {
        "backbone": {"name": "custom", "factory": "tests.training.own_models:small"}
    }
    values["head"] = {"kind": "backbone", "split": "norm", "channels": 4}
    values["branch"] = {"kind": "backbone"}
    system = System(config_from_dict(values, "tests"), image_shape=SHAPE, classes=10)
    assert isinstance(system.baseline, CustomBackbone)
    with torch.no_grad():
        for value in system.baseline.model.parameters():
            value.add_(1)
    system.start_from_baseline()
    model, head = system.baseline.model, system.head
    assert isinstance(model, own_models.Small)
    assert isinstance(head, BackboneHead)
    assert isinstance(head.front, CustomFront)
    assert torch.equal(head.front.layers[2].conv.weight, model.conv.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    for branch in system.branches:
        assert isinstance(branch, CustomBranch)
        assert torch.equal(branch.rest.get_parameter("fc.weight"), model.fc.weight)
