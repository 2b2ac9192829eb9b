"""``explain``: which layers a recipe hurts, why, and what would mend them at which price."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from whet.compress.apply import worked
from whet.compress.artifacts import load, tool_versions
from whet.compress.data import Dataset, apart
from whet.compress.evaluate import find_metric
from whet.compress.evaluate.output_error import relative_error
from whet.compress.explain import words
from whet.compress.explain.differences import INPUT, Differences, differences
from whet.compress.explain.histograms import histograms
from whet.compress.explain.layers import blamed, remade, with_drops
from whet.compress.explain.prices import Shop, file_bytes, priced
from whet.compress.explain.remedies import proposals
from whet.compress.explain.sensitivity import everything, in_place, screened, sensitivity
from whet.compress.explain.simulate import Simulation, simulation
from whet.compress.graph import GraphModel
from whet.compress.recipes import as_recipe, as_target
from whet.compress.runtime import outputs_of
from whet.core.errors import Refused
from whet.core.explanation import Counted, Explanation, LayerBlame
from whet.core.recipe import Recipe, Step
from whet.core.target import Target
from whet.device.machine import describe, stamp

SAMPLES = 64  # that each layer's damage is measured on
JUDGED = 1000  # at most, that the metric is measured on
LAYERS = 40
REMEDIED = 3  # of the worst layers
AGREES = 1.25  # how far the damage in the simulation may be from that of the model that ships
_NAMES = {"int8": "static"}


def explain(model: Any, recipe: Recipe | Step | str | os.PathLike[str], *, data: Any, calibration: Any = None,
            metric: str | Callable[..., Any] | None = None, target: Target | str = "host", layers: int = LAYERS, remedies: bool = True,
            time_budget_s: float | None = None, seconds: float = 1.0, options: Mapping[str, Any] | None = None, example_inputs: Any = None,
            seed: int = 0, command: str = "") -> Explanation:
    """Blame: for each layer and tensor its share of the damage that a recipe does, the cause in numbers, and priced remedies.

    model: whatever ``whet.load`` takes. recipe: a Recipe, a Step, a TOML file, or the name of a technique (with ``options``); "int8" is
    ``static``. data: samples to judge by, with labels if there are any; calibration: samples to find ranges by, split off ``data`` where
    none are given. layers: at most so many are measured one by one, those first that add most noise in place; time_budget_s: none is
    begun after that, nor a remedy. remedies: whether any are tried. seconds: of timing them.
    Raises Refused where the recipe rounds nothing or there is no data, and what ``apply`` raises.
    """
    began, at = perf_counter(), stamp().at
    if layers < 1:
        raise Refused(f"measure {layers} layers", do="measure one at least")
    graph, place = load(model, example_inputs=example_inputs), as_target(target)
    chosen = as_recipe(_NAMES.get(recipe, recipe) if isinstance(recipe, str) else recipe, options)
    judged, calibrating, notes = _data(graph, data, calibration, seed)
    until = None if time_budget_s is None else began + time_budget_s
    shop, reference = _shop(graph, chosen, place, calibrating, judged, metric, seconds)
    before = shop.quality(shop.made)
    found = _blame(shop, reference, chosen, layers, until)
    worst = [layer for layer in found.layers[:REMEDIED] if layer.damage]
    tried = priced(_proposed(chosen, worst, found), shop, before, until=until) if remedies else ()
    explanation = Explanation(
        graph.origin, place.name, chosen, "", shop.metric.name, _finite(before[0]), before[1].measurements, found.layers, found.executed,
        tried, found.histograms, sum(layer.damage is not None for layer in found.layers), found.samples, len(judged), found.how,
        found.agreement, file_bytes(graph), file_bytes(shop.made), words.described(judged, calibrating), describe().to_plain(),
        tool_versions(), command, (*notes, *found.notes), at, round(perf_counter() - began, 1),
    )
    return replace(explanation, headline=words.headline(explanation))


@dataclass(frozen=True, eq=False)
class _Blame:
    layers: tuple[LayerBlame, ...]
    executed: tuple[str, ...]
    histograms: tuple[Counted, ...]
    samples: int
    how: str
    agreement: float | None
    notes: tuple[str, ...]
    found: Differences | None


def _data(graph: GraphModel, data: Any, calibration: Any, seed: int) -> tuple[Dataset, Dataset, tuple[str, ...]]:
    judged, calibrating, notes = apart(data, calibration, graph.inputs, seed=seed)
    if len(judged) <= JUDGED:
        return judged, calibrating, notes
    return judged.take(_spread(len(judged), JUDGED)), calibrating, (*notes, f"judged on {JUDGED} of {len(judged)} samples, evenly taken")


def _spread(total: int, count: int) -> list[int]:
    """``count`` indices evenly over all."""
    return [int(index) for index in np.linspace(0, total - 1, min(count, total)).round()]


def _shop(graph: GraphModel, recipe: Recipe, target: Target, calibration: Dataset, data: Dataset,
          metric: str | Callable[..., Any] | None, seconds: float) -> tuple[Shop, GraphModel]:
    """What everything is held against, and the float model that the recipe's steps began to round."""
    done = worked(graph, recipe, target, calibration=calibration)
    if done.reference is None:
        raise Refused(f"explain {recipe.name or ', '.join(step.technique for step in recipe.steps)}", found="it rounds nothing",
                      do="give a recipe with a step that quantises, such as static")
    made = done.settled(target).slimmed()
    chosen = find_metric(metric or ("accuracy" if data.labels is not None else "fidelity"))
    outputs = outputs_of(graph, data, threads=target.threads if target.here else None)
    return Shop(graph, made, target, calibration, data, chosen, outputs, seconds), done.reference


