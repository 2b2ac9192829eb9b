"""From measurements to the blame of each layer: shares, causes, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from whet.compress.apply import apply_recipe
from whet.compress.data import Dataset
from whet.compress.evaluate.output_error import decibels, relative_error, softmax_divergence
from whet.compress.explain.causes import Activation, Weights, causes, reach_of
from whet.compress.explain.differences import INPUT, Differences
from whet.compress.explain.prices import Shop
from whet.compress.explain.remedies import in_float, only
from whet.compress.explain.sensitivity import InPlace, Sensitivity, everything
from whet.compress.explain.simulate import Damage, simulation
from whet.compress.graph import GraphModel
from whet.compress.optimize.layers import output_sqnr
from whet.compress.plan import changes_of
from whet.compress.runtime import outputs_of
from whet.compress.statistics import Statistics
from whet.compress.weights import array, constant, rows_first, slots
from whet.core.errors import WhetError
from whet.core.explanation import Cause, LayerBlame
from whet.core.progress import track
from whet.core.recipe import Recipe

DROPPED_ON = 400  # samples that the metric without a layer is measured on


def blamed(found: Differences, seen: InPlace, measured: Mapping[str, Sensitivity]) -> tuple[LayerBlame, ...]:
    """All layers, the most harmful first; then those that were not measured, by their noise in place."""
    total = sum(_finite(each.alone.error) for each in measured.values())
    layers = [_blame(found, seen, name, measured.get(name), total) for name in found.owners]
    return tuple(sorted(layers, key=lambda layer: (layer.damage is None, -(layer.damage or 0.0), layer.sqnr_db or 0.0)))


def with_drops(layers: Sequence[LayerBlame], found: Differences, shop: Shop, most: int) -> tuple[LayerBlame, ...]:
    """The metric's drop when everything is rounded but the layer, for the worst ones."""
    samples = shop.data.first(DROPPED_ON)
    few = replace(shop, data=samples, outputs={name: values[: len(samples)] for name, values in shop.outputs.items()})
    drops: dict[str, float | None] = {}
    with simulation(found, samples, threads=shop.threads) as simulated:
        for layer in track(layers[:most], "the metric without the worst layers", most):
            left = everything(found).without([layer.name], found.tensors_of(layer.name))
            drops[layer.name] = few.compared(simulated.outputs(left)).drop.value
    return tuple(replace(layer, drop_without=drops.get(layer.name)) for layer in layers)


def remade(shop: Shop, recipe: Recipe, data: Dataset, most: int, until: float | None) -> tuple[LayerBlame, ...]:
    """Each layer's damage by doing the recipe to it alone, and to all but it, in the order of what it does in place."""
    folded = shop.original.folded()
    touched = changes_of(shop.original, recipe, shop.target)
    changed = [layer for layer in folded.plain_layers() if layer.name in touched and layer.weight_shape]
    sqnr = output_sqnr(folded, shop.made, data, [layer.name for layer in changed])
    changed.sort(key=lambda layer: sqnr.get(layer.name, np.inf))
    reference = outputs_of(shop.original, data, threads=shop.threads)
    found = []
    for number, layer in enumerate(track(changed, "layers one by one", len(changed))):
        late = number >= most or (number > 0 and until is not None and perf_counter() > until)
        alone = None if late else _done(shop, only(recipe, layer.name, layer.op), data, reference)
        without = None if late else _done(shop, in_float(recipe, layer.name, layer.op), data, reference)
        found.append(LayerBlame(layer.name, layer.op, alone.error if alone else None, kl=alone.kl if alone else None,
                                without=without.error if without else None, sqnr_db=sqnr.get(layer.name)))
    total = sum(_finite(layer.damage or 0.0) for layer in found)
    shared = [layer if layer.damage is None else replace(layer, damage=_finite(layer.damage), share=_finite(layer.damage) / (total or 1.0))
              for layer in found]
    return tuple(sorted(shared, key=lambda layer: (layer.damage is None, -(layer.damage or 0.0))))


def _done(shop: Shop, recipe: Recipe | None, data: Dataset, reference: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]
          ) -> Damage | None:
    """What the recipe does to the output; None where it cannot be done."""
    if recipe is None or not recipe.steps:
        return Damage(0.0)
    try:
        outputs = outputs_of(apply_recipe(shop.original, recipe, shop.target, calibration=shop.calibration), data, threads=shop.threads)
    except WhetError:
        return None
    return Damage(relative_error(reference, outputs), softmax_divergence(reference, outputs))


def _blame(found: Differences, seen: InPlace, name: str, measured: Sensitivity | None, total: float) -> LayerBlame:
    bare = LayerBlame(name, found.owners[name], sqnr_db=decibels(seen.noise.get(name, 0.0)), tensors=found.tensors_of(name))
    if measured is None:
        return bare
    weights, activations = (None if each is None else _finite(each.error) for each in (measured.weights, measured.activations))
    return replace(
        bare, damage=_finite(measured.alone.error), share=_finite(measured.alone.error) / total if total else 0.0, weights_damage=weights,
        activations_damage=activations, without=_known(measured.without.error), kl=measured.alone.kl, own_sqnr_db=measured.own_sqnr_db,
        causes=_causes(found, seen, name, (weights or 0.0, activations or 0.0)) if measured.alone.error else (),
    )


def _causes(found: Differences, seen: InPlace, name: str, damages: tuple[float, float]) -> tuple[Cause, ...]:
    activations = [Activation(tensor, seen.statistics[tensor], found.placed[tensor].grid, _joined(found, name, seen.statistics),
                              found.owners[name] == INPUT) for tensor in found.tensors_of(name)]
    weights = weights_of(found, name)
    return causes(None if weights is None else replace(weights, inputs=_inputs_reach(found, name, seen.statistics)), activations, damages)


def _inputs_reach(found: Differences, name: str, statistics: Mapping[str, Statistics]) -> NDArray[np.float64] | None:
    """[in] how far each channel of what the layer reads goes, where that lies on a grid."""
    node = _node(found.reference, name)
    seen = statistics.get(node.inputs[0].name or "") if node is not None and node.inputs[0] is not None else None
    if seen is None or seen.channel_low is None or seen.channel_high is None:
        return None
    return np.maximum(np.abs(seen.channel_low), np.abs(seen.channel_high)).astype(np.float64)


def weights_of(found: Differences, name: str) -> Weights | None:
    """[out, in, ...] the layer's first weight before and after, where it was rounded."""
    node = _node(found.reference, name)
    for slot in slots(node) if node is not None else ():
        rounded = found.constants.get(name, {}).get(slot.index)
        if rounded is not None and node is not None:
            bias, codes = constant(node, slot.bias), found.biases.get(name)
            return Weights(rows_first(array(node.inputs[slot.index]), slot), rows_first(rounded, slot),  # type: ignore[arg-type]
                           bias=None if bias is None or codes is None else (array(bias).ravel(), codes))
    return None


def _joined(found: Differences, name: str, statistics: Mapping[str, Statistics]) -> tuple[float, ...]:
    node = _node(found.reference, name)
    if node is None or node.op_type not in ("Add", "Concat", "Sub", "Sum"):
        return ()
    return tuple(reach_of(statistics, value.name or "") for value in node.inputs if value is not None and value.const_value is None)


def _node(model: GraphModel, name: str) -> ir.Node | None:
    return next((node for node in model.ir.graph if node.name == name), None)


def _known(error: float | None) -> float | None:
    return error if error is not None and np.isfinite(error) else None


def _finite(error: float) -> float:
    """Infinity (the output overflows) as the largest number that a document can hold."""
    return float(min(error, 1e30))


