from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.device.timing_intervals import MAX_BLOCKS, MIN_BLOCK, blocks, bootstrap_interval, median_interval, order_statistic_interval


@given(st.integers(1, 6000))
def test_blocks_share_out_all_rounds_once(rounds: int) -> None:
    found = blocks(rounds)
    assert [at for block in found for at in range(rounds)[block]] == list(range(rounds))
    sizes = {block.stop - block.start for block in found}
    assert max(sizes) - min(sizes) <= 1
    assert len(found) <= MAX_BLOCKS
    assert len(found) == 1 or min(sizes) >= MIN_BLOCK


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=300))
def test_the_interval_holds_the_median(values: list[float]) -> None:
    found = median_interval(np.array(values), 0.95)
    if len(values) < 2 * MIN_BLOCK:
        assert found is None
    else:
        assert found is not None
        assert min(values) <= found.low <= np.median(values) <= found.high <= max(values)


def test_order_statistics_against_the_table() -> None:
    """Ranks of the sign test: n = 10 at 1 - 2 * 11 / 1024 = 97.9 % is the 2nd..9th, n = 20 at 95.9 % the 6th..15th."""
    assert order_statistic_interval(np.arange(1.0, 11), 1 - 2 * 11 / 1024)[:2] == pytest.approx((2, 9))
    low, high, reached = order_statistic_interval(np.arange(1.0, 21), 0.95861)
    assert (low, high, reached) == (pytest.approx(6, abs=0.01), pytest.approx(15, abs=0.01), 0.95861)


def test_interpolation_by_hand() -> None:
    """n = 10 at 95 %, by the paper: ranks 2 (97.85 %) and 3 (89.06 %), I = 0.3240, lambda = 8 I / (2 + 6 I) = 0.6573."""
    low, high, reached = order_statistic_interval(np.arange(1.0, 11), 0.95)
    assert (low, high, reached) == (pytest.approx(2.657, abs=0.001), pytest.approx(8.343, abs=0.001), 0.95)


def test_too_few_samples_admit_the_confidence_they_have() -> None:
    assert order_statistic_interval(np.array([1.0, 2.0]), 0.95) == (1.0, 2.0, 0.5)
    assert order_statistic_interval(np.arange(5.0), 0.95) == (0.0, 4.0, 1 - 2**-4)
    low, high, reached = order_statistic_interval(np.arange(8.0), 0.95)
    assert reached == 0.95
    assert 0 < low < 1
    assert 6 < high < 7


def test_more_confidence_is_wider() -> None:
    ordered = np.sort(np.random.default_rng(0).standard_normal(20))
    spans = [order_statistic_interval(ordered, confidence) for confidence in (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)]
    widths = [high - low for low, high, _ in spans]
    assert widths == sorted(widths)
    assert len(set(widths)) == 6


def disturbed(generator: np.random.Generator, rounds: int, memory: float) -> np.ndarray:
    """Log-normal noise whose neighbours resemble each other (AR(1)) around a median of exactly 1."""
    noise = generator.standard_normal(rounds)
    for at in range(1, rounds):
        noise[at] = memory * noise[at - 1] + np.sqrt(1 - memory**2) * noise[at]
    return np.exp(0.1 * noise)


@pytest.mark.parametrize(("rounds", "memory"), [(40, 0.0), (200, 0.0), (500, 0.6), (1000, 0.8)])
def test_the_interval_holds_the_truth_as_often_as_it_says(rounds: int, memory: float) -> None:
    """Of 600 simulated series 95 % should; three standard deviations of that count are 2.7 %."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(600):
        found = median_interval(disturbed(generator, rounds, memory), 0.95)
        assert found is not None
        hits += found.low <= 1 <= found.high
    assert 0.92 <= hits / 600 <= 0.985


def test_independence_would_have_promised_too_much() -> None:
    """Why there are blocks: the sign test on the rounds themselves misses far too often on such a series."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        low, high, _ = order_statistic_interval(np.sort(disturbed(generator, 500, 0.6)), 0.95)
        hits += low <= 1 <= high
    assert hits / 100 < 0.8


@pytest.mark.parametrize("quantile", [None, 0.95])
def test_the_bootstrap_holds_the_truth_nearly_as_often_as_it_says(quantile: float | None) -> None:
    generator = np.random.default_rng(2)
    truth = np.exp(0.1 * 1.6448536) if quantile else np.exp(0.005)  # of a log-normal with sigma 0.1
    hits = 0
    for seed in range(100):
        series = disturbed(generator, 400, 0.3)
        found = bootstrap_interval([series[at : at + 1] for at in range(400)], quantile, 0.95, seed=seed)
        assert found is not None
        hits += found.low <= truth <= found.high
    assert 0.84 <= hits / 100 <= 1


def test_the_bootstrap_needs_two_blocks_and_repeats() -> None:
    rounds = [np.array([float(at)]) for at in range(2 * MIN_BLOCK)]
    assert bootstrap_interval(rounds[:-1], None, 0.95) is None
    assert bootstrap_interval(rounds, None, 0.95) == bootstrap_interval(rounds, None, 0.95)
    assert bootstrap_interval(rounds, None, 0.95) != bootstrap_interval(rounds, 0.5, 0.95)
