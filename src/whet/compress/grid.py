"""The only file that rounds. A grid is a set of equally spaced numbers; quantising is finding the nearest one.

    codes = clip(round(x / scale) + zero_point, lowest, highest)        x' = (codes - zero_point) * scale

Rounding is half to even, as in ONNX's QuantizeLinear (operator specification, opset 10 and later), in float32, so that what is
simulated here and what onnxruntime computes are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whet.core.errors import Refused
from whet.device.machine import usable_cores

Array = NDArray[Any]
Floats = NDArray[np.float32]
Rows = slice | EllipsisType

# Below this a scale would be a subnormal number, which runtimes flush to zero; a range that small holds no information.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
# So many numbers are worked on at a time, which with their codes lie in the cache of a core (512 kB and more of L2); two cores share
# what has so many more that threads are worth their start.
CACHED, WORTH_THREADS, MOST_THREADS = 1 << 15, 1 << 20, 2


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the numbers of a tensor may lie.

    bits: 2 to 16. signed: codes from -2**(bits-1), else from 0.
    scale: float32, never 0, and below 0 only where signed. zero_point: int32. Both of one shape: () for a whole tensor; [C] along ``axis``
    for one per channel; with ``block`` > 0, the shape of the tensor itself with ``axis`` divided by ``block`` (rounded up): one per block.
    """

    bits: int
    signed: bool
    scale: Floats
    zero_point: NDArray[np.int32]
    axis: int | None = None
    block: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise Refused(f"make a grid of {self.bits} bits", do="use 2 to 16 bits")
        wrong = self.scale == 0 if self.signed else self.scale <= 0
        if not np.all(np.isfinite(self.scale)) or np.any(wrong):
            raise Refused("make a grid", found="a scale that is 0, no number, or below 0 where codes are not signed",
                          do="check weights and data for NaN or infinity")

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> str:
        """The ONNX name of the narrowest integer type that holds the codes: "int4", "uint8", ..."""
        return f"{'' if self.signed else 'u'}int{stored_bits(self.bits)}"


@dataclass(frozen=True, eq=False)
class Quantised:
    """Codes (int8, uint8, int16 or uint16 in numpy, one a number however few bits they use) on their grid."""

    codes: Array
    grid: Grid

    @property
    def values(self) -> Floats:
        """The numbers that the codes stand for, float32, same shape."""
        return dequantise(self.codes, self.grid)


def from_range(low: Array | float, high: Array | float, *, bits: int, signed: bool, symmetric: bool, narrow: bool | None = None,
               scales: str = "float32") -> tuple[Floats, NDArray[np.int32]]:
    """Scale and zero point so that ``low``..``high`` (any shape, widened to hold 0) fits the grid.

    scales: the dtype that the scale will be stored in; it is a number of that dtype, and the zero point is that of this scale.

    symmetric: zero point in the middle (0 if signed). narrow: leave the lowest signed code out, so that the codes are as many
    below zero as above (Nagel et al. 2021, "A White Paper on Neural Network Quantization", section 2.2); default: as symmetric.
    A range of no width gets scale 1, whose only used code is the zero point, so constants of 0 stay exact.
    """
    low32 = np.minimum(np.asarray(low, np.float64), 0.0)
    high32 = np.maximum(np.asarray(high, np.float64), 0.0)
    lowest = -(1 << (bits - 1)) if signed else 0
    highest = lowest + (1 << bits) - 1
    if symmetric:
        middle = 0 if signed else 1 << (bits - 1)
        widest = np.maximum(-low32, high32)
        # narrow: +-127 of int8. Wide: the whole of -128..127, where only the positive end limits.
        steps = (highest - middle) if (narrow or narrow is None) else (highest - middle + 1)
        scale = storable(_usable(widest / steps), scales)
        return scale, np.full(scale.shape, middle, np.int32)
    scale = storable(_usable((high32 - low32) / (highest - lowest)), scales)
    zero = np.rint(lowest - low32 / scale)
    return scale, np.clip(zero, lowest, highest).astype(np.int32)


def from_farthest(low: Array | float, high: Array | float, *, bits: int, scales: str = "float32") -> Floats:
    """The scale with which the number farthest from 0 lies on the lowest signed code, so that all 2**bits codes are used: below 0 where
    that number is above 0. low, high: the ends, any shape. scales: as in ``from_range``.

    So do llama.cpp (Q4_0: d = max / -8) and onnxruntime (MatMulNBits); like the latter, equal ends get a scale above 0. A range of no
    width gets scale 1.
    """
    low32, high32 = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return storable(_usable(np.where(high32 > -low32, high32, low32) / np.float32(-(1 << (bits - 1)))), scales)


