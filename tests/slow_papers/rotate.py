"""A rotation as its definition says it: a matrix of 1 and -1 whose rows are at right angles, and what it does to layers, one by one.

Ashkboos et al. 2024, "QuaRot", section 4, stage 1a: a vector x between layers becomes x Q; who reads it, W x, becomes (W Q) (Q^T x); who
writes it, x = V y, becomes Q^T V; the gain g of an RMS norm before the reader goes first, W diag(g).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def is_hadamard(matrix: Array) -> bool:
    """Whether all elements are 1 or -1 and each two rows are at right angles."""
    size = len(matrix)
    for i in range(size):
        for j in range(size):
            if abs(matrix[i, j]) != 1 or (i < j and sum(matrix[i] * matrix[j]) != 0):
                return False
    return True


def kronecker(signs: Array, factors: list[Array]) -> Array:
    """Q = diag(signs) (F_1 kron F_2 kron ...), element by element."""
    size = len(signs)
    found = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            element, rest, row, column = float(signs[i]), size, i, j
            for factor in factors:
                rest //= len(factor)
                element *= factor[row // rest, column // rest]
                row, column = row % rest, column % rest
            found[i, j] = element
    return found
