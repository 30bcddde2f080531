"""The table of bars of coded releases, on figures of our own."""

from collections.abc import Sequence

import pytest

from privdfs_bench.pages.coded_bars import coded_held_table

ENTRY = {
    "sharing": "coded",
    "data": "cifar10, test",
    "backbone": "resnet20",
    "rounds": 2,
    "baseline": 0.91,
    "fused": 0.905,
    "linear_readouts": 0.86,
    "client_macs": 10,
    "baseline_macs": 199,
    "bytes_up": 20_000,
    "bytes_down": 2_000,
}
AUDIT = {
    "proven": [{"above_mean_image": 0.01}, {"above_mean_image": 0.2}],
    "worst": {"3": {"psnr": 25.0, "floor": 13.0}, "2": {"psnr": 20.0, "floor": 13.0}},
}


def cells(
    accuracy: dict[str, object],
    privacy: dict[str, object],
    masked: Sequence[dict[str, object]] = (),
    seeds: dict[str, list[float]] | None = None,
) -> dict[str, list[str]]:
    lines = coded_held_table(accuracy, privacy, masked, seeds or {}).split("\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in rows}


def test_what_misses_a_bar_is_bold_and_what_was_not_measured_is_empty() -> None:
    fashion = ENTRY | {"data": "fashion-mnist, test", "rounds": 1, "fused": 0.9, "baseline": 0.935}
    found = cells({"one": ENTRY, "two": fashion, "masked": {"data": "cifar10, test"}}, {"one": AUDIT})
    assert found["bar"] == ["one", "two"]
    assert found["baseline"] == ["91.00%, at least 90.0%", "93.50%, at least 93.5%"]
    assert found["coded minus baseline"] == ["-0.50, at least -1.0", "**-3.50, at least -1.0**"]
    assert found["device compute / baseline"] == ["**1/19.9, at most 1/20**"] * 2
    assert found["rounds"] == ["2, at most 3", "1, at most 2"]
    assert found["bytes up and down, 3 servers"] == ["**66.0 kB, at most 64 kB**", "**66.0 kB, at most 16 kB**"]
    assert found["coded minus linear readout"] == ["**+4.50, at least +5.0**", "+4.00"]
    assert found["strongest attack on T servers"] == ["**+0.200 dB above the mean image, at most 0.1**", ""]
    assert found["T + 1 servers, above the class mean"] == ["+7.00 dB", ""]


@pytest.mark.parametrize("rounds", [1, 2])
def test_one_round_alone_may_lose_more(rounds: int) -> None:
    found = cells({"one": ENTRY | {"rounds": rounds, "fused": 0.87}}, {})
    assert found["coded minus baseline"] == ["-4.00, at least -5.0" if rounds == 1 else "**-4.00, at least -1.0**"]


def test_the_best_masked_system_of_the_same_cost_stands_beside() -> None:
    points: list[dict[str, object]] = [
        {"name": "dear", "data": "cifar10, ResNet", "lost": 0.5, "cheaper": 19.0},
        {"name": "cheap", "data": "cifar10, ResNet", "lost": 14.5, "cheaper": 20.5},
        {"name": "worse", "data": "cifar10, ResNet", "lost": 20.0, "cheaper": 30.0},
        {"name": "other", "data": "cifar10, ViT", "lost": 1.0, "cheaper": 30.0},
    ]
    assert cells({"one": ENTRY}, {}, points)["masked shares for 1/20, minus baseline"] == ["-14.50 (cheap)"]
    assert "masked shares for 1/20, minus baseline" not in cells({"one": ENTRY}, {}, points[:1])


def test_the_mean_of_several_seeds_has_the_bar_too() -> None:
    found = cells({"one": ENTRY, "two": ENTRY}, {}, seeds={"one": [-0.5, -1.0, -1.8]})
    assert found["the same, mean of all seeds"] == ["**-1.10 (3 seeds), at least -1.0**", ""]
