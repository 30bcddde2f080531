from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from privdfs_training.attacks.decoder import Decoder, DecoderBudget, reconstruct, train_decoder
from privdfs_training.attacks.floors import mean_image
from privdfs_training.attacks.metrics import score
from privdfs_training.checkpoint import load_system, read_checkpoint, write_checkpoint
from privdfs_training.cli import main
from privdfs_training.data import DataSet, in_memory, load_data
from privdfs_training.errors import CheckpointError, TrainingConfigError
from privdfs_training.reading import read_toml
from privdfs_training.rivals.config import (
    CemConfig,
    Defence,
    DiscoConfig,
    ResSflConfig,
    RivalConfig,
    ShredderConfig,
    rival_config,
)
from privdfs_training.rivals.defences import Cem, Disco, ResSfl, Shredder
from privdfs_training.rivals.system import Rival, RivalSystem, load_rival
from privdfs_training.rivals.terms import distance_correlation, information_bound
from privdfs_training.rivals.train import rival_stages, train_rival
from privdfs_training.stage import accuracy
from tests.trained import QUIET
from tests.training.rival_configs import DEFENCES, rival_values

CONFIGS = Path(__file__).parents[2] / "configs" / "rivals"
KINDS = tuple(str(defence.__struct_config__.tag) for defence in get_args(Defence))
SHAPE, IMAGE = (8, 7, 7), (1, 28, 28)


def config_of(kind: str) -> RivalConfig:
    return rival_config(rival_values(kind), Path("tests"))


@pytest.fixture(scope="module")
def data(data_folder: Path) -> DataSet:
    whole = in_memory(load_data("fashion-mnist", data_folder))
    return replace(whole, test_images=whole.test_images[:200], test_labels=whole.test_labels[:200])


