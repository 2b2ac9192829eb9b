"""``plan``: what a recipe would do to each layer on a target and what it would cost. No work is done."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from whet.compress import estimate
from whet.compress.artifacts import load
from whet.compress.bodies import checkpoint_in
from whet.compress.estimate import Planned
from whet.compress.graph import GraphModel
from whet.compress.inspect import inspect
from whet.compress.put.sites import sites
from whet.compress.recipes import as_recipe, as_target
from whet.compress.technique import Foresight, technique
from whet.core.errors import Unsupported
from whet.core.inventory import Inventory, Layer
from whet.core.measurement import Measurement
from whet.core.plan import Plan, PlannedLayer
from whet.core.recipe import Recipe, Step, matched
from whet.core.target import Target

SAMPLES = 300  # calibration samples that the time is told for, where the caller does not say


def plan(model: Any, recipe: Recipe | str | os.PathLike[str], *, target: Target | str = "host", samples: int = SAMPLES,
         example_inputs: Any = None, options: Mapping[str, Any] | None = None) -> Plan:
    """The recipe resolved against the model and the target.

    model: whatever ``whet.load`` takes. recipe: a Recipe, the path of a TOML file, or the name of a technique (with ``options``).
    samples: how many calibration samples the time is estimated for; of a language model
    windows of 2048 tokens, 128 by default.
    Raises Refused where a step matches nothing or an option is unknown, Unsupported where nothing at all could be done.
    """
    language = checkpoint_in(model)
    if language is not None:
        from whet.compress.checkpoint.plan import plan_checkpoint

        return plan_checkpoint(language, as_recipe(recipe, options), as_target(target), windows=None if samples == SAMPLES else samples)
    graph = load(model, example_inputs=example_inputs)
    chosen, place = as_recipe(recipe, options), as_target(target)
    found = inspect(graph)
    return resolve(graph, chosen, place, found, samples=samples)


def resolve(graph: GraphModel, recipe: Recipe, target: Target, found: Inventory, *, samples: int = SAMPLES) -> Plan:
    """``plan`` for a model whose inventory is known."""
    folded = graph.folded()
    after: dict[str, Planned] = {}
    notes: dict[str, str] = {}
    for step in recipe.steps:
        foresights = _foresights(folded, step, graph, target)
        if not any(each.applies for each in foresights.values()):
            reasons = "; ".join(sorted({each.note for each in foresights.values() if each.note})[:3])
            raise Unsupported(f"plan {step.technique}", found=reasons or "it changes none of the layers it names", do="choose other layers")
        notes |= {name: foresight.note for name, foresight in foresights.items()}
        after |= _later(after, foresights, step.technique)
    left = {node.name for node in folded.nodes}
    layers = tuple(_planned(layer, after.get(layer.name), notes.get(layer.name, ""), layer.name in left)
                   for layer in found.layers)
    calibrated = any(technique(step.technique).needs == "calibration" for step in recipe.steps)
    foreseen = {name: planned.foresight for name, planned in after.items()}
    size = estimate.size_measurement(found, foreseen, _bare_bytes(folded, found))
    costs = (size, *_costs(found, after, target, calibrated, samples))
    return Plan(graph.origin, recipe, target.name, layers, costs, _warnings(found, after, target))


def changes_of(graph: GraphModel, recipe: Recipe, target: Target) -> dict[str, Planned]:
    """What the recipe does to each layer that it changes, all steps together."""
    folded = graph.folded()
    after: dict[str, Planned] = {}
    for step in recipe.steps:
        after |= _later(after, _foresights(folded, step, graph, target), step.technique)
    return after


def _later(before: Mapping[str, Planned], foresights: Mapping[str, Foresight], name: str) -> dict[str, Planned]:
    """What comes of the layers that a step changes; integer layers keep the width that an earlier step gave their weights."""
    found: dict[str, Planned] = {}
    for layer, foresight in foresights.items():
        if not foresight.applies or foresight.adjusts:
            continue
        if layer in before and technique(name).in_sites and foresight.bits < 32:
            narrow = before[layer].foresight
            foresight = replace(foresight, bits=narrow.bits, weights=narrow.weights, block=narrow.block) if narrow.bits < 16 else foresight
        found[layer] = Planned(name, foresight)
    return found


def _foresights(folded: GraphModel, step: Step, graph: GraphModel, target: Target) -> dict[str, Foresight]:
    used = technique(step.technique)
    options = used.checked(step.options)
    names = matched(step, graph.nodes)
    layers = {layer.name: layer for layer in folded.plain_layers()}
    unseen: Collection[str] = () if used.enters_bodies else folded.inner_names
    found = {name: Foresight(False, note=used.why_not_inside(name)) if name in unseen else used.foresee(layers[name], target, **options)
             for name in names if name in layers}
    if not used.in_sites:
        return found
    together = sites(folded.ir.graph, [name for name, each in found.items() if each.applies], target)
    alone = "its neighbours compute in float, so the conversions would cost more than they gain"
    moves = target.moving_ops
    return {name: each if not each.applies or name in together or layers[name].op in moves else Foresight(False, note=alone)
            for name, each in found.items()}


def _planned(layer: Layer, planned: Planned | None, note: str, exists: bool) -> PlannedLayer:
    if planned is None:
        reason = note if exists else "folded into the layer before it"
        kernel = f"float32 {layer.op}" if exists else ""
        return PlannedLayer(layer.name, layer.op, "", layer.weight_dtype, "", kernel, layer.weight_bytes,
                            layer.weight_bytes if exists else 0, reason)
    found = planned.foresight
    weights = found.weights if layer.weight_shape else ""
    return PlannedLayer(layer.name, layer.op, planned.technique, weights, found.activations, found.runs_as, layer.weight_bytes,
                        estimate.weight_bytes(layer, found), found.note)


def _bare_bytes(folded: GraphModel, found: Inventory) -> int:
    """The size of the model as it would ship with its weights as they are; of a large one, whose structure is nothing, its weights."""
    return found.weight_bytes if folded.is_large else len(folded.slimmed().content)


def _costs(found: Inventory, after: Mapping[str, Planned], target: Target, calibrated: bool, samples: int) -> tuple[Measurement, ...]:
    from whet.device.machine_limits import machine_limits

    rate = machine_limits().float32_macs_per_s
    return (estimate.latency_measurement(found, after, target), estimate.working_memory(found, calibrated, batch=32),
            estimate.working_seconds(found, samples if calibrated else 0, rate))


def _warnings(found: Inventory, after: Mapping[str, Planned], target: Target) -> tuple[str, ...]:
    """What users regret: techniques that make an operator slower on this target, said before any work."""
    slow: dict[tuple[str, str], int] = {}
    for layer in found.layers:
        planned = after.get(layer.name)
        ratio = estimate.gain(planned, layer.op, target) if planned is not None else None
        if planned is not None and ratio is not None and ratio < 1 and layer.macs:
            slow[planned.technique, layer.op] = slow.get((planned.technique, layer.op), 0) + 1
    lines = []
    for (name, op), count in slow.items():
        speed = target.speed(name, op)
        how = f"{speed.ratio:g} of float's speed; {speed.source}" if speed else "by the ratio of its peak rates"
        lines.append(f"{name} makes {op} slower on {target.name}, {count} layers ({how})")
    return tuple(lines)
