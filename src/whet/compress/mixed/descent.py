"""Which choices to evaluate in full: few, for each is a model made and measured. Pure: generators that yield what to try, and are sent
whether it was good enough.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from whet.compress.mixed.problem import Problem, Unit, integers, on_grid
from whet.compress.mixed.program import Point, solve

# Full evaluations at most, by the multiply-accumulates of a sample: each costs a pass over all data, and timing.
_EVALUATIONS = ((50_000_000, 50), (1_000_000_000, 20))
_LEAST_EVALUATIONS = 8
REVERTS = 4


def evaluations(macs: int) -> int:
    """How many full evaluations a model of that size is worth: 50, 20 or 8."""
    return next((count for limit, count in _EVALUATIONS if macs <= limit), _LEAST_EVALUATIONS)


def bisection(count: int) -> Generator[int, bool, None]:
    """Indices of a front, cheapest first: the cheapest, and if that is not good enough, halving towards the first one that is."""
    if not count or (yield 0):
        return
    bad, good = 0, count  # the last one known to be bad, the first one known (or taken) to be good
    while good - bad > 1:
        middle = (bad + good) // 2
        if (yield middle):
            good = middle
        else:
            bad = middle


def reverting(problem: Problem, point: Point, *, most: int = REVERTS) -> Generator[Point, bool, None]:
    """From a choice that was not good enough: the unit that does most harm goes back to its next gentler way, and the rest is solved
    again without doing more harm elsewhere; until it is good enough, or nothing is left to give back.
    """
    fixed: dict[str, str] = {}
    for _ in range(most):
        worst = most_harmful(problem, point.choice, fixed)
        if worst is None:
            return
        fixed[worst.name] = gentler_way(problem, worst, point.choice[worst.name])
        found = solve(problem, point.harm, fixed=fixed)
        if found is None:
            return
        point = found
        if (yield point):
            return


def most_harmful(problem: Problem, choice: Mapping[str, str], fixed: Mapping[str, str] | None = None) -> Unit | None:
    """The unit that has a gentler way left and does most harm with its own weights and the activation that it gives."""
    open_units = [unit for unit in problem.units if unit.name not in (fixed or {}) and not unit.follows
                  and gentler_way(problem, unit, choice[unit.name]) and blame(problem, choice, unit) > 0]
    return max(open_units, key=lambda unit: blame(problem, choice, unit), default=None)


def blame(problem: Problem, choice: Mapping[str, str], unit: Unit) -> float:
    """Harm of the unit's weights and, where it makes or reads them in integers, half of that of the activations beside it."""
    chosen = integers(problem, choice)
    beside = [border.harm for border in problem.borders
              if unit.name in chosen and unit.name in (border.maker, *border.readers) and on_grid(border, chosen)]
    return unit.offer(choice[unit.name]).harm + sum(beside) / 2


def gentler_way(problem: Problem, unit: Unit, way: str) -> str:
    """The next way of the unit that does less harm, activations included; "" where there is none."""
    now = unit.offer(way)
    beside = sum(border.harm for border in problem.borders if unit.name in (border.maker, *border.readers)) / 2
    harms = {offer.way.name: offer.harm + beside * offer.way.integers for offer in unit.offers}
    milder = [name for name, harm in harms.items() if harm < harms[now.way.name]]
    return max(milder, key=lambda name: harms[name], default="")


def worth_trying(points: Sequence[Point], problem: Problem) -> tuple[Point, ...]:
    """The points of a front that change anything: not the one that leaves all layers as they are."""
    weighted = [unit for unit in problem.units if not unit.follows]
    return tuple(point for point in points if any(unit.offer(point.choice[unit.name]).way.technique for unit in weighted))
