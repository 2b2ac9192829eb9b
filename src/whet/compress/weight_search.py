"""Grids of weights whose ends are searched: cutting the largest weights off makes the steps finer for all others."""

from __future__ import annotations

import numpy as np

from whet.compress.grid import Floats, Grid, fake_quantise, weight_grid

# Shares of min-max that are tried, and the exponent of the error: 2.4 as in the code of GPTQ and BRECQ, which weighs large errors a
# little more than squares do.
SHARES = tuple(np.arange(1.0, 0.295, -0.02).tolist())
POWER = 2.4


def searched_grid(weight: Floats, *, bits: int, symmetric: bool = True, axis: int | None = 0, block: int = 0) -> Grid:
    """The grid of a weight [out, in] with, for each scale on its own, the share of min-max that has the least sum |w - w'|^2.4.

    axis, block: as ``grid.weight_grid``. Cost: one rounding of the weight for each of 36 shares.
    """
    full = weight_grid(weight, bits=bits, symmetric=symmetric, axis=axis, block=block)
    best_scale, best_zero = full.scale.copy(), full.zero_point.copy()
    least = np.full(full.scale.shape, np.inf)
    for share in SHARES:
        grid = Grid(bits, full.signed, (full.scale * np.float32(share)).astype(np.float32), full.zero_point, axis, block)
        error = _errors(weight, grid)
        better = error < least
        least = np.where(better, error, least)
        best_scale = np.where(better, grid.scale, best_scale)
    return Grid(bits, full.signed, best_scale.astype(np.float32), best_zero, axis, block)


def _errors(weight: Floats, grid: Grid) -> Floats:
    """sum |w - w'|^2.4 over the weights that share a scale, in the shape of the scales."""
    error = np.abs(fake_quantise(weight, grid) - weight) ** POWER
    if grid.axis is None:
        return np.asarray(error.sum())
    if grid.block:
        return np.add.reduceat(error, np.arange(0, weight.shape[grid.axis], grid.block), grid.axis)
    others = tuple(i for i in range(weight.ndim) if i != grid.axis % weight.ndim)
    return np.asarray(error.sum(axis=others))