def _blame(shop: Shop, reference: GraphModel, recipe: Recipe, most: int, until: float | None) -> _Blame:
    """By simulation where that gives what really ships, else with the recipe done again for each layer."""
    some = shop.data.take(_spread(len(shop.data), SAMPLES))
    found = differences(reference, shop.made, shop.target, some)
    if found.owners:
        with simulation(found, some, threads=shop.threads) as simulated:
            simulated_damage = simulated.damage(everything(found)).error
            real = relative_error(simulated.reference, outputs_of(shop.made, some, threads=shop.threads))
            if _agree(simulated_damage, real):
                return _simulated(shop, found, simulated, most, until, simulated_damage / real if real else None, len(some))
    layers = remade(shop, recipe, some, most, until)
    note = "each layer's damage was measured by doing the recipe again for it alone: what the recipe puts in its place cannot be simulated"
    return _Blame(layers, tuple(layer.name for layer in layers), (), len(some), "remade", None, (note, *words.unmeasured(layers)), None)


def _agree(one: float, other: float) -> bool:
    return bool(np.isfinite([one, other]).all()) and max(one, other) <= AGREES * min(one, other) + 1e-12


def _simulated(shop: Shop, found: Differences, simulated: Simulation, most: int, until: float | None, agreement: float | None, samples: int
               ) -> _Blame:
    seen = in_place(simulated, found)
    order = screened(found, seen)[:most]
    left = None if until is None else max(until - perf_counter(), 0.0) / 2  # half of the time is for the remedies
    measured = sensitivity(simulated, found, order, seconds=left)
    layers = blamed(found, seen, measured)
    if shop.data.labels is not None and layers[0].damage:
        layers = with_drops(layers, found, shop, REMEDIED)
    drawn = histograms([layer for layer in layers[:REMEDIED] if layer.damage], found, seen.statistics)
    return _Blame(layers, tuple(found.owners), drawn, samples, "simulated", agreement, words.unmeasured(layers), found)


def _proposed(recipe: Recipe, worst: Sequence[LayerBlame], blame: _Blame) -> tuple[Any, ...]:
    ops = {layer.name: layer.op for layer in blame.layers}
    readers = _first_readers(blame.found) if blame.found is not None else {}
    if blame.found is not None:
        ops |= {node.name: node.op for node in blame.found.reference.nodes}
    return proposals(recipe, worst, ops, readers, others=len(blame.layers) - len(worst))


def _first_readers(found: Differences) -> dict[str, str]:
    """For each input of the model that lies on a grid, the first layer that reads it there."""
    order = {node.name: place for place, node in enumerate(found.reference.nodes)}
    readers: dict[str, str] = {}
    for placed in found.placed.values():
        if found.owners.get(placed.owner) == INPUT and placed.readers:
            first = min(placed.readers, key=lambda name: order.get(name, len(order)))
            if first in found.constants or placed.owner not in readers:
                readers[placed.owner] = first
    return readers


def _finite(value: float) -> float:
    return value if np.isfinite(value) else float(np.finfo(np.float64).max)


