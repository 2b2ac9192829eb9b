"""SmoothQuant's factors as the paper says them, one channel at a time (Xiao et al. 2023, section 4, equation 4)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def factors(inputs: Array, weights: list[Array], alpha: float) -> Array:
    """[in]. inputs: [n, in] all that the layers read; weights: [out, in] of each layer that reads it."""
    found = []
    for j in range(inputs.shape[1]):
        x = max(abs(number) for number in inputs[:, j])
        w = max(abs(number) for weight in weights for number in weight[:, j])
        found.append(x**alpha / w ** (1 - alpha))
    return np.array(found)