@pytest.fixture(scope="module")
def rivals(tmp_path_factory: pytest.TempPathFactory, data: DataSet) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rivals")
    return {kind: train_rival(config_of(kind), data, folder / kind, QUIET) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_rival_learns_and_opens_as_what_the_server_gets(kind: str, rivals: dict[str, Path], data: DataSet) -> None:
    rival, again = load_rival(rivals[kind]), load_rival(rivals[kind])
    images = data.test_images[:50]
    sent = rival.feature(images, seed=1)
    noisy = kind in ("shredder", "cem")
    assert rival.accuracy["rival"] > 0.5  # ten classes, 64 steps
    assert torch.equal(sent, again.feature(images, seed=1))
    assert torch.equal(sent, rival.feature(images, seed=2)) != noisy
    assert sent.dtype == (torch.float32 if noisy else torch.int8)
    assert sent.shape == (50, 4, 7, 7)
    assert rival.bits == 4 * 7 * 7 * (32 if noisy else 8)
    if not noisy:
        assert sent.abs().max() > 60  # the range is used
        assert accuracy(rival.system, data.test_batches(200)) == rival.accuracy["rival"]
    assert not any(parameter.requires_grad for parameter in rival.system.parameters())
    assert "feature" not in repr(rival)


def test_multiply_accumulates_are_those_worked_out_by_hand(rivals: dict[str, Path]) -> None:
    plain, pruned = load_rival(rivals["none"]), load_rival(rivals["disco"])
    stem = 14 * 14 * 8 * 9
    first = 14 * 14 * (8 * 9 + 8 * 16)
    second = 7 * 7 * (16 * 9 + 16 * 16)
    assert plain.client_macs == stem + first + second + 7 * 7 * 16 * 4
    pruner = 4 * 4 * 9 * 4 * 8 + 2 * 2 * 9 * 8 * 8 + 8 * 4
    assert pruned.client_macs == plain.client_macs + pruner
    assert pruned.server_macs == plain.server_macs > 0
    assert plain.baseline_macs > plain.client_macs


def test_the_decoder_attacks_a_rivals_feature(rivals: dict[str, Path], data: DataSet) -> None:
    rival = load_rival(rivals["none"])
    images, budget = data.train_images, DecoderBudget(epochs=6, batch=26, width=8, blocks=1)
    decoder = train_decoder(rival.feature(images, seed=0), images, budget, seed=0, progress=lambda *_: None)
    test = data.test_images[:200]
    reached = score(reconstruct(decoder, rival.feature(test, seed=0)), test).psnr
    assert reached > score(mean_image(images).expand(200, *IMAGE), test).psnr + 1


@pytest.mark.parametrize("seen", [(3, 14, 14), (3, 7, 7), (3, 28, 28), (3, 5, 9)])
def test_the_decoder_starts_from_any_grid(seen: tuple[int, ...]) -> None:
    decoder = Decoder(seen, IMAGE, width=8, blocks=1).eval()
    assert reconstruct(decoder, torch.zeros(2, *seen)).shape == (2, *IMAGE)


def test_distance_correlation_is_one_for_copies_and_small_for_independent_values() -> None:
    torch.manual_seed(0)
    values = torch.randn(256, 2)
    assert distance_correlation(values, 3 * values + 1).item() == pytest.approx(1.0, abs=1e-4)
    assert distance_correlation(values, torch.randn(256, 2)).item() < 0.2
    assert distance_correlation(values, values.square()).item() > 0.4  # no linear correlation, but dependent


def test_nopeek_lowers_the_distance_correlation(rivals: dict[str, Path], data: DataSet) -> None:
    images = data.test_images

    def correlation(kind: str) -> float:
        return distance_correlation(images.float(), load_rival(rivals[kind]).feature(images, seed=0)).item()

    assert correlation("nopeek") < correlation("none") - 0.05


def test_disco_zeroes_the_stated_share_of_channels_image_by_image(rivals: dict[str, Path], data: DataSet) -> None:
    sent = load_rival(rivals["disco"]).feature(data.test_images[:200], seed=0)
    kept = (sent != 0).any(dim=3).any(dim=2).sum(dim=1)
    assert kept.max() == 2  # of four
    assert (kept == 2).float().mean() > 0.9  # a kept channel may be zero by itself
    torch.manual_seed(0)
    defence = Disco(DiscoConfig(ratio=0.7, weight=0.5, width=8, adversary_width=8), SHAPE, IMAGE)
    masks = defence.keep(torch.randn(64, *SHAPE)).flatten(1)
    assert torch.allclose(masks.sum(dim=1), torch.full((64,), 3.0))  # 8 - 5
    assert len(masks.round().unique(dim=0)) > 1


def test_disco_plays_pruner_against_adversary_and_leaves_the_head_out() -> None:
    torch.manual_seed(0)
    defence = Disco(DiscoConfig(ratio=0.5, weight=0.25, width=8, adversary_width=8), SHAPE, IMAGE)
    feature = torch.randn(16, *SHAPE, requires_grad=True)
    images, labels = torch.randint(0, 256, (16, *IMAGE), dtype=torch.uint8), torch.zeros(16, dtype=torch.int64)

    def gradient_of_pruner(weight: float) -> Tensor:
        defence.zero_grad()
        defence.config = DiscoConfig(ratio=0.5, weight=weight, width=8, adversary_width=8)
        error, _ = defence.term(images, feature, feature, labels)
        assert isinstance(error, Tensor)
        error.backward()
        gradient = defence.pruner[0].weight.grad
        assert isinstance(gradient, Tensor)
        return gradient.clone()

    assert torch.allclose(gradient_of_pruner(0.5), 2 * gradient_of_pruner(0.25))
    assert torch.allclose(gradient_of_pruner(-1.0), -4 * gradient_of_pruner(0.25))
    assert feature.grad is None


def test_shredder_learns_noise_on_a_frozen_network(rivals: dict[str, Path]) -> None:
    split = read_checkpoint(rivals["shredder"].parent / "split.safetensors").tensors
    whole = read_checkpoint(rivals["shredder"]).tensors
    frozen = [name for name in split if name.startswith(("head.", "branch."))]
    assert frozen
    assert all(torch.equal(split[name], whole[name]) for name in frozen)
    assert whole["defence.noise"].abs().mean() > split["defence.noise"].abs().mean() + 0.01
    assert len({tuple(tensor.flatten()[:3].tolist()) for tensor in whole["defence.noise"]}) == 4


def test_shredder_stops_pushing_where_the_noise_is_loud_enough() -> None:
    defence = Shredder(ShredderConfig(tensors=2, scale=1.0, weight=0.1, limit=1.0), SHAPE)
    quiet, values = defence.push(torch.full((4, *SHAPE), 100.0))
    loud, _ = defence.push(torch.full((4, *SHAPE), 0.01))
    assert quiet < 0
    assert values["noise_to_signal"] < 0.01
    assert loud == 0


def test_ressfls_attacker_learns_and_pushes_the_head_the_other_way() -> None:
    torch.manual_seed(0)
    config = ResSflConfig(weight=0.5, threshold=0.2, attacker_width=8, attacker_blocks=1)
    defence = ResSfl(config, SHAPE, IMAGE)
    coarse = torch.rand(32, 1, 7, 7)
    images = torch.nn.functional.interpolate(coarse * 255, scale_factor=4.0, mode="bilinear").to(torch.uint8)
    feature = coarse.expand(32, *SHAPE).clone().requires_grad_()
    labels = torch.zeros(32, dtype=torch.int64)
    optimizer = torch.optim.AdamW(defence.parameters(), lr=5e-3)

    def step() -> tuple[Tensor, float]:
        optimizer.zero_grad()
        feature.grad = None
        loss, values = defence.term(images, feature, feature, labels)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        assert feature.grad is not None
        return feature.grad, values["attacker_ssim"]

    reached = [step()[1] for _ in range(40)]
    assert reached[-1] > reached[0] + 0.2
    # One step of the head down its gradient makes the attacker worse.
    gradient, before = step()
    defence.eval()
    with torch.no_grad():
        here = defence.term(images, feature, feature, labels)[1]["attacker_ssim"]
        moved = feature - 0.2 * gradient / gradient.abs().max()
        there = defence.term(images, moved, moved, labels)[1]["attacker_ssim"]
    assert there < here
    defence.similarity.fill_(0.1)  # below the threshold
    assert before > config.threshold
    assert not step()[0].any()


def test_the_cem_term_grows_with_the_spread_within_a_class_alone() -> None:
    torch.manual_seed(0)
    labels = torch.arange(200) % 2
    offsets = torch.randn(200, 5)
    centres = torch.tensor([[[-10.0] * 5], [[10.0] * 5]])

    def bound(spread: float, between: float) -> float:
        values = between * centres[labels, 0] + spread * offsets
        return information_bound(values, between * centres, labels, torch.zeros_like(labels), 0.5).item()

    assert bound(1.0, 1.0) > bound(0.5, 1.0) > bound(0.1, 1.0) > bound(0.0, 1.0) == 0
    assert bound(0.5, 3.0) == pytest.approx(bound(0.5, 1.0), rel=1e-3)  # classes may lie as far apart as they like
    # Half the logarithm of one plus variance over noise, worked out by hand for one dimension.
    values = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    zeros = torch.zeros(4, dtype=torch.int64)
    got = information_bound(values, torch.zeros(1, 1, 1), zeros, zeros, 1.0).item()
    assert got == pytest.approx(0.5 * torch.log(torch.tensor(1 + 2.5)).item())


def test_cem_components_follow_the_features() -> None:
    torch.manual_seed(0)
    defence = Cem(CemConfig(weight=1.0, noise=0.5, components=2, momentum=0.5), (1, 1, 2), 2)
    labels = torch.arange(400) % 2
    centres = torch.tensor([[[4.0, 0.0], [-4.0, 0.0]], [[0.0, 4.0], [0.0, -4.0]]])
    component = torch.arange(400) // 2 % 2
    feature = (centres[labels, component] + 0.1 * torch.randn(400, 2)).view(400, 1, 1, 2)
    defence.start(feature, labels)
    for _ in range(20):
        defence.term(torch.zeros(0), feature, feature, labels)
    assert torch.allclose(defence.centroids, centres, atol=0.05)


def test_the_same_stages_give_the_same_step(data: DataSet) -> None:
    """Resuming rests on it: what a defence remembers lies in buffers."""
    config = config_of("ressfl")
    torch.manual_seed(0)
    system = RivalSystem(config, image_shape=IMAGE, classes=10)
    split = rival_stages(config, system, data)[1]
    state = {name: value.clone() for name, value in system.state_dict().items()}
    losses = []
    for _ in range(2):
        system.load_state_dict(state)
        losses.append(float(split.loss(data.train_images[:32], data.train_labels[:32], 0.0)[0].detach()))
    assert losses[0] == losses[1]


def test_a_rival_can_be_cut_from_the_backbone(data: DataSet) -> None:
    values = rival_values("nopeek")
    values["head"] = {"kind": "backbone", "split": "layer1.0", "channels": 4}
    values["branch"] = {"kind": "backbone"}
    config = rival_config(values, Path("tests"))
    system = RivalSystem(config, image_shape=IMAGE, classes=10)
    with torch.no_grad():
        for parameter in system.baseline.parameters():
            parameter.add_(0.1)
    split = rival_stages(config, system, data)[1]
    split.prepare()
    assert torch.equal(system.branch.get_parameter("fc.weight"), system.baseline.get_parameter("fc.weight"))
    assert system.sent(data.test_images[:3]).shape == (3, 4, 28, 28)
    assert torch.isfinite(split.loss(data.train_images[:16], data.train_labels[:16], 0.0)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defence": {"kind": "nopeek", "wieght": 1.0}}, "wieght"),
        ({"defence": {"kind": "nopeek"}}, "missing required field `weight`"),
        ({"defence": {"kind": "dropout"}}, "defence.kind is 'dropout'. There are: none, nopeek"),
        ({"defence": {"kind": "cem", **DEFENCES["cem"], "noise": 0.0}}, "defence.noise is 0.0; it must be above 0"),
        ({"defence": {"kind": "disco", **DEFENCES["disco"], "ratio": 1.0}}, "defence.ratio is 1.0"),
        ({"defence": {"kind": "disco", **DEFENCES["disco"], "weight": 2.0}}, "divides one between"),
        ({"defence": {"kind": "shredder", **DEFENCES["shredder"]}}, "add \\[train.noise\\]"),
        ({"masks": {"servers": 1}}, "unknown key 'masks'"),
        ({"loss": rival_values("none")["loss"] | {"label_smoothing": -1.0}}, "from 0 to 1"),
        ({"branch": rival_values("none")["branch"] | {"together": True}}, r"unknown key 'branch\.together'"),
        ({"data": {"name": "celeba-attributes", "flip": True}}, "not for rivals"),
        ({"head": rival_values("none")["head"] | {"checkpoint": "other.safetensors"}}, "a rival has none"),
    ],
)
def test_impossible_configs_say_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingConfigError, match=message):
        rival_config(rival_values("none") | change, Path("tests"))


