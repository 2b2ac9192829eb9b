"""How many bits each layer gets: the technique ``mixed`` takes the place of several steps, which name the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whet.compress.checkpoint.block import SCALES
from whet.compress.checkpoint.checkpoint import Checkpoint
from whet.compress.checkpoint.layers import LINEAR, weighted
from whet.compress.checkpoint.sensitivity import COUNT, harms, short
from whet.compress.checkpoint.text import windows_of
from whet.compress.grid import quantise
from whet.compress.technique import technique
from whet.compress.techniques.gptq import grid_of
from whet.compress.views import Sensitivities
from whet.core.document import FrozenMap
from whet.core.errors import Refused
from whet.core.recipe import Recipe, Step, matched
from whet.core.target import Target


def allotted(checkpoint: Checkpoint, recipe: Recipe, target: Target, calibration: Any = None) -> Recipe:
    """The recipe with steps for each number of bits in the place of each step that allots them.

    Raises Refused where there is no calibration text.
    """
    steps = [each for step in recipe.steps for each in (_steps(checkpoint, step, target, calibration) if _allots(step) else (step,))]
    return Recipe(tuple(steps), recipe.name)


def foreseen(checkpoint: Checkpoint, recipe: Recipe) -> Recipe:
    """The same for a plan, before any text is read: the first layers have the width above the average, the others the one below it, as far
    as the bits go. The sizes come out nearly as they will.
    """
    steps = [each for step in recipe.steps for each in (_halves(checkpoint, step) if _allots(step) else (step,))]
    return Recipe(tuple(steps), recipe.name)


def _halves(checkpoint: Checkpoint, step: Step) -> list[Step]:
    options = technique(step.technique).checked(step.options)
    names, average = _linear(checkpoint, step), options["average"]
    widths = widths_in(options["widths"])
    below = max((width for width in widths if width <= average), default=min(widths))
    above = min((width for width in widths if width >= average), default=max(widths))
    left = (average - below) * sum(math.prod(checkpoint.size(name)) for name in names)
    bits = {}
    for name in names:
        cost = (above - below) * math.prod(checkpoint.size(name))
        bits[name] = above if cost <= left else below
        left -= cost if bits[name] == above else 0
    return _by_width(options, bits)


def _allots(step: Step) -> bool:
    return technique(step.technique).view is Sensitivities


def _steps(checkpoint: Checkpoint, step: Step, target: Target, calibration: Any) -> list[Step]:
    used = technique(step.technique)
    options = used.checked(step.options)
    if calibration is None:
        raise Refused(f"apply {used.name} without calibration data", do="give text with --calibration")
    names = _linear(checkpoint, step)
    seen = sensitivities(checkpoint, names, widths_in(options["widths"]), calibration, block=options["block"],
                         symmetric=options["symmetric"])
    return _by_width(options, used.apply(seen, target, **options))


def _linear(checkpoint: Checkpoint, step: Step) -> tuple[str, ...]:
    """The linear layers that the step is for."""
    return matched(step, [layer for layer in weighted(checkpoint) if layer.op == LINEAR])


def _by_width(options: Mapping[str, Any], bits: Mapping[str, int]) -> list[Step]:
    """A step for each number of bits, of the technique that rounds, with those of the options that it knows."""
    rounds = technique(options["by"])
    known = {option.name for option in rounds.options}
    own: dict[str, Any] = {name: value for name, value in options.items() if name in known}
    return [Step(rounds.name, tuple(name for name in bits if bits[name] == width), options=FrozenMap({**own, "bits": width}))
            for width in sorted(set(bits.values()))]


def widths_in(text: str) -> list[int]:
    """The bits in "2,3,4,8"."""
    return [int(width) for width in text.split(",")]


def sensitivities(checkpoint: Checkpoint, names: Sequence[str], widths: Sequence[int], calibration: Any, *, block: int,
                  symmetric: bool) -> Sensitivities:
    """What rounding each of the layers alone would cost, plainly, on a searched grid."""
    chosen = set(names)

    def changes(layer: str, weight: Tensor) -> dict[str, Tensor]:
        if layer not in chosen:
            return {}
        numbers = np.ascontiguousarray(weight.detach().numpy())
        grids = {width: grid_of(numbers, bits=width, block=block, symmetric=symmetric, search=True, scales=SCALES, either_sign=True)
                 for width in widths}
        return {str(width): torch.from_numpy(quantise(numbers, grid).values - numbers) for width, grid in grids.items()}

    found = harms(checkpoint, short(windows_of(checkpoint, calibration, most=COUNT)), changes)
    return Sensitivities({name: {width: found[name, str(width)] for width in widths} for name in names},
                         {name: math.prod(checkpoint.size(name)) for name in names})