def storable(scale: Floats, dtype: str) -> Floats:
    """The scales as they come back from storage in ``dtype`` ("float32" or "float16"), float32: the nearest, but never 0 or infinite. Signs
    stay.
    """
    kind = np.finfo(np.dtype(dtype))
    if kind.dtype == np.float32:
        return scale
    found = np.clip(scale, kind.min, kind.max).astype(kind.dtype).astype(np.float32)
    lost = found == 0
    return np.where(lost, np.copysign(np.float32(kind.smallest_subnormal), scale), found) if np.any(lost) else found


def weight_grid(weight: Array, *, bits: int, symmetric: bool = True, axis: int | None = None, block: int = 0, scales: str = "float32",
                either_sign: bool = False) -> Grid:
    """The min-max grid of a weight: one range for all, per channel of ``axis``, or per block of ``block`` along ``axis``.

    Signed where symmetric, else unsigned, as onnxruntime's kernels want it. scales: the dtype that they will be stored in. either_sign:
    whether those of a symmetric grid may be below 0, so that all of its codes are used (``from_farthest``). Raises Refused on NaN or
    infinity.
    """
    low, high = _extremes(weight, axis, block)
    if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):  # both pass NaN on
        raise Refused("quantise a weight", found="NaN or infinity in it", do="repair or retrain the model")
    if symmetric and either_sign:
        scale = from_farthest(low, high, bits=bits, scales=scales)
        return Grid(bits, True, scale, np.zeros(scale.shape, np.int32), axis, block)
    scale, zero = from_range(low, high, bits=bits, signed=symmetric, symmetric=symmetric, scales=scales)
    return Grid(bits, symmetric, scale, zero, axis, block)


def token_grid(inputs: Floats) -> Grid:
    """The grid of what a layer reads, [tokens, in]: int8, symmetric, the scale of a token being its widest number / 127.5.

    So the compressed-tensors package rounds inputs that are "dynamic" for each "token" (quantization/utils/helpers.py, calculate_qparams):
    all 256 codes are used, and a positive end loses half a step. vLLM's kernel divides by 127. Raises Refused on NaN or infinity.
    """
    widest = np.abs(inputs).max(axis=1, initial=0)
    scale = np.where(widest <= SMALLEST_SCALE, np.float32(1), widest / np.float32(127.5))
    return Grid(8, True, scale, np.zeros(len(inputs), np.int32), 0)


def quantise(values: Array, grid: Grid) -> Quantised:
    """Each value to the code of the nearest point of the grid; ties to even codes, values outside to the ends."""
    width = np.int16 if grid.bits > 8 else np.int8
    found = np.empty(values.shape, width if grid.signed else np.dtype(f"u{np.dtype(width).name}"))

    def part(rows: Rows) -> None:
        scale, zero = _spread(grid, values.shape, rows)
        found[rows] = nearest_codes(np.asarray(values[rows], np.float32), scale, zero, grid)

    in_parts(values, part)
    return Quantised(found, grid)


def nearest_codes(values: Floats, scale: Floats, zero: Floats, grid: Grid) -> Floats:
    """The codes as float32, which holds them all exactly. scale, zero: float32, in shapes that broadcast against the values; ``grid`` has
    only the ends.
    """
    codes = np.asarray(values / scale)
    np.rint(codes, out=codes)
    if np.any(zero):
        codes += zero
    return np.clip(codes, grid.lowest, grid.highest, out=codes)


def steps_to_nearest(values: Floats, scale: Floats, zero: Floats, grid: Grid) -> Floats:
    """How many steps (not a whole number) lie between each value and the nearest point of the grid; shapes as in ``nearest_codes``."""
    exact = np.asarray(values / scale)
    nearest = np.rint(exact)
    if grid.signed:  # symmetric: numbers in the place of arrays are twice as fast
        np.clip(nearest, grid.lowest, grid.highest, out=nearest)
    else:
        np.maximum(nearest, grid.lowest - zero, out=nearest)
        np.minimum(nearest, grid.highest - zero, out=nearest)
    return np.subtract(nearest, exact, out=exact)


def dequantise(codes: Array, grid: Grid) -> Floats:
    """(codes - zero_point) * scale, float32."""
    found = np.empty(codes.shape, np.float32)

    def part(rows: Rows) -> None:
        scale, zero = _spread(grid, codes.shape, rows)
        values = found[rows]
        values[...] = codes[rows]
        values -= zero
        values *= scale

    in_parts(codes, part)
    return found


def fake_quantise(values: Array, grid: Grid) -> Floats:
    """The values as they come back from the grid, float32."""
    return quantise(values, grid).values


