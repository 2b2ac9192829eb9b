"""Numbers on a code book: sixteen levels that are not equally spaced, times a scale for each block of the flattened tensor.

    scale = max|w| of the block        code = the level nearest to w / scale        w' = level[code] * scale

Books, thresholds and the rounding of the scales are those of bitsandbytes 0.50 on a CPU, code by code, so that what is simulated is what
its kernels compute from the file (its functional.py: get_4bit_type, create_dynamic_map, quantize_4bit).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from whet.compress.grid import Array, Floats, block_count
from whet.core.errors import Refused

Codes = NDArray[np.uint8]

# NF4: quantiles of the normal distribution, 0 and both ends included (Dettmers et al. 2023, "QLoRA", appendix E).
_NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
# FP4: a sign, two bits of exponent, one of mantissa, in the order of the bit patterns and in twelfths; the smallest is subnormal.
_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0)

OUTER_BLOCK = 256  # scales that share one of their own (QLoRA, section 3, "Double Quantization")
_SMALLEST = np.float32(1e-38)  # a smaller scale is taken for this one
_INVERTIBLE = np.float32(3e-39)  # below this, 1 / x is beyond float32
_CHUNK = 1 << 16  # numbers looked at together: they stay in the cache


@dataclass(frozen=True, eq=False)
class RoundedScales:
    """Scales of blocks, rounded to 8 bits themselves. codes: [blocks] on the dynamic map. peaks: [blocks / 256, rounded up] float32, what
    the map is multiplied with. offset: what is added then, a float32 number.
    """

    codes: Codes
    peaks: Floats
    offset: float

    @property
    def values(self) -> Floats:
        """The scales as they come back, float32 [blocks]."""
        peaks = np.repeat(self.peaks, OUTER_BLOCK)[: len(self.codes)]
        return dynamic_map()[self.codes] * peaks + np.float32(self.offset)


@dataclass(frozen=True, eq=False)
class Coded:
    """codes: [out, in] uint8 below 16. book: "nf4" or "fp4". block: numbers of the flattened tensor that share a scale, the last block
    may be shorter. scales: [blocks] float32, or what double quantisation made of them.
    """

    codes: Codes
    book: str
    block: int
    scales: Floats | RoundedScales

    @property
    def double(self) -> bool:
        """Whether the scales are rounded to 8 bits themselves."""
        return isinstance(self.scales, RoundedScales)

    @property
    def values(self) -> Floats:
        """The numbers that the codes stand for, float32 [out, in]."""
        scales = self.scales.values if isinstance(self.scales, RoundedScales) else self.scales
        flat, found = self.codes.reshape(-1), np.empty(self.codes.size, np.float32)
        step = max(_CHUNK // self.block, 1) * self.block
        for start in range(0, len(flat), step):
            part = levels(self.book).take(flat[start : start + step])
            first = start // self.block
            part *= np.repeat(scales[first : first + block_count(len(part), self.block)], self.block)[: len(part)]
            found[start : start + step] = part
        return found.reshape(self.codes.shape)


@cache
def levels(book: str) -> Floats:
    """[16] float32, what each code stands for. Raises Refused where there is no such book."""
    if book not in ("nf4", "fp4"):
        raise Refused(f"use the code book {book!r}", found="there is none of that name", do="use nf4 or fp4")
    return np.array(_NF4, np.float32) if book == "nf4" else np.array(_FP4, np.float32) / np.float32(12)


@cache
def thresholds(book: str) -> tuple[Floats, Codes]:
    """[15] float32, the middles between neighbouring levels, and [16] the codes in the order of their levels. What lies on a threshold goes
    to the lower level. FP4 has two codes for 0: what is a little above 0 gets the second.
    """
    order = np.argsort(levels(book), kind="stable")
    ordered = levels(book)[order]
    return (ordered[:-1] + ordered[1:]) / np.float32(2), order.astype(np.uint8)


@cache
def dynamic_map() -> Floats:
    """[256] float32 from -0.993 to 1: seven decades, each cut into twice as many equal parts as the one below it, positive and negative;
    0; and 1 (Dettmers 2015, "8-Bit Approximations for Parallelism in Deep Learning").
    """
    found = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for exponent in range(7):
        parts = 1 << exponent
        # As torch's linspace: a step of float32, one rounding for each number, from the nearer end.
        step, at = np.float64((np.float32(1) - np.float32(0.1)) / np.float32(parts)), np.arange(parts + 1)
        ends = np.where(at < (parts + 1) // 2, np.float32(0.1) + step * at, 1 - step * (parts - at)).astype(np.float32)
        middles = np.float32(10.0 ** (exponent - 6)) * ((ends[:-1] + ends[1:]) / np.float32(2))
        found += [middles, -middles]
    return np.sort(np.concatenate(found))


def coded(weight: Array, book: str, *, block: int, double: bool) -> Coded:
    """Each number of ``weight`` [out, in] to the nearest level of its block. Raises Refused on NaN or infinity.

    The codes are chosen by the scales as they are, before ``double`` rounds them.
    """
    flat = np.asarray(weight, np.float32).reshape(-1)
    scales = np.empty(block_count(len(flat), block), np.float32)
    codes = np.empty(len(flat), np.uint8)
    whole = len(flat) // block * block
    step = max(_CHUNK // block, 1) * block
    for start in range(0, whole, step):
        part = flat[start : min(start + step, whole)].reshape(-1, block)
        peaks = _peaks(part)
        scales[start // block : start // block + len(part)] = peaks
        inverse: Floats = np.divide(np.float32(1), np.maximum(peaks, _SMALLEST))
        codes[start : start + part.size] = _nearest((part * inverse[:, None]).reshape(-1), book)
    if whole < len(flat):  # divided, not multiplied by the inverse: so bitsandbytes treats what is left
        scales[-1] = np.maximum(_peaks(flat[None, whole:])[0], _SMALLEST)
        codes[whole:] = _nearest(flat[whole:] / scales[-1], book)
    return Coded(codes.reshape(weight.shape), book, block, rounded(scales) if double else scales)


def rounded(scales: Floats) -> RoundedScales:
    """Double quantisation: the scales minus their mean on the dynamic map, each 256 of them divided by their peak.

    The nearest level is found to 1/65535 of the range, through as many equally spaced numbers, as bitsandbytes' CPU kernel does it.
    """
    offset = np.float32(scales.mean(dtype=np.float64))
    centred = scales - offset
    peaks = np.maximum.reduceat(np.abs(centred), np.arange(0, len(centred), OUTER_BLOCK))
    inverse = np.float32(1) / np.maximum(peaks, _INVERTIBLE)
    unit = np.clip(centred * np.repeat(inverse, OUTER_BLOCK)[: len(centred)], -1, 1)
    places = ((unit + np.float32(1)) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)).astype(np.int32)
    codes = _nearest_in_map()[places]
    codes[np.repeat(peaks == 0, OUTER_BLOCK)[: len(codes)]] = 0  # all of them are the mean: any code stands for it
    return RoundedScales(codes, peaks, float(offset))


@cache
def _nearest_in_map() -> Codes:
    """[65536] the code of the level of the dynamic map that is nearest to each of so many numbers from -1 to 1."""
    numbers = np.float32(-1) + np.float32(2) * np.arange(65536, dtype=np.float32) / np.float32(65535)
    middles = (dynamic_map()[:-1] + dynamic_map()[1:]) * np.float32(0.5)
    return np.searchsorted(middles, numbers, side="left").astype(np.uint8)


def _peaks(blocks: Floats) -> Floats:
    """[n] the largest size in each row of [n, block]. Raises Refused on NaN or infinity."""
    found: Floats = np.abs(blocks).max(axis=1)
    if not np.all(np.isfinite(found)):
        raise Refused("quantise a weight", found="NaN or infinity in it", do="repair or retrain the model")
    return found


def where_misread(rows: int, columns: int, block: int) -> str:
    """What to say of a weight that bitsandbytes' own kernels for CPUs with AVX-512 cannot run, "" for nothing. Found with version 0.50.2.
    The file is right, and other kernels read it so.
    """
    if columns % block:  # the kernel takes the scales of other blocks where 16 divides the row, the one for bfloat16 stops
        return f"bitsandbytes 0.50 misreads it on CPUs with AVX-512: rows of {columns} are not whole blocks of {block}"
    if rows % 32:
        return f"bitsandbytes 0.50 does not run it on CPUs with AVX-512 BF16: 32 does not divide its {rows} outputs"
    return ""


def _nearest(values: Floats, book: str) -> Codes:
    """The codes of numbers from -1 to 1, [n]. Counting the thresholds below each is faster here than a binary search."""
    middles, order = thresholds(book)
    found = np.zeros(len(values), np.uint8)
    above = np.empty(len(values), np.bool_)
    for middle in middles:
        found += np.greater(values, middle, out=above).view(np.uint8)
    return found if book == "nf4" else order.take(found)