def test_noise_belongs_to_shredder_and_does_not_shrink() -> None:
    values = rival_values("shredder")
    values["train"]["noise"]["weight_decay"] = 0.1
    with pytest.raises(TrainingConfigError, match="would shrink the noise"):
        rival_config(values, Path("tests"))
    values["defence"] = {"kind": "none"}
    with pytest.raises(TrainingConfigError, match="shredder alone"):
        rival_config(values, Path("tests"))


@pytest.mark.parametrize("name", ["fashion", "cifar10"])
def test_there_is_a_config_of_every_kind(name: str) -> None:
    paths = [CONFIGS / f"{name}-{kind}.toml" for kind in KINDS]
    configs = [rival_config(read_toml(path), path) for path in paths]
    assert [config.name for config in configs] == [f"rival-{path.stem}" for path in paths]
    assert tuple(type(config.defence) for config in configs) == get_args(Defence)


def test_the_command_trains_a_config_with_a_defence(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])  # where the baseline's checkpoint is looked for
    config = CONFIGS / "fashion-nopeek.toml"
    assert main([str(config), "--data", str(data_folder), "--out", str(tmp_path)]) == 0
    assert "privdfs-export" not in capsys.readouterr().out
    assert isinstance(load_rival(tmp_path / "rival-fashion-nopeek" / "rival.safetensors"), Rival)


def test_a_rival_is_no_system_to_export(rivals: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="holds a rival, not a finished system"):
        load_system(rivals["none"])


def test_a_file_that_is_no_rival_is_refused(tmp_path: Path, rivals: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="holds no finished rival"):
        load_rival(rivals["none"].parent / "split.safetensors")
    checkpoint = read_checkpoint(rivals["none"])
    del checkpoint.tensors["step"]
    write_checkpoint(tmp_path / "less.safetensors", checkpoint.tensors, checkpoint.about)
    with pytest.raises(CheckpointError, match="step is missing"):
        load_rival(tmp_path / "less.safetensors")
