"""What a layer can become: a table of ways, and of those the ones that a target's runtime executes as they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from whet.compress.mixed.problem import FLOAT, Way
from whet.compress.technique import Foresight, technique
from whet.core.document import FrozenMap
from whet.core.inventory import Layer
from whet.core.target import Target

INT8 = Way("int8", "static", FrozenMap(), integers=True)
# 4 bits on disk, which the runtime turns into int8 at load: as fast as int8, and half the size.
W4A8 = Way("W4A8", "static", FrozenMap({"bits": 4}), integers=True)
# Float arithmetic: for layers that have no integer kernel. Where there is one, it takes 2 % more bytes and is twice as fast.
W8, W4 = Way("8-bit weights", "weight_only", FrozenMap({"bits": 8})), Way("4-bit weights", "weight_only", FrozenMap({"bits": 4}))

# What can bring a goal nearer. Bits that only lie on disk gain no time.
_WAYS = {"latency": (INT8,), "energy": (INT8,), "memory": (INT8,), "size": (INT8, W4A8, W8, W4)}


def ways_for(layer: Layer, follows: bool, target: Target, goal: str, options: Mapping[str, Any], *,
             site: bool = True) -> dict[Way, Foresight]:
    """The ways of a layer on the target with what each would make of it, float first.

    options: of ``static``, for all integer ways. site: whether it stands where the runtime would compute it in integers.
    """
    found = {FLOAT: Foresight(False)}
    for way in _WAYS[goal]:
        if (follows and way is not INT8) or way.integers != site:
            continue
        used = technique(way.technique)
        own = {**(options if way.technique == "static" else {}), **way.options}
        foreseen = used.foresee(layer, target, **used.checked(own))
        if foreseen.applies and not (way.integers and foreseen.runs_as.startswith("float32")):
            found[replace(way, options=FrozenMap(own))] = foreseen
    return found
