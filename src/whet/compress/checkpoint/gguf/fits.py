"""The scales of small blocks of weights, by search: least squares for the scale under a few roundings, the best of them kept.

A block of L numbers x is stored as integers q and one or two numbers for all of them:

    signed   x' = s q          q in -half..half-1
    affine   x' = s q + m      q in 0..highest

For given q the best s (and m) are those of least squares; for given s and m the best q are the nearest. Which comes first? Each trial
rounds with a slightly wider or narrower step than the range of the block asks for, solves for s and m, and the trial with the least squared
error is kept. llama.cpp's encoders (make_qx_quants and make_qkx2_quants of ggml-quants.c) search in the same way, but weight each number by
its magnitude; here every number counts the same.
"""

from __future__ import annotations

import numpy as np

from whet.compress.grid import Array, Floats

# How many codes more or less than there are the range of a block is divided into, in the trials.
AFFINE_TRIALS = tuple(float(each) for each in np.linspace(-1.0, 1.0, 17))
SIGNED_TRIALS = tuple(float(each) for each in np.linspace(-1.0, 1.0, 9))
# A range below this divides to infinity in float32. Such a block is 0 in float16, where the scales go.
_SMALLEST = np.float32(1e-30)


def affine(blocks: Floats, highest: int, *, below_zero: bool = True) -> tuple[Floats, Floats]:
    """s and m, float32 [n] each, of ``blocks`` [n, L]. below_zero: m must not be above 0, as where its sign is not stored."""
    x = np.ascontiguousarray(blocks.T)  # [L, n]: sums over a block are then sums of whole rows
    low, high = x.min(axis=0), x.max(axis=0)
    if below_zero:
        low = np.minimum(low, np.float32(0))
    span = np.maximum(high - low, _SMALLEST)
    count, total, squares = np.float32(x.shape[0]), x.sum(axis=0), np.einsum("ln,ln->n", x, x)
    least = np.full(x.shape[1], np.inf, np.float32)
    scale, offset = span / np.float32(highest), low.copy()
    shifted, q = x - low, np.empty_like(x)
    for more in (0.0, *AFFINE_TRIALS):
        np.multiply(shifted, np.float32(highest + more) / span, out=q)
        np.clip(np.rint(q, out=q), 0, highest, out=q)
        codes, pairs, products = q.sum(axis=0), np.einsum("ln,ln->n", q, q), np.einsum("ln,ln->n", q, x)
        s, m = _line(count, codes, pairs, total, products, below_zero)
        lost = squares + s * s * pairs + count * m * m + 2 * (s * m * codes - s * products - m * total)
        better = (lost < least) & (s > 0)
        least, scale, offset = np.where(better, lost, least), np.where(better, s, scale), np.where(better, m, offset)
    return scale, offset


def _line(count: np.float32, codes: Floats, pairs: Floats, total: Floats, products: Floats, below_zero: bool) -> tuple[Floats, Floats]:
    """s and m of least squares from sums over the blocks: q, q q, x, q x."""
    determinant = count * pairs - codes * codes
    safe = np.where(determinant > 0, determinant, np.float32(1))
    s = (count * products - codes * total) / safe
    m = (pairs * total - codes * products) / safe
    if below_zero:
        through_zero = m > 0
        s = np.where(through_zero, products / np.maximum(pairs, np.float32(1)), s)
        m = np.where(through_zero, np.float32(0), m)
    return np.where(determinant > 0, s, np.float32(0)), np.asarray(m, np.float32)


def signed(blocks: Floats, half: int) -> Floats:
    """s, float32 [n], of ``blocks`` [n, L]. It may be below 0: there is one code more below zero than above, and the number that lies
    farthest from zero may want it.
    """
    x = np.ascontiguousarray(blocks.T)
    farthest = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    span = np.where(np.abs(farthest) > _SMALLEST, farthest, np.float32(1))
    most, q = np.full(x.shape[1], -1.0, np.float32), np.empty_like(x)
    scale = np.zeros_like(span)
    # 1 - half: the farthest number on the highest code. -half: on the lowest, with all signs turned.
    for steps in (*(-half - more for more in SIGNED_TRIALS), *(half - 1 + more for more in SIGNED_TRIALS)):
        np.multiply(x, np.float32(steps) / span, out=q)
        np.clip(np.rint(q, out=q), -half, half - 1, out=q)
        pairs, products = np.einsum("ln,ln->n", q, q), np.einsum("ln,ln->n", q, x)
        safe = np.maximum(pairs, np.float32(1))
        explained = products * products / safe  # what s q takes off the squares of x
        better = explained > most
        most, scale = np.where(better, explained, most), np.where(better, products / safe, scale)
    return scale


def nearest(values: Floats, scale: Array, lowest: int, highest: int) -> Floats:
    """The codes nearest to values / scale; 0, or the end nearest to it, where the scale is 0. Broadcasts, float32."""
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    return np.asarray(np.clip(np.rint(values * inverse), lowest, highest))
