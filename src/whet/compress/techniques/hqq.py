"""Half-quadratic quantization: grids fitted to the weights alone, with outliers counting less than in squares."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from whet.compress.grid import Floats, Grid, Rows, in_parts, nearest_codes, quantise, storable, weight_grid
from whet.compress.technique import Change, Foresight, LayerView, Search
from whet.compress.techniques import rtn as plain
from whet.compress.techniques.gptq import flat_weight
from whet.compress.weight_search import grouped
from whet.core.inventory import Layer
from whet.core.target import Target


def hqq(layer: LayerView, target: Target, *,
        bits: Annotated[int, Search(4, 2, 3, 5, 6, 7, 8, help="bits a weight")] = 4,
        block: Annotated[int, Search(64, 16, 32, 128, 256, 0, help="weights that share a scale along the summed dimension; 0: one "
                                     "scale an output channel")] = 64,
        symmetric: Annotated[bool, Search(False, True, help="zero point in the middle")] = False,
        norm: Annotated[float, Search(0.7, 0.5, 1.0, help="exponent p of the error |W - W'|^p", only=False, least=0.1,
                                      most=1.0)] = 0.7,
        beta: Annotated[float, Search(10.0, 1.0, 100.0, help="how closely the auxiliary error follows the true one at first", only=False,
                                      least=1e-3, most=1e6)] = 10.0,
        kappa: Annotated[float, Search(1.01, 1.1, help="factor of beta from one iteration to the next", only=False, least=1.0,
                                       most=10.0)] = 1.01,
        iterations: Annotated[int, Search(20, 5, help="at most; it stops where nothing gets better", only=False, least=1,
                                          most=1000)] = 20) -> Change:
    """Fit scale and zero point of each block to its weights, taking outliers out of the sum by half-quadratic splitting.

    Paper: Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models", equations 1 to 4 and their constants; the
    scale is fitted too, and the zero point is whole, where the paper fits a zero point in floating point alone.
    Needs: nothing.
    Cost: at most 20 roundings of the weight, each with a power of every number, in pieces that lie in the cache; memory of the layer.
    Limits: as ``rtn``. It looks at no inputs: ``gptq`` and ``awq`` are better where there is calibration text.

    Least sum |W - W'|^p over s and z, W' = s (Q - z), Q = clip(round(W / s) + z). In turns, from min-max on:
    E = sign(W - W') max(|W - W'| - |W - W'|^(p-1) / beta, 0); s = <Q - z, W - E> / <Q - z, Q - z>; z = round(mean(Q - (W - E) / s));
    beta = kappa beta. Each block keeps the s and z with the least error that it met.
    """
    weight = flat_weight(layer)
    block = block if layer.op in plain.BLOCK_OPS and layer.weight is not None and layer.weight.ndim == 2 else 0
    start = weight_grid(weight, bits=bits, symmetric=symmetric, axis=1 if block else 0, block=block, scales=layer.scales,
                        either_sign=layer.either_sign)
    count = _counts(weight.shape[1], block)
    scale, zero = start.scale.reshape(len(weight), -1).copy(), start.zero_point.reshape(len(weight), -1).copy()

    def part(rows: Rows) -> None:
        numbers = grouped(weight[rows], block)
        scale[rows], zero[rows] = _fitted(numbers, count, scale[rows], zero[rows].astype(np.float32), start, layer.scales,
                                          norm, beta, kappa, iterations)

    in_parts(weight, part)
    grid = Grid(bits, symmetric, scale.reshape(start.scale.shape), zero.reshape(start.scale.shape), start.axis, block)
    return Change(weight=quantise(weight, grid))


def foresee(layer: Layer, target: Target, *, bits: int = 4, block: int = 64, symmetric: bool = False, norm: float = 0.7,
            beta: float = 10.0, kappa: float = 1.01, iterations: int = 20) -> Foresight:
    """Whatever ``rtn`` would store."""
    return plain.foresee(layer, target, bits=bits, block=block, symmetric=symmetric)


def _fitted(weight: Floats, count: Floats, scale: Floats, zero: Floats, grid: Grid, scales: str, norm: float, beta: float, kappa: float,
            iterations: int) -> tuple[Floats, Floats]:
    """Scales and zero points [rows, groups] of a weight [rows, groups, block], of which ``count`` [groups] numbers are real."""
    least, best = np.full(scale.shape, np.inf), (scale, zero)
    for _ in range(iterations):
        codes = nearest_codes(weight, scale[..., None], zero[..., None], grid)
        steps = codes - zero[..., None]
        error = weight - steps * scale[..., None]
        cost = (np.abs(error) ** np.float32(norm)).sum(-1)
        if not np.any(cost < least):
            break
        best = np.where(cost < least, scale, best[0]), np.where(cost < least, zero, best[1])
        least = np.minimum(cost, least)
        wanted = weight - _shrunk(error, norm, beta)
        scale = _scale(steps, wanted, scale, scales)
        zero = zero if grid.signed else _zero(codes, wanted, count, scale, zero, grid)
        beta *= kappa
    return best


def _shrunk(error: Floats, norm: float, beta: float) -> Floats:
    """The minimum over E of |E|^p + beta / 2 (E - error)^2, nearly: the generalised soft threshold (equation 3)."""
    size = np.maximum(np.abs(error), np.float32(1e-20))
    return np.sign(error) * np.maximum(size - size ** np.float32(norm - 1.0) / np.float32(beta), 0)


def _scale(steps: Floats, wanted: Floats, before: Floats, scales: str) -> Floats:
    """The scale with which so many steps come nearest to what is wanted, in squares; what it was where there are none."""
    along, length = np.einsum("rgi,rgi->rg", steps, wanted), np.einsum("rgi,rgi->rg", steps, steps)
    good = along * np.sign(before) > np.abs(before) * length * np.float32(1e-3)  # its sign stays
    return storable(np.divide(along, length, out=before.copy(), where=good), scales)


def _zero(codes: Floats, wanted: Floats, count: Floats, scale: Floats, before: Floats, grid: Grid) -> Floats:
    """The whole zero point next to the mean of Q - (W - E) / s. The zeros that fill up a ragged group say ``before``: they are left out."""
    total = (codes - wanted / scale[..., None]).sum(-1) - (codes.shape[-1] - count) * before
    return np.clip(np.rint(total / count), grid.lowest, grid.highest).astype(np.float32)


def _counts(width: int, block: int) -> Floats:
    """[groups] how many numbers each group of a row has."""
    length = block or width
    return np.minimum(width - np.arange(0, width, length), length).astype(np.float32)
