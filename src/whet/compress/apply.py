"""Doing a recipe: each step's technique on each of its layers, one step after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whet.compress.artifacts import load, original_artifact, source_file, write_artifact
from whet.compress.calibrate import collect
from whet.compress.data import Dataset, load_data
from whet.compress.graph import GraphModel
from whet.compress.put.sites import Site
from whet.compress.ranges import NEEDS_HISTOGRAM
from whet.compress.recipes import as_recipe, as_target
from whet.compress.statistics import Statistics
from whet.compress.technique import Change, Technique, technique
from whet.core.errors import Refused, Unsupported
from whet.core.inventory import Layer
from whet.core.progress import track
from whet.core.recipe import Recipe, Step, matched
from whet.core.target import Target


def apply(model: Any, recipe: Recipe | Step | str | os.PathLike[str], *, calibration: Any = None, target: Target | str = "host",
          out: str | os.PathLike[str] | None = None, example_inputs: Any = None, options: Mapping[str, Any] | None = None) -> GraphModel:
    """Do a recipe to a model.

    model: whatever ``whet.load`` takes. recipe: a Recipe, a Step, the path of a TOML file, or the name of a technique (with its
    ``options``). calibration: data as ``whet.load_data`` takes it, where a technique needs some. out: a folder for the artifact
    (model.onnx and whet.json), written whole or not at all; None writes nothing.
    Raises Refused and Unsupported as ``apply_recipe``.
    """
    graph = load(model, example_inputs=example_inputs)
    chosen, place = as_recipe(recipe, options), as_target(target)
    data = None if calibration is None else load_data(calibration, graph.inputs)
    made = apply_recipe(graph, chosen, place, calibration=data)
    if out is None:
        return made
    parent = graph.artifact_id or original_artifact(graph, source_file(model)).artifact_id
    write_artifact(made, Path(out), parent=parent, recipe=chosen, target=place.name)
    return load(out)


def apply_recipe(model: GraphModel, recipe: Recipe, target: Target, *, calibration: Dataset | None = None) -> GraphModel:
    """The model after all steps. The original is left as it is; an empty recipe gives it back.

    Raises Refused where a step matches nothing, an option is unknown or calibration data is missing, and Unsupported where the
    technique can do nothing to any of the layers that a step names.
    """
    if not recipe.steps:
        return model
    chosen = [(step, matched(step, model.nodes), technique(step.technique)) for step in recipe.steps]
    for step, _, used in chosen:  # all questions before any work
        used.checked(step.options)
        if used.needs == "calibration" and calibration is None:
            raise Refused(f"apply {used.name} without calibration data", do="give some with --calibration; 100 to 300 samples are usual")
    model = model.folded()
    for step, names, used in chosen:
        model = _apply_step(model, step, names, used, target, calibration)
    return model.slimmed()


def _apply_step(model: GraphModel, step: Step, names: tuple[str, ...], used: Technique, target: Target,
                calibration: Dataset | None) -> GraphModel:
    options = used.checked(step.options)
    layers = {layer.name: layer for layer in model.plain_layers()}
    # A layer that folding took in (a batch norm) is done with the layer that took it.
    reasons = {name: _why_not(used, layers[name], target, options) for name in names if name in layers}
    flow = [name for name in reasons if layers[name].op in ("If", "Loop", "Scan")]
    reasons |= {name: f"what lies inside the branches of {name} ({layers[name].op}) is not entered" for name in flow}
    ready = [name for name, reason in reasons.items() if not reason]
    if not ready:
        why = "; ".join(sorted(set(reasons.values()))[:3]) or "they were all folded into other layers"
        raise Unsupported(f"apply {used.name} to {', '.join(names[:5])}", found=why, do="choose other layers or another technique")
    if used.needs == "calibration":
        assert calibration is not None
        return _apply_integers(model, ready, used, options, target, calibration)
    return _apply_weights(model, ready, used, options, target)


def _apply_weights(model: GraphModel, names: list[str], used: Technique, options: Mapping[str, Any], target: Target) -> GraphModel:
    views = model.views(names)
    changes = {name: {slot: used.apply(view, target, **options) for slot, view in found.items()}
               for name, found in track(views.items(), used.name, len(views))}
    bare = [name for name in names if name not in views]  # operators without weights, for techniques that change how they compute
    return model.with_weights(changes, target, {name: used.apply(model.bare_view(name), target, **options) for name in bare})


def _apply_integers(model: GraphModel, names: list[str], used: Technique, options: Mapping[str, Any], target: Target,
                    calibration: Dataset) -> GraphModel:
    working = model.copied()
    found = working.integer_sites(names, target)
    if not found:
        found_none = "none of them has weights or a neighbour that computes in integers"
        raise Unsupported(f"apply {used.name} to {', '.join(names[:5])}", found=found_none,
                          do="name the convolutions and matrix products too")
    tensors = observed(found)
    statistics = collect(working, tensors, calibration, histogram=options.get("ranges") in NEEDS_HISTOGRAM)
    changes = changes_for(working, found, statistics, used, options, target)
    return working.with_integers(found, changes, target)


def observed(found: Mapping[str, Site]) -> tuple[str, ...]:
    """The names of the tensors that the grids of these sites lie on, each once."""
    names: dict[str, None] = {}
    for site in found.values():
        for value in (*site.tensors, *(() if site.output is None else (site.output,))):
            names[value.name or ""] = None
    return tuple(names)


def changes_for(model: GraphModel, found: Mapping[str, Site], statistics: Mapping[str, Statistics], used: Technique,
                options: Mapping[str, Any], target: Target) -> dict[str, Change]:
    """The technique on every site."""
    return {name: used.apply(model.site_view(site, statistics), target, **options)
            for name, site in track(found.items(), used.name, len(found))}


def _why_not(used: Technique, layer: Layer, target: Target, options: Mapping[str, Any]) -> str:
    found = used.foresee(layer, target, **options)
    return "" if found.applies else found.note or "it does not apply"
