import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.nn import functional as F

from privdfs_training.config import BackboneConfig, ResNet18Config, VitTinyConfig
from privdfs_training.errors import TrainingConfigError
from privdfs_training.models.backbone import NamedBackbone, build_backbone, split_points
from privdfs_training.models.backbone_branch import ResNetBranch, VitBranch
from privdfs_training.models.backbone_head import BackboneHead
from privdfs_training.models.resnet import ResNet
from privdfs_training.models.system import System
from privdfs_training.models.vit import VisionTransformer
from privdfs_training.reading import config_from_dict, load_config
from tests.trained import tiny_values, write_toml

# As listed by torchvision 0.2x for resnet18 and resnet50, and by timm 1.0 for vit_tiny_patch16_224.
RESNET18 = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.running_var": (64,),
    "layer1.0.conv1.weight": (64, 64, 3, 3),
    "layer1.1.bn2.bias": (64,),
    "layer2.0.conv1.weight": (128, 64, 3, 3),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1),
    "layer2.0.downsample.1.running_mean": (128,),
    "layer4.1.conv2.weight": (512, 512, 3, 3),
    "fc.weight": (1000, 512),
    "fc.bias": (1000,),
}
RESNET50 = {
    "layer1.0.conv1.weight": (64, 64, 1, 1),
    "layer1.0.conv2.weight": (64, 64, 3, 3),
    "layer1.0.conv3.weight": (256, 64, 1, 1),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer3.5.bn3.weight": (1024,),
    "layer4.2.conv3.weight": (2048, 512, 1, 1),
    "fc.weight": (1000, 2048),
}
VIT_TINY = {
    "cls_token": (1, 1, 192),
    "pos_embed": (1, 197, 192),
    "patch_embed.proj.weight": (192, 3, 16, 16),
    "patch_embed.proj.bias": (192,),
    "blocks.0.norm1.weight": (192,),
    "blocks.0.attn.qkv.weight": (576, 192),
    "blocks.0.attn.qkv.bias": (576,),
    "blocks.0.attn.proj.weight": (192, 192),
    "blocks.11.norm2.bias": (192,),
    "blocks.11.mlp.fc1.weight": (768, 192),
    "blocks.11.mlp.fc2.weight": (192, 768),
    "norm.weight": (192,),
    "head.weight": (1000, 192),
}


def published(**keys: Any) -> NamedBackbone:
    with torch.device("meta"):
        built = build_backbone(msgspec.convert(keys, BackboneConfig), (3, 224, 224), 1000)
    assert isinstance(built, NamedBackbone)
    return built


@pytest.mark.parametrize(
    ("keys", "parameters", "names"),
    [
        ({"name": "resnet18", "stem": "imagenet"}, 11_689_512, RESNET18),
        ({"name": "resnet34", "stem": "imagenet"}, 21_797_672, {}),
        ({"name": "resnet50", "stem": "imagenet"}, 25_557_032, RESNET50),
        ({"name": "vit-tiny", "patch": 16}, 5_717_416, VIT_TINY),
        ({"name": "vit-small", "patch": 16}, 22_050_664, {}),
        ({"name": "vit-base", "patch": 16}, 86_567_656, {}),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) and "name" in value else "",
)
def test_names_and_sizes_are_the_published_ones(
    keys: dict[str, Any], parameters: int, names: dict[str, tuple[int, ...]]
) -> None:
    backbone = published(**keys)
    assert sum(value.numel() for value in backbone.parameters()) == parameters
    shapes = {name: tuple(value.shape) for name, value in backbone.state_dict().items()}
    assert names.items() <= shapes.items()
    kinds = {"resnet18": 122, "resnet50": 320, "vit-tiny": 152}  # tensors in the published files
    ours = [name for name in shapes if not name.startswith("normalise.")]
    assert len(ours) == kinds.get(keys["name"], len(ours))


