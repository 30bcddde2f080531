import dataclasses
from pathlib import Path

import pytest
import torch

from privdfs_training.attacks.decoder import (
    FORMS,
    Decoder,
    DecoderBudget,
    Form,
    reconstruct,
    squared_error,
    squared_error_and_similarity,
    train_decoder,
)
from privdfs_training.attacks.floors import class_means, mean_image, nearest_by_answer
from privdfs_training.attacks.linear import by_linear_score, linear_reconstruct, linear_sums, rank_by_linear_score
from privdfs_training.attacks.metrics import compare, mean_interval, psnr, score, ssim
from privdfs_training.attacks.view import Relation, ServerView
from privdfs_training.data import DataSet, load_data
from privdfs_training.errors import AttackError
from tests.training.shipped import shifted_and_pale, shipped_images


@pytest.fixture(scope="module")
def data(data_folder: Path) -> DataSet:
    return load_data("fashion-mnist", data_folder)


def test_scores_are_those_worked_out_by_hand() -> None:
    image = torch.zeros(1, 1, 16, 16)
    assert psnr(image + 0.1, image).item() == pytest.approx(20.0, abs=1e-4)
    assert ssim(image + 0.5, image + 0.5).item() == pytest.approx(1.0)
    # Constant images have no structure: SSIM is (2 a b + c1) / (a^2 + b^2 + c1).
    expected = (2 * 0.2 * 0.6 + 0.01**2) / (0.2**2 + 0.6**2 + 0.01**2)
    assert ssim(image + 0.2, image + 0.6).item() == pytest.approx(expected, abs=1e-4)


def test_the_mean_is_taken_over_images_and_not_over_errors() -> None:
    images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    guess = torch.stack([torch.full((1, 16, 16), 0.1), torch.full((1, 16, 16), 0.01)])
    assert score(guess, images).psnr == pytest.approx((20 + 40) / 2, abs=1e-3)
    assert score(guess, images).psnr_worst == pytest.approx(40, abs=1e-3)


def test_floors_are_means_and_knowing_the_class_helps(data: DataSet) -> None:
    everything = mean_image(data.train_images)
    assert torch.allclose(everything, data.train_images.float().mean(dim=0) / 255, atol=1e-5)
    means = class_means(data.train_images, data.train_labels, 10)
    blind = score(everything.expand(len(data.test_images), 1, 28, 28), data.test_images)
    informed = score(means[data.test_labels], data.test_images)
    assert informed.psnr > blind.psnr + 1


def test_a_decoder_recovers_what_the_shares_hold_and_no_more(data: DataSet) -> None:
    """Shares that are thumbnails are inverted far above the floor; shares of noise are not inverted at all."""
    images, test = data.train_images, data.test_images
    budget = DecoderBudget(epochs=12, batch=52, width=16, blocks=1)

    def thumbnails(pixels: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.avg_pool2d(pixels.float(), 4) / 2).to(torch.int8).flatten(1)

    seen: list[float] = []
    decoder = train_decoder(thumbnails(images), images, budget, seed=0, progress=lambda done, _: seen.append(done))
    told = score(reconstruct(decoder, thumbnails(test)), test).psnr
    torch.manual_seed(0)
    noise = [torch.randint(-1, 2, (len(pixels), 49), dtype=torch.int8) for pixels in (images, test)]
    blind = train_decoder(noise[0], images, budget, seed=0, progress=lambda *_: None)
    untold = score(reconstruct(blind, noise[1]), test).psnr
    floor = score(mean_image(images).expand(len(test), 1, 28, 28), test).psnr
    assert seen[-1] == 1.0
    assert told > floor + 4
    assert untold < floor + 0.3


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 30, 50), (1, 9, 9)])
def test_decoder_gives_the_images_size(shape: tuple[int, int, int]) -> None:
    decoder = Decoder((5,), shape, width=8, blocks=1).eval()
    guess = reconstruct(decoder, torch.zeros(2, 5, dtype=torch.int8))
    assert guess.shape == (2, *shape)
    assert 0 <= guess.min() <= guess.max() <= 1


