"""Products of int8 numbers as SmoothQuant runs them, a token and a number at a time (Xiao et al. 2023, section 3 and figure 2).

Inputs are rounded as they come, symmetrically, with one scale for each token ("per-token, dynamic"), weights with one scale for each output
channel; so both scales stand outside the sum over integers. The scale of a token is its widest number / 127.5, as in the
compressed-tensors package (quantization/utils/helpers.py), whose integers go from -128 to 127.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def codes_of(token: Array) -> tuple[list[int], np.float32]:
    """The integers of one token's numbers, and their scale."""
    widest = max(abs(number) for number in token)
    scale = np.float32(widest) / np.float32(127.5) if widest else np.float32(1)
    return [int(min(max(round(float(np.float32(number) / scale)), -128), 127)) for number in token], scale


def rounded(inputs: Array) -> Array:
    """[tokens, in] what a layer reads in the place of ``inputs``."""
    found = np.zeros(inputs.shape, np.float32)
    for at, token in enumerate(inputs):
        codes, scale = codes_of(token)
        found[at] = [np.float32(code) * scale for code in codes]
    return found


def product(inputs: Array, weight: Array, scales: Array) -> Array:
    """[tokens, out] float64. weight: [out, in] integers; scales: [out]."""
    found = np.zeros((len(inputs), len(weight)))
    for at, token in enumerate(inputs):
        codes, scale = codes_of(token)
        for row in range(len(weight)):
            found[at, row] = sum(int(w) * code for w, code in zip(weight[row], codes, strict=True)) * float(scale) * float(scales[row])
    return found
