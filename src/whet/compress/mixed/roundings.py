"""What quantising would change, layer by layer and tensor by tensor: the rounded weights of each way, and the grids of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.compress.data import Dataset
from whet.compress.graph import GraphModel
from whet.compress.grid import Floats, Grid, Quantised
from whet.compress.mixed.problem import Problem, Way
from whet.compress.put.sites import Site
from whet.compress.statistics import Statistics
from whet.compress.technique import technique
from whet.compress.walks import Work
from whet.compress.walks.sites import prepared
from whet.compress.weights import Slot
from whet.core.target import Target

SAMPLES = 128


@dataclass(frozen=True, eq=False)
class Prepared:
    """A float model as ``static`` begins with it: the operators that could compute in integers, and statistics of their tensors."""

    model: GraphModel
    found: Mapping[str, Site]
    statistics: Mapping[str, Statistics]


def prepare(folded: GraphModel, options: Mapping[str, Any], target: Target, data: Dataset) -> Prepared:
    """options: of ``static``. Raises Unsupported where nothing in the model computes in integers on the target."""
    used = technique("static")
    own = used.checked(options)
    layers = {layer.name: own for layer in folded.plain_layers() if used.foresee(layer, target, **own).applies}
    return Prepared(*prepared(folded, Work(used, layers, target, data)))


@dataclass(frozen=True, eq=False)
class Roundings:
    """weights: [out, in] float32 by layer and way, for each slot. grids: of tensors, by the name of the border that they belong to."""

    weights: Mapping[tuple[str, str], Mapping[Slot, Floats]]
    grids: Mapping[str, Grid]


@dataclass(frozen=True, eq=False)
class Harms:
    """What each rounding does alone. weights: by layer and way; tensors: by border. In nats of KL divergence where the model's only
    float output holds class scores, else in error energy over output energy."""

    weights: Mapping[tuple[str, str], float]
    tensors: Mapping[str, float]


def roundings(ready: Prepared, problem: Problem, target: Target) -> Roundings:
    """Every rounding that the problem's offers speak of, with the technique's own arithmetic."""
    weights: dict[tuple[str, str], Mapping[Slot, Floats]] = {}
    grids: dict[str, Grid] = {}
    for way in dict.fromkeys(offer.way for unit in problem.units for offer in unit.offers if offer.way.technique):
        layers = [layer for unit in problem.units if any(offer.way == way for offer in unit.offers) for layer in unit.layers]
        if way.integers:
            found, own = _in_integers(ready, way, layers, target)
            grids = {**own, **grids}
        else:
            found = _stored(ready.model, way, layers, target)
        weights |= found
    known = {border.tensor for border in problem.borders}
    return Roundings(weights, {name: grid for name, grid in grids.items() if name in known})


_Weights = dict[tuple[str, str], Mapping[Slot, Floats]]


def _in_integers(ready: Prepared, way: Way, layers: list[str], target: Target) -> tuple[_Weights, dict[str, Grid]]:
    used = technique(way.technique)
    options = used.checked(way.options)
    changes = {name: used.apply(ready.model.site_view(site, ready.statistics), target, **options) for name, site in ready.found.items()}
    views = ready.model.views(layers)
    weights: _Weights = {}
    grids: dict[str, Grid] = {}
    for name, site in ready.found.items():
        change = changes[name]
        if name in views and isinstance(change.weight, Quantised):
            weights[name, way.name] = dict.fromkeys(list(views[name])[:1], change.weight.values)
        for value, grid in zip(site.tensors, change.inputs, strict=True):
            if grid is not None:
                grids.setdefault(value.name or "", grid)
        if site.output is not None and change.output is not None:
            grids[site.output.name or ""] = change.output
    return weights, grids


def _stored(model: GraphModel, way: Way, layers: list[str], target: Target) -> _Weights:
    used = technique(way.technique)
    options = used.checked(way.options)
    found: _Weights = {}
    for name, views in model.views(layers).items():
        rounded = {slot: used.apply(view, target, **options).weight for slot, view in views.items()}
        found[name, way.name] = {slot: weight.values for slot, weight in rounded.items() if isinstance(weight, Quantised)}
    return found
