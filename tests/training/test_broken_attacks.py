"""Attacks and defences that are broken on purpose, really run: the self-checks must raise their flags, and no others.

`test_selfchecks.py` has the rules on made-up figures; here the figures come out of the attacks themselves.
"""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from privdfs_training.attacks import decoder
from privdfs_training.attacks.decoder import DecoderBudget, reconstruct, train_decoder
from privdfs_training.attacks.floors import mean_image
from privdfs_training.attacks.linear import linear_reconstruct, linear_sums
from privdfs_training.attacks.metrics import mean_interval, psnr
from privdfs_training.attacks.selfchecks import Measured, check_each, check_more, check_undefended, check_views

PAIRS, TARGETS = 1200, 200
SOUND = DecoderBudget(epochs=12, batch=50, width=4, blocks=1)
BROKEN = DecoderBudget(epochs=1, batch=50, width=4, blocks=1, learning_rate=1e-7)


def images_of(count: int, seed: int) -> Tensor:
    """Blurred 8 x 8 images of 16 free numbers each, uint8 [count, 1, 8, 8]."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, (8, 8), mode="bilinear")).to(torch.uint8)


IMAGES, WANTED = images_of(PAIRS, 0), images_of(TARGETS, 1)


def shares(images: Tensor, values: slice) -> Tensor:
    """What some servers get of a feature of 12 values, int8 [images, values]."""
    weights = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))
    return (2 * (images.flatten(1).float() / 255 - 0.5) @ weights).round().clamp(-127, 127).to(torch.int8)[:, values]


ONE, TWO = slice(0, 6), slice(0, 12)


def guessed(budget: DecoderBudget, seen: slice = TWO, *, pairs: int = PAIRS, **options: Any) -> Tensor:
    learned = shares(IMAGES[:pairs], seen), IMAGES[:pairs]
    network = train_decoder(*learned, budget, seed=0, progress=lambda *_: None, form="dense", **options)
    return reconstruct(network, shares(WANTED, seen))


def measured(guess: Tensor, members: tuple[int, ...] = (0, 1), **about: Any) -> Measured:
    wanted = WANTED[: len(guess)]
    scores = psnr(guess, wanted.float() / 255)
    low, high = mean_interval(scores, seed=0)
    floor = psnr(mean_image(IMAGES).expand(len(guess), 1, 8, 8), wanted.float() / 255).mean()
    values = {"psnr": float(scores.mean()), "interval": (low, high), "blind_floor": float(floor)}
    return Measured(
        **{"attack": "dense", "pairs": PAIRS, "relation": "", "images": len(guess)} | values | about, members=members
    )


def raised(flags: list[Any]) -> list[str]:
    return [flag.check for flag in flags]


@pytest.fixture(scope="module")
def sound() -> dict[str, Measured]:
    return {
        "two servers": measured(guessed(SOUND)),
        "one server": measured(guessed(SOUND, ONE), (0,)),
        "few pairs": measured(guessed(SOUND, pairs=100), pairs=100),
    }


def test_sound_attacks_raise_nothing(sound: dict[str, Measured]) -> None:
    found = list(sound.values())
    assert check_views(found) == check_more(found) == check_each(found) == []
    assert sound["two servers"].psnr > sound["one server"].psnr + 1 > sound["one server"].blind_floor + 2


def test_a_larger_coalition_whose_decoder_was_hardly_trained(sound: dict[str, Measured]) -> None:
    assert raised(check_views([sound["one server"], measured(guessed(BROKEN))])) == ["stronger view"]


def test_more_pairs_for_a_decoder_that_was_hardly_trained(sound: dict[str, Measured]) -> None:
    assert raised(check_more([sound["few pairs"], measured(guessed(BROKEN))])) == ["more pairs"]


def test_an_attack_that_does_not_even_break_what_nothing_defends() -> None:
    plain = (IMAGES.flatten(1).float(), WANTED.flatten(1).float())
    sums, _ = linear_sums([plain[0]], IMAGES)
    linear = measured(linear_reconstruct(sums, (0,), [plain[1]]), ())
    network = train_decoder(plain[0], IMAGES, BROKEN, seed=0, progress=lambda *_: None, form="dense")
    weak = measured(reconstruct(network, plain[1]), ())
    assert check_undefended({"linear": linear.psnr}, ["linear"], linear.blind_floor) == []
    (flag,) = check_undefended({"linear": linear.psnr, "dense": weak.psnr}, ["dense"], weak.blind_floor)
    assert flag.message.startswith("dense reaches")


def test_a_decoder_that_takes_the_values_for_others() -> None:
    """As one fitted to another partition does: what it says is worse than nothing, and shows no protection."""
    learned = train_decoder(shares(IMAGES, TWO), IMAGES, SOUND, seed=0, progress=lambda *_: None, form="dense")
    guess = reconstruct(learned, shares(WANTED, TWO).flip(1))
    assert raised(check_each([measured(guess)])) == ["below the floor"]


def test_a_dozen_images(sound: dict[str, Measured]) -> None:
    few = measured(guessed(SOUND)[:12])
    assert few.psnr == pytest.approx(sound["two servers"].psnr, abs=2)
    assert raised(check_each([few])) == ["few images"]


def test_a_decoder_whose_time_ran_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(decoder, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    steps: list[float] = []
    network = train_decoder(
        shares(IMAGES, TWO),
        IMAGES,
        SOUND,
        seed=0,
        progress=lambda done, _: steps.append(done),
        form="dense",
        seconds=200,
    )
    cut = measured(reconstruct(network, shares(WANTED, TWO)), finished=steps[-1] >= 1)
    assert 0.2 < steps[-1] < 1
    assert raised(check_each([cut])) == ["cut short"]
