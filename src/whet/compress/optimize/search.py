"""What to try, and in which order: pure decisions from the layers, the target and the goal.

Full-integer models come first, since they win most often, so that a good answer is there early: plain int8, then with the layers in
float that are slower in integers, then with other ranges. What is known to be of no use is not tried, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.core.document import FrozenMap
from whet.core.inventory import Inventory
from whet.core.recipe import Recipe, Step
from whet.core.target import Target

# Below this share of all multiply-accumulates a technique that only speeds those up is not worth a trial.
WORTHWHILE_SHARE = 0.1
# Products of this many weights are where packed 4-bit kernels begin to pay.
_LARGE_PRODUCT = 1 << 16
_NAME_LENGTH = 40  # of a layer in the name of an idea; exporters write names of 200 letters


@dataclass(frozen=True)
class Idea:
    """A recipe to try. ``skip``: why it is not worth it, "" where it is."""

    name: str
    recipe: Recipe
    skip: str = ""


def one_step(technique: str, name: str, *, exclude: Iterable[str] = (), **options: Any) -> Idea:
    """An idea of a single step."""
    return Idea(name, Recipe((Step(technique, exclude=tuple(exclude), options=FrozenMap(options)),), name))


INTEGER = one_step("static", "int8")
"""The first thing to try: what its layers cost and lose decides what comes next."""


def range_ideas(exclude: Sequence[str]) -> tuple[Idea, ...]:
    """Other ways to find the ranges, with the layers in float that proved to be better off there."""
    where = f", {_named(exclude)} in float" if exclude else ""
    return tuple(one_step("static", f"int8{where}, range by {method}", exclude=exclude, ranges=method) for method in ("mse", "percentile"))


def other_ideas(found: Inventory, target: Target, goal: str) -> tuple[Idea, ...]:
    """Everything that is not full-integer arithmetic: smaller files, packed products, activations quantised as they come."""
    ideas = [_dynamic(found, target), _packed(found, target), one_step("float16", "float16"), one_step("weight_only", "int8 weights")]
    if goal == "size":
        ideas += [one_step("weight_only", "4-bit weights", bits=4, block=32),
                  one_step("weight_only", "4-bit weights, asymmetric", bits=4, block=32, symmetric=False)]
    return tuple(ideas)


def faster_in_float(before_us: Mapping[str, float], after_us: Mapping[str, float], weighted: Sequence[str], *,
                    most: int = 3) -> tuple[Idea, ...]:
    """Integer recipes that leave in float the layers that became slower, worst first: one idea with one layer, one with two, ...

    before_us, after_us: time of each layer in float and in integers. weighted: the layers that may stay in float.
    """
    losses = {name: after_us[name] - before_us[name] for name in weighted if name in before_us and name in after_us}
    losers = sorted((name for name, loss in losses.items() if loss > 0.1 * before_us[name]), key=lambda name: -losses[name])[:most]
    return tuple(one_step("static", f"int8, {_named(losers[:count])} in float", exclude=losers[:count])
                 for count in range(1, len(losers) + 1))


def gentler(damage: Mapping[str, float], exclude: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> tuple[Idea, ...]:
    """Integer recipes that leave the most damaging layers in float: the worst one, two and four."""
    worst = [name for name in sorted(damage, key=lambda name: -damage[name]) if name not in exclude]
    counts = [count for count in (1, 2, 4) if count < len(worst)]  # one layer at least stays in integers
    return tuple(one_step("static", f"int8, {_named(worst[:count])} in float for accuracy", exclude=(*exclude, *worst[:count]),
                          **(options or {})) for count in counts)


def _dynamic(found: Inventory, target: Target) -> Idea:
    """Worth it where matrix products with weights are a good part of the work, and the target's table does not say that it is slower."""
    idea = one_step("dynamic", "dynamic int8")
    work = {op: sum(layer.macs or 0 for layer in found.layers if layer.op == op and layer.weight_shape)
            for op in ("MatMul", "Gemm", "LSTM")}
    share = sum(work.values()) / max(found.macs, 1)
    if share < WORTHWHILE_SHARE:
        return Idea(idea.name, idea.recipe, f"matrix products are {share:.1%} of the model's arithmetic, "
                    "and a dynamic convolution is slower than a float one")
    after = sum(macs / (speed.ratio if (speed := target.speed("dynamic", op)) else 1.0) for op, macs in work.items())
    return Idea(idea.name, idea.recipe, f"slower than float on {target.name}" if after > sum(work.values()) else "")


def _packed(found: Inventory, target: Target) -> Idea:
    """Products alone: a convolution of 4 bits loses as much and is no faster."""
    large = [layer for layer in found.layers if layer.op in ("MatMul", "Gemm") and layer.parameters >= _LARGE_PRODUCT]
    ops = sorted({layer.op for layer in large}) or ["MatMul"]
    step = Step("weight_only", tuple(f"op:{op}" for op in ops), options=FrozenMap({"bits": 4, "block": 32}))
    idea = Idea("4-bit packed products", Recipe((step,), "4-bit packed products"))
    if not large:
        return Idea(idea.name, idea.recipe, f"no matrix product of {_LARGE_PRODUCT} weights or more")
    return Idea(idea.name, idea.recipe, "" if "MatMul" in target.nbits_ops else f"{target.name} has no kernel for packed weights")


def _named(names: Sequence[str]) -> str:
    first = names[0] if len(names[0]) <= _NAME_LENGTH else "..." + names[0][-_NAME_LENGTH + 3 :]
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
