"""Half-quadratic quantization as its paper has it, in plain loops and float64, with the scale fitted as well and a whole zero point.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models": equation 1 (the problem), 3 (the generalised soft
threshold, with its authors' constant 1 / beta before the power) and 4 (the zero point is a mean). The scale: least squares.
"""

from __future__ import annotations

from tests.slow_papers.gptq import nearest


def shrink(x: float, norm: float, beta: float) -> float:
    if x == 0:
        return 0.0
    size = max(abs(x) - abs(x) ** (norm - 1) / beta, 0.0)
    return size if x > 0 else -size


def fitted(numbers: list[float], scale: float, zero: int, low: int, high: int, *, moves: bool, norm: float = 0.7, beta: float = 10.0,
           kappa: float = 1.01, iterations: int = 20) -> tuple[float, int]:
    """Scale and zero point of numbers that share them, from those of min-max on. moves: whether the zero point may move."""
    least, best = float("inf"), (scale, zero)
    for _ in range(iterations):
        codes = [nearest(x, scale, zero, low, high) for x in numbers]
        errors = [x - (code - zero) * scale for x, code in zip(numbers, codes, strict=True)]
        cost = sum(abs(error) ** norm for error in errors)
        if cost < least:
            least, best = cost, (scale, zero)
        wanted = [x - shrink(error, norm, beta) for x, error in zip(numbers, errors, strict=True)]
        squares = sum((code - zero) ** 2 for code in codes)
        if squares:
            scale = sum((code - zero) * w for code, w in zip(codes, wanted, strict=True)) / squares
        if moves:
            zero = min(max(round(sum(code - w / scale for code, w in zip(codes, wanted, strict=True)) / len(numbers)), low), high)
        beta *= kappa
    return best
