import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privdfs_bench.speed.percentiles import percentile, percentile_interval, samples_needed


def test_percentiles_are_samples_at_the_nearest_rank() -> None:
    ordered = list(range(1, 101))
    assert [percentile(ordered, fraction) for fraction in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([7.0], 0.01) == percentile([7.0], 0.99) == 7.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_that_fraction_of_the_samples_is_not_above_the_percentile(samples: list[float], fraction: float) -> None:
    ordered = sorted(samples)
    found = percentile(ordered, fraction)
    assert sum(sample <= found for sample in ordered) >= fraction * len(ordered) - 1e-9
    assert sum(sample < found for sample in ordered) < fraction * len(ordered) + 1e-9


@pytest.mark.parametrize(
    ("count", "fraction", "ranks"),
    [
        (100, 0.5, (40, 61)),  # tables of order-statistic intervals of the median
        (10, 0.5, (2, 9)),
        (1000, 0.99, (983, 997)),
        (1000, 0.5, (469, 532)),
    ],
)
def test_ranks_of_the_interval(count: int, fraction: float, ranks: tuple[int, int]) -> None:
    assert percentile_interval(list(range(1, count + 1)), fraction) == ranks


def test_a_side_that_too_few_samples_bound_is_open() -> None:
    assert percentile_interval(list(range(1, 101)), 0.99) == (97, None)
    assert percentile_interval([1.0, 2.0, 3.0], 0.5) == (None, None)
    assert percentile_interval(list(range(1, 101)), 0.01) == (None, 4)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9, 0.99, 0.999])
def test_so_many_samples_bound_both_sides_and_one_less_does_not(fraction: float) -> None:
    enough = samples_needed(fraction)
    assert None not in percentile_interval(list(range(enough)), fraction)
    assert None in percentile_interval(list(range(enough - 1)), fraction)


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99])
def test_the_interval_holds_the_true_percentile_as_often_as_it_says(fraction: float) -> None:
    generator = np.random.default_rng(5)
    truth = -np.log1p(-fraction)  # of the exponential distribution, which latencies resemble more than a normal one
    trials, held = 600, 0
    for _ in range(trials):
        low, high = percentile_interval(np.sort(generator.exponential(size=1000)).tolist(), fraction)
        assert low is not None
        assert high is not None
        held += low <= truth <= high
    # 95 % or a little more, since ranks are whole numbers; three standard errors of 600 trials are 2.7 points.
    assert 0.923 <= held / trials <= 0.995


def test_more_confidence_is_a_wider_interval() -> None:
    ordered = list(range(1000))
    narrow, wide = (percentile_interval(ordered, 0.5, confidence) for confidence in (0.8, 0.99))
    assert narrow[0] is not None
    assert wide[0] is not None
    assert narrow[1] is not None
    assert wide[1] is not None
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
