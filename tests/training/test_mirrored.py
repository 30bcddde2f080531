"""Kernels in mirrored pairs: mirror images get one answer, in integers exactly, in a float head up to rounding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from privdfs_training import parallel
from privdfs_training.coded.config import coded_config
from privdfs_training.coded.system import CodedSystem
from privdfs_training.errors import TrainingConfigError
from privdfs_training.mirrored import pair_norm
from privdfs_training.models.head import CompactHead
from tests.training.coded_systems import IMAGE, coded_values, drawn_system, drawn_values

#: Sums in another order have other last bits, and a few values are rounded the other way.
ALMOST_ALL = 0.995


def exchanged(feature: Tensor) -> Tensor:
    """The feature of the mirror image, if kernels are mirrored pairs."""
    return feature.flip(3).roll(feature.shape[1] // 2, 1)


def share_of_equal(one: Tensor, other: Tensor) -> float:
    return torch.isclose(one, other, rtol=1e-4, atol=1e-4).double().mean().item()


def drawn_images() -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (32, *IMAGE), dtype=torch.uint8)


@pytest.mark.parametrize("kernels", ["mirrored", "free"])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_a_mirrored_image_gives_the_mirrored_feature_before_and_after_int8(stem_stride: int, kernels: str) -> None:
    images, mirrored = drawn_images(), kernels == "mirrored"
    head = CompactHead(
        image_channels=1, stem=6, stages=((6, 2), (10, 2)), channels=4, stem_stride=stem_stride, mirrored=mirrored
    )
    optimizer, wanted = torch.optim.AdamW(head.parameters(), lr=1e-3), torch.randn_like(head(images))
    for _ in range(20):  # so that no weight, gain or statistic is what it was at the start
        optimizer.zero_grad()
        nn.functional.mse_loss(head(images), wanted).backward()
        optimizer.step()
    head.eval()
    head.calibrate(on=True)
    head(images)
    head.calibrate(on=False)
    for int8 in (False, True):
        if int8:
            head.quantise()
        feature, other = head(images), head(images.flip(3))
        assert feature.std() > 0.01
        assert (share_of_equal(exchanged(feature), other) > ALMOST_ALL) == mirrored
        assert share_of_equal(feature, other) < 0.2


def test_mirrored_values_get_the_very_same_answer() -> None:
    """In integers, as servers and devices compute; it is both halves of the channels that make up for the mirror."""
    system = drawn_system("mirrored")
    values = torch.from_numpy(drawn_values(system))
    first, *_ = system.plain()
    results = torch.from_numpy(first.network(values.numpy()))
    assert torch.equal(torch.from_numpy(first.network(exchanged(values).numpy())), exchanged(results))
    assert torch.equal(system.answer(values), system.answer(exchanged(values)))
    assert not torch.equal(system.answer(values), system.answer(values.flip(3)))


@pytest.mark.parametrize("kind", ["mirrored", "pooled"])
def test_mirror_images_get_one_answer(kind: str) -> None:
    system, images = drawn_system(kind), drawn_images()
    answer = system(images)
    assert answer.std() > 0.1
    assert (share_of_equal(answer, system(images.flip(3))) > 0.9) == (kind == "mirrored")


def test_several_processes_synchronise_a_paired_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    norm = nn.BatchNorm2d(4)
    pair_norm(norm)
    monkeypatch.setattr(parallel, "world", lambda: 2)
    for _ in range(2):  # the second call finds nothing left to do
        parallel.synchronise(norm)
        assert isinstance(norm, parallel.SynchronisedBatchNorm2d)
    assert {name for name, _ in norm.named_parameters()} == {
        "parametrizations.weight.original",
        "parametrizations.bias.original",
    }
    assert torch.equal(norm.weight, torch.ones(4))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda v: v["data"].update(flip=False), r"a mirror leaves in their class: data\.flip"),
        (lambda v: v.update(head={"kind": "pixels"}), "is for head.kind = 'compact'"),
        (lambda v: v["sharing"].update(values=20), r"needs all values of the feature: leave out sharing\.values"),
        (lambda v: v["head"].update(stem=7), "an even number .*, not 7:"),
        (lambda v: v["head"].update(channels=5), "an even number .*, not 5:"),
        (lambda v: v["head"].update(stages=[[7, 1]]), "an even number .*, not 7:"),
        (lambda v: v["rounds"][0]["hidden"][0].update(outputs=9), "an even number .*, not 9:"),
        (lambda v: v["rounds"][0]["output"].update(outputs=3), "an even number .*, not 3:"),
        (lambda v: v["rounds"][1]["hidden"][0].update(over="all", kernel=1), "is for maps over windows"),
        (lambda v: v["rounds"][1].update(output={}), "and a last map over 'all'"),
        (lambda v: v.update(rounds=[]), r"there is no \[\[rounds\]\]"),
    ],
)
def test_what_a_mirror_would_change_is_refused(change: Callable[[dict[str, Any]], Any], problem: str) -> None:
    values = coded_values("mirrored")
    change(values)
    with pytest.raises(TrainingConfigError, match=problem):
        coded_config(values, "tests")


@pytest.mark.parametrize(
    ("image", "change", "problem"),
    [
        ((1, 28, 26), {}, r"divide by 4, and these have 28 x 26 pixels"),
        ((1, 2, 28), {}, r"divide by 4, and these have 2 x 28 pixels"),
        (IMAGE, {"kernel": 2, "stride": 2}, "round 1: .* of 7 positions in a row kernel = 2 in steps of 2"),
        (IMAGE, {"kernel": 3, "stride": 4}, "round 1: .* in steps of 4 does not reach the last ones"),
    ],
)
def test_positions_that_lie_differently_from_both_sides_are_refused(
    image: tuple[int, int, int], change: dict[str, int], problem: str
) -> None:
    values = coded_values("mirrored")
    values["rounds"][0]["hidden"][0] |= change
    with pytest.raises(TrainingConfigError, match=problem):
        CodedSystem(coded_config(values, "tests"), image_shape=image, classes=10)


def test_windows_that_lie_alike_may_have_any_step() -> None:
    """Seven positions: windows of three in steps of two reach from edge to edge."""
    values = coded_values("mirrored")
    del values["rounds"][0]["skip"]
    values["rounds"][0]["hidden"][0]["stride"] = 2
    values["rounds"][1]["pool"] = 4
    torch.manual_seed(0)
    system = CodedSystem(coded_config(values, "tests"), image_shape=IMAGE, classes=10)
    system.train()(drawn_images())
    shared = torch.from_numpy(drawn_values(system))
    assert torch.equal(system.eval().answer(shared), system.answer(exchanged(shared)))
