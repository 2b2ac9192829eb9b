"""From a choice to a recipe that anyone can read, edit and apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.compress.mixed.problem import Choice, Problem, Way, in_company, integers
from whet.core.document import FrozenMap
from whet.core.recipe import Recipe, Step


@dataclass(frozen=True)
class Outline:
    """A recipe of which only the way of each layer is open: steps before ``static``, its options, and steps after it."""

    before: tuple[Step, ...] = ()
    options: Mapping[str, Any] = FrozenMap()
    after: tuple[Step, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """Everything in integers of 8 bits."""
        return Recipe((*self.before, Step("static", options=FrozenMap(self.options)), *self.after))


def recipe_of(base: Outline, problem: Problem, choice: Choice, name: str = "") -> Recipe:
    """The steps that bring the choice: one step a way, the way of most layers on all of them (``*``) and the rest named."""
    chosen = integers(problem, choice)
    by_way: dict[Way, list[str]] = {}
    for unit in problem.units:
        way = unit.offer(choice[unit.name]).way
        if way.technique and not unit.follows:
            by_way.setdefault(way, []).extend(unit.layers)
    steps = list(base.before)
    steps += [Step(way.technique, tuple(layers), options=way.options) for way, layers in by_way.items() if not way.integers]
    whole = sorted((way for way in by_way if way.integers), key=lambda way: -len(by_way[way]))
    if chosen and whole:
        steps.append(Step("static", exclude=in_float(problem, choice), options=whole[0].options))
        steps += [Step("static", tuple(by_way[way]), options=way.options) for way in whole[1:]]
        steps += base.after
    return Recipe(tuple(steps), name)


def in_float(problem: Problem, choice: Choice) -> tuple[str, ...]:
    """The layers that must be left out of ``static``: those that stay in float, but for those that nobody beside them would make follow."""
    chosen = integers(problem, choice)
    left = [unit for unit in problem.units if unit.name not in chosen and any(offer.way.integers for offer in unit.offers)]
    return tuple(layer for unit in left if not unit.follows or in_company(problem, unit.name, chosen) for layer in unit.layers)


def told(problem: Problem, choice: Choice) -> str:
    """The choice in a few words: "int8, conv1 in float"; "20 layers W4A8, 2 int8"."""
    counts: dict[str, int] = {}
    for unit in problem.units:
        if not unit.follows and unit.offers:
            counts[choice[unit.name]] = counts.get(choice[unit.name], 0) + len(unit.layers)
    if len(counts) == 1:
        return next(iter(counts))
    if set(counts) == {"float32", "int8"}:
        return f"int8, {named(in_float(problem, choice))} in float"
    return ", ".join(f"{count} x {way}" for way, count in sorted(counts.items(), key=lambda each: -each[1]))


_NAME_LENGTH = 40  # of a layer in the name of an idea; exporters write names of 200 letters


def named(names: Sequence[str]) -> str:
    """The first name, with its end if it is long, and how many more there are."""
    first = names[0] if len(names[0]) <= _NAME_LENGTH else "..." + names[0][-_NAME_LENGTH + 3 :]
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"
