"""Adaptive rounding as its paper writes it, one number at a time, in float64.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", section 3.3: soft quantised weights (equation 22),
the rectified sigmoid (23), its regulariser (24), and the objective with the layer's activation function (25 in the published
version, 21 in shape). And the truth that it strives for: the best of all 2^n roundings, tried one by one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(v: float) -> float:
    return min(max((ZETA - GAMMA) / (1.0 + math.exp(-v)) + GAMMA, 0.0), 1.0)


def soft_weight(w: float, v: float, scale: float, low: int, high: int) -> float:
    return scale * min(max(math.floor(w / scale) + rectified_sigmoid(v), low), high)


def regulariser(v: Array, beta: float) -> float:
    return sum(1.0 - abs(2.0 * rectified_sigmoid(float(each)) - 1.0) ** beta for each in v.ravel())


def error(weight: Array, inputs: Array, targets: Array, activation: Callable[[float], float]) -> float:
    """sum over samples and channels of (f(w x) - y)^2. weight [out, in], inputs [n, in], targets [n, out]."""
    total = 0.0
    for x, y in zip(inputs.astype(np.float64), targets.astype(np.float64), strict=True):
        for row, wanted in zip(weight.astype(np.float64), y, strict=True):
            total += (activation(float(np.dot(row, x))) - wanted) ** 2
    return total


def best_rounding(weight: Array, scales: Array, low: int, high: int, inputs: Array, targets: Array,
                  activation: Callable[[float], float]) -> tuple[Array, float]:
    """The weight [out, in] with the least error of all that round each number up or down, and its error. Rows are independent."""
    best, total = np.zeros(weight.shape), 0.0
    for row in range(len(weight)):
        floors = [math.floor(float(w) / float(scales[row])) for w in weight[row]]
        candidates = [np.array([[float(scales[row]) * min(max(f + up, low), high) for f, up in zip(floors, ups, strict=True)]])
                      for ups in itertools.product((0, 1), repeat=weight.shape[1])]
        errors = [error(each, inputs, targets[:, row : row + 1], activation) for each in candidates]
        best[row], total = candidates[int(np.argmin(errors))][0], total + min(errors)
    return best, total
