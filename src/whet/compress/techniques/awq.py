"""The few weights that large inputs meet, made larger before they are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np

from whet.compress.grid import Array, Floats, Grid, Rows, fake_quantise, in_parts, nearest_codes, quantise, storable, weight_grid
from whet.compress.technique import LANGUAGE_OPS, Change, Foresight, LayerView, Search, rounded_matrix
from whet.compress.techniques.gptq import flat_weight
from whet.compress.views import Scaled, SharedGram
from whet.compress.weight_search import grouped, widest_share
from whet.core.inventory import Layer
from whet.core.target import Target

# Least factor before they are normalised, and the least share of a grid's ends that is tried in so many steps: the authors' numbers.
LEAST_FACTOR, LEAST_SHARE, SHARES = 1e-4, 0.5, 20
# Rows of each layer that candidates are compared on: the errors of rows are independent, and 512 of them tell the candidates apart.
ROWS = 512


def awq(view: SharedGram, target: Target, *,
        bits: Annotated[int, Search(4, 2, 3, 5, 6, 7, 8, help="bits a weight")] = 4,
        block: Annotated[int, Search(128, 16, 32, 64, 256, 0, help="weights that share a scale along the summed dimension; 0: one "
                                     "scale an output channel")] = 128,
        symmetric: Annotated[bool, Search(True, False, help="zero point in the middle")] = True,
        points: Annotated[int, Search(20, 10, 40, help="exponents that are tried", only=False, least=2, most=1000)] = 20,
        clip: Annotated[bool, Search(True, False, help="the ends of each grid are searched, else minimum and maximum")] = True,
        samples: Annotated[int, Search(128, 16, 512, help="how many windows of calibration text are read", only=False, least=1,
                                       most=100_000)] = 128) -> Scaled:
    """Multiply the weights of channels with large inputs by factors before all are rounded, and divide the inputs by them.

    Paper: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", section 3.2, equations 4 and
    5; factors and their normalisation, and the search of the grids' ends, as in the authors' code.
    Needs: calibration.
    Cost: the second moments [in, in] of what the layers read; for each of the 20 exponents 2 * in^2 operations for each of at most 512
    rows, and for the ends 11 roundings with 2 * in * block each; the ends again for all rows. Memory of three layers.
    Limits: factors go into the norm or layer that makes the input; where nothing can take them (grouped-query values, the inputs of an
    encoder's layers), the layers are rounded with searched ends alone. ``gptq`` behind it rounds the scaled weights and loses less.

    s = mean|x|^alpha / sqrt(max s * min s) for alpha = 0, 1/20, ..., 19/20, all layers that read x together; the one with the least
    sum of tr(E H E^T), E = W - Q(W s) / s, H = mean of x x^T. alpha = 0 is no factors, and none are given unless they beat it.
    With ``clip`` each block's grid in Q ends where e H_b e^T is least, among 1, 0.95, ..., 0.55 of its largest number; a symmetric grid
    of more than 2 bits may be wider, so that its highest code reaches as far as its lowest.
    """
    if view.movable:
        return Scaled(_factors(view, bits=bits, block=block, symmetric=symmetric, points=points, clip=clip), {})
    changes = {layer.name: _rounded(layer, view.gram, bits=bits, block=block, symmetric=symmetric, clip=clip) for layer in view.layers}
    return Scaled(None, changes)


def foresee(layer: Layer, target: Target, *, bits: int = 4, block: int = 128, symmetric: bool = True, points: int = 20, clip: bool = True,
            samples: int = 128) -> Foresight:
    """The linear layers of language models."""
    if layer.op != "Linear":
        note = "what multiplies a table of tokens is not known; rtn rounds it" if layer.op in LANGUAGE_OPS else (
            "awq is for language models; gptq and weight_only round the layers of graphs")
        return Foresight(False, note=note)
    return rounded_matrix(bits, block, symmetric)


def _factors(view: SharedGram, *, bits: int, block: int, symmetric: bool, points: int, clip: bool) -> Floats | None:
    """[in] the best factors that were tried, None where none are better than 1."""
    weights = [flat_weight(layer) for layer in view.layers]
    some = [weight[_spread_over(len(weight))] for weight in weights]

    def error(of: Sequence[Floats], factors: Floats) -> float:
        return sum(_error(weight, factors, view.gram, bits=bits, block=block, symmetric=symmetric, scales=layer.scales, clip=clip,
                          either_sign=layer.either_sign)
                   for weight, layer in zip(of, view.layers, strict=True))

    tried = [candidate(view.magnitudes, point / points) for point in range(points)]
    errors = [error(some, factors) for factors in tried]
    best = int(np.argmin(errors))
    worse_on_all = any(len(part) < len(weight) for part, weight in zip(some, weights, strict=True)) and (
        error(weights, tried[best]) >= error(weights, tried[0]))
    return None if best == 0 or worse_on_all else tried[best]


def candidate(magnitudes: Array, alpha: float) -> Floats:
    """[in] magnitudes^alpha, of which the largest is as far above 1 as the least is below it."""
    factors = np.maximum(np.asarray(magnitudes, np.float64) ** alpha, LEAST_FACTOR)
    return np.asarray(factors / np.sqrt(factors.max() * factors.min()), np.float32)


def _spread_over(rows: int) -> Array:
    """The numbers of at most ROWS rows, evenly spread."""
    return np.unique(np.linspace(0, rows - 1, min(rows, ROWS)).round().astype(np.int64))


def _error(weight: Floats, factors: Floats, gram: Floats, *, bits: int, block: int, symmetric: bool, scales: str, clip: bool,
           either_sign: bool = False) -> float:
    """tr(E H E^T), the mean squared error of the layer's output, with E = W - Q(W s) / s."""
    scaled = weight * factors
    moments = gram / np.outer(factors, factors) if clip else None
    grid = _grid(scaled, moments, bits=bits, block=block, symmetric=symmetric, scales=scales, either_sign=either_sign)
    lost = weight - fake_quantise(scaled, grid) / factors
    return float(np.einsum("oi,oi->", lost @ gram, lost, dtype=np.float64))


def _rounded(layer: LayerView, gram: Floats, *, bits: int, block: int, symmetric: bool, clip: bool) -> Change:
    weight = flat_weight(layer)
    grid = _grid(weight, gram if clip else None, bits=bits, block=block, symmetric=symmetric, scales=layer.scales,
                 either_sign=layer.either_sign)
    return Change(weight=quantise(weight, grid))


def _grid(weight: Floats, gram: Floats | None, *, bits: int, block: int, symmetric: bool, scales: str, either_sign: bool) -> Grid:
    """The grid of a weight [out, in], with ends that are searched where the moments [in, in] of what it reads are given."""
    full = weight_grid(weight, bits=bits, symmetric=symmetric, axis=1 if block else 0, block=block, scales=scales, either_sign=either_sign)
    widest = widest_share(bits) if symmetric and either_sign else 1.0
    return full if gram is None else clipped(weight, gram, full, scales=scales, widest=widest)


def clipped(weight: Floats, gram: Floats, full: Grid, *, scales: str, widest: float = 1.0) -> Grid:
    """The grid of a weight [out, in] with, for each scale on its own, the share of ``full`` that has the least error e H_b e^T: what the
    scale's numbers alone do to the output. gram: [in, in]. A share below 1 uses the lowest code too. widest: tried as well.
    """
    length = full.block or weight.shape[1]
    before, zero = full.scale.reshape(len(weight), -1), full.zero_point.reshape(len(weight), -1)
    moments = _own_moments(gram, length)
    shares = sorted({widest, *(1 - step / SHARES for step in range(round(LEAST_SHARE * SHARES)))}, reverse=True)
    best: Floats = np.empty_like(before)

    def part(rows: Rows) -> None:
        best[rows] = _best(grouped(weight[rows], full.block), moments, before[rows], zero[rows].astype(np.float32), full, scales, shares)

    in_parts(weight, part)
    return replace(full, scale=np.asarray(best.reshape(full.scale.shape)))


def _best(weight: Floats, moments: Floats, scale: Floats, zero: Floats, grid: Grid, scales: str, shares: Sequence[float]) -> Floats:
    """[rows, groups] the scales of a weight [rows, groups, block] with the least errors."""
    least, best = np.full(scale.shape, np.inf, np.float32), scale
    for share in shares:
        tried = storable(scale * np.float32(share), scales)
        values = (nearest_codes(weight, tried[..., None], zero[..., None], grid) - zero[..., None]) * tried[..., None]
        lost = (weight - values).transpose(1, 0, 2)  # [groups, rows, block]
        error = np.einsum("gri,gri->rg", lost @ moments, lost)
        best = np.where(error < least, tried, best)
        least = np.minimum(error, least)
    return best


def _own_moments(gram: Floats, length: int) -> Floats:
    """[groups, length, length] the part of the moments that is about each group of inputs; 0 where a last group is shorter."""
    groups = range(0, len(gram), length)
    found = np.zeros((len(groups), length, length), np.float32)
    for at, first in enumerate(groups):
        own = gram[first : first + length, first : first + length]
        found[at, : len(own), : len(own)] = own
    return found
