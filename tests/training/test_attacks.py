from pathlib import Path

import pytest
import torch

from privdfs_training.attacks.decoder import Decoder, DecoderBudget, reconstruct, train_decoder
from privdfs_training.attacks.floors import class_means, mean_image
from privdfs_training.attacks.linear import by_linear_score
from privdfs_training.attacks.metrics import psnr, score, ssim
from privdfs_training.data import DataSet, load_data


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


def test_the_linear_attacker_knows_what_each_level_means() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (600, 2), generator=generator)
    # The middle level says bright: no straight line through the levels tells that. The other server's says it loudly.
    bent = torch.where(pixels[:, :1] > 128, 0, torch.where(pixels[:, :1] % 2 == 0, -1, 1)).to(torch.int8)
    straight = (pixels[:, 1:] > 250).to(torch.int8)
    images = pixels.to(torch.uint8).reshape(600, 1, 1, 2)

    members = by_linear_score([straight[:500], bent[:500]], images[:500], [straight[500:], bent[500:]], images[500:], 1)

    assert members == (1,)
