"""A tiny prior, trained here, and what it does for an attacker."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from privdfs_training.attacks.diffusion import GUIDANCES, DiffuseBudget, diffuse, tune
from privdfs_training.attacks.metrics import psnr
from privdfs_training.attacks.prior import Prior, load_prior, prior_loss
from privdfs_training.attacks.prior_training import PriorConfig, prior_config, train_prior
from privdfs_training.attacks.view import Relation, ServerView
from privdfs_training.checkpoint import read_checkpoint, write_checkpoint
from privdfs_training.data import DataSet
from privdfs_training.errors import AttackError, CheckpointError, TrainingConfigError
from privdfs_training.interruption import InterruptedTrainingError
from privdfs_training.reading import read_toml
from tests.trained import QUIET

CONFIGS = Path(__file__).parents[2] / "configs" / "priors"
SIDE = 12


def ramps(count: int, seed: int) -> Tensor:
    """Images that are dark on one side and bright on the other, in any direction: uint8 [count, 1, 12, 12]."""
    torch.manual_seed(seed)
    angle, grid = torch.rand(count, 1, 1) * 2 * torch.pi, torch.linspace(-1, 1, SIDE)
    slope = angle.cos() * grid[:, None] + angle.sin() * grid
    return (127.5 + 85 * slope).round().to(torch.uint8)[:, None]


def data() -> DataSet:
    labels = torch.zeros(640, dtype=torch.int64)
    return DataSet("ramps", ("one",), ramps(640, 0), labels, ramps(16, 1), labels[:16])


def config(**train: Any) -> PriorConfig:
    values = {
        "name": "tiny",
        "seed": 0,
        "data": {"name": "fashion-mnist", "flip": False},
        "prior": {"width": 8, "blocks": 1},
        "train": {
            "epochs": 16,
            "batch": 64,
            "optimizer": "adamw",
            "learning_rate": 5e-3,
            "weight_decay": 0.0,
            "crop_padding": 0,
        }
        | train,
    }
    return prior_config(values, Path("tiny.toml"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_prior(config(), data(), tmp_path_factory.mktemp("prior"), QUIET)


@pytest.fixture(scope="module")
def prior(trained: Path) -> Prior:
    return load_prior(trained, (1, SIDE, SIDE), "ramps")


def corner(images: Tensor) -> Tensor:
    """One row of pixels, in steps of a tenth."""
    return 10 * images[:, 0, 0, :] - 5


def shares_of(images: Tensor) -> Tensor:
    return corner(images.float() / 255).round().to(torch.int8)


def view_of(steps: Callable[[Tensor], Tensor] | None, wanted: Tensor) -> ServerView:
    received, known = shares_of(wanted), ramps(8, 3)
    return ServerView(
        members=(0,),
        relation=Relation.SAME_DISTRIBUTION,
        images=known,
        labels=torch.zeros(len(known), dtype=torch.int64),
        shares=shares_of(known),
        answers=torch.zeros(len(known), 0),
        received=received,
        received_answers=torch.zeros(len(received), 0),
        steps=steps,
        limits=torch.full((SIDE,), 5.0),
    )


def quiet(_done: float, _loss: float) -> None:
    """No progress."""


def test_guidance_makes_a_likely_image_one_that_explains_what_was_received(prior: Prior) -> None:
    wanted = ramps(16, 2)
    view, truth = view_of(corner, wanted), wanted.float() / 255
    seen: list[float] = []
    blind = diffuse(view, prior, DiffuseBudget(20, 2, guidance=0.0), seed=0, progress=quiet)
    told = diffuse(view, prior, DiffuseBudget(20, 2), seed=0, progress=lambda done, _: seen.append(done))
    assert seen[-1] == pytest.approx(1)
    assert told.finished
    assert told.gradient > 0
    assert told.distance.mean() < 0.3 * blind.distance.mean()
    # A row alone says which way the image gets bright; the prior, trained on others, knows the rest of it.
    unseen = (slice(None), slice(None), slice(SIDE // 2, None))
    gain = psnr(told.images[unseen], truth[unseen]).mean() - psnr(blind.images[unseen], truth[unseen]).mean()
    assert gain > 4
    again = diffuse(view, prior, DiffuseBudget(20, 2), seed=0, progress=quiet)
    assert torch.equal(again.images, told.images)


def test_a_start_from_another_attack_is_kept_but_for_what_contradicts_the_shares(prior: Prior) -> None:
    wanted = ramps(16, 2)
    truth = wanted.float() / 255
    start = (truth + 0.15 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    found = diffuse(view_of(corner, wanted), prior, DiffuseBudget(20, 2), seed=0, progress=quiet, start=start)
    assert psnr(found.images, truth).mean() > psnr(start, truth).mean() + 2


def test_the_mean_of_several_samples_is_the_better_guess_in_the_squared_sense(prior: Prior) -> None:
    wanted = ramps(16, 2)
    view, truth = view_of(lambda x: corner(x)[:, :1], wanted), wanted.float() / 255
    view = replace(view, received=view.received[:, :1], shares=view.shares[:, :1], limits=view.limits[:1])
    one, several = (
        diffuse(view, prior, DiffuseBudget(8, 1, samples=samples), seed=0, progress=quiet) for samples in (1, 6)
    )
    assert psnr(several.images, truth).mean() > psnr(one.images, truth).mean() + 1


def test_the_attacker_finds_on_its_own_images_how_much_guidance_is_right(prior: Prior) -> None:
    wanted, last = ramps(16, 2), list[float]()
    view, budget = view_of(corner, wanted), DiffuseBudget(20, 2)
    found = tune(view, prior, budget, seed=0, progress=lambda done, _: last.append(done))
    assert last[-1] == pytest.approx(1)
    assert replace(found, guidance=budget.guidance) == budget
    assert found.guidance in GUIDANCES

    # Shares that lead to the opposite of every image: the less guidance the better.
    misled = tune(replace(view, shares=shares_of(255 - view.images)), prior, budget, seed=0, progress=quiet)
    assert misled.guidance == min(GUIDANCES)


def test_an_attack_without_time_or_head_or_of_other_images_says_so(prior: Prior) -> None:
    view, budget = view_of(corner, ramps(2, 2)), DiffuseBudget(1000, 2)
    with pytest.raises(AttackError, match="too short"):
        diffuse(view, prior, budget, seed=0, progress=quiet, seconds=-1)
    cut = diffuse(view, prior, budget, seed=0, progress=quiet, seconds=0.2)
    assert not cut.finished
    assert cut.images.shape == (2, 1, SIDE, SIDE)
    with pytest.raises(AttackError, match="no head"):
        diffuse(view_of(None, ramps(2, 2)), prior, budget, seed=0, progress=quiet)
    with pytest.raises(AttackError, match="train another"):
        diffuse(view, Prior((1, 8, 8), width=8, blocks=1), budget, seed=0, progress=quiet)
    several = diffuse(view, prior, DiffuseBudget(2, 1, samples=100_000), seed=0, progress=quiet, seconds=0.3)
    assert not several.finished
    with pytest.raises(AttackError, match="guidance"):
        diffuse(view, prior, DiffuseBudget(5, 2, guidance=2), seed=0, progress=quiet)


def test_a_prior_that_was_interrupted_is_the_one_that_was_not(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: Path) -> Path:
        return train_prior(config(epochs=2), data(), folder, QUIET)

    whole = read_checkpoint(run(tmp_path / "whole"))
    calls = 0

    def loss_then_stop(*given: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise_signal()
        return prior_loss(*given)

    with monkeypatch.context() as patched:
        patched.setattr("privdfs_training.attacks.prior_training.prior_loss", loss_then_stop)
        with pytest.raises(InterruptedTrainingError):
            run(tmp_path / "cut")
    assert read_checkpoint(tmp_path / "cut" / "prior.safetensors").about["step"] == 7
    with pytest.raises(CheckpointError, match="not a finished"):
        load_prior(tmp_path / "cut" / "prior.safetensors", (1, SIDE, SIDE), "ramps")
    with pytest.raises(CheckpointError, match="another config"):
        train_prior(config(epochs=3), data(), tmp_path / "cut", QUIET)
    continued = read_checkpoint(run(tmp_path / "cut"))
    assert all(torch.equal(value, whole.tensors[name]) for name, value in continued.tensors.items())
    written = trained.stat().st_mtime_ns
    train_prior(config(), data(), trained.parent, QUIET)  # done already
    assert trained.stat().st_mtime_ns == written


def raise_signal() -> None:
    import signal

    signal.raise_signal(signal.SIGINT)


def test_a_prior_that_is_missing_or_of_other_images_says_how_to_train_one(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(AttackError, match=r"no diffusion prior.*privdfs-train.*'ramps'"):
        load_prior(tmp_path / "nowhere", (1, SIDE, SIDE), "ramps")
    with pytest.raises(AttackError, match=r"\(1, 28, 28\).*privdfs-train"):
        load_prior(trained, (1, 28, 28), "ramps")
    write_checkpoint(tmp_path / "other.safetensors", {}, {"stage": "masks"})
    with pytest.raises(CheckpointError, match="not a finished"):
        load_prior(tmp_path / "other.safetensors", (1, SIDE, SIDE), "ramps")
    with pytest.raises(AttackError, match="multiples of 4"):
        Prior((1, 30, 28), width=8, blocks=1)


@pytest.mark.parametrize(
    ("section", "key", "value", "told"),
    [
        ("prior", "width", 12, "multiple of 8"),
        ("prior", "blocks", 0, "at least 1"),
        ("train", "epochs", 0, "at least 1 epoch"),
        ("prior", "depth", 2, "prior.depth"),
        ("train", "batch", "many", "batch"),
        ("train", "clip", 1.0, r"train\.clip is not for a prior"),
        ("train", "average", 0.9, r"train\.average is not for a prior"),
    ],
)
def test_a_config_that_cannot_work_is_refused(section: str, key: str, value: object, told: str) -> None:
    raw = read_toml(CONFIGS / "fashion-mnist.toml")
    raw[section][key] = value
    with pytest.raises(TrainingConfigError, match=told):
        prior_config(raw, Path("some.toml"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_committed_config_is_of_the_weights_that_are_shipped(path: Path) -> None:
    whole = prior_config(read_toml(path), path)
    assert whole.name == f"{path.stem}-prior"
    assert whole.data.name == path.stem
    shipped = CONFIGS.parents[1] / "checkpoints" / f"{whole.name}.safetensors"
    about = read_checkpoint(shipped).about
    assert about["finished"]
    assert about["made_by"]["prior"] == {"width": whole.prior.width, "blocks": whole.prior.blocks}
    load_prior(shipped, tuple(about["image_shape"]), whole.data.name)
    assert shipped.stat().st_size < 5_000_000