def test_a_vit_for_small_images_is_small() -> None:
    backbone = build_backbone(VitTinyConfig(patch=4, depth=4), (3, 32, 32), 10)
    assert sum(value.numel() for value in backbone.parameters()) < 2e6
    assert backbone(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


@pytest.mark.parametrize(("stem", "grid"), [("cifar", 32), ("imagenet", 8)])
def test_a_stem_for_small_images_keeps_their_size(stem: str, grid: int) -> None:
    backbone = build_backbone(ResNet18Config(stem=stem), (3, 32, 32), 10)  # type: ignore[arg-type]
    head = BackboneHead(backbone, "layer1.1", channels=2, stride=1).eval()
    assert head(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 2, grid, grid)


def test_split_points_are_the_layers() -> None:
    assert split_points(published(name="resnet8", width=4)) == ("stem", "layer1.0", "layer2.0", "layer3.0")
    points = split_points(published(name="resnet50", stem="imagenet"))
    assert (len(points), points[4], points[-1]) == (17, "layer2.0", "layer4.2")
    assert split_points(published(name="vit-tiny", patch=16, depth=2)) == ("patch_embed", "blocks.0", "blocks.1")


def split_values(backbone: dict[str, Any], split: str, *, stride: int = 1) -> dict[str, Any]:
    values = tiny_values()
    values["backbone"] = backbone
    values["head"] = {"kind": "backbone", "split": split, "channels": 4, "stride": stride}
    values["branch"] = {"kind": "backbone"}
    values["masks"]["values"] = 4
    return values


def split_system(backbone: dict[str, Any], split: str, *, stride: int = 1) -> System:
    torch.manual_seed(0)
    config = config_from_dict(split_values(backbone, split, stride=stride), "tests")
    return System(config, image_shape=(3, 16, 16), classes=10)


RESNET, VIT = {"name": "resnet8", "width": 8}, {"name": "vit-tiny", "patch": 4, "depth": 2}


def moved(system: System) -> System:
    """The system, started from a baseline whose weights and statistics all differ from fresh ones."""
    for value in system.baseline.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * 0.1)
    system.start_from_baseline()
    return system.eval()


