"""Every flag is raised by an evaluation that is broken in just that way, and by no sound one."""

from dataclasses import replace

from privdfs_training.attacks.selfchecks import Measured, check_each, check_more, check_undefended, check_views

SOUND = Measured("dense", (0,), 14.4, (14.2, 14.6), 1000, 10.9, 20_000, "other images of the same distribution")


def raised(flags: list) -> list[str]:
    return [flag.check for flag in flags]


def test_a_sound_evaluation_has_no_flags() -> None:
    both = [SOUND, replace(SOUND, members=(0, 1), psnr=14.9), replace(SOUND, pairs=64, psnr=11.5)]
    assert check_views(both) == check_more(both) == check_each(both) == []
    assert check_undefended({"decoder": 26.0}, ["dense"], 13.4) == []


def test_an_attack_that_cannot_break_what_nothing_defends() -> None:
    (flag,) = check_undefended({"decoder": 16.0, "optimisation": 30.0}, ["dense"], 13.4)
    assert flag.check == "undefended"
    assert "decoder reaches 16.0 dB" in flag.message
    assert raised(check_undefended({}, ["dense"], 13.4)) == ["undefended"]


def test_a_larger_coalition_that_does_worse() -> None:
    worse = replace(SOUND, members=(0, 1), psnr=14.0)
    (flag,) = check_views([SOUND, worse])
    assert flag.check == "stronger view"
    assert "servers 0, 1 reaches 14.00 dB" in flag.message
    assert check_views([SOUND, replace(worse, members=(1, 2))]) == []  # knows other things
    assert check_views([SOUND, replace(worse, attack="linear")]) == []  # another attack
    assert check_views([SOUND, replace(worse, psnr=14.35)]) == []  # within what two runs differ by


def test_more_pairs_that_do_worse() -> None:
    assert raised(check_more([SOUND, replace(SOUND, pairs=64, psnr=15.0)])) == ["more pairs"]
    assert check_more([SOUND, replace(SOUND, pairs=64, psnr=15.0, images=16)]) == []  # of other images


def test_what_one_result_shows_alone() -> None:
    assert raised(check_each([replace(SOUND, aware=False)])) == ["unaware"]
    assert raised(check_each([replace(SOUND, gradient=0.0)])) == ["no gradient"]
    assert raised(check_each([replace(SOUND, gradient=0.1)])) == []
    assert raised(check_each([replace(SOUND, psnr=10.5)])) == ["below the floor"]
    assert raised(check_each([replace(SOUND, images=16)])) == ["few images"]
    assert raised(check_each([replace(SOUND, interval=(13.0, 16.0))])) == ["few images"]
    assert raised(check_each([replace(SOUND, finished=False)])) == ["cut short"]
