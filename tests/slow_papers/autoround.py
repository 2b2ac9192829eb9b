"""SignRound in plain loops, in float64: Cheng et al. 2023, equations 3 to 6 and algorithm 1, for a block that is one matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class Group:
    """Some weights that share a scale, and their variables."""

    weights: list[float]
    v: list[float]
    alpha: float = 1.0
    beta: float = 1.0
    either_sign: bool = False

    def full(self, bits: int) -> float:
        """The scale of a symmetric grid where alpha is 1: the largest magnitude on the highest code, or on the lowest."""
        low, high = min(0.0, *self.weights), max(0.0, *self.weights)
        if self.either_sign:
            return (high if high > -low else low) / -(2 ** (bits - 1))
        return max(-low, high) / (2 ** (bits - 1) - 1)

    def grid(self, bits: int, symmetric: bool, half: bool) -> tuple[float, int, int, int]:
        """Scale, zero point, lowest and highest code. half: the scale is a float16."""
        low, high = min(0.0, *self.weights), max(0.0, *self.weights)
        if symmetric:
            highest = 2 ** (bits - 1) - 1
            return _stored(self.alpha * self.full(bits), half), 0, -highest - 1, highest
        highest = 2**bits - 1
        scale = _stored((self.beta * high - self.alpha * low) / highest, half)
        return scale, min(max(round(-self.alpha * low / scale), 0), highest), 0, highest

    def codes(self, bits: int, symmetric: bool, half: bool) -> list[int]:
        scale, zero, lowest, highest = self.grid(bits, symmetric, half)
        return [min(max(round(w / scale + v) + zero, lowest), highest) for w, v in zip(self.weights, self.v, strict=True)]

    def values(self, bits: int, symmetric: bool, half: bool) -> list[float]:
        scale, zero, _, _ = self.grid(bits, symmetric, half)
        return [scale * (code - zero) for code in self.codes(bits, symmetric, half)]

    def gradients(self, upstream: Sequence[float], bits: int, symmetric: bool, half: bool) -> tuple[list[float], float, float]:
        """Of V, alpha and beta, where rounding is passed as if it were not there, and clipping stops what lies outside."""
        scale, zero, lowest, highest = self.grid(bits, symmetric, half)
        of_v, of_scale, of_zero = [], 0.0, 0.0
        for w, v, g in zip(self.weights, self.v, upstream, strict=True):
            code = round(w / scale + v) + zero
            if lowest <= code <= highest:
                of_v.append(g * scale)
                of_scale += g * (code - zero - w / scale)
            else:
                of_v.append(0.0)
                of_scale += g * ((lowest if code < lowest else highest) - zero)
                of_zero -= g * scale
        low, high = min(0.0, *self.weights), max(0.0, *self.weights)
        if symmetric:
            return of_v, of_scale * self.full(bits), 0.0
        of_scale += of_zero * self.alpha * low / scale**2  # z = -alpha low / s
        return of_v, of_scale * -low / highest + of_zero * -low / scale, of_scale * high / highest


@dataclass
class Matrix:
    """[out, in] in groups along the inputs; the last of a row may be ragged."""

    weight: Array
    bits: int
    block: int
    symmetric: bool
    half: bool = False
    either_sign: bool = False
    groups: list[list[Group]] = field(default_factory=list)

    def __post_init__(self) -> None:
        length = self.block or self.weight.shape[1]
        self.groups = [[Group(row[at : at + length].tolist(), [0.0] * len(row[at : at + length]), either_sign=self.either_sign)
                        for at in range(0, len(row), length)] for row in self.weight.astype(np.float64)]

    @property
    def values(self) -> Array:
        return np.array([[each for group in row for each in group.values(self.bits, self.symmetric, self.half)] for row in self.groups])

    @property
    def codes(self) -> Array:
        return np.array([[each for group in row for each in group.codes(self.bits, self.symmetric, self.half)] for row in self.groups])

    @property
    def scales(self) -> Array:
        return np.array([[group.grid(self.bits, self.symmetric, self.half)[0] for group in row] for row in self.groups])

    def error(self, x: Array, wanted: Array) -> float:
        return float(((x @ self.values.T - wanted) ** 2).mean())

    def upstream(self, x: Array, wanted: Array) -> Array:
        """Of ``error``, for each number of the rounded weight."""
        return 2 * (x @ self.values.T - wanted).T @ x / wanted.size

    def each(self, upstream: Array) -> Iterator[tuple[Group, list[float]]]:
        length = self.block or self.weight.shape[1]
        for row, own in zip(self.groups, upstream, strict=True):
            for index, group in enumerate(row):
                yield group, own[index * length : index * length + length].tolist()

    def step(self, x: Array, wanted: Array, rate: float) -> None:
        """Equation 6: everything goes ``rate`` against the sign of its gradient, and stays within its ends."""
        widest = 2 ** (self.bits - 1) / (2 ** (self.bits - 1) - 1) if self.either_sign and self.bits > 2 else 1.0
        for group, own in list(self.each(self.upstream(x, wanted))):
            of_v, of_alpha, of_beta = group.gradients(own, self.bits, self.symmetric, self.half)
            group.v = [min(max(v - rate * _sign(g), -0.5), 0.5) for v, g in zip(group.v, of_v, strict=True)]
            group.alpha = min(max(group.alpha - rate * _sign(of_alpha), 0.01), widest)
            group.beta = min(max(group.beta - rate * _sign(of_beta), 0.01), 1.0)


def learned(matrix: Matrix, x: Array, wanted: Array, *, batches: Sequence[Sequence[int]], probe: Sequence[int], rate: float,
            every: int) -> tuple[Array, Array]:
    """Codes and scales with the least error on ``probe``, among the start and what there is after each ``every`` steps and the last."""
    best, least = (matrix.codes, matrix.scales), matrix.error(x[list(probe)], wanted[list(probe)])
    for step, batch in enumerate(batches):
        matrix.step(x[list(batch)], wanted[list(batch)], rate * (1 - step / len(batches)))
        if (step + 1) % every == 0 or step + 1 == len(batches):
            error = matrix.error(x[list(probe)], wanted[list(probe)])
            if error < least:
                best, least = (matrix.codes, matrix.scales), error
    return best


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _stored(scale: float, half: bool) -> float:
    return float(np.float16(scale)) if half else scale
