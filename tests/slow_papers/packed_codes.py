"""The "pack-quantized" layout of compressed-tensors 0.20, one bit at a time: bit b of code n of a row is bit n * bits + b of the row,
of which each int32 holds 32, the lowest first; codes are counted from 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def words_of(codes: Any, bits: int) -> Any:
    """[rows, n] whole numbers from 0 on to int32 [rows, words]."""
    rows = []
    for row in codes.tolist():
        line = [(code >> bit) & 1 for code in row for bit in range(bits)]
        words = []
        for first in range(0, len(line), 32):
            word = sum(bit << place for place, bit in enumerate(line[first : first + 32]))
            words.append(word if word < 2**31 else word - 2**32)
        rows.append(words)
    return np.array(rows, np.int32)


def weight_of(words: Any, scales: Any, zeros: Any, *, bits: int, group: int, shape: tuple[int, int]) -> Any:
    """[out, in] float32 from int32 [out, words], float16 [out, groups], and int32 [words, groups] (None: codes stand for themselves less
    half of their range). group 0: the row.
    """
    found = np.zeros(shape, np.float32)
    for row in range(shape[0]):
        for column in range(shape[1]):
            number = column // group if group else 0
            zero = 2 ** (bits - 1) if zeros is None else code_in(zeros[:, number], row, bits)
            found[row, column] = np.float32(code_in(words[row], column, bits) - zero) * np.float32(scales[row, number])
    return found


def code_in(words: Any, index: int, bits: int) -> int:
    """The code at ``index`` of a line of words."""
    places = range(index * bits, (index + 1) * bits)
    return sum(((int(words[place // 32]) % 2**32 >> (place % 32)) & 1) << bit for bit, place in enumerate(places))
