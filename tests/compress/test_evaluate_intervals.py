"""Intervals: against published values, against simulation, and against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import f1_score, roc_auc_score

from whet.compress.evaluate.intervals import (
    mcnemar_p,
    mean_interval,
    needed_samples,
    percentile_interval,
    proportion_interval,
    replicated,
    tango_interval,
    tango_statistic,
    two_sided,
)
from whet.compress.evaluate.whole import weighted_auc, weighted_f1, weighted_macro_auc, weighted_rmse
from whet.core.errors import Refused


# Fagerland, Lydersen, Laake, "Recommended tests and confidence intervals for paired binomial proportions" (2014), table for Bentur et al.
# and Cavo et al. (R package contingencytables prints the second to four digits); the third from R's PropCIs::scoreci.mp.
@pytest.mark.parametrize(("lost", "gained", "n", "confidence", "low", "high", "digits"), [
    (1, 7, 21, 0.95, -0.517, -0.026, 3),
    (6, 16, 161, 0.95, -0.1240, -0.0054, 4),
    (28, 25, 618, 0.90, -0.0148, 0.0247, 4),
])
def test_tango_gives_the_published_values(lost: int, gained: int, n: int, confidence: float, low: float, high: float, digits: int) -> None:
    found = tango_interval(lost, gained, n, confidence)
    assert round(found.low, digits) == low
    assert round(found.high, digits) == high
    assert found.confidence == confidence


@given(st.integers(1, 400), st.data())
def test_tango_holds_the_difference_and_mirrors(n: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    one, other = tango_interval(lost, gained, n, 0.9), tango_interval(gained, lost, n, 0.9)
    assert -1 <= one.low <= (lost - gained) / n <= one.high <= 1
    assert one.low < one.high
    assert one.low == pytest.approx(-other.high, abs=1e-8)
    z = norm.ppf(0.95)
    for end, sign in ((one.low, 1), (one.high, -1)):
        if abs(end) < 1 - 1e-9:
            assert tango_statistic(lost, gained, n, end) == pytest.approx(sign * z, abs=1e-3)


def test_tango_has_a_width_where_nothing_differs() -> None:
    z2 = norm.ppf(0.95) ** 2
    assert tango_interval(0, 0, 2000, 0.9).high == pytest.approx(z2 / (2000 + z2), rel=1e-6)


@pytest.mark.parametrize(("n", "p_lost", "p_gained"), [
    (n, p_lost, p_gained)
    for n in (300, 2000) for p_lost in (0.001, 0.005, 0.01, 0.05) for p_gained in (0.0, 0.001, 0.005, 0.03) if p_gained <= p_lost
])
def test_the_upper_end_of_tango_covers_as_promised(n: int, p_lost: float, p_gained: float) -> None:
    """Where the candidate is really no better, the true drop exceeds the upper end of the 0.90 interval in about 5 % of all samples."""
    draws = np.random.default_rng(1).multinomial(n, [p_lost, p_gained, 1 - p_lost - p_gained], size=40_000).astype(np.float64)
    z = norm.ppf(0.95)
    inside = tango_statistic(draws[:, 0], draws[:, 1], n, p_lost - p_gained) >= -z  # the same as: upper end >= the true drop
    assert inside.mean() >= 0.935
    if n * (p_lost + p_gained) > 20:
        assert inside.mean() <= 0.975


def test_clopper_pearson_is_exact_at_zero_and_all() -> None:
    found = proportion_interval(0, 100, 0.90)
    assert (found.low, found.high) == (0, pytest.approx(1 - 0.05 ** (1 / 100)))
    assert proportion_interval(100, 100, 0.90).low == pytest.approx(0.05 ** (1 / 100))
    assert proportion_interval(3, 10, 0.95).low == pytest.approx(0.0667, abs=1e-4)


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1.0), (5, 0, 2 * 0.5**5), (1, 7, 2 * 9 / 256), (4, 4, 1.0)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int, p: float) -> None:
    assert mcnemar_p(lost, gained) == pytest.approx(p)


@pytest.mark.parametrize("confidence", [0.5, 1.0, -0.1, 95])
def test_a_confidence_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(Refused, match="confidence"):
        two_sided(confidence)


def test_one_sided_confidence_becomes_two_sided() -> None:
    assert two_sided(0.95) == 0.9


@pytest.mark.parametrize(("n", "method"), [(200, "BCa"), (4000, "percentile")])
def test_the_mean_interval_agrees_with_the_normal_one(n: int, method: str) -> None:
    values = np.random.default_rng(0).normal(3, 2, n)
    found, how = mean_interval(values, 0.9, seed=0)
    half = norm.ppf(0.95) * values.std(ddof=1) / np.sqrt(n)
    assert how.startswith(method)
    assert found.low == pytest.approx(values.mean() - half, abs=half * 0.15)
    assert found.high == pytest.approx(values.mean() + half, abs=half * 0.15)
    assert mean_interval(values, 0.9, seed=0)[0] == found


@pytest.mark.parametrize("values", [[2.0], [1.0, 1.0, 1.0]])
def test_a_mean_of_equal_values_has_no_width(values: list[float]) -> None:
    found, how = mean_interval(np.array(values), 0.9, seed=0)
    assert (found.low, found.high, how) == (values[0], values[0], "all samples equal")


def test_resampling_weights_are_bootstrap_counts() -> None:
    seen = replicated(lambda weights: weights, 50, 3, 1000)
    assert seen.shape == (1000, 50)
    assert (seen.sum(axis=1) == 50).all()
    assert seen.mean() == pytest.approx(1)
    assert seen.var() == pytest.approx(1 - 1 / 50, abs=0.03)
    assert np.array_equal(seen, replicated(lambda weights: weights, 50, 3, 1000))
    assert not np.array_equal(seen, replicated(lambda weights: weights, 50, 4, 1000))


def test_the_percentile_interval_leaves_undefined_replicates_out() -> None:
    found = percentile_interval(np.array([*range(101), np.nan], float), 0.9)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((5, 95))
    assert percentile_interval(np.array([np.nan]), 0.9) is None


# -- the metrics of a whole sample against scikit-learn's, on repeated rows ------------------------------------------------------------


@given(st.integers(2, 4), st.integers(2, 40), st.integers(0, 999))
def test_weighted_metrics_are_scikit_learns_on_the_drawn_rows(classes: int, n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, found = random.integers(classes, size=n), random.integers(classes, size=n)
    scores = random.integers(0, 6, (n, classes)) / 5  # with ties
    errors = random.normal(size=n)
    weights = random.multinomial(n, np.full(n, 1 / n), size=3).astype(np.float64)
    f1 = weighted_f1(found, labels, weights, binary=classes == 2)
    auc = weighted_auc(scores[:, 0], labels == 1, weights)
    rmse = weighted_rmse(errors**2, weights)
    for row, weight in enumerate(weights):
        drawn = np.repeat(np.arange(n), weight.astype(int))
        average = "binary" if classes == 2 else "macro"
        assert f1[row] == pytest.approx(f1_score(labels[drawn], found[drawn], average=average, zero_division=0.0))
        assert rmse[row] == pytest.approx(np.sqrt(np.mean(errors[drawn] ** 2)))
        positive = labels[drawn] == 1
        if positive.any() and not positive.all():
            assert auc[row] == pytest.approx(roc_auc_score(positive, scores[drawn, 0]))
        else:
            assert np.isnan(auc[row])


def test_macro_auc_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    labels, scores = np.arange(60) % 4, random.random((60, 4))
    scores /= scores.sum(axis=1, keepdims=True)
    wanted = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert weighted_macro_auc(scores, labels, np.ones((1, 60)))[0] == pytest.approx(wanted)


# -- how many samples would do ----------------------------------------------------------------------------------------------------------


def test_needed_samples_of_a_share_are_about_right() -> None:
    for rate in (0.0, 0.002, 0.02):
        high = tango_interval(round(rate * 1000), round(rate * 1000), 1000, 0.9).high
        needed = needed_samples(0.0, high, 1000, 0.001)
        assert needed is not None
        lost = round(rate * needed)
        assert tango_interval(lost, lost, needed, 0.9).high == pytest.approx(0.001, rel=0.2)


def test_needed_samples_of_a_mean_follow_the_square_root() -> None:
    assert needed_samples(1.0, 1.5, 100, 1.25, share=False) == 400
    assert needed_samples(1.0, 1.0, 100, 1.25, share=False) == 100


@pytest.mark.parametrize("value", [0.01, 0.02])
def test_no_number_of_samples_proves_what_is_not_so(value: float) -> None:
    assert needed_samples(value, 0.03, 100, 0.01) is None
