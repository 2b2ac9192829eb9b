"""Confidence intervals for timings, which come in runs: a disturbance lasts longer than one timing, so neighbours resemble each other.

Formulas for independent samples would promise too much. Here the series is cut into blocks of consecutive rounds and only the
blocks are treated as independent, which they nearly are once a block outlasts a disturbance.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

from whet.core.measurement import Interval

MAX_BLOCKS = 20  # more would be shorter and so less independent; the interval narrows little beyond
MIN_BLOCK = 5  # rounds; the median of fewer is nearly a mean, and follows single disturbances

Floats = NDArray[np.float64]


def blocks(rounds: int) -> list[slice]:
    """Consecutive rounds in at most MAX_BLOCKS equal blocks (lengths differ by at most 1) of at least MIN_BLOCK rounds."""
    count = max(1, min(MAX_BLOCKS, rounds // MIN_BLOCK))
    edges = [rounds * at // count for at in range(count + 1)]
    return [slice(low, high) for low, high in pairwise(edges)]


def median_interval(series: Floats, confidence: float) -> Interval | None:
    """Interval for the median of a series [rounds]: the sign test's, on the medians of its blocks. None below two blocks.

    It assumes nothing of the distribution but that block medians fall on either side of the true one with equal chance, and holds
    the median of ``series`` itself.
    """
    medians = np.sort([np.median(series[block]) for block in blocks(len(series))])
    if len(medians) < 2:
        return None
    low, high, reached = order_statistic_interval(medians, confidence)
    middle = float(np.median(series))
    return Interval(min(low, middle), max(high, middle), reached)


def order_statistic_interval(ordered: Floats, confidence: float) -> tuple[float, float, float]:
    """(low, high, confidence) for the median of independent samples given in ascending order [n], n at least 2.

    Ranks are whole, so the confidence asked for is met by interpolating between two ranks as Hettmansperger and Sheather do
    ("Confidence intervals based on interpolated order statistics", Statistics & Probability Letters 4, 1986). Where even
    smallest..largest holds the median with less, that is returned with the confidence that it has: 1 - 2^(1 - n).
    """
    n = len(ordered)
    # covers[k]: the chance that the median lies between the (k+1)-th smallest and the (k+1)-th largest.
    covers = [1 - 2 * outside / 2**n for outside in accumulate(comb(n, k) for k in range((n + 1) // 2))]
    if covers[0] <= confidence or len(covers) < 2:
        return float(ordered[0]), float(ordered[-1]), covers[0]
    k = max(at for at, chance in enumerate(covers) if chance >= confidence)
    if k + 1 >= len(covers):
        return float(ordered[k]), float(ordered[n - 1 - k]), covers[k]
    rank = k + 1  # as in the paper, ranks counted from 1
    part = (covers[k] - confidence) / (covers[k] - covers[k + 1])
    inward = (n - rank) * part / (rank + (n - 2 * rank) * part)
    low = (1 - inward) * ordered[k] + inward * ordered[k + 1]
    high = (1 - inward) * ordered[n - 1 - k] + inward * ordered[n - 2 - k]
    return float(low), float(high), confidence


def bootstrap_interval(
    rounds: list[Floats], quantile: float | None, confidence: float, *, resamples: int = 400, seed: int = 0
) -> Interval | None:
    """Block bootstrap for the mean (``quantile`` None) or a quantile of all timings. rounds: the timings of each round.

    Blocks of rounds are drawn with replacement; the interval is the middle of what comes out. It promises slightly too much where
    blocks are few, and for a quantile that only a handful of timings lie beyond. None below two blocks.
    """
    pieces = [np.concatenate(rounds[block]) for block in blocks(len(rounds))]
    if len(pieces) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(len(pieces), size=(resamples, len(pieces)))
    counts = np.stack([np.bincount(row, minlength=len(pieces)) for row in drawn]).astype(float)  # [resamples, blocks]
    sizes = counts @ np.array([len(piece) for piece in pieces])
    if quantile is None:
        estimates = counts @ np.array([piece.sum() for piece in pieces]) / sizes
    else:
        grid = np.unique(np.quantile(np.concatenate(pieces), np.linspace(0, 1, 4097)))
        below = np.stack([np.searchsorted(np.sort(piece), grid, side="right") for piece in pieces]).astype(float)  # [blocks, grid]
        estimates = grid[np.argmax(counts @ below >= quantile * sizes[:, None], axis=1)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(float(low), float(high), confidence)