def in_parts(values: Array, work: Callable[[Rows], None]) -> None:
    """Do ``work`` to slices of the first axis, each about as much as a core's cache holds, and large arrays on two threads.

    A number goes through half a dozen steps; done slice by slice, what one step wrote is in the cache for the next, and memory is read
    and written once. numpy lets other threads run while it computes.
    """
    if values.ndim == 0:
        work(...)
        return
    rows = max(1, CACHED * len(values) // max(values.size, 1))
    parts = [slice(first, first + rows) for first in range(0, len(values), rows)]
    threads = min(MOST_THREADS, usable_cores(), len(parts)) if values.size >= WORTH_THREADS else 1
    if threads == 1:
        for each in parts:
            work(each)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, parts))


BIAS_LIMIT = 1 << 30  # of the codes of a bias; half of int32's range, for the sum of products comes on top


def quantise_bias(bias: Floats, scale: Floats) -> NDArray[np.int32]:
    """A bias on the grid of its accumulator (scale = input scale * weight scale, zero point 0), int32 of at most ``BIAS_LIMIT``."""
    codes = np.rint(np.asarray(bias, np.float64) / np.asarray(scale, np.float64))
    return np.clip(codes, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)


def scale_for_bias(weight_scale: Floats, input_scale: float, bias: Floats, dead: NDArray[np.bool_]) -> Floats:
    """The weight scales that a bias can live with; its steps on the accumulator's grid are input_scale * weight scale.

    They are raised where the bias would not fit int32, or its steps would be subnormal. dead: channels whose weights are all 0, for
    which any scale is right: theirs is just what the bias needs, since the 1 of a range without width may make its steps too coarse.
    """
    size = np.abs(np.asarray(bias, np.float64))
    needed = np.maximum(size / (BIAS_LIMIT * input_scale), 2 * SMALLEST_SCALE * max(1.0, 1.0 / input_scale))
    return np.where(dead & (size > 0), needed, np.maximum(weight_scale, needed)).astype(np.float32)


def stored_bits(bits: int) -> int:
    """The width of the narrowest integer type that holds a code of so many bits: 2, 4, 8 or 16."""
    return next(width for width in (2, 4, 8, 16) if width >= bits)


def block_count(length: int, block: int) -> int:
    """How many blocks of ``block`` cover ``length``; the last may be ragged."""
    return -(-length // block)


def _usable(scale: Array) -> Floats:
    return np.where(np.abs(scale) > SMALLEST_SCALE, scale, 1.0).astype(np.float32)


def _extremes(weight: Array, axis: int | None, block: int) -> tuple[Array, Array]:
    """The lowest and highest value of what shares a scale, in the shape of the scales. Without blocks, widened to hold 0."""
    if axis is None:
        return weight.min(initial=0), weight.max(initial=0)
    if not block or axis % weight.ndim == 0:
        return _least(weight, axis, block, np.minimum), _least(weight, axis, block, np.maximum)
    low, high = (np.empty(_scales_shape(weight.shape, axis, block), weight.dtype) for _ in range(2))

    def part(rows: Rows) -> None:
        low[rows], high[rows] = (_least(weight[rows], axis, block, which) for which in (np.minimum, np.maximum))

    in_parts(weight, part)
    return low, high


def _least(weight: Array, axis: int, block: int, which: np.ufunc) -> Array:
    """The minimum or maximum of what shares a scale."""
    if block:
        starts = np.arange(0, weight.shape[axis], block)
        return np.asarray(which.reduceat(weight, starts, axis))
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    return np.asarray(which.reduce(weight, axis=others, initial=0))


def _scales_shape(shape: tuple[int, ...], axis: int, block: int) -> tuple[int, ...]:
    return tuple(block_count(size, block) if at == axis % len(shape) else size for at, size in enumerate(shape))


def _spread(grid: Grid, shape: tuple[int, ...], rows: Rows) -> tuple[Floats, Floats]:
    """Scale and zero point, float32, in a shape that broadcasts against ``rows`` of the first axis of a tensor of ``shape``."""
    if grid.axis is None:
        return grid.scale, grid.zero_point.astype(np.float32)
    assert isinstance(rows, slice)
    axis, (start, stop, _) = grid.axis % len(shape), rows.indices(shape[0])
    if not grid.block:
        broad, own = [-1 if i == axis else 1 for i in range(len(shape))], rows if axis == 0 else slice(None)
        return grid.scale[own].reshape(broad), grid.zero_point[own].astype(np.float32).reshape(broad)
    if axis == 0:
        first = start // grid.block
        own, cut = slice(first, block_count(stop, grid.block)), slice(start - first * grid.block, stop - first * grid.block)
    else:
        own, cut = rows, slice(shape[axis])
    inside = (slice(None),) * axis + (cut,)
    scale, zero = (np.repeat(part, grid.block, axis)[inside] for part in (grid.scale[own], grid.zero_point[own].astype(np.float32)))
    return scale, zero
