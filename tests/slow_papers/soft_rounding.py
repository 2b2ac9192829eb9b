"""Adaptive rounding in plain loops: Nagel et al. 2020, equations 21 to 24, and every rounding of a layer small enough to try them all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.compress.grid import Grid

Array = np.ndarray[Any, Any]


def rectified_sigmoid(v: float) -> float:
    """Equation 23: clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1) with zeta = 1.1 and gamma = -0.1."""
    return min(max(1.2 / (1.0 + math.exp(-v)) - 0.1, 0.0), 1.0)


def regulariser(v: Array, beta: float) -> float:
    """Equation 24: sum of 1 - |2 h(V) - 1|^beta."""
    return sum(1.0 - abs(2.0 * rectified_sigmoid(float(each)) - 1.0) ** beta for each in v.ravel())


def slope(v: float, number: float, scale: float, zero: int, ends: tuple[int, int], of_weight: float, beta: float, strength: float) -> float:
    """How of_weight * W'(V) + strength * (1 - |2 h(V) - 1|^beta) changes with V (equations 22 to 24), by a small step to both sides.

    W' = s * (clip(floor(W / s) + h(V) + z) - z).
    """
    def total(at: float) -> float:
        share = rectified_sigmoid(at)
        code = min(max(math.floor(number / scale) + share + zero, ends[0]), ends[1])
        return of_weight * scale * (code - zero) + strength * regulariser(np.asarray(at), beta)

    return (total(v + 1e-5) - total(v - 1e-5)) / 2e-5


def hard_codes(weight: Array, grid: Grid, v: Array) -> Array:
    """floor(W / s) or one more, by h(V); [out, in], one scale a row or a block of columns."""
    codes = np.zeros(weight.shape, np.int8)
    for row, column in np.ndindex(weight.shape):
        scale = _scale(grid, row, column)
        below = math.floor(np.float32(weight[row, column]) / np.float32(scale))
        up = 1 if rectified_sigmoid(float(v[row, column])) >= 0.5 else 0
        codes[row, column] = min(max(below + up, grid.lowest), grid.highest)
    return codes


def output_error(weight: Array, rounded: Array, inputs: Array) -> float:
    """Sum of squared differences of x W^T."""
    return float(((inputs.astype(np.float64) @ (rounded - weight).T.astype(np.float64)) ** 2).sum())


def best_error(weight: Array, grid: Grid, inputs: Array) -> float:
    """The least ``output_error`` of all ways to round each weight down or up."""
    total = 0.0
    for row in range(len(weight)):  # rows do not touch each other
        scales = [_scale(grid, row, column) for column in range(weight.shape[1])]
        below = [math.floor(number / scale) for number, scale in zip(weight[row], scales, strict=True)]
        least = math.inf
        for ups in itertools.product((0, 1), repeat=len(below)):
            codes = [min(max(code + up, grid.lowest), grid.highest) for code, up in zip(below, ups, strict=True)]
            rounded = np.array([[code * scale for code, scale in zip(codes, scales, strict=True)]])
            least = min(least, output_error(weight[row : row + 1], rounded, inputs))
        total += least
    return total


def step_gradient(values: Sequence[float], step: float, zero: int, lowest: int, highest: int) -> float:
    """Esser et al. 2020, equation 3, with a zero point, summed: round(x / s) - x / s inside the grid, the end's code outside."""
    total = 0.0
    for value in values:
        code = round(value / step) + zero
        if code < lowest:
            total += lowest - zero
        elif code > highest:
            total += highest - zero
        else:
            total += round(value / step) - value / step
    return total


def _scale(grid: Grid, row: int, column: int) -> float:
    if grid.axis is None:
        return float(grid.scale)
    return float(grid.scale[row, column // grid.block] if grid.block else grid.scale[row])
