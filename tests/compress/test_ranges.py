"""Ranges from streaming statistics, against the papers' methods on the raw numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.slow_papers import calibration

from whet.compress.ranges import NEEDS_HISTOGRAM, Wanted, by_entropy, by_mse, by_percentile, find_range, wanted
from whet.compress.statistics import Statistics
from whet.compress.technique import technique
from whet.core.errors import Refused

Array = np.ndarray[Any, Any]
METHODS = ("minmax", "moving_average", "percentile", "entropy", "mse", "octav")
KINDS = {
    "normal": lambda random, size: random.standard_normal(size),
    "laplace": lambda random, size: random.laplace(size=size),
    "heavy": lambda random, size: random.standard_t(3, size),
    "relu": lambda random, size: np.maximum(random.standard_normal(size), 0),
    "relu heavy": lambda random, size: np.maximum(random.standard_t(3, size), 0),
    "negative": lambda random, size: -np.abs(random.standard_normal(size)),
    "uniform": lambda random, size: random.uniform(-1, 3, size),
    "shifted": lambda random, size: random.standard_normal(size) + 20,
}


def drawn(kind: str, batches: int = 8, size: int = 2500) -> tuple[Statistics, Array]:
    random = np.random.default_rng(sorted(KINDS).index(kind))
    found, parts = Statistics("t", with_histogram=True), []
    for _ in range(batches):
        parts.append(KINDS[kind](random, size).astype(np.float32))
        found.update(parts[-1])
    return found, np.concatenate(parts)


@pytest.mark.parametrize("share", [99.99, 99.999, 99.9999])
@pytest.mark.parametrize("kind", [*KINDS, "clipped", "steps"])
def test_kept_tails_give_the_percentile_of_all_numbers(kind: str, share: float) -> None:
    random = np.random.default_rng(3)
    made = {"clipped": lambda random, size: np.clip(random.standard_normal(size), -0.1, 0.5),
            "steps": lambda random, size: np.rint(random.standard_normal(size)), **KINDS}[kind]
    for samples, size in ((40, 6000), (3, 50_000), (200, 30)):
        parts = [made(random, (many, size)).astype(np.float32) for many in _cut(random, samples)]
        found = Statistics("t", tails=(100 - share) / 200 * samples)
        for part in parts:
            seen = found.look(part, len(part))
            assert seen is not None
            found.join(seen, len(part))
        numbers = np.concatenate([part.ravel() for part in parts])
        assert len(found.highest) <= found.kept <= 2 + (100 - share) / 200 * numbers.size
        outside = (100 - share) / 2
        low, high = np.quantile(numbers.astype(np.float64), [outside / 100, 1 - outside / 100])
        expected = max(min(low, 0.0), found.low), min(max(high, 0.0), found.high)
        assert by_percentile(found, share) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def _cut(random: np.random.Generator, samples: int) -> list[int]:
    """Batches of unequal size."""
    ends = np.unique(random.integers(1, samples, size=4))
    return np.diff([0, *ends, samples]).tolist()


def test_tails_are_the_same_whoever_looks_first() -> None:
    parts = [np.random.default_rng(at).standard_t(3, (4, 9000)).astype(np.float32) for at in range(6)]
    ahead, behind = (Statistics("t", tails=1e-4 * 24) for _ in range(2))
    looks = [ahead.look(part, 4) for part in parts]  # all before the first is joined
    for part, look in zip(parts, looks, strict=True):
        assert look is not None
        ahead.join(look, 4)
        seen = behind.look(part, 4)
        assert seen is not None
        behind.join(seen, 4)
    assert ahead.lowest.tolist() == behind.lowest.tolist()
    assert ahead.highest.tolist() == behind.highest.tolist()


def test_what_is_observed_is_what_the_options_need() -> None:
    assert wanted([{"ranges": "minmax"}]) == Wanted()
    near, far = {"ranges": "percentile", "percentile": 99.999}, {"ranges": "percentile", "percentile": 99.0}
    assert wanted([near, {"ranges": "minmax"}]) == Wanted(False, pytest.approx(5e-6))
    assert wanted([far]) == Wanted(True, 0.0)
    assert wanted([near, {"ranges": "mse"}]) == Wanted(True, pytest.approx(5e-6))


@pytest.mark.parametrize("kind", KINDS)
def test_min_max_and_moving_average(kind: str) -> None:
    found, numbers = drawn(kind)
    assert find_range(found, "minmax", codes=256, percentile=99) == (float(numbers.min()), float(numbers.max()))
    batches = list(numbers.reshape(8, -1))
    assert find_range(found, "moving_average", codes=256, percentile=99) == pytest.approx(calibration.moving_average(batches, 0.9))


@pytest.mark.parametrize("share", [50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_agree_with_the_sorted_numbers_within_a_bin(kind: str, share: float) -> None:
    found, numbers = drawn(kind)
    low, high = by_percentile(found, share)
    # Where numbers are rarer than bins, any point between two of them is right: allow the neighbours in the sorted order.
    ordered = np.sort(numbers.astype(np.float64))
    outside = (100.0 - share) / 200.0 * (ordered.size - 1)
    ends = [(high, ordered.size - 1 - outside)] + ([(low, outside)] if found.low < 0 else [])
    for value, rank in ends:  # what lies wholly above 0 begins at 0 on every grid, so its low end has no say
        first, last = max(int(np.floor(rank)) - 1, 0), min(int(np.ceil(rank)) + 1, ordered.size - 1)
        assert ordered[first] - found.width * 1.01 <= value <= ordered[last] + found.width * 1.01
    assert found.low <= low <= high <= found.high


def test_the_slow_percentile_is_numpys() -> None:
    _, numbers = drawn("normal")
    low, high = calibration.percentile(numbers, 99.0)
    assert (low, high) == pytest.approx((np.percentile(numbers, 0.5), np.percentile(numbers, 99.5)), abs=0.02)


def test_all_of_a_hundred_percent_is_min_max() -> None:
    found, numbers = drawn("heavy")
    assert by_percentile(found, 100.0) == (float(numbers.min()), float(numbers.max()))


@pytest.mark.parametrize("codes", [16, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_nearly_as_good_as_the_best_range_found_on_the_raw_numbers(kind: str, codes: int) -> None:
    found, numbers = drawn(kind, size=250)
    low, high = by_mse(found, codes)
    ours = calibration.squared_error(numbers, low, high, codes)
    shares = np.arange(1.0, 0.095, -0.05)
    best = min(calibration.squared_error(numbers, share * found.low, share * found.high, codes) for share in shares)
    assert ours <= 1.1 * best


def test_mse_cuts_an_outlier_off_and_min_max_does_not() -> None:
    found, numbers = drawn("relu", size=500)
    outlier = np.array([20.0], np.float32)
    found.update(outlier)
    everything = np.append(numbers, outlier)
    ours, naive = (calibration.squared_error(everything, *by(found), 16) for by in (lambda s: by_mse(s, 16), lambda s: (s.low, s.high)))
    assert ours < 0.9 * naive


@pytest.mark.parametrize("codes", [16, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_the_pseudocode_of_its_paper_on_the_histogram_without_zeros(kind: str, codes: int) -> None:
    found, _ = drawn(kind)
    counts = found.counts.tolist()
    zero = min(max(int(-found.start / found.width), 0), len(counts) - 1)
    beside = zero + 1 if found.high > 0 and zero + 1 < len(counts) else max(zero - 1, 0)
    counts[zero] = min(counts[zero], counts[beside])
    share = calibration.entropy_share(counts, found.start, found.width, found.low, found.high, codes)
    assert by_entropy(found, codes) == pytest.approx((share * found.low, share * found.high))


def test_entropy_does_not_cut_a_relu_to_pieces() -> None:
    found, numbers = drawn("relu")
    low, high = by_entropy(found, 256)
    assert low == 0.0
    assert high > 0.6 * found.high
    naive = calibration.squared_error(numbers[:4000], 0.0, found.high, 256)
    assert calibration.squared_error(numbers[:4000], low, high, 256) < 3 * naive


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_one_value_keeps_its_range(method: str) -> None:
    found = Statistics("t", with_histogram=True)
    for _ in range(3):
        found.update(np.full((4, 4), -2.5, np.float32))
    assert find_range(found, method, codes=256, percentile=99.9) == (-2.5, -2.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_nobody_saw_is_refused(method: str) -> None:
    with pytest.raises(Refused, match="no calibration sample"):
        find_range(Statistics("t", with_histogram=True), method, codes=256, percentile=99.9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_range_lies_within_min_max_and_holds_what_is_common(kind: str, method: str) -> None:
    found, numbers = drawn(kind)
    low, high = find_range(found, method, codes=256, percentile=99.9)
    assert min(found.low, 0.0) - 1e-6 <= min(low, 0.0) <= max(high, 0.0) <= max(found.high, 0.0) + 1e-6
    if method != "entropy":
        middle = np.percentile(numbers, [10, 90])
        assert min(low, 0.0) <= max(middle[0], 0.0)
        assert max(high, 0.0) >= middle[1]


def test_the_methods_that_need_a_histogram_say_so() -> None:
    assert set(METHODS) >= NEEDS_HISTOGRAM
    (option,) = (option for option in technique("static").options if option.name == "ranges")
    assert set(option.search.values) == set(METHODS)
    bare = Statistics("t")
    bare.update(np.arange(5, dtype=np.float32))
    for method in set(METHODS) - NEEDS_HISTOGRAM:
        assert find_range(bare, method, codes=256, percentile=99.9) == (0.0, 4.0)


@pytest.mark.parametrize("percentile", [-1.0, 0.0, 49.9, 100.1, 1000.0, float("nan"), float("inf")])
def test_a_percentile_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(Refused, match="percentile"):
        technique("static").checked({"ranges": "percentile", "percentile": percentile})
