"""From a tensor's statistics to the range that its grid shall cover: one function a method, found by its name.

Each takes the statistics and the number of codes of the grid (2**bits), and gives (low, high). A wide range clips nothing but
has coarse steps; a narrow one is fine but cuts the outliers off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.compress.statistics import BINS, Statistics
from whet.compress.tails import at
from whet.core.errors import Refused

METHODS = ("minmax", "moving_average", "percentile", "mse", "entropy", "octav")
NEEDS_HISTOGRAM = frozenset({"entropy", "mse", "octav"})
# From this percentile on the numbers beyond it are few enough to be kept; below, the bins of a histogram tell.
EXACT_FROM = 99.99


@dataclass(frozen=True)
class Wanted:
    """What a way to find ranges must know of the tensors beside their minimum and maximum. tails: the share of all numbers that is kept of
    each end."""

    histogram: bool = False
    tails: float = 0.0


def wanted(options: Iterable[Mapping[str, Any]]) -> Wanted:
    """For layers with these options (``ranges``, ``percentile``)."""
    found = [(each.get("ranges"), float(each.get("percentile", 100.0))) for each in options]
    shares = [_beyond(percentile) for method, percentile in found if method == "percentile"]
    return Wanted(any(method in NEEDS_HISTOGRAM for method, _ in found) or any(share > _beyond(EXACT_FROM) for share in shares),
                  max((share for share in shares if share <= _beyond(EXACT_FROM)), default=0.0))


def find_range(statistics: Statistics, method: str, *, codes: int, percentile: float) -> tuple[float, float]:
    """(low, high) by ``method``: minmax, moving_average, percentile, entropy, mse or octav. Raises Refused where nothing was seen.

    A tensor without a histogram or tails has a range that an earlier step found, and keeps it.
    """
    if statistics.count == 0:
        raise Refused(f"find the range of {statistics.name!r}", found="no calibration sample reached it", do="give more calibration data")
    lacking = not statistics.with_histogram and (method in NEEDS_HISTOGRAM or (method == "percentile" and not statistics.tails))
    if method == "minmax" or statistics.low == statistics.high or lacking:
        return statistics.low, statistics.high
    if method == "moving_average":
        return statistics.mean_low, statistics.mean_high
    if method == "percentile":
        return by_percentile(statistics, percentile)
    return {"entropy": by_entropy, "mse": by_mse, "octav": by_octav}[method](statistics, codes)


def by_percentile(statistics: Statistics, percentile: float) -> tuple[float, float]:
    """The values below and above which (100 - percentile) / 2 % of the numbers lie: exact where the tails were kept, else linear inside a
    bin of the histogram. Where 0 is beyond such a value, the range ends at 0."""
    share = _beyond(percentile)
    if statistics.tails and (percentile >= EXACT_FROM or not statistics.with_histogram):
        position = share * (statistics.count - 1)
        low, high = (at(kept, statistics.kept, position) for kept in (statistics.lowest, statistics.highest))
        return max(low, statistics.low), min(high, statistics.high)
    cumulative = np.concatenate([[0.0], np.cumsum(statistics.counts) / statistics.counts.sum()])
    # np.interp wants increasing abscissae; empty bins repeat a value and any point of them is right
    low = float(np.interp(share, cumulative, statistics.edges))
    high = float(np.interp(1.0 - share, cumulative, statistics.edges))
    # 0 of a one-sided tensor (Relu) is one value with a great share: its range still begins at 0
    return max(min(low, 0.0) if statistics.low >= 0 else low, statistics.low), min(high, statistics.high)


def _beyond(percentile: float) -> float:
    """The share of all numbers that lies beyond each end."""
    return (100.0 - percentile) / 200.0


def by_mse(statistics: Statistics, codes: int) -> tuple[float, float]:
    """The shrunken range with the least expected squared error: rounding inside it plus clipping outside it.

    Both ends shrink together from 100 % to 10 % of min-max in 1 % steps (the search of Banner et al. 2019 and of OCTAV,
    on the histogram and not on a fitted distribution).
    """
    shares = np.arange(1.0, 0.095, -0.01)
    errors = [_squared_error(statistics, share * statistics.low, share * statistics.high, codes) for share in shares]
    best = float(shares[int(np.argmin(errors))])
    return best * statistics.low, best * statistics.high


def by_octav(statistics: Statistics, codes: int) -> tuple[float, float]:
    """The clipping scalar of OCTAV (Sakr et al. 2022, equation 6): s with the least expected squared error, by Newton's method.

    s <- E[|x|, |x| > s] / (d P(0 < |x| <= s) + P(|x| > s)), with d = 4 / (12 codes^2) where both signs occur (steps of 2 s / codes)
    and 1 / (12 codes^2) where one does. A two-sided tensor is clipped at -s and s.
    """
    centres = np.abs(statistics.edges[:-1] + statistics.width / 2)
    weights = statistics.counts / max(int(statistics.counts.sum()), 1)
    zero = (statistics.edges[:-1] <= 0.0) & (statistics.edges[1:] > 0.0)
    two_sided = statistics.low < 0.0 < statistics.high
    noise = (4.0 if two_sided else 1.0) / (12.0 * codes * codes)
    size = float((weights * centres).sum() / max(weights[~zero].sum(), 1e-30))
    for _ in range(100):
        outside = centres > size
        divisor = noise * weights[~outside & ~zero].sum() + weights[outside].sum()
        following = float((weights * centres)[outside].sum() / divisor) if divisor > 0 else size
        if abs(following - size) <= 1e-6 * max(size, 1e-30):
            break
        size = following
    return max(statistics.low, -size), min(statistics.high, size)


def by_entropy(statistics: Statistics, codes: int) -> tuple[float, float]:
    """The range whose quantised distribution is nearest to the tensor's, in KL divergence (Migacz 2017, TensorRT 8-bit inference).

    Both ends shrink together; the mass outside goes to the end bins of the reference P, and Q is P's bins merged to ``codes``
    levels and spread again over the bins that were not empty. Zeros are left out: a grid holds them exactly, and behind a Relu
    their one full bin would outweigh everything else and always ask for the narrowest range.
    """
    shares = np.arange(1.0, 0.195, -0.02)
    counts = _without_zeros(statistics)
    divergences = [_divergence(statistics, counts, share * statistics.low, share * statistics.high, codes) for share in shares]
    best = float(shares[int(np.argmin(divergences))])
    return best * statistics.low, best * statistics.high


def _squared_error(statistics: Statistics, low: float, high: float, codes: int) -> float:
    centres = statistics.edges[:-1] + statistics.width / 2
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (codes - 1)
    outside = np.maximum(low - centres, 0.0) + np.maximum(centres - high, 0.0)
    inside = (centres >= low) & (centres <= high)
    # A step's rounding error is uniform: step**2 / 12 (Bennett 1948). Exact zeros (Relu) round exactly and cost nothing.
    zero_bin = (statistics.edges[:-1] <= 0.0) & (statistics.edges[1:] > 0.0)
    cost = np.where(inside & ~zero_bin, step * step / 12.0, outside**2)
    return float((statistics.counts * cost).sum())


def _divergence(statistics: Statistics, counts: NDArray[np.int64], low: float, high: float, codes: int) -> float:
    first = int(np.clip((low - statistics.start) / statistics.width, 0, BINS - 1))
    last = int(np.clip(np.ceil((high - statistics.start) / statistics.width), first + 1, BINS))
    kept = counts[first:last].astype(np.float64)
    reference = kept.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    return _kl(reference, _coarse(kept, codes))


def _without_zeros(statistics: Statistics) -> NDArray[np.int64]:
    """The counts, with no more in the bin that holds 0 than in the bin beside it."""
    counts = statistics.counts.copy()
    zero = int(np.clip(-statistics.start / statistics.width, 0, BINS - 1))
    beside = zero + 1 if statistics.high > 0 and zero + 1 < BINS else max(zero - 1, 0)
    counts[zero] = min(counts[zero], counts[beside])
    return counts


def _coarse(counts: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    """``counts`` merged to ``levels`` and spread evenly again over the bins of each level that were not empty."""
    level = np.arange(counts.size) * levels // max(counts.size, levels)
    filled = counts > 0
    mass = np.bincount(level, counts, minlength=levels)
    used = np.bincount(level, filled, minlength=levels)
    return np.where(filled, (mass / np.maximum(used, 1))[level], 0.0)


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    p, q = p / max(p.sum(), 1.0), q / max(q.sum(), 1.0)
    holds = p > 0
    return float(np.sum(p[holds] * np.log(p[holds] / np.maximum(q[holds], 1e-12))))
