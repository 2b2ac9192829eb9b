"""Code books of four bits as the papers describe them, in float64 and plain loops.

NF4: Dettmers et al. 2023, "QLoRA", section 3: levels are quantiles of the normal distribution, 0 among them, both ends scaled to 1.
FP4: Dettmers & Zettlemoyer 2023, "The case for 4-bit precision": a sign, two bits of exponent, one of mantissa. The dynamic map: Dettmers
2015, "8-Bit Approximations for Parallelism in Deep Learning": the zeros before the first bit that is set are a power of ten, the bits
behind it cut 0.1 to 1 into equal parts, of which the middles are the levels.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def nf4_levels() -> list[float]:
    """Eight above 0, seven below: each side reaches to the mean of the outermost quantiles that 15 and 16 levels would have."""
    end = 1 - (1 / (2 * 15) + 1 / (2 * 16)) / 2
    positive = [NormalDist().inv_cdf(end + (0.5 - end) * i / 8) for i in range(8)]
    negative = [-NormalDist().inv_cdf(end + (0.5 - end) * i / 7) for i in range(7)]
    found = sorted([*positive, 0.0, *negative])
    return [level / found[-1] for level in found]


def fp4_levels() -> list[float]:
    """By code: bit 3 the sign, bits 2 and 1 the exponent, bit 0 the mantissa."""
    found = []
    for code in range(16):
        sign, exponent, mantissa = -1 if code >> 3 else 1, (code >> 1) & 3, code & 1
        size = (1 + mantissa / 2) * 2.0 ** (4 - exponent) if exponent else mantissa * 2.0**-4
        found.append(sign * size / 12)
    return found


def dynamic_levels() -> list[float]:
    found = [0.0, 1.0]
    for zeros in range(7):
        parts = 2 ** (6 - zeros)
        for part in range(parts):
            low, high = 0.1 + 0.9 * part / parts, 0.1 + 0.9 * (part + 1) / parts
            found += [10.0**-zeros * (low + high) / 2, -(10.0**-zeros) * (low + high) / 2]
    return sorted(found)


def scales(weight: Array, block: int) -> list[float]:
    """The largest size of each ``block`` numbers of the flattened weight."""
    flat = [abs(float(number)) for number in weight.reshape(-1)]
    return [max(flat[start : start + block]) for start in range(0, len(flat), block)]


def nearest(number: float, levels: list[float]) -> float:
    """The level; of two that are equally near the lower one."""
    best = sorted(levels)[0]
    for level in sorted(levels):
        if abs(level - number) < abs(best - number):
            best = level
    return best


def values(weight: Array, levels: list[float], block: int, of_blocks: list[float] | None = None) -> Array:
    """The weight as it comes back. of_blocks: the scales that it comes back with, where they are others than it was divided by."""
    divisors = scales(weight, block)
    found = np.zeros(weight.size)
    for place, number in enumerate(weight.reshape(-1)):
        divisor = divisors[place // block]
        level = nearest(float(number) / divisor, levels) if divisor else 0.0
        found[place] = level * (of_blocks or divisors)[place // block]
    return found.reshape(weight.shape)


def rounded_scales(numbers: list[float], outer: int = 256) -> tuple[list[float], list[float]]:
    """QLoRA's double quantisation: the scales as they come back, and how far the next level of the map is from each."""
    mean = sum(numbers) / len(numbers)
    levels, found, gaps = dynamic_levels(), [], []
    for start in range(0, len(numbers), outer):
        centred = [number - mean for number in numbers[start : start + outer]]
        peak = max(abs(number) for number in centred)
        for number in centred:
            level = nearest(number / peak, levels) if peak else 0.0
            found.append(level * peak + mean)
            gaps.append(abs(level - number / peak) * peak if peak else 0.0)
    return found, gaps
