"""Doing a recipe: each step's technique on each of its layers, one step after the other."""

from __future__ import annotations

import gc
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.compress.artifacts import check_free, code_version, load, original_artifact, source_file, tool_versions, write_artifact
from whet.compress.bodies import checkpoint_in
from whet.compress.data import Dataset, load_data
from whet.compress.graph import GraphModel
from whet.compress.journal import Journal
from whet.compress.recipes import as_recipe, as_target
from whet.compress.slim import drop_annotations
from whet.compress.technique import Technique, technique
from whet.compress.walks import Options, Work, walk_of
from whet.core.document import digest
from whet.core.errors import Refused, Unsupported
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step, matched
from whet.core.target import Target

if TYPE_CHECKING:
    from whet.compress.checkpoint import Checkpoint

_NO_JOURNAL = Journal()


def apply(model: Any, recipe: Recipe | Step | str | os.PathLike[str], *, calibration: Any = None, target: Target | str = "host",
          out: str | os.PathLike[str] | None = None, example_inputs: Any = None,
          options: Mapping[str, Any] | None = None) -> GraphModel | Checkpoint:
    """Do a recipe to a model.

    model: whatever ``whet.load`` takes, or the folder of a language model (config.json and safetensors), which needs ``out`` and is
    calibrated with text. recipe: a Recipe, a Step, the path of a TOML file, or the name of a technique (with its
    ``options``). calibration: data as ``whet.load_data`` takes it, where a technique needs some. out: a folder for the artifact
    (model.onnx and whet.json), written whole or not at all; None writes nothing. A run that is stopped leaves what it has learned in a
    hidden folder beside ``out``, and the same call goes on behind that, to the same bytes.
    Raises Refused and Unsupported as ``apply_recipe``.
    """
    language = checkpoint_in(model)
    if language is not None:
        return _apply_to_checkpoint(language, as_recipe(recipe, options), as_target(target), calibration, out)
    with _old_objects_aside():
        graph = load(model, example_inputs=example_inputs)
        chosen, place = as_recipe(recipe, options), as_target(target)
        data = None if calibration is None else load_data(calibration, graph.inputs)
        if out is None:
            return apply_recipe(graph, chosen, place, calibration=data)
        check_free(Path(out))  # before any work
        parent = graph.artifact_id or original_artifact(graph, source_file(model)).artifact_id
        journal = Journal.beside(Path(out), lambda: _work_key(parent, chosen, place, data))
        journal.tell()
        made = apply_recipe(graph, chosen, place, calibration=data, journal=journal)
    write_artifact(made, Path(out), parent=parent, recipe=chosen, target=place.name)
    journal.forget()
    return load(out)


def _work_key(parent: str, recipe: Recipe, target: Target, data: Dataset | None) -> str:
    """The hash of all that goes in."""
    tools = {**tool_versions(), "torch": version("torch")}
    return digest([code_version(), tools, parent, recipe.to_plain(), target.digest, None if data is None else data.content_hash])


def _apply_to_checkpoint(model: Checkpoint, recipe: Recipe, target: Target, calibration: Any,
                         out: str | os.PathLike[str] | None) -> Checkpoint:
    from whet.compress.checkpoint.apply import apply_to_checkpoint

    if out is None:
        raise Refused("apply a recipe to a language model", found="no folder to write it to, and it may be larger than memory",
                      do="give out=")
    return apply_to_checkpoint(model, recipe, target, calibration=calibration, out=Path(out))


@contextmanager
def _old_objects_aside() -> Iterator[None]:
    """Python's garbage collector leaves alone inside what was there before.

    A graph is so many small objects that the collector soon goes through all there are, 90,000 of them of imported libraries: 50 ms,
    which is half of the time that a model of 100 kB takes.
    """
    if gc.get_freeze_count():  # somebody froze objects for a reason of his own (a server before it forks)
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def apply_recipe(model: GraphModel, recipe: Recipe, target: Target, *, calibration: Dataset | None = None,
                 journal: Journal = _NO_JOURNAL) -> GraphModel:
    """The model after all steps. The original is left as it is; an empty recipe gives it back.

    Steps of one technique that follow each other are done together: ``static`` on some layers with 8 bits and on others with 4 is one
    integer model. journal: where what an earlier run has learned is found, and what is learned is noted. Raises Refused where a step
    matches nothing, an option is unknown, calibration data is missing or the disk of the journal is full, and Unsupported
    where the technique can do nothing to any of the layers that a step names.
    """
    if not recipe.steps:
        return model
    made = worked(model, recipe, target, calibration=calibration, journal=journal).settled(target)
    drop_annotations(made.ir)  # nobody else has this graph, so it need not be copied first
    return made


