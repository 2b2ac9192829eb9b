"""What to try, and in which order: pure decisions from the layers, the target and the goal.

The order is that of price. Plain int8 first; then what costs nothing at run time: other ranges, equalised layers and corrected biases;
then mixed precision (``mixed/``); then learned rounding. What is known to be of no use is not tried, and the reason is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.compress.mixed.allotted import Outline
from whet.compress.mixed.problem import Choice, Problem
from whet.core.document import FrozenMap
from whet.core.inventory import Inventory
from whet.core.recipe import Recipe, Step
from whet.core.target import Target

# Below this share of all multiply-accumulates a technique that only speeds those up is not worth a trial.
WORTHWHILE_SHARE = 0.1
# Products of this many weights are where packed 4-bit kernels begin to pay.
_LARGE_PRODUCT = 1 << 16
# What learns how to round weights of few bits, the quickest first, in its light form: seconds to a few minutes.
_ROUNDING: Mapping[str, Mapping[str, Any]] = FrozenMap({"gptq": {}, "adaround": {"iterations": 1000}, "reconstruct": {}})


@dataclass(frozen=True)
class Idea:
    """A recipe to try. ``skip``: why it is not worth it, "" where it is."""

    name: str
    recipe: Recipe
    skip: str = ""


@dataclass(frozen=True)
class Start:
    """A full-integer model to go on from. label: what it has beside plain int8, "" where it is that."""

    label: str
    base: Outline

    @property
    def idea(self) -> Idea:
        return self.named("int8", self.base.recipe)

    def named(self, what: str, recipe: Recipe) -> Idea:
        """An idea that stands on this one."""
        name = f"{what}, {self.label}" if self.label else what
        return Idea(name, replace(recipe, name=name))


def one_step(technique: str, name: str, *, exclude: Iterable[str] = (), **options: Any) -> Idea:
    """An idea of a single step."""
    return Idea(name, Recipe((Step(technique, exclude=tuple(exclude), options=FrozenMap(options)),), name))


PLAIN = Start("", Outline())
INTEGER = PLAIN.idea
"""The first thing to try: what its layers cost and lose decides what comes next."""


def other_ranges(known: Sequence[str]) -> tuple[Start, ...]:
    """Other ways to find the ranges of activations, and biases that take the mean error back: all cheap, and none of them always the
    best (docs/log.md). known: the names of all techniques."""
    percentile: Mapping[str, Any] = FrozenMap({"ranges": "percentile"})
    found = [Start("range by mse", Outline(options=FrozenMap({"ranges": "mse"}))),
             Start("range by percentile", Outline(options=percentile))]
    if "clip" in known:
        found.append(Start("range by layer error", Outline((Step("clip"),))))
    if "bias_correct" in known:
        after = (Step("bias_correct"),)
        found.append(Start("biases corrected", Outline(after=after)))
        found.append(Start("range by percentile, biases corrected", Outline((), percentile, after)))
    return tuple(found)


def corrected(start: Start, known: Sequence[str]) -> tuple[Start, ...]:
    """What mends the loss of an integer model at no cost at run time: equalised layers, smoothed inputs, corrected biases."""
    before = [name for name in ("equalize", "smoothquant") if name in known]
    after = (Step("bias_correct"),) if "bias_correct" in known else ()
    ways = [((), after), *(((name,), ()) for name in before), *(((name,), after) for name in before)]
    words = {"equalize": "equalised", "smoothquant": "smoothed", "bias_correct": "biases corrected"}
    found = {}
    for names, behind in ways:
        new = () if start.base.after else behind  # the start may correct biases already
        label = ", ".join([*filter(None, [start.label]), *(words[name] for name in names), *(words[step.technique] for step in new)])
        base = Outline((*map(Step, names), *start.base.before), start.base.options, start.base.after or behind)
        found[label] = Start(label, base)
    return tuple(each for each in found.values() if each.base != start.base)


def rounded(start: Start, problem: Problem, choice: Choice, known: Sequence[str]) -> tuple[Start, ...]:
    """The same with the weights' rounding learned before ``static`` takes them, for the layers that the choice gives few bits, and each
    with the biases corrected behind it."""
    bits: dict[int, list[str]] = {}
    for unit in problem.units:
        way = unit.offer(choice[unit.name]).way
        if way.integers and not unit.follows:
            bits.setdefault(int(way.options.get("bits", 8)), []).extend(unit.layers)
    if not bits:
        return ()
    least = min(bits)
    found = []
    for name, options in _ROUNDING.items():
        if name in known:
            step = Step(name, tuple(bits[least]), options=FrozenMap({"bits": least, **options}))
            label = ", ".join([*filter(None, [start.label]), f"rounded by {name}"])
            made = Start(label, replace(start.base, before=(*start.base.before, step)))
            found.append(made)
            if "bias_correct" in known and not start.base.after:  # on resnet8 of W4A8 it is worth as much as the better rounding
                found.append(Start(f"{label}, biases corrected", replace(made.base, after=(Step("bias_correct"),))))
    return tuple(found)


def finely_rounded(start: Start, known: Sequence[str], layers: Sequence[str] = ("*",)) -> tuple[Start, ...]:
    """The same with the weights of the layers rounded to 8 bits by what the layers read."""
    names = [name for name in ("gptq", "adaround") if name in known]
    steps = {name: Step(name, tuple(layers), options=FrozenMap({"bits": 8, **_ROUNDING[name]})) for name in names}
    return tuple(Start(", ".join([*filter(None, [start.label]), f"rounded by {name}"]),
                       replace(start.base, before=(*start.base.before, step))) for name, step in steps.items())


def other_ideas(found: Inventory, target: Target, goal: str, *, integer_passed: bool = False) -> tuple[Idea, ...]:
    """Everything that is not full-integer arithmetic: smaller files, packed products, activations quantised as they come.

    integer_passed: whether an integer model is good enough and faster, so that float arithmetic could win nothing but bytes.
    """
    useless = "an integer model passed, and weights that are only stored smaller gain no time" if integer_passed and goal in (
        "latency", "energy") else ""
    stored = [one_step("float16", "float16"), one_step("weight_only", "int8 weights")]
    ideas = [_dynamic(found, target), _packed(found, target), *(replace(idea, skip=useless) for idea in stored)]
    if goal == "size":
        ideas.append(one_step("weight_only", "4-bit weights", bits=4, block=32))
    return tuple(ideas)


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
