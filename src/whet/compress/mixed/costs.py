"""What each way of each layer costs, and what a border between float and integers does.

Time here is measured, by two profiled runs: of the float model and of the one that is all in integers. The profiler itself adds to each
kernel about what the smallest kernels seem to take (docs/mixed.md), so that is taken off again, by what the models were timed at.
A border was in neither of the two models: its kernels are counted by a table, and each takes a little for itself and a little for each
number.
Elsewhere time is estimated from the target's table. Bytes are those of the file (``estimate``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from whet.compress.estimate import Planned, added_bytes, gain, weight_bytes
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.mixed.problem import Border, Offer, Problem, Unit, Way
from whet.compress.mixed.roundings import Harms
from whet.compress.technique import Foresight
from whet.core.document import FrozenMap
from whet.core.inventory import Layer
from whet.core.target import Target
from whet.device.operators import OperatorTime

# Kernels that onnxruntime 1.31 runs on x86 where a convolution's float side (NCHWc) meets an integer side (NHWC): ReorderOutput,
# QuantizeLinear, Transpose; Transpose, DequantizeLinear, ReorderInput. An input of the model lies in NCHW; a product has no layout.
_KERNELS_OF_CONVOLUTIONS, _KERNELS_OF_INPUTS, _KERNELS_OF_PRODUCTS = 3, 2, 1
_US_A_KERNEL = 0.3  # of the smallest ones, without the profiler
_US_A_NUMBER = 1e-4  # of one such kernel, on 2 cores of x86 with AVX512: 1.2 us over the least time of a kernel for 16,384 numbers
# Where no bandwidth is known: a conversion of a number counts as so many multiply-accumulates.
_MACS_A_NUMBER = 4.0


@dataclass(frozen=True)
class Profile:
    """Microseconds of each layer in float and in integers."""

    float_us: Mapping[str, float]
    integer_us: Mapping[str, float]


def times_of(kernels: Sequence[OperatorTime], whole_us: float) -> tuple[OperatorTime, ...]:
    """The kernels of a profiled run with the times that they take where nobody profiles: the same is taken off each, none of them
    taking less than the smallest ones do, so that together they take the ``whole_us`` that the model was timed at.
    """
    least, most = 0.0, max((kernel.mean_us for kernel in kernels), default=0.0)
    for _ in range(40):
        overhead = (least + most) / 2
        found = tuple(replace(kernel, mean_us=max(kernel.mean_us - overhead, min(kernel.mean_us, _US_A_KERNEL))) for kernel in kernels)
        least, most = (overhead, most) if sum(kernel.mean_us for kernel in found) > whole_us else (least, overhead)
    return found


Foresights = Mapping[str, Mapping[Way, Foresight]]
"""What each way would make of each layer."""


def priced(problem: Problem, folded: GraphModel, ways: Foresights, target: Target, goal: str, profile: Profile | None = None) -> Problem:
    """The problem with all offers and their costs: bytes where ``goal`` is size or memory, else microseconds or, without a profile,
    multiply-accumulates at the target's speed of float."""
    layers = {layer.name: layer for layer in inspect(folded).layers}
    in_bytes = goal in ("size", "memory")
    units = []
    for unit in problem.units:
        common = [way for way in ways[unit.name] if all(way in ways[name] for name in unit.layers)]
        costs = [_in_bytes(unit, way, layers, ways) if in_bytes else
                 sum(_time(layers[name], way, ways[name][way], target, profile) for name in unit.layers) for way in common]
        units.append(replace(unit, offers=tuple(map(Offer, common, costs))))
    borders = problem.borders if in_bytes else tuple(_crossed(border, layers, units, profile, target) for border in problem.borders)
    return Problem(tuple(units), borders)


def with_harms(problem: Problem, harms: Harms) -> Problem:
    """The problem with what each offer and each grid does; what is not in the table does no harm."""
    units = tuple(replace(unit, offers=tuple(
        replace(offer, harm=sum(harms.weights.get((name, offer.way.name), 0.0) for name in unit.layers)) for offer in unit.offers))
                  for unit in problem.units)
    return Problem(units, tuple(replace(border, harm=harms.tensors.get(border.tensor, 0.0)) for border in problem.borders))


def _in_bytes(unit: Unit, way: Way, layers: Mapping[str, Layer], ways: Foresights) -> float:
    """Bytes of the layers with what comes with their weights; a shared weight lies in the file once.

    Q and DQ of an activation are counted with the weight of the layer that makes it. An operator without weights takes no bytes either
    way; one byte for its float way, so that of equals the faster is taken.
    """
    if unit.follows:
        return 0.0 if way.integers else 1.0
    found = [(layers[name], ways[name][way]) for name in unit.layers]
    if not way.technique:
        return float(max(layer.weight_bytes for layer, _ in found))
    return float(max(weight_bytes(layer, foreseen) for layer, foreseen in found) + sum(added_bytes(*each) for each in found))


def _time(layer: Layer, way: Way, foreseen: Foresight, target: Target, profile: Profile | None) -> float:
    """Microseconds, or multiply-accumulates at the speed of float where nothing was profiled."""
    if profile is not None:
        return (profile.integer_us if way.integers else profile.float_us).get(layer.name, 0.0)
    faster = gain(Planned(way.technique, foreseen), layer.op, target) if way.technique else 1.0
    return (layer.macs or 0) / (faster or 1.0)


def _crossed(border: Border, layers: Mapping[str, Layer], units: list[Unit], profile: Profile | None, target: Target) -> Border:
    """The border with the costs of its conversions."""
    ops = {unit.name: layers[unit.layers[0]].op for unit in units}
    numbers = _numbers(border, layers)
    if profile is None:
        rates = target.macs_per_s or FrozenMap()
        macs = rates.get("float32", 0.0) * 5 / target.bandwidth_bytes_per_s if target.bandwidth_bytes_per_s else _MACS_A_NUMBER
        return replace(border, to_integers=numbers * (macs or _MACS_A_NUMBER), to_float=numbers * (macs or _MACS_A_NUMBER))
    spatial = "Conv" in (ops.get(border.maker), *(ops[reader] for reader in border.readers))
    one = _US_A_KERNEL + numbers * _US_A_NUMBER
    kernels = _KERNELS_OF_PRODUCTS if not spatial else _KERNELS_OF_CONVOLUTIONS if border.maker else _KERNELS_OF_INPUTS
    return replace(border, to_integers=kernels * one, to_float=(kernels if border.readers else _KERNELS_OF_PRODUCTS) * one)


def _numbers(border: Border, layers: Mapping[str, Layer]) -> int:
    """Elements of what the readers read, for one sample; of an input of the model as many as its first reader gives, at most."""
    for name in (border.last, border.maker, *border.readers):
        layer = layers.get(name)
        if layer is not None and layer.output_shape and all(isinstance(size, int) for size in layer.output_shape[1:]):
            return math.prod(int(size) for size in layer.output_shape[1:])
    return 0
