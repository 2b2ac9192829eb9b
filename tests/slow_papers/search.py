"""The share of min-max with the least error, by trying them all, a number at a time."""

from __future__ import annotations

from tests.slow_papers.gptq import nearest

EXPONENT = 2.5


def error(numbers: list[float], scale: float, zero: int, low: int, high: int) -> float:
    """Sum of |x - x'| ** 2.5."""
    return sum(abs(x - (nearest(x, scale, zero, low, high) - zero) * scale) ** EXPONENT for x in numbers)


def least_error(numbers: list[float], scale: float, zero: int, low: int, high: int, *others: float) -> float:
    """Over the shares 1, 0.98, ... 0.2, and others."""
    return min(error(numbers, scale * share, zero, low, high) for share in (*others, *(1 - 0.02 * step for step in range(41))))
