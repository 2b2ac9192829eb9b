"""What might mend a layer: a table of changes of the recipe, and the causes that each is for. Pure; ``prices.py`` tries them.

A remedy that needs a technique or an option which is not there is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.compress.explain.differences import INPUT
from whet.compress.explain.words import NAME
from whet.compress.report.labels import shortened
from whet.compress.technique import technique, technique_names
from whet.core.document import FrozenMap
from whet.core.explanation import LayerBlame
from whet.core.inventory import Layer
from whet.core.recipe import Recipe, Step

Change = Callable[[Recipe, str, str], Recipe | None]
_RANGES = frozenset({"activation_outliers", "saturation", "rounding", "few_codes"})
_CHANNELS = frozenset({"activation_channel", "weight_column", "weight_channel", "input_channels"})
_WEIGHTS = frozenset({"weight_outliers", "few_codes", "weight_channel", "weight_column"})
_FINER = frozenset({"activation_channel", "activation_outliers", "saturation", "unequal_join", "input_channels", "few_codes", "rounding"})


@dataclass(frozen=True)
class Cure:
    """said: what is done, with {layer}. fits: the kinds of causes that it is for; empty for all. part: that the causes must speak of, ""
    for either. change: (recipe, name, operator) of the layer -> recipe, None where it changes nothing. whole: it concerns the whole
    model, and is tried once. slow: takes minutes, and is tried for the worst layer only."""

    said: str
    fits: frozenset[str]
    change: Change
    part: str = ""
    whole: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Proposal:
    """A cure for a layer: a recipe to try."""

    name: str
    layer: str
    recipe: Recipe


def proposals(recipe: Recipe, worst: Sequence[LayerBlame], ops: Mapping[str, str], readers: Mapping[str, str], *, others: int = 0
              ) -> tuple[Proposal, ...]:
    """What to try for the layers given, worst first. ops: operators by node; readers: by input of the model, the first layer that reads
    it on a grid, whose options speak of that grid. others: how many layers are rounded beside the worst ones."""
    found: dict[Recipe, Proposal] = {}
    for rank, layer in enumerate(worst):
        name = readers.get(layer.name, "") if layer.op == INPUT else layer.name
        for cure in CURES:
            if not name or not _fits(cure, layer) or (cure.slow and rank) or (layer.op == INPUT and cure.change is in_float):
                continue
            changed = cure.change(recipe, name, ops.get(name, ""))
            if changed is not None and changed != recipe and changed.steps:
                said = cure.said.format(layer=shortened(layer.name, NAME))
                found.setdefault(changed, Proposal(said, "" if cure.whole else layer.name, changed))
    if 1 < len(worst) <= others:
        together = recipe
        for layer in worst:
            together = (in_float(together, layer.name, layer.op) or together) if layer.op != INPUT else together
        if together.steps and together != recipe:
            names = " and ".join(shortened(layer.name, NAME) for layer in worst if layer.op != INPUT)
            found.setdefault(together, Proposal(f"{names} in float", "", together))
    return tuple(found.values())


def _fits(cure: Cure, layer: LayerBlame) -> bool:
    return not cure.fits or any(cause.kind in cure.fits and cure.part in ("", cause.part) for cause in layer.causes)


# -- changes ------------------------------------------------------------------------------------------------------------------------


def only(recipe: Recipe, name: str, op: str) -> Recipe:
    """The steps that are meant for that layer, for it alone."""
    return replace(recipe, steps=tuple(replace(step, layers=(name,), exclude=()) for step in recipe.steps if _selects(step, name, op)))


def in_float(recipe: Recipe, name: str, op: str) -> Recipe | None:
    """No step of the recipe touches the layer."""
    steps = []
    for step in recipe.steps:
        if not _selects(step, name, op):
            steps.append(step)
        elif step.layers != (name,):
            steps.append(replace(step, exclude=(*step.exclude, name)))
    return replace(recipe, steps=tuple(steps))


def with_options(**options: Any) -> Change:
    """The layer gets other options, in a step of its own behind the one that it had."""

    def change(recipe: Recipe, name: str, op: str) -> Recipe | None:
        known = {option.name: option for option in technique("static").options}
        if any(option not in known for option in options):
            return None
        steps: list[Step] = []
        for step in recipe.steps:
            steps.append(step)
            if step.technique == "static" and _selects(step, name, op):
                before = {option: step.options.get(option, known[option].default) for option in options}
                if before != options:
                    steps.append(Step("static", (name,), options=FrozenMap({**step.options, **options})))
        return replace(recipe, steps=tuple(steps))

    return change


def sixteen_bits(recipe: Recipe, name: str, op: str) -> Recipe | None:
    """Activations of 16 bits for one layer, by whatever option ``static`` has for them."""
    for option in technique("static").options:
        if option.name in ("activation_bits", "activations") and option.kind is int:
            return with_options(**{option.name: 16})(recipe, name, op)
    return None


def first(name: str) -> Change:
    """A step before all others, where there is such a technique and it is not in the recipe."""
    return lambda recipe, layer, op: _with_step(recipe, name, lambda steps, step: (step, *steps))


def last(name: str) -> Change:
    """A step behind all others."""
    return lambda recipe, layer, op: _with_step(recipe, name, lambda steps, step: (*steps, step))


def before_static(name: str) -> Change:
    """A step for the one layer, right before ``static`` takes its weights."""

    def change(recipe: Recipe, layer: str, op: str) -> Recipe | None:
        at = next((place for place, step in enumerate(recipe.steps) if step.technique == "static" and _selects(step, layer, op)), None)
        if at is None:
            return None
        return _with_step(recipe, name, lambda steps, step: (*steps[:at], replace(step, layers=(layer,)), *steps[at:]), layer, op)

    return change


def _with_step(recipe: Recipe, name: str, put: Callable[[tuple[Step, ...], Step], Iterable[Step]], layer: str = "", op: str = ""
               ) -> Recipe | None:
    if name not in technique_names() or any(step.technique == name for step in recipe.steps):
        return None
    if not any(step.technique == "static" for step in recipe.steps) or (op and not _applies(name, layer, op)):
        return None
    return replace(recipe, steps=tuple(put(recipe.steps, Step(name))))


def _applies(name: str, layer: str, op: str) -> bool:
    from whet.device.targets import target

    used = technique(name)
    return bool(used.foresee(Layer(layer, op, weight_shape=(16, 16), weight_dtype="float32"), target("host"), **used.checked({})).applies)


@dataclass(frozen=True)
class _Named:
    name: str
    op: str


def _selects(step: Step, name: str, op: str) -> bool:
    return step.selects(_Named(name, op))


CURES = (
    Cure("{layer} in float", frozenset(), in_float),
    Cure("{layer} to int16 activations", _FINER, sixteen_bits, "activations"),
    Cure("{layer} with one scale a channel", _WEIGHTS | {"rounding", "bias_overflow"}, with_options(per_channel=True), "weights"),
    Cure("{layer}'s range by mse", _RANGES, with_options(ranges="mse"), "activations"),
    Cure("{layer}'s range by percentile 99.99", _RANGES, with_options(ranges="percentile", percentile=99.99), "activations"),
    Cure("{layer}'s range by minmax", frozenset({"saturation"}), with_options(ranges="minmax"), "activations"),
    Cure("equalize first", _CHANNELS, first("equalize"), whole=True),
    Cure("smoothquant first", _CHANNELS, first("smoothquant"), whole=True),
    Cure("clip first", _RANGES, first("clip"), "activations", whole=True),
    Cure("bias_correct last", frozenset({"few_codes", "rounding", "saturation", "weight_channel"}), last("bias_correct"), whole=True),
    Cure("{layer} rounded by adaround", frozenset({"few_codes"}), before_static("adaround"), "weights", slow=True),
)
"""What is tried, by cause: leaving it alone, more bits, finer scales, other ranges, then techniques that take the cause away."""
