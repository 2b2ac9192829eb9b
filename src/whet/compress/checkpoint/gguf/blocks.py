"""GGUF's block types and their encoders from float32. The ``gguf`` package encodes a few of them itself, and of the K types none.

A type with super-blocks has 256 numbers in sub-blocks of 16 or 32, whose scales are small integers times one float16 number. The search
of ``fits`` gives each sub-block its scale; then these are rounded, the codes taken anew, and the float16 numbers fitted to what came
out, a few times over, as long as the error falls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from whet.compress.checkpoint.gguf import fits, packing
from whet.compress.checkpoint.gguf.packing import Bytes
from whet.compress.grid import Array, Floats
from whet.device.machine import usable_cores

SUPER = 256
# Numbers that are encoded at once: what the search needs for them stays in a core's cache.
_AT_ONCE = 1 << 16
_ROUNDS = 3


@dataclass(frozen=True)
class BlockType:
    """A type of tensor. name: that of gguf.GGMLQuantizationType. numbers: in a block. size_bytes: of a block."""

    name: str
    numbers: int
    size_bytes: int

    @property
    def bits(self) -> float:
        """Of one number, scales included."""
        return 8 * self.size_bytes / self.numbers

    def row_bytes(self, columns: int) -> int:
        """Raises ValueError where the columns are not whole blocks."""
        if columns % self.numbers:
            raise ValueError(f"{columns} columns are no whole blocks of {self.name}")
        return columns // self.numbers * self.size_bytes


TYPES: Mapping[str, BlockType] = MappingProxyType({each.name: each for each in (
    BlockType("F32", 1, 4), BlockType("F16", 1, 2), BlockType("BF16", 1, 2),
    BlockType("Q4_0", 32, 18), BlockType("Q4_1", 32, 20), BlockType("Q5_0", 32, 22), BlockType("Q5_1", 32, 24), BlockType("Q8_0", 32, 34),
    BlockType("Q2_K", SUPER, 84), BlockType("Q3_K", SUPER, 110), BlockType("Q4_K", SUPER, 144), BlockType("Q5_K", SUPER, 176),
    BlockType("Q6_K", SUPER, 210))})


def encoded(values: Floats, kind: str) -> Bytes:
    """float32 [rows, columns] as uint8 [rows, bytes of a row] of the type. Raises ValueError where the columns are not whole blocks."""
    wide = TYPES[kind].row_bytes(values.shape[1])
    encode = _ENCODERS.get(kind)
    if encode is None:
        return _by_the_package(values, kind)
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, TYPES[kind].numbers)
    step = max(1, _AT_ONCE // TYPES[kind].numbers)
    found = np.empty((len(blocks), TYPES[kind].size_bytes), np.uint8)

    def encode_from(start: int) -> None:
        with np.errstate(over="ignore"):  # squares of numbers that no float16 scale reaches
            found[start : start + step] = encode(blocks[start : start + step])

    with ThreadPoolExecutor(usable_cores()) as pool:  # numpy lets other threads compute meanwhile
        list(pool.map(encode_from, range(0, len(blocks), step)))
    return found.reshape(len(values), wide)


def decoded(data: Bytes, kind: str) -> Floats:
    """uint8 [rows, bytes of a row] as float32 [rows, columns], by the ``gguf`` package."""
    import gguf

    return np.asarray(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]), np.float32).reshape(len(data), -1)


def _by_the_package(values: Floats, kind: str) -> Bytes:
    import gguf

    return np.ascontiguousarray(gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])).view(np.uint8)


# -- blocks of 32 -------------------------------------------------------------------------------------------------------------------


def _q4_0(x: Floats) -> Bytes:
    scale = _halved(fits.signed(x, 8))
    return packing.q4_0(scale, _codes(x, scale, -8, 7))


def _q5_0(x: Floats) -> Bytes:
    scale = _halved(fits.signed(x, 16))
    return packing.q5_0(scale, _codes(x, scale, -16, 15))


def _q4_1(x: Floats) -> Bytes:
    scale, low = (_halved(each) for each in fits.affine(x, 15, below_zero=False))
    return packing.q4_1(scale, low, _codes(x - low[:, None], scale, 0, 15))


def _q5_1(x: Floats) -> Bytes:
    scale, low = (_halved(each) for each in fits.affine(x, 31, below_zero=False))
    return packing.q5_1(scale, low, _codes(x - low[:, None], scale, 0, 31))


def _codes(x: Floats, scale: Floats, lowest: int, highest: int) -> Bytes:
    """[n, L] uint8, counted from the lowest code."""
    return (fits.nearest(x, scale[:, None], lowest, highest) - lowest).astype(np.uint8)


def _halved(numbers: Array) -> Floats:
    """The nearest float16 numbers, as float32; no infinities."""
    return np.clip(numbers, -65504, 65504).astype(np.float16).astype(np.float32)


# -- super-blocks -------------------------------------------------------------------------------------------------------------------


def _affine_super(x: Floats, sub: int, bits: int, most: int) -> tuple[Floats, Floats, Bytes, Bytes, Bytes]:
    """scale, low [n], scales, lows [n, S], codes [n, 256] for x' = scale scales q - low lows; q of ``bits``, scales to ``most``."""
    count, top = len(x), (1 << bits) - 1
    x = x.reshape(count, -1, sub)
    s, m = (each.reshape(count, -1) for each in fits.affine(x.reshape(-1, sub), top))
    m = -m
    scale, low = _halved(s.max(axis=1) / most), _halved(m.max(axis=1) / most)
    least, best = np.full(count, np.inf, np.float32), None
    for _ in range(_ROUNDS):
        scales, lows = fits.nearest(s, scale[:, None], 0, most), fits.nearest(m, low[:, None], 0, most)
        offset = low[:, None] * lows
        q = fits.nearest(x + offset[..., None], (scale[:, None] * scales)[..., None], 0, top)
        lost = np.square(x - (scale[:, None] * scales)[..., None] * q + offset[..., None]).sum(axis=(1, 2))
        best = _kept(best, (scale, low, scales, lows, q), lost < least)
        least = np.minimum(lost, least)
        scale, low = (_halved(each) for each in _two(x, scales[..., None] * q, -np.broadcast_to(lows[..., None], q.shape)))
    assert best is not None
    scale, low, scales, lows, q = best
    return scale, low, scales.astype(np.uint8), lows.astype(np.uint8), q.astype(np.uint8).reshape(count, SUPER)


