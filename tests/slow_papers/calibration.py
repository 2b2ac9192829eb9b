"""Ranges of activations in plain loops, on the raw numbers and not on a histogram (entropy: on a given histogram, as in its paper)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def percentile(numbers: Array, share: float) -> tuple[float, float]:
    """The values below and above which (100 - share) / 2 % of the sorted numbers lie."""
    ordered = sorted(float(number) for number in numbers.ravel())
    outside = (100.0 - share) / 200.0
    return ordered[int(outside * (len(ordered) - 1))], ordered[math.ceil((1.0 - outside) * (len(ordered) - 1))]


def moving_average(batches: Sequence[Array], momentum: float) -> tuple[float, float]:
    """Jacob et al. 2018, section 3.1: an exponential moving average of each batch's lowest and highest value."""
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches[1:]:
        low = momentum * low + (1 - momentum) * float(batch.min())
        high = momentum * high + (1 - momentum) * float(batch.max())
    return low, high


def squared_error(numbers: Array, low: float, high: float, codes: int) -> float:
    """The mean squared error of really quantising the numbers to ``codes`` codes over low..high (widened to hold 0)."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (codes - 1)
    zero = round(-low / scale)
    total = 0.0
    for number in numbers.ravel():
        code = min(max(round(float(number) / scale) + zero, 0), codes - 1)
        total += (float(number) - (code - zero) * scale) ** 2
    return total / numbers.size


def divergence(counts: Sequence[int], first: int, last: int, codes: int) -> float:
    """Migacz 2017, "8-bit Inference with TensorRT", slide "Calibration: pseudocode", for the bins first..last - 1.

    P: those bins, with everything outside added to the first and last of them. Q: those bins merged to ``codes`` levels, each level's
    mass spread evenly over its bins that are not empty. KL(P, Q) of the two after normalising.
    """
    kept = [float(count) for count in counts[first:last]]
    p = list(kept)
    p[0] += sum(counts[:first])
    p[-1] += sum(counts[last:])
    levels = min(codes, len(kept))
    bins_of: list[list[int]] = [[] for _ in range(levels)]
    for index in range(len(kept)):
        bins_of[index * levels // len(kept)].append(index)
    q = [0.0] * len(kept)
    for bins in bins_of:
        full = [index for index in bins if kept[index] > 0]
        for index in full:
            q[index] = sum(kept[other] for other in bins) / len(full)
    mass_p, mass_q = max(sum(p), 1.0), max(sum(q), 1.0)
    result = 0.0
    for one, other in zip(p, q, strict=True):
        if one > 0:
            result += one / mass_p * math.log(one / mass_p / max(other / mass_q, 1e-12))
    return result


def entropy_share(counts: Sequence[int], start: float, width: float, low: float, high: float, codes: int) -> float:
    """The share of low..high, from 1 down to 0.2 in steps of 0.02, with the least divergence (the first of equals)."""
    best, best_share = math.inf, 1.0
    for step in range(41):
        share = 1.0 - 0.02 * step
        first = min(max(math.floor((share * low - start) / width), 0), len(counts) - 1)
        last = min(max(math.ceil((share * high - start) / width), first + 1), len(counts))
        found = divergence(counts, first, last, codes)
        if found < best:
            best, best_share = found, share
    return best_share
