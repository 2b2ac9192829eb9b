"""Cross-layer equalisation as the paper says it, one channel at a time (Nagel et al. 2019, sections 4.1 and 4.1.3).

Weights are [out, in, kernel], or depthwise [channels, 1, kernel]; written without looking at the fast code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def reads(weight: Array, depthwise: bool, channel: int) -> Array:
    """The numbers of a weight that input channel ``channel`` is multiplied by."""
    return weight[channel, 0] if depthwise else weight[:, channel]


def equalised(
    weights: list[Array], biases: list[Array], depthwise: list[bool], rounds: int
) -> tuple[list[Array], list[Array], list[Array]]:
    """Weights, biases and the whole factor of each output channel after so many rounds over the pairs of neighbours."""
    weights, biases = [w.astype(np.float64) for w in weights], [b.astype(np.float64) for b in biases]
    factors = [np.ones(len(w)) for w in weights]
    for _ in range(rounds):
        for i in range(len(weights) - 1):
            for channel in range(len(weights[i])):
                r1 = max(abs(number) for number in weights[i][channel].ravel())
                r2 = max(abs(number) for number in reads(weights[i + 1], depthwise[i + 1], channel).ravel())
                if r1 == 0 or r2 == 0:
                    continue
                s = (1 / r2) * math.sqrt(r1 * r2)  # equation 11
                weights[i][channel] /= s
                biases[i][channel] /= s
                reads(weights[i + 1], depthwise[i + 1], channel)[...] *= s
                factors[i][channel] *= s
    return weights, biases, factors


def absorbed(weight: Array, bias: Array, following: Array, next_bias: Array, depthwise: bool, before: Array) -> tuple[Array, Array]:
    """Both biases after the high part of the first one's channels went over. before: [n, channels] what stood before the Relu."""
    bias, next_bias = bias.copy(), next_bias.copy()
    for channel in range(len(weight)):
        beta, gamma, lowest = before[:, channel].mean(), before[:, channel].std(), before[:, channel].min()
        c = min(max(0.0, beta - 3 * gamma), max(0.0, lowest))
        bias[channel] -= c
        if depthwise:
            next_bias[channel] += following[channel, 0].sum() * c
        else:
            for out in range(len(following)):
                next_bias[out] += following[out, channel].sum() * c
    return bias, next_bias
