"""A recipe resolved against a checkpoint: which layer gets which options, and how each will be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.layers import LINEAR, weighted
from whet.compress.checkpoint.shows import SHOWS, movable
from whet.compress.checkpoint.stored import Layout, shapes
from whet.compress.checkpoint.tensor_files import NAMES
from whet.compress.checkpoint.tensor_writer import Shape
from whet.compress.technique import Foresight, Technique, technique
from whet.compress.views import SharedInput, Whole
from whet.core.errors import Refused, Unsupported
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step, matched
from whet.core.target import Target

WINDOWS = 128  # of calibration text, where the recipe does not say: what the papers take


@dataclass(frozen=True, eq=False)
class Resolved:
    """A step with the layers that it changes. options: by name of layer. foresights: for all layers that it names."""

    step: Step
    used: Technique
    options: Mapping[str, Mapping[str, Any]]
    foresights: Mapping[str, Foresight]


def resolve(checkpoint: Checkpoint, recipe: Recipe, target: Target) -> list[Resolved]:
    """The steps in order. A step that names no layers means the linear layers of the blocks; tables and head must be named. Steps of one
    technique that follow each other with different layers are one: a layer is to see what all those before it give, however many bits
    each has.

    Raises Refused where a step matches nothing or an option is unknown, Unsupported where a technique can do nothing to what it names.
    """
    layers = {layer.name: layer for layer in weighted(checkpoint)}
    found: list[Resolved] = []
    for step in recipe.steps:
        each = _resolved(checkpoint, step if step.layers != ("*",) else replace(step, layers=(f"op:{LINEAR}",)), layers, target)
        if each.used.view is SharedInput:
            _check_in_float(checkpoint, each, found)
        if found and found[-1].used is each.used and not found[-1].options.keys() & each.options.keys():
            found[-1] = replace(found[-1], options={**found[-1].options, **each.options},
                                foresights={**found[-1].foresights, **each.foresights})
        else:
            found.append(each)
    return _tuned_last(checkpoint, found)


def _resolved(checkpoint: Checkpoint, step: Step, layers: Mapping[str, Layer], target: Target) -> Resolved:
    used = technique(step.technique)
    options = used.checked(step.options)
    names = matched(step, layers.values())
    if used.view.__name__ not in SHOWS and used.view is not Whole:
        raise Unsupported(f"apply {used.name} to a language model", found="it works on graphs", do="export the model to ONNX and give that")
    foresights = {name: used.foresee(layers[name], target, **options) for name in names}
    if used.view is SharedInput:
        foresights |= {name: Foresight(False, note=why) for name, why in _left_alone(checkpoint, names).items()}
    ready = {name: options for name, found in foresights.items() if found.applies}
    if not ready:
        reasons = "; ".join(sorted({found.note for found in foresights.values()})[:3])
        raise Unsupported(f"apply {used.name} to {', '.join(names[:3])}", found=reasons or "it does not apply",
                          do="choose other layers or another technique")
    return Resolved(step, used, ready, foresights)


def _left_alone(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, str]:
    """Of the linear layers in blocks that are named, those whose inputs take no factors, and why."""
    found: dict[str, str] = {}
    for block in map(checkpoint.block_name, range(checkpoint.block_count)):
        for readers in checkpoint.family.readers:
            own = [f"{block}.{layer}" for layer in readers.layers]
            if not movable(checkpoint, readers):
                found |= dict.fromkeys(own, "nothing in front of it takes a factor for each of its inputs")
            elif missing := [name.removeprefix(f"{block}.") for name in own if name not in names]:
                found |= dict.fromkeys(own, f"{missing[0]} reads the same tensor and would have to change with it: name that too")
    return {name: why for name, why in found.items() if name in names}


def _check_in_float(checkpoint: Checkpoint, step: Resolved, before: Sequence[Resolved]) -> None:
    """Raises Refused where a step that multiplies float weights comes behind one that rounds weights."""
    asked = f"apply {step.used.name}"
    if checkpoint.layouts:
        raise Refused(asked, found="weights that are rounded already", do="begin with the float model")
    rounds = (each.used.name for each in before if any(found.applies and not found.adjusts for found in each.foresights.values()))
    if behind := next(rounds, None):
        raise Refused(f"{asked} behind {behind}", found="weights that are rounded by then", do=f"put {step.used.name} before {behind}")


def _tuned_last(checkpoint: Checkpoint, steps: list[Resolved]) -> list[Resolved]:
    """The steps, the one that tunes the whole model being left with what those before it round to integers.

    Raises Refused where that is nothing, or another step works behind it; Unsupported for an encoder.
    """
    whole = [each for each in steps if each.used.view is Whole]
    if not whole:
        return steps
    last, others = whole[0], [each for each in steps if each is not whole[0]]
    asked = f"apply {last.used.name}"
    late = steps[steps.index(last) + 1 :]
    own = list(last.options.values())
    if checkpoint.family.encoder:
        raise Unsupported(asked, found="an encoder, which predicts no next token", do="leave it out")
    if any(each.used.view is Whole or each.options.keys() & last.options.keys() for each in late) or any(each != own[0] for each in own):
        raise Refused(f"{asked} before another step", found="layers that are changed again behind it",
                      do=f"put one {last.used.name} last, for all layers")
    integers = {name for name, kind in stored_as(checkpoint, others).items() if isinstance(kind, Layout) and kind.kind == "int"}
    ready = {name: options for name, options in last.options.items() if name in integers}
    if not ready:
        raise Refused(asked, found="no step before it that rounds those layers to integers", do="put gptq, autoround, awq or rtn before it")
    unready = Foresight(False, note="no step before rounds it to integers")
    foresights = {name: found if name in ready else unready for name, found in last.foresights.items()}
    return [*others, replace(last, options=ready, foresights=foresights)]


def stored_as(checkpoint: Checkpoint, steps: list[Resolved]) -> dict[str, Layout | str]:
    """By name of layer, how it will be stored: a layout, or the dtype of plain numbers. Those that stay as they are are left out."""
    found: dict[str, Layout | str] = {}
    for each in steps:
        for name, options in each.options.items():
            foresight = each.foresights[name]
            if not foresight.adjusts:
                found[name] = _layout(foresight, options)
    kinds = {layout.kind for layout in {**checkpoint.layouts, **found}.values() if isinstance(layout, Layout)}
    if "int" in kinds and len(kinds) > 1:
        raise Refused(f"store a checkpoint with {' and '.join(sorted(kinds))}", found="no format that holds both",
                      do="use integers, or a code book, for all layers")
    return found


def _layout(foresight: Foresight, options: Mapping[str, Any]) -> Layout | str:
    kind = foresight.weights
    if kind in ("float16", "bfloat16", "float32"):
        return kind
    if kind in ("nf4", "fp4"):
        return Layout(kind, 4, foresight.block, double=bool(options.get("double", False)))
    activations = 8 if foresight.activations == "int8" else 0
    return Layout("int", foresight.bits, foresight.block, not kind.startswith("u"), activations=activations)


def tensors_of(checkpoint: Checkpoint, found: Mapping[str, Layout | str]) -> list[Shape]:
    """Every tensor of the checkpoint to be written, in the order of the old files."""
    owners = {f"{layer}.weight": layer for layer in found} | {
        shape.name: layer for layer in found if layer in checkpoint.layouts
        for shape in shapes(layer, checkpoint.size(layer), checkpoint.layouts[layer])}
    made: dict[str, Shape] = {}
    for name, (_, entry) in checkpoint.entries.items():
        layer = owners.get(name)
        if layer is None:
            made[name] = Shape(name, entry.dtype, entry.shape)
        else:
            made |= {shape.name: shape for shape in _shapes(checkpoint, layer, found[layer])}
    return list(made.values())


def _shapes(checkpoint: Checkpoint, layer: str, layout: Layout | str) -> list[Shape]:
    rows, columns = checkpoint.size(layer)
    if isinstance(layout, Layout):
        return shapes(layer, (rows, columns), layout)
    import torch

    size = (columns, rows) if checkpoint.is_transposed(layer) else (rows, columns)
    return [Shape(f"{layer}.weight", NAMES[getattr(torch, layout)], size)]


def windows_wanted(recipe: Recipe) -> int:
    """How many windows of calibration text a recipe takes."""
    return max((int(step.options.get("samples", WINDOWS)) for step in recipe.steps), default=WINDOWS)