def test_a_resnet_continues_where_the_baseline_is() -> None:
    system = moved(split_system(RESNET, "layer2.0"))
    baseline, head, branch = system.baseline, system.head, system.branches[1]
    assert isinstance(baseline, ResNet)
    assert isinstance(head, BackboneHead)
    assert isinstance(branch, ResNetBranch)
    pixels = baseline.normalise(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    features = F.relu(baseline.bn1(baseline.conv1(pixels)))
    *first, last = baseline.blocks().values()
    for block in first:
        features = block(features)
    assert torch.allclose(head.front(pixels), features, atol=1e-4)
    assert torch.allclose(branch.blocks(features), last(features))
    assert torch.equal(branch.fc.weight, baseline.fc.weight)
    assert torch.equal(head.normalise.mean, baseline.normalise.mean)


def test_a_vit_continues_where_the_baseline_is() -> None:
    system = moved(split_system(VIT, "blocks.0", stride=2))
    baseline, head, branch = system.baseline, system.head, system.branches[1]
    assert isinstance(baseline, VisionTransformer)
    assert isinstance(head, BackboneHead)
    assert isinstance(branch, VitBranch)
    pixels = baseline.normalise(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    tokens = baseline.patch_embed(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat([baseline.cls_token.expand(4, 1, -1), tokens], dim=1) + baseline.pos_embed
    tokens = baseline.blocks[0](tokens)
    assert torch.allclose(head.front(pixels).flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-4)
    assert torch.allclose(branch.blocks(tokens), baseline.blocks[1](tokens))
    assert branch.pos_embed.shape == (1, 5, 192)  # a grid of 4 x 4 patches, halved
    assert torch.allclose(branch.pos_embed[0, 1], baseline.pos_embed[0, [1, 2, 5, 6]].mean(dim=0), atol=1e-6)


@pytest.mark.parametrize(("backbone", "split"), [(RESNET, "layer2.0"), (VIT, "blocks.0")], ids=["resnet", "vit"])
def test_behind_a_compact_head_branches_are_the_baselines_last_layers(backbone: dict[str, Any], split: str) -> None:
    values = tiny_values() | {"backbone": backbone, "branch": {"kind": "backbone", "split": split}}
    system = moved(System(config_from_dict(values, "tests"), image_shape=(3, 16, 16), classes=10))
    assert isinstance(system.baseline, NamedBackbone)
    last = system.baseline.blocks()["layer3.0"] if isinstance(system.baseline, ResNet) else system.baseline.blocks[1]
    for branch in system.branches:
        assert isinstance(branch, ResNetBranch | VitBranch)
        (block,) = branch.blocks
        for name, value in last.state_dict().items():
            assert torch.equal(block.state_dict()[name], value), name
    assert system(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("backbone", "split"),
    [(RESNET, "layer2.0"), ({"name": "resnet50", "stem": "imagenet"}, "layer1.0"), (VIT, "blocks.0")],
    ids=["basic", "bottleneck", "vit"],
)
def test_a_quantised_head_stays_close_to_the_float_one(backbone: dict[str, Any], split: str) -> None:
    head = split_system(backbone, split).head
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    head.normalise.fit(images)
    head.train()
    with torch.no_grad():
        for _ in range(50):  # running statistics
            head(images)
        head.eval()
        head.calibrate(on=True)
        exact = head(images)
        head.calibrate(on=False)
        head.quantise()
        error = (head(images) - exact).abs().mean() / exact.abs().mean()
    assert 0 < error < 0.1
    assert 0.5 < exact.std() < 1.5


def test_a_wrong_split_point_lists_those_that_exist() -> None:
    with pytest.raises(TrainingConfigError, match=r"'layer5\.0'.*: stem, layer1\.0, layer2\.0, layer3\.0\."):
        split_system(RESNET, "layer5.0")


def test_a_wrong_layer_for_branches_lists_those_that_exist() -> None:
    values = tiny_values() | {"branch": {"kind": "backbone", "split": "blocks.1"}}
    with pytest.raises(TrainingConfigError, match=r"branch\.split is 'blocks\.1'.*: stem, layer1\.0, layer2\.0, lay"):
        System(config_from_dict(values, "tests"), image_shape=(3, 16, 16), classes=10)


def test_branches_behind_a_head_of_the_backbone_have_no_layer_of_their_own() -> None:
    values = split_values(RESNET, "layer1.0") | {"branch": {"kind": "backbone", "split": "layer2.0"}}
    with pytest.raises(TrainingConfigError, match=r"branch\.split does not go with head\.kind = 'backbone'"):
        config_from_dict(values, "tests")


def test_patches_must_fit_the_image() -> None:
    with pytest.raises(TrainingConfigError, match=r"backbone\.patch is 5, but images have 16 x 16"):
        split_system({"name": "vit-tiny", "patch": 5}, "blocks.0")


@pytest.mark.parametrize(
    ("section", "changes", "problem"),
    [
        ("backbone", {"name": "resnet18"}, r"missing required field `stem` - at `\$\.backbone`"),
        ("backbone", {"name": "resnet20"}, r"missing required field `width` - at `\$\.backbone`"),
        ("backbone", {"name": "resnet20", "width": 7}, r"backbone\.width is 7; it must be at least 8"),
        ("backbone", {"name": "resnet21", "width": 8}, r"backbone\.name is 'resnet21'\. There are: resnet8, resnet20,"),
        ("backbone", {"width": 8}, r"backbone\.name is None\. There are: resnet8"),
        ("backbone", {"name": "vit-tiny"}, r"missing required field `patch` - at `\$\.backbone`"),
        ("backbone", {"name": "resnet18", "stem": "cifar", "width": 8}, r"unknown key 'backbone\.width'"),
        (
            "backbone",
            {"name": "vit-tiny", "patch": 4, "stem": "cifar"},
            r"'backbone\.stem'\. Known keys of name = 'vit-tiny': checkpoint, depth, mean, patch, std",
        ),
        ("backbone", {"name": "vit-tiny", "patch": 4, "depth": -1}, r">= 1 - at `\$\.backbone\.depth`"),
        ("head", {"kind": "backbone", "channels": 4}, r"missing required field `split` - at `\$\.head`"),
        (
            "head",
            {"kind": "backbone", "channels": 4, "split": "stem", "stem": 4},
            r"unknown key 'head\.stem'\. Known keys of kind = 'backbone': channels, checkpoint, split, stride",
        ),
        ("head", {"kind": "compact", "channels": 4, "stem": 4, "stages": [[4, 1]], "split": "stem"}, r"'head\.split'"),
        ("head", {"kind": "wide", "channels": 4}, r"head\.kind is 'wide'\. There are: compact, backbone"),
        ("head", {"kind": ["compact"], "channels": 4}, r"head\.kind is \['compact'\]\. There are"),
        ("branch", {"kind": "backbone"}, r"behind a compact head needs branch\.split"),
        ("branch", {"kind": "backbone", "width": 4}, r"'branch\.width'\. Known keys of kind = 'backbone': split"),
    ],
)
def test_keys_that_do_not_belong_together_are_refused(
    tmp_path: Path, section: str, changes: dict[str, Any], problem: str
) -> None:
    values = tiny_values()
    values[section] = changes
    with pytest.raises(TrainingConfigError, match=problem):
        load_config(write_toml(tmp_path / "config.toml", values))
    with pytest.raises(TrainingConfigError):  # and where a checkpoint says it
        config_from_dict(values, "tests")


def test_gradients_reach_every_weight_of_head_and_branch() -> None:
    for backbone, split in ((RESNET, "layer1.0"), (VIT, "blocks.0")):
        system = split_system(backbone, split).train()
        for module in system.baseline.modules():  # fresh residual blocks end in a zero, behind which no gradient is
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
        system.start_from_baseline()
        images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
        F.cross_entropy(system(images), torch.arange(8)).backward()
        for name, value in [*system.head.named_parameters(), *system.branches[0].named_parameters()]:
            assert value.grad is not None, name
            assert math.isfinite(float(value.grad.abs().sum())), name
            assert float(value.grad.abs().sum()) > 0, name
