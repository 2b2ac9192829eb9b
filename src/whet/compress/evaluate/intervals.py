"""Intervals around proportions, means and statistics of a whole sample, all paired: the same samples for both models.

``confidence`` is everywhere that of the two-sided interval. A gate looks at the upper end alone, and what lies above the upper end of
an equal-tailed interval of 0.90 has a probability of 0.05: hence ``two_sided``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from whet.core.errors import Refused
from whet.core.measurement import Interval

Array = np.ndarray[Any, Any]

RESAMPLES = 2000
BUDGET = 20_000_000  # samples drawn for one interval: fewer resamples for larger data, which need them less
FEWEST = 400
AT_ONCE = 250_000  # numbers drawn at a time: they stay in the cache; 4 million take 2 to 5 times as long
BCA_LIMIT = 3000  # BCa's jackknife takes n * n steps; beyond this many samples its correction (of order 1/n) no longer matters


def two_sided(confidence: float) -> float:
    """The confidence of the two-sided interval whose upper end alone has ``confidence``. Raises Refused outside 0.5..1."""
    if not 0.5 < confidence < 1:
        raise Refused(f"give an interval of confidence {confidence}", found="it must lie between 0.5 and 1", do="use 0.95")
    return round(2 * confidence - 1, 12)


def proportion_interval(successes: int, n: int, confidence: float) -> Interval:
    """Clopper-Pearson's exact interval of a share: never narrower than promised, and honest at 0 of n (upper end about 3/n)."""
    from scipy.stats import binomtest

    found = binomtest(successes, n).proportion_ci(confidence, method="exact")
    return Interval(float(found.low), float(found.high), confidence)


def tango_interval(lost: int, gained: int, n: int, confidence: float) -> Interval:
    """The score interval of (lost - gained) / n, the difference of two paired shares.

    lost: samples that the parent has right and the candidate wrong; gained: the other way round; n: all samples.
    Tango, Statistics in Medicine 17 (1998), 891-908: the differences d whose score statistic lies within the normal quantiles,

        z(d) = (lost - gained - n d) / sqrt(n (2 q + d (1 - d)))

    with q the maximum-likelihood share of `gained` under d, the larger root of 2n q^2 + B q + C = 0. z falls with d, so each end is one
    root. Unlike a bootstrap it has a width where nothing differs: with no discordant pair the upper end is z^2 / (n + z^2).
    Coverage of the upper end at a nominal 0.95, enumerated for n of 100 to 10000, up to 6 % lost and 1 % gained, true drop >= 0: 0.933 at
    worst, 0.958 in the median. (Where the candidate is really better it is down to 0.91, which no gate with a limit >= 0 can feel.)
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))
    found = (lost - gained) / n

    def low(d: float) -> float:
        return tango_statistic(lost, gained, n, d) - z

    def high(d: float) -> float:
        return tango_statistic(lost, gained, n, d) + z

    edge = 1 - 1e-12
    lower = -1.0 if found <= -edge else brentq(low, -edge, found, xtol=1e-12)
    upper = 1.0 if found >= edge else brentq(high, found, edge, xtol=1e-12)
    return Interval(float(lower), float(upper), confidence)


def tango_statistic(lost: Any, gained: Any, n: int, d: Any) -> Any:
    """z(d) above; numbers or arrays."""
    b = -lost - gained + (2 * n - lost + gained) * d
    c = -gained * d * (1 - d)
    q = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)
    numerator, variance = lost - gained - n * d, n * (2 * q + d * (1 - d))
    # At d = found with nothing discordant both are 0: the data agree with d perfectly.
    return np.where(numerator == 0, 0.0, numerator / np.sqrt(np.maximum(variance, 1e-300)))


def mcnemar_p(lost: int, gained: int) -> float:
    """The exact two-sided p-value of McNemar's test: as many samples lost as gained?"""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def mean_interval(values: Array, confidence: float, seed: int) -> tuple[Interval, str]:
    """(interval of the mean of ``values`` [n], name of the method): scipy's bootstrap, BCa where it works, else percentile."""
    from scipy.stats import bootstrap

    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, confidence), "all samples equal"
    resamples = resamples_for(len(values))
    batch = max(1, AT_ONCE // len(values))
    for method in ("BCa", "percentile") if len(values) <= BCA_LIMIT else ("percentile",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of degenerate data, and that is what is looked for below
            found = bootstrap((values,), np.mean, n_resamples=resamples, batch=batch, vectorized=True, confidence_level=confidence,
                              method=method, rng=np.random.default_rng(seed)).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(float(found.low), float(found.high), confidence), f"{method} bootstrap of {resamples}"
    return Interval(mean, mean, confidence), "no bootstrap possible"


def replicated(statistic: Callable[[Array], Array], n: int, seed: int, resamples: int) -> Array:
    """``statistic`` of ``resamples`` bootstrap samples of n: it takes weights [k, n], how often each sample was drawn, in pieces,
    and gives [k] or [k, m]. Every column was computed from the same draws, so that differences of columns are paired."""
    random = np.random.default_rng(seed)
    rows = max(1, min(resamples, AT_ONCE // n))
    parts = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = random.integers(n, size=(count, n)) + np.arange(count)[:, None] * n
        parts.append(statistic(np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)))
    return np.concatenate(parts)


def percentile_interval(replicates: Array, confidence: float) -> Interval | None:
    """The middle ``confidence`` of the replicates; those that are not defined (NaN) are left out; None where none is left."""
    kept = replicates[np.isfinite(replicates)]
    if not len(kept):
        return None
    low, high = np.quantile(kept, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), confidence)


def resamples_for(n: int) -> int:
    return int(np.clip(BUDGET // n, FEWEST, RESAMPLES))


def needed_samples(value: float, high: float, n: int, limit: float, *, confidence: float = 0.90, share: bool = True) -> int | None:
    """About how many samples would put the upper end of the interval at ``limit``, if ``value`` stays what it is.

    value, high: the drop and the upper end of its two-sided interval of ``confidence`` on ``n`` samples. share: whether the drop is a
    difference of shares, whose variance has a floor (nothing discordant in n samples proves z^2/n, not 0); otherwise the width
    shrinks with the square root of n. None where no number of samples can prove it, as the drop itself is not below the limit.
    """
    from scipy.stats import norm

    room, width = limit - value, high - value
    if room <= 0:
        return None
    if width <= 0:
        return n
    z2 = float(norm.ppf((1 + confidence) / 2)) ** 2
    # A score interval's half width w solves n w^2 = z^2 (variance + w): the variance seen follows from w, and n from the room.
    needed = z2 * (max(n * width * width / z2 - width, 0.0) + room) / room**2 if share else n * (width / room) ** 2
    return math.ceil(needed)
