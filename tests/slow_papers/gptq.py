"""GPTQ as the paper derives it, in float64 and plain loops: optimal brain quantisation in a fixed order.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", section 3.1: the weight q
that is quantised next leaves the error (w_q - quant(w_q)) / [H^-1]_qq, by which all weights that are left move along column q of H^-1
(equation 2); then row and column q are taken out of H^-1 by one step of Gaussian elimination (equation 3). Section 3.3, step 1: all
rows in the same order. No Cholesky factor, no lazy batches: those are what the fast version must agree with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def nearest(value: float, scale: float, zero: int, low: int, high: int) -> int:
    return min(max(round(value / scale) + zero, low), high)


def gptq(weight: Array, hessian: Array, scales: Array, zeros: Array, low: int, high: int, turns: Sequence[int]) -> Array:
    """Codes [out, in]. scales, zeros: of each weight, [out, in]. turns: the columns in the order in which they are quantised."""
    w, inverse = weight.astype(np.float64).copy(), np.linalg.inv(hessian.astype(np.float64))
    codes = np.zeros(w.shape, np.int64)
    left = np.array(turns)
    for q in turns:
        left = left[left != q]
        for row in range(len(w)):
            scale, zero = float(scales[row, q]), int(zeros[row, q])
            codes[row, q] = nearest(float(w[row, q]), scale, zero, low, high)
            error = (w[row, q] - (codes[row, q] - zero) * scale) / inverse[q, q]
            w[row, left] -= error * inverse[left, q]  # equation 2
        inverse = inverse - np.outer(inverse[:, q], inverse[q, :]) / inverse[q, q]  # equation 3
    return codes


def hessian(inputs: Array, damping: float) -> Array:
    """Mean of x x^T over the rows x of [n, in], and a share of the mean of its diagonal added to each of its elements (section 3.3)."""
    total = np.zeros((inputs.shape[1], inputs.shape[1]))
    for x in inputs.astype(np.float64):
        total += np.outer(x, x)
    total /= len(inputs)
    return total + damping * np.mean(np.diag(total)) * np.eye(len(total))


def patches(x: Array, kernel: tuple[int, ...], group: int, pads: Array, strides: Array, dilations: Array) -> Array:
    """[n * positions, group, in / group * kernel] what a convolution multiplies its flattened weights with, from [n, in, ...]."""
    rank, inside = len(kernel), x.shape[1] // group
    padded = np.pad(x, [(0, 0), (0, 0), *[(int(pads[i]), int(pads[rank + i])) for i in range(rank)]])
    sizes = [(padded.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(rank)]
    rows = []
    for sample in padded:
        for place in np.ndindex(*sizes):
            row = np.zeros((group, inside, *kernel))
            for g, c, *k in np.ndindex(group, inside, *kernel):
                at = [place[i] * strides[i] + k[i] * dilations[i] for i in range(rank)]
                row[(g, c, *k)] = sample[(g * inside + c, *at)]
            rows.append(row.reshape(group, -1))
    return np.array(rows)
