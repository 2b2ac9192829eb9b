"""AWQ as its paper says it, from the inputs themselves and not from their second moments, in float64 and plain loops.

Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", equation 4: s = argmin of
|Q(W diag(s)) (diag(s)^-1 X) - W X|; equation 5: s = s_X^alpha, s_X the mean magnitude of each channel; alpha in 20 steps from 0. The
factors are normalised, and the ends of the grids searched, as in the authors' code (quantize/auto_scale.py and auto_clip.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def on_grid(numbers: Array, bits: int, share: float = 1.0, either_sign: bool = False) -> Array:
    """The numbers of one group on their symmetric grid, whose scale is a float16 and may be cut to a share. either_sign: the one farthest
    from 0 lies on the lowest code."""
    farthest = max(numbers, key=abs)
    full = np.float64(np.float16(farthest / -(2 ** (bits - 1)) if either_sign else abs(farthest) / (2 ** (bits - 1) - 1)))
    scale = np.float64(np.float16(full * share))
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return np.array([min(max(round(number / scale), lowest), highest) * scale for number in numbers])


def rounded(weight: Array, bits: int, block: int) -> Array:
    found = np.zeros(weight.shape)
    for row in range(len(weight)):
        for first in range(0, weight.shape[1], block):
            found[row, first : first + block] = on_grid(weight[row, first : first + block], bits)
    return found


def errors(inputs: Array, weights: list[Array], bits: int, block: int, points: int) -> list[tuple[float, Array]]:
    """For each alpha the error of the outputs and the factors. inputs: [n, in]; weights: [out, in] of each layer that reads them."""
    magnitudes = np.array([np.mean([abs(number) for number in channel]) for channel in inputs.T])
    found = []
    for point in range(points):
        s = np.array([max(each ** (point / points), 1e-4) for each in magnitudes])
        s = s / np.sqrt(max(s) * min(s))
        total = 0.0
        for weight in weights:
            wanted = inputs @ weight.T
            given = (inputs / s) @ rounded(weight * s, bits, block).T
            total += float(np.square(given - wanted).sum(1).mean())
        found.append((total, s))
    return found


def shares(inputs: Array, weight: Array, bits: int, block: int, either_sign: bool = False) -> Array:
    """[rows, groups] the share of each group's largest number at which its grid ends."""
    starts = range(0, weight.shape[1], block)
    found = np.zeros((len(weight), len(starts)))
    for row in range(len(weight)):
        for group, first in enumerate(starts):
            own, x = weight[row, first : first + block], inputs[:, first : first + block]
            tried = [1 - step / 20 for step in range(10)] + [2 ** (bits - 1) / (2 ** (bits - 1) - 1)] * either_sign
            costs = [np.square(x @ (on_grid(own, bits, share, either_sign) - own)).mean() for share in tried]
            found[row, group] = tried[int(np.argmin(costs))]
    return found
