"""Inputs whose channels differ by orders of magnitude (MFCC: the first coefficient spans -250..40, the others +-5): one grid for all of
them would leave the small ones a code or two. Their layers get them divided channel by channel, and take the factors in their weights.

Only tensors that are made in float are looked at: there a factor costs one Mul, or nothing where a LayerNormalization takes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from whet.compress.calibrate import collect
from whet.compress.edit import Editor
from whet.compress.graph import GraphModel
from whet.compress.grid import Array
from whet.compress.put.scaling import by_input, can_take, channel_axis, divide
from whet.compress.put.sites import Site, is_mover, source
from whet.compress.ranges import Wanted
from whet.compress.statistics import Statistics
from whet.compress.techniques.smoothquant import smoothing
from whet.compress.walks import Work
from whet.core.target import Target

# Least fall of the noise power that a layer is expected to have before its input is divided. Measured on a keyword net of 10 coefficients
# whose first one is scaled: at 9 the output's SQNR stays where it was (25.5 dB), at 78 it rises from 16.8 to 25.5 dB.
LEAST_GAIN = 10.0
ALPHAS = (0.35, 0.5, 0.65, 0.8, 1.0)


@dataclass(frozen=True, eq=False)
class FloatInput:
    """A tensor that is made in float, and the layers with weights that read it. axis: of its channels."""

    value: ir.Value
    layers: tuple[ir.Node, ...]
    axis: int


def float_inputs(model: GraphModel, found: Mapping[str, Site], target: Target) -> dict[str, FloatInput]:
    """By the name of the tensor. A layer whose weight lies on a grid already is left out, for its numbers may not change any more; so is
    a tensor whose range an earlier step found."""
    rounded, integer = {name for name, _ in model.pending}, {site.node for site in found.values()}
    readers: dict[ir.Value, list[ir.Node]] = {}
    for name, site in found.items():
        if name not in rounded and channel_axis(site.node) is not None and source(site.tensors[0], target) not in integer:
            readers.setdefault(site.tensors[0], []).append(site.node)
    kept = {value: nodes for value, nodes in readers.items() if value.name not in model.ranges and not _is_dequantised(value)}
    inputs = {value: {axis for node in nodes if (axis := channel_axis(node)) is not None} for value, nodes in kept.items()}
    return {value.name or "": FloatInput(value, tuple(kept[value]), *axes) for value, axes in inputs.items() if len(axes) == 1}


def evened(model: GraphModel, found: Mapping[str, Site], statistics: Mapping[str, Statistics], work: Work) -> tuple[str, ...]:
    """Divide the inputs that need it, in the graph of ``model``; the names of the tensors that have new ranges now.

    statistics: with those of channels for ``float_inputs``.
    """
    editor, changed = Editor(model.ir.graph), []
    for name, given in float_inputs(model, found, work.target).items():
        scales = scales_for([by_input(node) for node in given.layers], statistics[name])
        if scales is not None and (can_take(given.value, given.layers) or _is_given(given.value, work.target)):
            changed.append(divide(given.value, given.layers, scales, editor).name or "")
    if changed:
        editor.close()
    return tuple(changed)


def scales_for(weights: Sequence[Array], statistics: Statistics) -> Array | None:
    """[in] float32 factors with which the layers lose least, or None where they would gain less than LEAST_GAIN.

    weights: [in, ...] each. The candidates are SmoothQuant's (see there) with different alphas.
    """
    low, high = statistics.channel_low, statistics.channel_high
    if low is None or high is None:
        return None
    peaks = np.maximum(np.abs(low), np.abs(high))
    strongest = np.max([np.abs(weight).max(axis=tuple(range(1, weight.ndim))) for weight in weights], axis=0)
    candidates = [smoothing(peaks, strongest, alpha) for alpha in ALPHAS]
    losses = [sum(noise(weight, statistics, scales) for weight in weights) for scales in candidates]
    before = sum(noise(weight, statistics, np.ones(len(peaks))) for weight in weights)
    best = int(np.argmin(losses))
    return candidates[best] if losses[best] * LEAST_GAIN < before else None


def noise(weight: Array, statistics: Statistics, scales: Array) -> float:
    """The noise power that 8 bits bring to the sum of a layer whose input channels are divided by ``scales``, but for a factor.

    A step d gives d^2 / 12 (Bennett 1948). Activations share one step, (highest - lowest) / 255; an output channel o of the weight
    has the step max|W_o| / 127, and its errors are multiplied by the inputs' mean squares.
    """
    low, high, mean, spread = (part.astype(np.float64) for part in _channels(statistics))
    rows = weight.reshape(*weight.shape[:2], -1).astype(np.float64) * scales[:, None, None]  # [in, out, kernel]
    step = (max(float((high / scales).max()), 0.0) - min(float((low / scales).min()), 0.0)) / 255
    weight_steps = np.abs(rows).max(axis=(0, 2)) / 127  # [out]
    squares = (mean**2 + spread**2) / scales**2  # [in]
    live = (low < 0) | (high > 0)  # 0 is on every grid, so a channel that is always 0 brings no noise
    return float(step**2 * np.square(rows[live]).sum() + rows.shape[2] * np.square(weight_steps).sum() * squares.sum())


def _channels(statistics: Statistics) -> tuple[Array, Array, NDArray[np.float64], NDArray[np.float64]]:
    low, high, mean, spread = statistics.channel_low, statistics.channel_high, statistics.channel_mean, statistics.channel_std
    assert low is not None
    assert high is not None
    assert mean is not None
    assert spread is not None
    return low, high, mean, spread


def collected_again(model: GraphModel, names: Sequence[str], work: Work, asked: Wanted) -> dict[str, Statistics]:
    """Of the tensors ``names`` only; no more of the model runs than makes them."""
    copied = model.copied()
    outputs = copied.ir.graph.outputs
    made = [value for node in copied.ir.graph for value in node.outputs if value.name in names]
    outputs.clear()
    outputs.extend(made)
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(copied.ir)
    return collect(copied, names, work.calibration, histogram=asked.histogram, tails=asked.tails)


def _is_given(value: ir.Value, target: Target) -> bool:
    """Whether the tensor is an input of the model, seen through what only moves data."""
    made = value.producer()
    while made is not None and is_mover(made, target):
        before = made.inputs[0]
        assert before is not None
        value, made = before, before.producer()
    return made is None and value.const_value is None


def _is_dequantised(value: ir.Value) -> bool:
    made = value.producer()
    return made is not None and made.op_type == "DequantizeLinear"
