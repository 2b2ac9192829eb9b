"""Rotations that mix all channels evenly and are cheap to apply: Hadamard matrices with random signs, as products of small ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whet.compress.grid import Array, Floats

LARGEST = 64  # of the powers of two that are multiplied as one matrix: two of 64 make 4096 channels at the speed of matrix products
PART = 1 << 22  # so many numbers are rotated at a time


@dataclass(frozen=True, eq=False)
class Rotation:
    """Q [n, n] = diag(signs) (F_1 kron F_2 kron ...), orthogonal. signs: [n] of 1 and -1; factors: F_i, orthogonal, their sizes' product n.
    exact: whether it is a Hadamard matrix, whose elements all are 1 / sqrt(n) or -1 / sqrt(n).
    """

    signs: Floats
    factors: tuple[Floats, ...]
    exact: bool

    def of(self, values: Array) -> Floats:
        """values @ Q, for values [..., n], float32."""
        flat = values.reshape(-1, len(self.signs))
        found = np.empty(flat.shape, np.float32)
        rows = max(1, PART // max(flat.shape[1], 1))
        for first in range(0, len(flat), rows):
            found[first : first + rows] = self._part(flat[first : first + rows])
        return found.reshape(values.shape)

    def _part(self, values: Array) -> Floats:
        found = values * self.signs
        after = found.shape[1]
        for factor in self.factors:
            size = len(factor)
            after //= size
            parts = found.reshape(-1, size, after)
            found = parts.reshape(-1, size) @ factor if after == 1 else factor.T @ parts
        return np.asarray(found.reshape(values.shape), np.float32)


def rotation(size: int, seed: int) -> Rotation:
    """A rotation of ``size`` channels that ``seed`` chooses. Where no Hadamard matrix is known for what is left of the size once powers of
    two are taken out, a random orthogonal matrix stands there.
    """
    random = np.random.default_rng([seed, size])
    signs = random.choice(np.array([-1.0, 1.0], np.float32), size)
    twos = size & -size
    odd = size // twos
    if odd == 1:
        return Rotation(signs, _powers(twos), True)
    for order in (odd << shift for shift in range(2, twos.bit_length())):
        core = paley(order)
        if core is not None:
            return Rotation(signs, (_unit(core), *_powers(size // order)), True)
    orthogonal, upper = np.linalg.qr(random.standard_normal((odd, odd)))
    spread = (orthogonal * np.sign(np.diag(upper))).astype(np.float32)  # with these signs all rotations are equally likely
    return Rotation(signs, (spread, *_powers(twos)), False)


def paley(order: int) -> Array | None:
    """The Hadamard matrix [order, order] of 1 and -1 of Paley's two constructions over the numbers modulo a prime, None where there is
    none of that order.
    """
    if _prime(order - 1) and order % 4 == 0:
        size = order - 1
        skew = np.zeros((order, order), np.int64)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _residues(size)
        return np.eye(order, dtype=np.int64) + skew
    size = order // 2 - 1
    if order % 4 == 0 and size % 4 == 1 and _prime(size):
        even = np.zeros((size + 1, size + 1), np.int64)
        even[0, 1:], even[1:, 0], even[1:, 1:] = 1, 1, _residues(size)
        found: Array = np.kron(even, [[1, 1], [1, -1]]) + np.kron(np.eye(size + 1, dtype=np.int64), [[1, -1], [-1, -1]])
        return found
    return None


def _residues(prime: int) -> Array:
    """[prime, prime] 1 where i - j is a square modulo the prime, -1 where it is none, 0 where it is 0."""
    squares = np.full(prime, -1, np.int64)
    squares[np.arange(1, prime) ** 2 % prime] = 1
    squares[0] = 0
    numbers = np.arange(prime)
    found: Array = squares[(numbers[:, None] - numbers) % prime]
    return found


def _powers(size: int) -> tuple[Floats, ...]:
    """Hadamard matrices of powers of two (Sylvester's) whose product has that size."""
    found: list[Floats] = []
    while size > 1:
        step = min(size, LARGEST)
        size //= step
        matrix = np.ones((1, 1), np.int64)
        while len(matrix) < step:
            matrix = np.kron(matrix, np.array([[1, 1], [1, -1]]))
        found.append(_unit(matrix))
    return tuple(found)


def _unit(matrix: Array) -> Floats:
    """The same with rows of length 1."""
    return np.asarray(matrix / np.sqrt(len(matrix)), np.float32)


def _prime(number: int) -> bool:
    return number > 2 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
