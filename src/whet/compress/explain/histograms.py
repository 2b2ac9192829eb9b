"""Histograms of the worst layers' weights and activations, with the range of their grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from whet.compress.explain.causes import Activation, Weights
from whet.compress.explain.differences import Differences
from whet.compress.explain.layers import weights_of
from whet.compress.statistics import Statistics
from whet.core.explanation import Counted, LayerBlame

BINS = 128


def histograms(worst: Sequence[LayerBlame], found: Differences, statistics: Mapping[str, Statistics]) -> tuple[Counted, ...]:
    """Of the weights and of the first tensor of each layer."""
    drawn: list[Counted] = []
    for layer in worst:
        weights = weights_of(found, layer.name)
        if weights is not None:
            drawn.append(of_weights(layer.name, weights))
        drawn += _of_tensors(layer, found, statistics)
    return tuple(drawn)


def of_weights(name: str, weights: Weights) -> Counted:
    """The float weights; the grid reaches as far as the rounded ones do, and its coarsest step is the smallest difference of two numbers
    in the channel where that is largest."""
    low, high = float(weights.exact.min()), float(weights.exact.max())
    width = max(high - low, 1e-30) / BINS
    counts = np.histogram(weights.exact.astype(np.float64), bins=BINS, range=(low, low + BINS * width))[0]
    rows = weights.rounded.reshape(len(weights.rounded), -1)
    steps = [float(np.diff(values).min()) for row in rows if (values := np.unique(row)).size > 1]
    return Counted(name, name, "weights", low, width, tuple(map(int, counts)), float(weights.rounded.min()), float(weights.rounded.max()),
                   max(steps, default=0.0))


def _of_tensors(layer: LayerBlame, found: Differences, statistics: Mapping[str, Statistics]) -> Iterator[Counted]:
    for tensor in layer.tensors[:1]:
        seen, grid = statistics[tensor], found.placed[tensor].grid
        if seen.count and seen.width:
            on = Activation(tensor, seen, grid)
            used = np.flatnonzero(seen.counts)
            first, last = int(used[0]), int(used[-1]) + 1
            merged = -(-(last - first) // BINS)
            padded = np.pad(seen.counts[first:last], (0, -(last - first) % merged)).reshape(-1, merged).sum(axis=1)
            yield Counted(layer.name, tensor, "activations", float(seen.edges[first]), seen.width * merged, tuple(map(int, padded)), on.low,
                          on.high, float(grid.scale))