def test_the_linear_attacker_finds_the_coalition_that_tells_most() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (400, 1, 4, 4), generator=generator, dtype=torch.uint8)
    pixels = images.flatten(1).float()
    # Server 1 holds 3 pixels in three levels, 2 and 3 one each, the same; server 0 holds noise.
    levels = torch.bucketize(pixels, torch.tensor([85.0, 170.0])).to(torch.int8) - 1
    noise = torch.randint(-1, 2, (400, 6), generator=generator, dtype=torch.int8)
    shares = [noise, levels[:, :3], levels[:, 5:6], levels[:, 5:6]]
    train, test = [share[:300] for share in shares], [share[300:] for share in shares]

    found = [by_linear_score(train, images[:300], test, images[300:], size) for size in (1, 2, 4)]

    assert found[0] == (1,)
    assert found[1] in {(1, 2), (1, 3)}
    assert found[2] == (0, 1, 2, 3)
    ranked = rank_by_linear_score(train, images[:300], test, images[300:], 1)
    assert ranked[0] == (1,)
    assert ranked[-1] == (0,)


def test_the_linear_attacker_knows_what_each_level_means() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (600, 2), generator=generator)
    # The middle level says bright: no straight line through the levels tells that. The other server's says it loudly.
    bent = torch.where(pixels[:, :1] > 128, 0, torch.where(pixels[:, :1] % 2 == 0, -1, 1)).to(torch.int8)
    straight = (pixels[:, 1:] > 250).to(torch.int8)
    images = pixels.to(torch.uint8).reshape(600, 1, 1, 2)

    members = by_linear_score([straight[:500], bent[:500]], images[:500], [straight[500:], bent[500:]], images[500:], 1)

    assert members == (1,)


def test_scores_are_those_of_scikit_image_and_torchmetrics_on_real_images() -> None:
    """The numbers are of scikit-image 0.26.0 (11 x 11 Gaussian window) and torchmetrics 1.9.0.

    torchmetrics gives PSNR and SSIM of the same windows too, once the border is cut off that it makes by reflection.
    """
    images = shipped_images()
    grey = compare(shifted_and_pale(images), images)
    assert grey.psnr[:3].tolist() == pytest.approx([14.186265, 11.559070, 12.716501], abs=1e-4)
    assert grey.ssim[:3].tolist() == pytest.approx([0.220685, 0.251296, 0.390874], abs=1e-5)
    assert grey.summary().psnr == pytest.approx(12.004659, abs=1e-4)
    assert grey.ms_ssim is None  # too small for five scales
    colour = images[:18].reshape(6, 3, 28, 28)
    together = compare(shifted_and_pale(images)[:18].reshape(6, 3, 28, 28), colour)
    assert together.ssim[:3].tolist() == pytest.approx([0.287619, 0.068502, 0.090441], abs=1e-5)
    rows = [images[(torch.arange(7) + 7 * row) % 20, 0] for row in range(7)]
    mosaic = torch.cat([torch.cat(list(row), dim=1) for row in rows])[None, None]
    large = compare(shifted_and_pale(mosaic), mosaic).ms_ssim
    assert large is not None
    assert large.item() == pytest.approx(0.648116, abs=1e-4)


def test_the_interval_of_a_mean_is_about_the_normal_one_and_shrinks_with_the_number_of_images() -> None:
    torch.manual_seed(0)
    values = torch.randn(400) + 3
    low, high = mean_interval(values, seed=0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    few = mean_interval(values[:50], seed=0)
    assert few[1] - few[0] > 2 * (high - low)
    assert mean_interval(values, seed=0) == (low, high)


def test_the_nearest_image_by_answer_is_of_the_answer() -> None:
    answers = torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.0, 1.0]])
    assert nearest_by_answer(answers, torch.tensor([[0.1, 0.9], [0.9, 0.1]])).tolist() == [2, 0]


def test_a_linear_reconstruction_is_the_best_linear_one() -> None:
    generator = torch.Generator().manual_seed(0)
    share = torch.randint(-1, 2, (500, 4), generator=generator, dtype=torch.int8)
    pixels = (share + 1).float().repeat(1, 4) * 100 + 20
    images = pixels.to(torch.uint8).reshape(500, 1, 4, 4)
    noise = torch.randint(-1, 2, (500, 4), generator=generator, dtype=torch.int8)
    sums, _ = linear_sums([noise, share], images)
    told = linear_reconstruct(sums, (1,), [share])
    assert (told - images.float() / 255).abs().max() < 1e-2
    untold = linear_reconstruct(sums, (0,), [noise])
    assert (untold - images.float().mean(0) / 255).abs().mean() < 0.05


