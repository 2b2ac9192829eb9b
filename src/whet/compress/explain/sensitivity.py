"""What each layer's rounding does to the output: alone, part by part, and when it alone is left out.

``everything``, ``part_of`` and ``sensitivity`` are for whoever wants a table of other choices too: a ``Variant`` may hold any constants
and grids for what the simulation can switch, so "this layer with 4 bits" is ``Variant({layer: {index: rounded}})``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from whet.compress.evaluate.output_error import decibels
from whet.compress.explain.differences import INPUT, Differences
from whet.compress.explain.simulate import Damage, Simulation, Variant
from whet.compress.grid import Array
from whet.compress.statistics import Statistics
from whet.core.progress import track

MOST_CHANNELS = 4096

Part = Literal["both", "weights", "activations"]


@dataclass(frozen=True)
class Sensitivity:
    """Of one layer. alone: rounded alone. weights, activations: only that part; None where it has none. without: everything rounded but
    this layer. own_sqnr_db: of the layer's output with its own rounding alone."""

    alone: Damage
    weights: Damage | None
    activations: Damage | None
    without: Damage
    own_sqnr_db: float | None


@dataclass(frozen=True, eq=False)
class InPlace:
    """Every layer's output in the float and in the rounded model. noise: relative error energy by layer, errors of the layers before it
    included; channel_noise: the mean of the same of each channel, 1 at most, for the next layer may make much of a channel that is small.
    statistics: of the tensors on grids in float, by tensor, with histogram and, where they have an axis for them, channels."""

    noise: Mapping[str, float]
    channel_noise: Mapping[str, float]
    statistics: Mapping[str, Statistics]


def everything(found: Differences) -> Variant:
    """All that the recipe rounds."""
    return Variant(found.constants, {name: placed.grid for name, placed in found.placed.items()})


def part_of(found: Differences, layer: str, part: Part = "both") -> Variant:
    """One layer's rounding: its constants, and the grids of what it gives."""
    constants = {layer: found.constants[layer]} if layer in found.constants and part != "activations" else {}
    grids = {} if part == "weights" else {name: found.placed[name].grid for name in found.tensors_of(layer)}
    return Variant(constants, grids)


def outputs_of_layers(found: Differences) -> dict[str, str]:
    """By layer, the tensor that its output is seen on: the one on a grid where there is one, else what the operator gives."""
    first = {node.name or "": node.outputs[0].name or "" for node in found.reference.ir.graph}
    places = {layer: next(iter(found.tensors_of(layer)), first.get(layer, "")) for layer in found.owners}
    return {layer: tensor for layer, tensor in places.items() if tensor}


def sensitivity(simulated: Simulation, found: Differences, layers: Sequence[str], *, seconds: float | None = None
                ) -> dict[str, Sensitivity]:
    """Each of the layers, in the order given, until the time is over; one at least. Four runs over the samples for a layer with weights
    and a grid, two for one with either."""
    whole, began = everything(found), perf_counter()
    measured: dict[str, Sensitivity] = {}
    shown = outputs_of_layers(found)
    inner = [shown[layer] for layer in layers if shown.get(layer) in simulated.shown]
    exact = next(simulated.batches(Variant(), dict.fromkeys(inner))) if inner else {}
    for layer in track(layers, "layers one by one", len(layers)):
        if measured and seconds is not None and perf_counter() - began > seconds:
            break
        measured[layer] = _one(simulated, found, layer, whole, shown.get(layer), exact)
    return measured


def in_place(simulated: Simulation, found: Differences) -> InPlace:
    """One pass of the samples through the float and the rounded model, side by side; memory: all layers' outputs of one batch, twice."""
    shown = {layer: tensor for layer, tensor in outputs_of_layers(found).items() if tensor in simulated.shown}
    tensors = sorted({*shown.values(), *found.placed})
    signal, noise = ({name: np.zeros(1) for name in tensors} for _ in range(2))  # [channels] each, once they are known
    axes: dict[str, int | None] = {}
    statistics: dict[str, Statistics] = {}
    pairs = zip(simulated.batches(Variant(), tensors), simulated.batches(everything(found), tensors), strict=True)
    for exact, rounded in track(pairs, "every layer in place"):
        for name in tensors:
            axis = axes.setdefault(name, _channel_axis(found, name, exact[name]))
            wide = exact[name].astype(np.float64)
            signal[name] = signal[name] + _by_channel(wide**2, axis)
            noise[name] = noise[name] + _by_channel((rounded[name] - wide) ** 2, axis)
        for name in found.placed:
            statistics.setdefault(name, Statistics(name, True, axes[name])).update(exact[name])
    whole = {name: _ratio(noise[name].sum(keepdims=True), signal[name].sum(keepdims=True)) for name in tensors}
    each = {name: _ratio(noise[name], signal[name], 1.0) for name in tensors}
    return InPlace({layer: whole[tensor] for layer, tensor in shown.items()}, {layer: each[tensor] for layer, tensor in shown.items()},
                   statistics)