def _signed_super(x: Floats, half: int, most: int) -> tuple[Floats, Floats, Bytes]:
    """scale [n], scales [n, 16] in -most..most-1, codes [n, 256] counted from -half, for x' = scale scales q."""
    count = len(x)
    x = x.reshape(count, -1, 16)
    s = fits.signed(x.reshape(-1, 16), half).reshape(count, -1)
    farthest = np.take_along_axis(s, np.abs(s).argmax(axis=1)[:, None], axis=1)[:, 0]
    scale = _halved(farthest / -most)
    least, best = np.full(count, np.inf, np.float32), None
    for _ in range(_ROUNDS):
        scales = fits.nearest(s, scale[:, None], -most, most - 1)
        q = fits.nearest(x, (scale[:, None] * scales)[..., None], -half, half - 1)
        lost = np.square(x - (scale[:, None] * scales)[..., None] * q).sum(axis=(1, 2))
        best = _kept(best, (scale, scales, q), lost < least)
        least = np.minimum(lost, least)
        y = scales[..., None] * q
        scale = _halved((x * y).sum(axis=(1, 2)) / np.maximum((y * y).sum(axis=(1, 2)), np.float32(1)))
    assert best is not None
    scale, scales, q = best
    return scale, scales, (q + half).astype(np.uint8).reshape(count, SUPER)


def _kept(old: tuple[Floats, ...] | None, new: tuple[Floats, ...], better: Array) -> tuple[Floats, ...]:
    """Of each super-block what is better."""
    if old is None:
        return new
    return tuple(np.where(better.reshape(-1, *[1] * (one.ndim - 1)), one, other) for one, other in zip(new, old, strict=True))


def _two(x: Floats, a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """The numbers u, v [n], none below 0, for which u a + v b is nearest to x, each [n, S, L]."""
    aa, bb, ab, ax, bx = (np.einsum("nsl,nsl->n", one, other) for one, other in ((a, a), (b, b), (a, b), (a, x), (b, x)))
    determinant = aa * bb - ab * ab
    fine = determinant > 1e-6 * aa * bb
    safe = np.where(fine, determinant, np.float32(1))
    u = np.where(fine, (bb * ax - ab * bx) / safe, ax / np.maximum(aa, np.float32(1)))
    v = np.where(fine, (aa * bx - ab * ax) / safe, np.float32(0))
    return np.maximum(u, np.float32(0)), np.maximum(v, np.float32(0))


def _q2_k(x: Floats) -> Bytes:
    return packing.q2_k(*_affine_super(x, 16, 2, 15))


def _q4_k(x: Floats) -> Bytes:
    return packing.q4_k(*_affine_super(x, 32, 4, 63))


def _q5_k(x: Floats) -> Bytes:
    return packing.q5_k(*_affine_super(x, 32, 5, 63))


def _q3_k(x: Floats) -> Bytes:
    scale, scales, codes = _signed_super(x, 4, 32)
    return packing.q3_k(scale, (scales + 32).astype(np.uint8), codes)


def _q6_k(x: Floats) -> Bytes:
    scale, scales, codes = _signed_super(x, 32, 128)
    return packing.q6_k(scale, scales.astype(np.int8), codes)


_ENCODERS: Mapping[str, Callable[[Floats], Bytes]] = MappingProxyType({
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k})