def view_of(count: int, **changes: object) -> ServerView:
    parts = {
        "members": (1,),
        "relation": Relation.SAME_DISTRIBUTION,
        "images": torch.zeros(count, 1, 4, 4, dtype=torch.uint8),
        "labels": torch.zeros(count, dtype=torch.int64),
        "shares": torch.ones(count, 3, dtype=torch.int8),
        "answers": torch.full((count, 2), 5.0),
        "received": torch.zeros(2, 3, dtype=torch.int8),
        "received_answers": torch.zeros(2, 2),
        "steps": None,
        "limits": torch.ones(3),
    }
    return ServerView(**(parts | changes))  # pyright: ignore[reportArgumentType]


def test_a_view_is_frozen_and_holds_nothing_of_the_images_the_attacker_is_after() -> None:
    view = view_of(6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        view.images = torch.zeros(1)  # pyright: ignore[reportAttributeAccessIssue]
    assert "tensor" not in repr(view)
    assert len(view.with_targets(1).received) == 1
    assert view.with_answers_as_shares().shares[0].tolist() == [1, 1, 1, 5, 5]
    assert view.with_answers_as_shares().steps is None


def test_a_view_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(AttackError, match="differ in number"):
        view_of(6, answers=torch.zeros(5, 2))
    with pytest.raises(AttackError, match="at least one"):
        view_of(6, received=torch.zeros(0, 3), received_answers=torch.zeros(0, 2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seen", [(5,), (3, 7, 7)])
def test_every_form_of_decoder_learns_what_is_plain_to_see(form: Form, seen: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    brightness = torch.rand(128)
    images = (brightness[:, None, None, None] * 255).expand(128, 1, 14, 14).to(torch.uint8)
    shares = (1000 * brightness).view(-1, *(1 for _ in seen)).expand(128, *seen)
    budget = DecoderBudget(epochs=15, batch=32, width=8, blocks=1, learning_rate=1e-2)
    network = train_decoder(shares, images, budget, seed=0, progress=lambda *_: None, form=form)
    guess = reconstruct(network, shares)
    assert guess.shape == images.shape
    assert score(guess, images).psnr > 15  # a constant guess has 11


def test_a_decoder_that_is_paid_for_structure_has_more_of_it(data: DataSet) -> None:
    images = data.train_images
    shares = (torch.nn.functional.avg_pool2d(images.float(), 7) / 2).to(torch.int8).flatten(1)
    budget = DecoderBudget(epochs=15, batch=64, width=16, blocks=1)
    plain, paid = (
        score(
            reconstruct(
                train_decoder(shares, images, budget, seed=0, progress=lambda *_: None, form="dense", loss_of=loss),
                shares,
            ),
            images,
        )
        for loss in (squared_error, squared_error_and_similarity)
    )
    assert paid.ssim > plain.ssim


def test_a_decoder_without_time_says_so_and_one_with_little_stops() -> None:
    images, shares = torch.zeros(64, 1, 8, 8, dtype=torch.uint8), torch.zeros(64, 3)
    budget = DecoderBudget(epochs=100_000, batch=32, width=4, blocks=1)
    with pytest.raises(AttackError, match="too short"):
        train_decoder(shares, images, budget, seed=0, progress=lambda *_: None, form="dense", seconds=1e-9)
    last: list[float] = []
    train_decoder(shares, images, budget, seed=0, progress=lambda done, _: last.append(done), form="dense", seconds=0.2)
    assert 0 < last[-1] < 1


def test_values_of_many_levels_are_told_apart_in_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    share = torch.randint(-127, 128, (3000, 2), generator=generator, dtype=torch.int8)
    images = (share.int() + 127).to(torch.uint8).reshape(3000, 1, 1, 2)
    sums, _ = linear_sums([share], images)
    assert len(sums.gram) == 1 + 2 * 15
    assert score(linear_reconstruct(sums, (0,), [share]).repeat(1, 1, 11, 6), images.repeat(1, 1, 11, 6)).psnr > 30
