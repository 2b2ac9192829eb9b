"""Grids of weights whose ends are searched: cutting the largest weights off makes the steps finer for all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from whet.compress.grid import Array, Floats, Grid, Rows, block_count, in_parts, steps_to_nearest, storable, weight_grid

# Shares of min-max that are tried: these for all scales, and then for each scale those beside its best one, nearer and nearer. The
# exponent of the error weighs large errors a little more than squares do. The code of GPTQ and BRECQ has 2.4; a square and a root are
# three times as fast as that power, and the grids are as good.
SHARES = tuple(np.arange(1.0, 0.195, -0.08).tolist())
BESIDE = (0.04, 0.02)
POWER = np.float32(2.5)


def searched_grid(weight: Floats, *, bits: int, symmetric: bool = True, axis: int | None = 0, block: int = 0, scales: str = "float32",
                  either_sign: bool = False) -> Grid:
    """The grid of a weight [out, in] with, for each scale on its own, the share of min-max that has the least sum |w - w'|^2.5.

    axis: 0 for a scale a row, 1 with ``block`` for one a block, None for one. scales: the dtype that they will be stored in, as all
    that are tried are. A symmetric grid with a share below 1 uses its lowest code too (-8 of 4 bits), which min-max leaves out: wide grids
    are among those tried. either_sign: as in ``weight_grid``; min-max uses all codes then, and ``widest_share`` is tried too.
    Cost: 15 roundings of the weight (16 with either sign), piece by piece in the cache of two cores; memory: the scales.
    """
    full = weight_grid(weight, bits=bits, symmetric=symmetric, axis=axis, block=block, scales=scales, either_sign=either_sign)
    widest = widest_share(bits) if symmetric and either_sign else 1.0
    rows = weight.reshape(1, -1) if axis is None else weight
    before, zero = full.scale.reshape(len(rows), -1), full.zero_point.reshape(len(rows), -1)
    best = np.empty_like(before)

    def part(some: Rows) -> None:
        best[some] = _best(grouped(rows[some], block), before[some], zero[some].astype(np.float32), full, scales, widest)

    in_parts(rows, part)
    scale = np.asarray(best.reshape(full.scale.shape))
    return Grid(bits, full.signed, scale, full.zero_point, axis, block)


def widest_share(bits: int) -> float:
    """The share of a grid of either sign with which its highest code reaches as far as the lowest one does at 1, so that nothing is cut off
    on that side either. 1 for 2 bits, where it would be 2 and leave three codes: the error falls by 1 %, and language models lose more.
    """
    return (1 << (bits - 1)) / ((1 << (bits - 1)) - 1) if bits > 2 else 1.0


def _best(weight: Floats, scale: Floats, zero: Floats, grid: Grid, scales: str, widest: float) -> Floats:
    """[rows, groups] the scale of each group of [rows, groups, block] that has the least error."""
    least, share, best = np.full(scale.shape, np.inf, np.float32), np.ones(scale.shape, np.float32), scale
    for tried in _shares(share, widest):
        found = storable(scale * tried, scales)
        error = _errors(weight, found, zero, grid)
        better = error < least
        np.copyto(least, error, where=better)
        np.copyto(share, tried, where=better)
        best = np.where(better, found, best)
    return best


def _shares(share: Floats, widest: float) -> Iterator[Floats]:
    """What to try; ``share`` holds the best of each group so far, whenever the next is asked for."""
    for each in SHARES if widest == 1.0 else (widest, *SHARES):
        yield np.full_like(share, each)
    for step in BESIDE:
        middle = share.copy()
        yield np.minimum(middle + np.float32(step), np.float32(widest))
        yield middle - np.float32(step)


def _errors(weight: Floats, scale: Floats, zero: Floats, grid: Grid) -> Floats:
    """sum |w - w'|^2.5 over the weights that share a scale."""
    steps = steps_to_nearest(weight, scale[..., None], zero[..., None], grid)
    np.abs(steps, out=steps)
    squares = np.square(steps)
    return np.asarray(np.einsum("rgi,rgi->rg", squares, np.sqrt(steps, out=steps)) * np.abs(scale) ** POWER)


def grouped(weight: Array, block: int) -> Floats:
    """[rows, groups, block] float32; a ragged last group is filled up with 0, which lies on every grid."""
    length = block or weight.shape[1]
    groups = block_count(weight.shape[1], length)
    missing = groups * length - weight.shape[1]
    filled = np.pad(weight, ((0, 0), (0, missing))) if missing else weight
    return np.asarray(filled, np.float32).reshape(len(weight), groups, length)