def _by_channel(squares: Array, axis: int | None) -> NDArray[np.float64]:
    """[channels] the sums, or [1] where there are none."""
    found: NDArray[np.float64] = squares.sum(keepdims=True).reshape(1) if axis is None else np.moveaxis(squares, axis, 0).reshape(
        squares.shape[axis], -1).sum(axis=1)
    return found


def _ratio(noise: NDArray[np.float64], signal: NDArray[np.float64], most: float = np.inf) -> float:
    """The mean of noise over signal, of the channels that have any; most: what one that is lost counts."""
    alive = signal > 0
    return float(np.minimum(noise[alive] / signal[alive], most).mean()) if alive.any() else 0.0


def screened(found: Differences, seen: InPlace) -> list[str]:
    """All layers, those first that add most noise to what they read: the order to measure them in where there is no time for all."""
    makers = {tensor: placed.owner for tensor, placed in found.placed.items()}
    nodes = {node.name or "": node for node in found.reference.ir.graph}

    def added(layer: str) -> tuple[float, float]:
        own = seen.channel_noise.get(layer, 0.0)
        read = [makers.get(value.name or "", "") for value in nodes[layer].inputs if value is not None] if layer in nodes else []
        return max(own - max((seen.channel_noise.get(maker, 0.0) for maker in read), default=0.0), 0.0), own

    return sorted(found.owners, key=added, reverse=True)


def _one(simulated: Simulation, found: Differences, layer: str, whole: Variant, shown: str | None, exact: Mapping[str, Array]
         ) -> Sensitivity:
    both = layer in found.constants and bool(found.tensors_of(layer))
    alone = simulated.damage(part_of(found, layer))
    weights, activations = ((simulated.damage(part_of(found, layer, part)) for part in ("weights", "activations")) if both
                            else (alone if layer in found.constants else None, alone if found.tensors_of(layer) else None))
    without = simulated.damage(whole.without([layer], found.tensors_of(layer)))
    own = None
    if shown is not None and shown in exact:  # on one batch, which says enough of one tensor
        own = decibels(_relative(exact[shown], next(simulated.batches(part_of(found, layer), [shown]))[shown]))
    return Sensitivity(alone, weights, activations, without, own)


def _relative(exact: Array, found: Array) -> float:
    wide = exact.astype(np.float64)
    power = float((wide**2).sum())
    return float(((found - wide) ** 2).sum()) / power if power else 0.0


def _channel_axis(found: Differences, tensor: str, values: Array) -> int | None:
    """The axis of a tensor's channels: 1 of maps, the last one of rows and sequences. An input of the model has them where its ranges
    differ most (a spectrum may lie on any axis). None where there is no axis of two sizes or more beside the batch."""
    axes = [axis for axis in range(1, values.ndim) if 2 <= values.shape[axis] <= MOST_CHANNELS]
    if not axes:
        return None
    if tensor in found.placed and found.owners.get(found.placed[tensor].owner) == INPUT:
        return max(axes, key=lambda axis: _spread(values, axis))
    axis = 1 if values.ndim >= 4 or _is_map(found, tensor) else values.ndim - 1
    return axis if axis in axes else None


def _spread(values: Array, axis: int) -> float:
    """How many times farther the widest channel reaches than the median one."""
    reach = np.abs(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)).max(axis=1)
    return float(reach.max() / max(float(np.median(reach)), 1e-30))


def _is_map(found: Differences, tensor: str) -> bool:
    maps = [node for node in found.reference.ir.graph if node.op_type in ("Conv", "ConvTranspose", "BatchNormalization", "MaxPool")]
    return any(value is not None and value.name == tensor for node in maps for value in (*node.inputs, *node.outputs))
