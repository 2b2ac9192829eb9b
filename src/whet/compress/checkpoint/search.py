"""Which recipes are worth trying on a language model, the smallest first. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whet.core.document import FrozenMap
from whet.core.recipe import Recipe, Step

# Bits and group of the layers in blocks, from the smallest to the one that loses next to nothing.
RUNGS = ((2, 32), (3, 128), (3, 32), (4, 128), (4, 32), (8, 128))
TABLES = Step("rtn", ("op:Embedding", "op:Head"), options=FrozenMap({"bits": 8, "block": 0}))

TUNING = Step("tune", options=FrozenMap({"codes": True}))


@dataclass(frozen=True)
class Idea:
    """A recipe that may be tried. name: for people."""

    name: str
    recipe: Recipe


def idea(technique: str, bits: float, group: int, *, head: bool, front: Sequence[Step] = ()) -> Idea:
    """A technique with so many bits and a group; tables, and a head of its own, in 8 bits. ``tune`` stands behind gptq. front: steps that
    stand before all others.
    """
    size = {"average": bits} if technique == "mixed" else {"bits": bits}
    rounding = "gptq" if technique == TUNING.technique else technique
    step = Step(rounding, options=FrozenMap({**size, "block": group, "symmetric": bits >= 8}))
    tables = TABLES if head else Step(TABLES.technique, ("op:Embedding",), options=TABLES.options)
    last = (TUNING,) if technique == TUNING.technique else ()
    words = "".join(f"{each.technique}, " for each in front)
    return Idea(f"{words}{technique} {bits:g} bits, group {group}", Recipe((*front, step, tables, *last)))


def learning(*, encoder: bool) -> Sequence[str]:
    """Techniques that learn roundings, the first one tried first. An encoder has no answers by which a whole model could be tuned."""
    return ("autoround",) if encoder else ("autoround", TUNING.technique)


def smallest_passing(count: int, passes: Any) -> int | None:
    """The first of ``count`` rungs that passes, where every one above it does too, by bisection; None where not even the last one does."""
    low, high = 0, count - 1
    if not passes(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if passes(middle):
            high = middle
        else:
            low = middle + 1
    return high


def averages_below(bits: int) -> Sequence[float]:
    """Average bits to try once ``bits`` for all layers passed and the next smaller number did not."""
    return {8: (6.0, 5.0), 4: (3.75, 3.5), 3: (2.75, 2.5)}.get(bits, ())