def worked(model: GraphModel, recipe: Recipe, target: Target, *, calibration: Dataset | None = None, more: bool = False,
           journal: Journal = _NO_JOURNAL) -> GraphModel:
    """As ``apply_recipe``, before what is pending is stored: its ``reference`` is the float model that the steps that round began with.

    more: whether steps will follow, so that what is found for them is kept.
    """
    chosen = [(step, matched(step, model.nodes), technique(step.technique)) for step in recipe.steps]
    for step, _, used in chosen:  # all questions before any work
        used.checked(step.options)
    for _, _, used in chosen:
        if used.needs == "calibration" and calibration is None:
            raise Refused(f"apply {used.name} without calibration data", do="give some with --calibration; 100 to 300 samples are usual")
    model = model.folded()
    together = [list(group) for _, group in groupby(chosen, key=lambda each: each[2].name)]
    for index, group in enumerate(together):
        used = group[0][2]
        layers = _resolved(model, group, used, target)
        last = index == len(together) - 1 and not more
        for number, work in enumerate(_works(layers, group, used, target, calibration, last)):
            model = walk_of(used)(model, replace(work, journal=journal.inside(str(index), str(number))))
    return model


_Chosen = tuple[Step, tuple[str, ...], Technique]


def _works(layers: Mapping[str, Options], group: Sequence[_Chosen], used: Technique, target: Target, data: Dataset | None,
           last: bool) -> Iterator[Work]:
    """One for all steps of the group where each layer is seen on its own, else one a step: its options speak of more than a layer."""
    if used.view.__name__ == "LayerView":
        yield Work(used, layers, target, data, last)
        return
    for number, (_, names, _) in enumerate(group):
        yield Work(used, {name: layers[name] for name in names if name in layers}, target, data, last and number == len(group) - 1)


def _resolved(model: GraphModel, group: Sequence[_Chosen], used: Technique, target: Target) -> dict[str, Options]:
    """The options of each layer that the steps can do something to, in the order of execution; a later step overrules an earlier one."""
    layers = {layer.name: layer for layer in model.plain_layers()}
    unseen: Collection[str] = () if used.enters_bodies else model.inner_names
    found: dict[str, Options] = {}
    for step, names, _ in group:
        options = used.checked(step.options)
        found |= dict.fromkeys(_ready(names, layers, used, options, target, unseen), options)
    return {name: found[name] for name in layers if name in found}


def _ready(names: Sequence[str], layers: Mapping[str, Layer], used: Technique, options: Options, target: Target,
           unseen: Collection[str]) -> list[str]:
    """The layers among ``names`` that the technique applies to. Raises Unsupported where there are none.

    unseen: layers inside control flow, where the technique does not go.
    """
    # A layer that folding took in (a batch norm) is done with the layer that took it.
    reasons = {name: used.why_not_inside(name) if name in unseen else _why_not(used, layers[name], target, options)
               for name in names if name in layers}
    flow = [name for name in reasons if layers[name].op in ("If", "Loop", "Scan") and name not in unseen]
    reasons |= {name: f"{name} ({layers[name].op}) is no layer; name those inside it, as {name}/*" for name in flow}
    ready = [name for name, reason in reasons.items() if not reason]
    if not ready:
        why = "; ".join(sorted(set(reasons.values()))[:3]) or "they were all folded into other layers"
        raise Unsupported(f"apply {used.name} to {', '.join(names[:5])}", found=why, do="choose other layers or another technique")
    return ready


def _why_not(used: Technique, layer: Layer, target: Target, options: Options) -> str:
    found = used.foresee(layer, target, **options)
    return "" if found.applies else found.note or "it does not apply"
