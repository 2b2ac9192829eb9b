"""MatMulNBits' weight, read one code at a time (onnxruntime's ContribOperators.md, MatMulNBits)."""

from __future__ import annotations

from typing import Any

import numpy as np


def weight_of(bits: int, block: int, columns: int, codes: Any, scales: Any, zeros: Any) -> Any:
    """[out, in] float32. codes: [out, blocks, bytes]; scales: [out, blocks]; zeros: [out, bytes] or None for 2**(bits - 1)."""
    rows, found = codes.shape[0], np.zeros((codes.shape[0], columns), np.float32)
    for row in range(rows):
        for column in range(columns):
            number = column // block
            code = code_at(codes[row, number], column % block, bits)
            zero = 2 ** (bits - 1) if zeros is None else code_at(zeros[row], number, bits)
            found[row, column] = np.float32(code - zero) * scales[row, number]
    return found


def code_at(data: Any, index: int, bits: int) -> int:
    """The code at ``index`` of bytes that hold 8 / bits codes each, the first one in the lowest bits."""
    first = index * bits
    return (int(data[first // 8]) >> (first % 8)) & (2**bits - 1)
